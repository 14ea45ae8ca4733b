"""A holder's access to a pooled database."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.callers import caller_outside
from mandrake_sessions.concurrency.fork import current_pid
from mandrake_sessions.concurrency.reentry import is_unforeseen
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.open_file.stats import database_stats
from mandrake_sessions.database.pool.late_parts import importing
from mandrake_sessions.database.pool.pins import Pin, Pinned
from mandrake_sessions.database.pool.slots import Slot, SlotState
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.health import HealthLevel, HealthReport, level_of
from mandrake_sessions.engine.protocols import FileParkedError
from mandrake_sessions.engine.stats import DatabaseStats
from mandrake_sessions.errors import ForkedPoolError, HandleReleasedError
from mandrake_sessions.options import DatabaseOptions

if TYPE_CHECKING:
    import sqlalchemy

T = TypeVar("T")


class DatabaseHandle(Resource):
    """One holder's access to an open database, which stays open as long as it has a handle.

    If too many files are open, a file that no thread uses is closed nevertheless; the handle opens
    it again at its next use (see ``PoolOptions.max_open``).

    Made by ``ConnectionPool.acquire``. Methods that read or write rows take a ``timeout`` in
    seconds, the budget of the call, and raise ``DatabaseBusyError`` when it is used up; None means
    the ``busy_timeout`` of the database. Methods raise ``HandleReleasedError`` after ``release()``,
    ``ForkedPoolError`` in a forked child, and ``DatabaseMovedError`` if the path leads to another
    file than the opened one.
    """

    def __init__(
        self,
        slot: Slot,
        give_back: Callable[[Slot, Hashable], None],
        forget: Callable[[Slot, Hashable], None],
        reopen: Callable[[Slot, Budget, str, object], DatabaseFile],
        *,
        at: str,
        reference: threading.Lock,
    ) -> None:
        super().__init__()
        self._slot = slot
        self._give_back = give_back
        self._forget = forget
        self._reopen = reopen
        self._acquired_at = at
        self._pid = current_pid()
        self._is_released = False
        # The reference to the file; the thread that gets this lock releases it, once.
        self._release = reference
        slot.references.add(reference)

    @property
    def path(self) -> Path:
        """The real path of the database file."""
        return self._slot.path

    @property
    def options(self) -> DatabaseOptions:
        """The options with which the database was opened."""
        return self._file.options

    @property
    def _file(self) -> DatabaseFile:
        """The open file, or the one that was open until it was parked."""
        file = self._slot.file
        assert file is not None
        return file

    def _pinned(self, timeout: float | None, operation: str) -> Pin:
        """Keep the file open for a block; lend it, with the seconds that are left."""
        return Pin(self._pin, self._unpin, timeout, operation)

    def _pin(self, timeout: float | None, operation: str, key: object) -> Pinned:
        file = self._open_file()
        try:
            file.pin(key)
        except FileParkedError:
            seconds = file.options.busy_timeout if timeout is None else timeout
            budget = FileBudget(arguments.seconds("timeout", seconds))
        else:
            return file, timeout
        return self._reopen(self._slot, budget, operation, key), budget.left()

    def _unpin(self, key: object) -> None:
        # It is the same file as long as it is pinned.
        self._file.unpin(key)

    def _require_mine(self, parked: FileParkedError) -> None:
        """Raise the error again if it is of another database, which ``work`` uses."""
        if parked.path != self._slot.path:
            raise parked

    @block
    def sqlalchemy(
        self, timeout: float | None = None, *, read_only: bool = False
    ) -> Iterator[sqlalchemy.Connection]:
        """Lend a SQLAlchemy connection for a block: one lease, one transaction.

        Leaving the block commits, an exception rolls back. An ORM session bound to it must end
        inside the block.

        Args:
            timeout: seconds for the queue, BEGIN and the block.
            read_only: whether to use the connection that only reads, so that no writer waits.
        """
        arguments.flag("read_only", read_only)
        with importing(self.path):
            from mandrake_sessions.database.connection.dialect import lend

        operation = f"sqlalchemy() at {caller_outside()}"
        with self._pinned(timeout, operation) as (file, left):
            budget = file.budget(left)
            lease = file.exclusive_auxiliary if read_only else file.exclusive
            with (
                lease(operation, budget) as connection,
                lend(connection, budget, operation) as lent,
            ):
                yield lent

    def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> Path:
        """Copy the database to a new file while work goes on, and verify the copy.

        Args:
            target: the file to make; its folder must exist.
            overwrite: whether an existing file is replaced.
            timeout: seconds.

        Returns:
            The path of the copy.

        Raises:
            BackupError: the target exists, or the copy did not pass its check; no copy is left.
        """
        arguments.flag("overwrite", overwrite)
        target = arguments.path("target", target)
        with importing(self.path):
            from mandrake_sessions.database.connection.backup import back_up

        with self._pinned(timeout, "backup") as (file, left):
            budget = file.budget(left)
            return back_up(
                lambda: file.exclusive_auxiliary("backup", budget),
                file.path,
                Path(target),
                budget,
                overwrite=overwrite,
                is_ended=lambda: file.is_refusing or file.state is FileState.CLOSED,
            )

    def health(
        self, level: HealthLevel = HealthLevel.QUICK, timeout: float | None = None
    ) -> HealthReport:
        """Check the database without changing it.

        Args:
            level: the checks to run; ``QUICK`` takes about a millisecond.
            timeout: seconds that the checks of ``THOROUGH`` and ``FULL`` may take; None for ten
                minutes.

        Returns:
            The report, also for a file that is gone or damaged.

        Raises:
            PoolClosedError: the pool is closed.
        """
        level, seconds = level_of(level), timeout
        if seconds is not None:
            seconds = arguments.seconds("timeout", seconds)
        with importing(self.path):
            from mandrake_sessions.database.health.levels import check_health

        try:
            return check_health(self._open_file(), level, seconds)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(None, "health") as (file, _):
            return check_health(file, level, seconds)

    def stats(self) -> DatabaseStats:
        """Return the figures of the open file; a parked file has its last figures."""
        return database_stats(self._open_file())

    def release(self) -> None:
        """Release the handle; the file closes some time after its last handle is released.

        Raises:
            HandleReleasedError: it was released before.
        """
        try:
            if not self._release.acquire(blocking=False):
                raise HandleReleasedError(path=self.path, operation="release")
            self._return_reference()
        except Exception:
            raise
        except BaseException:
            # signal-safe release: a step that was done may be repeated.
            if self._release.locked():
                self._is_released = True
                self._forget(self._slot, self._release)
            raise

    def _return_reference(self) -> None:
        self._is_released = True
        # In a forked child the reference is the parent's, so there is none to drop.
        if self._pid != current_pid():
            return
        if is_unforeseen():
            self._forget(self._slot, self._release)
        else:
            self._give_back(self._slot, self._release)

    def _open_file(self) -> DatabaseFile:
        if self._pid != current_pid():
            raise ForkedPoolError(path=self.path)
        if self._is_released:
            raise HandleReleasedError(path=self.path)
        return self._slot.file  # type: ignore[return-value]  # there is one while there are handles

    def _on_left(self) -> None:
        if not self._is_released:
            self.release()

    def __del__(self) -> None:
        # The handle may be incomplete, or a signal may have interrupted its release.
        reference = getattr(self, "_release", None)
        if (
            reference is None
            or reference not in self._slot.references
            or self._pid != current_pid()
        ):
            return
        if self._slot.state is SlotState.GONE:
            # The pool was closed, as at a shutdown, so the file is not left open.
            return
        self._forget(self._slot, self._release)
        if self._is_released:
            return
        warnings.warn(
            f"A database handle was never released; it was acquired at {self._acquired_at}.",
            ResourceWarning,
            source=self,
            stacklevel=1,
        )
