"""One holder's claim on a pooled database: what the layers above work with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.database.file import DatabaseFile, FileState
from mandrake_sessions.database.guard import caller_outside, current_pid
from mandrake_sessions.database.health import HealthReport, check_health
from mandrake_sessions.database.stats import DatabaseStats, database_stats
from mandrake_sessions.database.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import ForkedPoolError, HandleReleasedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy

T = TypeVar("T")


class DatabaseHandle:
    """A claim on an open database; the file stays open as long as there is one.

    Made by ``ConnectionPool.acquire``. Every method takes a ``timeout`` in seconds, the budget of
    the call; None means the database's ``busy_timeout``. Methods raise ``HandleReleasedError``
    after ``release()``, ``ForkedPoolError`` in a forked child, ``DatabaseMovedError`` when the
    file is not the one that was opened.
    """

    def __init__(
        self, file: DatabaseFile, give_back: Callable[[], None], forget: Callable[[], None], at: str
    ) -> None:
        self._file = file
        self._give_back = give_back
        self._forget = forget
        self._acquired_at = at
        self._pid = current_pid()
        self._is_released = False

    @property
    def path(self) -> Path:
        """The real path of the database file."""
        return self._file.path

    @property
    def file(self) -> DatabaseFile:
        """The open file itself, for what lives as long as it is open: streams and watchers."""
        return self._open_file()

    def fetch(self, work: ReadUnit[T], operation: str = "fetch", timeout: float | None = None) -> T:
        """Run a short read and return its result; each statement sees what is committed."""
        return self._open_file().fetch(work, operation, timeout)

    def query(self, work: ReadUnit[T], operation: str = "query", timeout: float | None = None) -> T:
        """Run a long read in one snapshot and return its result; no writer waits for it."""
        return self._open_file().read(work, operation, timeout)

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
        return self._open_file().transact(work, operation, timeout, delegable=delegable)

    def read(self, timeout: float | None = None) -> AbstractContextManager[ReadTransaction]:
        """Lend a snapshot for a block."""
        return self._open_file().read_scope(timeout)

    def write(self, timeout: float | None = None) -> AbstractContextManager[WriteTransaction]:
        """Lend a write transaction for a block; it commits alone when the block ends."""
        return self._open_file().write_scope(timeout)

    @contextmanager
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
        from mandrake_sessions.database.dialect import lend

        file = self._open_file()
        budget = file.budget(timeout)
        operation = f"sqlalchemy() at {caller_outside()}"
        lease = file.exclusive_auxiliary if read_only else file.exclusive
        with lease(operation, budget) as connection, lend(connection, budget, operation) as lent:
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
        from mandrake_sessions.database.backup import backup

        arguments.flag("overwrite", overwrite)
        arguments.path("target", target)
        file = self._open_file()
        budget = file.budget(timeout)
        with file.exclusive_auxiliary("backup", budget) as connection:
            return backup(connection, Path(target), budget, overwrite=overwrite)

    def health(self) -> HealthReport:
        """Look at the database without changing it, in about a millisecond."""
        return check_health(self._open_file())

    def stats(self) -> DatabaseStats:
        """Return the figures of the open file."""
        return database_stats(self._open_file())

    def release(self) -> None:
        """Give the claim back; the file closes some time after the last one.

        Raises:
            HandleReleasedError: it was released before.
        """
        if self._is_released:
            raise HandleReleasedError(path=self.path, operation="release")
        self._is_released = True
        # In a forked child the claim was the parent's: there is nothing to give back.
        if self._pid == current_pid():
            self._give_back()

    def _open_file(self) -> DatabaseFile:
        if self._pid != current_pid():
            raise ForkedPoolError(path=self.path)
        if self._is_released:
            raise HandleReleasedError(path=self.path)
        return self._file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_released:
            self.release()

    def __del__(self) -> None:
        if getattr(self, "_is_released", True) or self._pid != current_pid():
            return
        self._is_released = True
        if self._file.state is FileState.CLOSED:
            # The pool was closed under it, as at a shutdown: nothing is left open.
            return
        self._forget()
        warnings.warn(
            f"A database handle was never released; it was acquired at {self._acquired_at}.",
            ResourceWarning,
            source=self,
            stacklevel=1,
        )
