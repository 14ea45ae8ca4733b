"""One holder's claim on a pooled database: what the layers above work with."""

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
from mandrake_sessions.database.health.levels import check_health
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.open_file.stats import database_stats
from mandrake_sessions.database.pool.pins import Pin, Pinned
from mandrake_sessions.database.pool.slots import Slot, SlotState
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.health import HealthLevel, HealthReport, level_of
from mandrake_sessions.engine.protocols import FileParkedError
from mandrake_sessions.engine.stats import DatabaseStats
from mandrake_sessions.errors import ForkedPoolError, HandleReleasedError
from mandrake_sessions.late_imports import late_import
from mandrake_sessions.options import DatabaseOptions

if TYPE_CHECKING:
    import sqlalchemy

T = TypeVar("T")


class DatabaseHandle(Resource):
    """A claim on an open database, which stays open as long as there is one.

    Where more files are open than may be, one that nobody works with is closed all the same; the
    handle opens it again when it is used (see ``PoolOptions.max_open``).

    Made by ``ConnectionPool.acquire``. What reads or writes rows takes a ``timeout`` in seconds,
    the budget of the call, and raises ``DatabaseBusyError`` when it is used up; None means the
    ``busy_timeout`` of the database. Methods raise ``HandleReleasedError`` after ``release()``,
    ``ForkedPoolError`` in a forked child, ``DatabaseMovedError`` when the file is not the one
    that was opened.
    """

    def __init__(
        self,
        slot: Slot,
        give_back: Callable[[Slot, Hashable], None],
        forget: Callable[[Slot, Hashable], None],
        reopen: Callable[[Slot, Budget, str, object], DatabaseFile],
        *,
        at: str,
        claim: threading.Lock,
    ) -> None:
        super().__init__()
        self._slot = slot
        self._give_back = give_back
        self._forget = forget
        self._reopen = reopen
        self._acquired_at = at
        self._pid = current_pid()
        self._is_released = False
        # Our claim on the file; whoever gets this lock gives it back, once.
        self._release = claim
        slot.claims.add(claim)

    @property
    def path(self) -> Path:
        """The real path of the database file."""
        return self._slot.path

    @property
    def options(self) -> DatabaseOptions:
        """How the database was opened."""
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
        """Make sure that it is this database that gave way, and not one that ``work`` uses."""
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
            read_only: use the connection that only reads, so that no writer waits.
        """
        arguments.flag("read_only", read_only)
        with late_import:
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
            overwrite: whether a file that is there is replaced.
            timeout: seconds.

        Returns:
            The path of the copy.

        Raises:
            BackupError: the target exists, or the copy did not pass its check; nothing is left.
        """
        from mandrake_sessions.database.connection.backup import back_up

        arguments.flag("overwrite", overwrite)
        target = arguments.path("target", target)
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
        """Look at the database without changing it.

        Args:
            level: how far to look; ``QUICK`` takes about a millisecond.
            timeout: seconds that the checks of ``THOROUGH`` and ``FULL`` may take; None for ten
                minutes.

        Returns:
            What was found, also where the file is gone or damaged.

        Raises:
            PoolClosedError: the pool is closed.
        """
        level, seconds = level_of(level), timeout
        if seconds is not None:
            seconds = arguments.seconds("timeout", seconds)
        try:
            return check_health(self._open_file(), level, seconds)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(None, "health") as (file, _):
            return check_health(file, level, seconds)

    def stats(self) -> DatabaseStats:
        """Return the figures of the open file; those of a parked one are from before."""
        return database_stats(self._open_file())

    def release(self) -> None:
        """Give the claim back; the file closes some time after the last one.

        Raises:
            HandleReleasedError: it was released before.
        """
        try:
            if not self._release.acquire(blocking=False):
                raise HandleReleasedError(path=self.path, operation="release")
            self._return_claim()
        except Exception:
            raise
        except BaseException:
            # A signal in the midst of it. What was done already may be done again.
            if self._release.locked():
                self._is_released = True
                self._forget(self._slot, self._release)
            raise

    def _return_claim(self) -> None:
        self._is_released = True
        # In a forked child the claim was the parent's: there is nothing to give back.
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
        # It may be half made, and a signal may have ended its release.
        claim = getattr(self, "_release", None)
        if claim is None or claim not in self._slot.claims or self._pid != current_pid():
            return
        if self._slot.state is SlotState.GONE:
            # The pool was closed under it, as at a shutdown: nothing is left open.
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
