"""One holder's claim on a pooled database: what the layers above work with."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.database.blocks import Block, block
from mandrake_sessions.database.companion import Companion
from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.guard import caller_outside, current_pid
from mandrake_sessions.database.health.levels import check_health
from mandrake_sessions.database.health.report import HealthLevel, HealthReport, level_of
from mandrake_sessions.database.lease import Bring
from mandrake_sessions.database.lifecycle import FileState
from mandrake_sessions.database.parking import FileParkedError
from mandrake_sessions.database.pins import Pin, Pinned, PinnedScope
from mandrake_sessions.database.resources import Resource
from mandrake_sessions.database.slots import Slot, SlotState
from mandrake_sessions.database.stats import DatabaseStats, database_stats
from mandrake_sessions.database.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.database.unforeseen import is_unforeseen
from mandrake_sessions.database.waiting import Budget
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
    def file(self) -> DatabaseFile:
        """The open file itself; it stays open for certain only while it is ``pinned``."""
        file = self._open_file()
        if file.is_parked:
            with self.pinned() as file:
                return file
        return file

    @property
    def companion(self) -> Companion | None:
        """What the layers above keep with the open file; None where nothing is open."""
        return self._file.companion

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the open file, None before it has."""
        return self._file.owner

    def give_up(self, thread: int) -> None:
        """Have a thread stop waiting to write, as at its deadline; what it runs is not stopped."""
        self._file.writer.give_up(thread)

    @property
    def _file(self) -> DatabaseFile:
        """The open file, or the one that was open until it was parked."""
        file = self._slot.file
        assert file is not None
        return file

    def fetch(self, work: ReadUnit[T], operation: str = "fetch", timeout: float | None = None) -> T:
        """Run a short read and return its result; each statement sees what is committed.

        Args:
            work: called with what reads, in this thread.
            operation: names it in errors.
            timeout: seconds for the queue and the work.
        """
        arguments.function("work", work)
        try:
            return self._open_file().fetch(work, operation, timeout)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(timeout, operation) as (file, left):
            return file.fetch(work, operation, left)

    def query(self, work: ReadUnit[T], operation: str = "query", timeout: float | None = None) -> T:
        """Run a long read in one snapshot, which no writer waits for; otherwise as ``fetch``."""
        arguments.function("work", work)
        try:
            return self._open_file().read(work, operation, timeout)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(timeout, operation) as (file, left):
            return file.read(work, operation, left)

    def transact(
        self,
        work: WriteUnit[T],
        operation: str = "transact",
        timeout: float | None = None,
        *,
        delegable: bool = False,
    ) -> T:
        """Run a unit of writing work and return its result once it is committed.

        It may share its COMMIT with units that wait for it, and is called again if that
        transaction was lost; so it does database work only.

        Args:
            work: called with the open transaction; in this thread, unless it is delegable.
            operation: names it in errors.
            timeout: seconds for the queue, BEGIN and the work.
            delegable: whether the thread that holds the lease may run it for this one. Only for
                work that takes no lock of its own: that thread's caller could hold it.

        Raises:
            DatabaseBusyError: the budget was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        arguments.function("work", work)
        return self.transact_for_others(work, operation, timeout, delegable=delegable)

    def transact_for_others(
        self,
        work: WriteUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        delegable: bool = False,
        claims: bool = False,
        bring: Bring | None = None,
    ) -> T:
        """Do what ``transact`` does for a layer above, which has more to say about its work.

        Args:
            work: as there.
            operation: names it in errors.
            timeout: seconds for the queue, BEGIN and the work.
            delegable: as there.
            claims: whether this process's claim on the file must be made before.
            bring: gives further work of this thread's callers for the same COMMIT.
        """
        try:
            file = self._open_file()
            if claims and file.owner is None:
                file.claim()
            return file.transact(work, operation, timeout, delegable=delegable, bring=bring)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(timeout, operation) as (file, left):
            if claims:
                file.claim()
            return file.transact(work, operation, left, delegable=delegable, bring=bring)

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now."""
        return self._file.budget(timeout)

    def claim(self) -> str:
        """Return the id of this process's claim on the file, which is made the first time.

        It holds as long as the file is open: for certain inside a scope, or while it is pinned.
        """
        try:
            return self._open_file().claim()
        except FileParkedError as parked:
            self._require_mine(parked)
        with self.pinned("claim") as file:
            return file.claim()

    def read(self, timeout: float | None = None) -> Block[ReadTransaction]:
        """Lend a snapshot for a block, with ``timeout`` seconds for the queue and the block."""
        file, pin = self._open_file(), self._pinned(timeout, "read")
        return PinnedScope(file, pin, timeout, DatabaseFile.read_scope)

    def write(self, timeout: float | None = None) -> Block[WriteTransaction]:
        """Lend a write transaction for a block, which commits alone; else as ``transact``."""
        file, pin = self._open_file(), self._pinned(timeout, "write")
        return PinnedScope(file, pin, timeout, DatabaseFile.write_scope)

    @block
    def pinned(
        self, operation: str = "open", timeout: float | None = None
    ) -> Iterator[DatabaseFile]:
        """Keep the file open for a block, and lend it: for streams, watchers and claims.

        Args:
            operation: for errors.
            timeout: seconds that opening it may take, where it gave way to others.
        """
        with self._pinned(timeout, operation) as (file, _):
            yield file

    def pin_now(self, key: object) -> DatabaseFile:
        """Keep the file open until its ``unpin(key)``; does not wait.

        Args:
            key: for ``unpin``.

        Raises:
            FileParkedError: it is not open; ``pinned`` opens it.
        """
        file = self._open_file()
        file.pin(key)
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
            budget = Budget(arguments.seconds("timeout", seconds))
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
            from mandrake_sessions.database.dialect import lend

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
        from mandrake_sessions.database.backup import back_up

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

    def require_writable(self) -> None:
        """Make sure that the database takes writes, as far as is known; it is not looked at.

        Raises:
            ReadOnlyDatabaseError: it was opened to be read only, or cannot be written.
            DatabaseError: what else it refuses writes for.
        """
        self._open_file().refusal.require_writable()

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
