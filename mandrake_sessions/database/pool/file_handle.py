"""A handle for the layers above: reads, units, claims, pins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from mandrake_sessions.concurrency.blocks import Block, block
from mandrake_sessions.database.connection.transaction import ReadTransaction, WriteTransaction
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.pins import PinnedScope
from mandrake_sessions.engine.attachment import Attachment
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.protocols import FileParkedError
from mandrake_sessions.engine.transaction import ReadUnit, WriteUnit
from mandrake_sessions.engine.waiters import BatchSource

T = TypeVar("T")


class FileHandle(DatabaseHandle):
    """The class behind ``ConnectionPool.acquire``; it implements ``engine.protocols.Handle``.

    Methods that read or write rows take a ``timeout`` in seconds, the budget of the call, and raise
    ``DatabaseBusyError`` when it is used up; None means the ``busy_timeout`` of the database.
    """

    @property
    def file(self) -> DatabaseFile:
        """The open file; only a ``pinned`` file is certain to stay open."""
        file = self._open_file()
        if file.is_parked:
            with self.pinned() as file:
                return file
        return file

    @property
    def attachment(self) -> Attachment | None:
        """The object of the layers above that lives with the open file; None if there is none."""
        return self._file.attachment

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the open file, None before the claim."""
        return self._file.owner

    def give_up(self, thread: int) -> None:
        """End a thread's wait to write, as at its deadline; running work is not stopped."""
        self._file.writer.give_up(thread)

    def fetch(self, work: ReadUnit[T], operation: str = "fetch", timeout: float | None = None) -> T:
        """Run a short read and return its result; each statement sees the last commit.

        Args:
            work: called with a transaction that reads, in this thread.
            operation: names it in errors.
            timeout: seconds for the queue and the work.
        """
        try:
            return self._open_file().fetch(work, operation, timeout)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(timeout, operation) as (file, left):
            return file.fetch(work, operation, left)

    def query(self, work: ReadUnit[T], operation: str = "query", timeout: float | None = None) -> T:
        """Run a long read in one snapshot, for which no writer waits; otherwise as ``fetch``."""
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
        claims: bool = False,
        batch: BatchSource | None = None,
    ) -> T:
        """Run a unit that writes, and return its result once it is committed.

        It may share its COMMIT with waiting units, and is called again if that transaction was
        lost; so it must do database work only.

        Args:
            work: called with the open transaction; in this thread, unless it is delegable.
            operation: names it in errors.
            timeout: seconds for the queue, BEGIN and the work.
            delegable: whether the thread that holds the lease may run it for this one. Only for
                work that takes no lock of its own: that thread's caller could hold it.
            claims: whether this process must claim the file before.
            batch: gives further units for the same COMMIT.

        Raises:
            DatabaseBusyError: the budget was used up; no change was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored the changes.
        """
        try:
            file = self._open_file()
            if claims and file.owner is None:
                file.claim()
            return file.transact(work, operation, timeout, delegable=delegable, batch=batch)
        except FileParkedError as parked:
            self._require_mine(parked)
        with self._pinned(timeout, operation) as (file, left):
            if claims:
                file.claim()
            return file.transact(work, operation, left, delegable=delegable, batch=batch)

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now."""
        return self._file.budget(timeout)

    def claim(self) -> str:
        """Return the id of this process's claim on the file; the first call makes the claim.

        The claim holds as long as the file is open, which is certain in a scope or while pinned.
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
        """Lend a write transaction with a COMMIT of its own for a block; else as ``transact``."""
        file, pin = self._open_file(), self._pinned(timeout, "write")
        return PinnedScope(file, pin, timeout, DatabaseFile.write_scope)

    @block
    def pinned(
        self, operation: str = "open", timeout: float | None = None
    ) -> Iterator[DatabaseFile]:
        """Keep the file open for a block, and lend it: for streams, watchers and claims.

        Args:
            operation: for errors.
            timeout: seconds that opening a parked file may take.
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

    def require_writable(self) -> None:
        """Raise an error if the database is known to take no writes; the file is not checked.

        Raises:
            ReadOnlyDatabaseError: it was opened with ``read_only``, or cannot be written.
            DatabaseError: another reason why it refuses writes.
        """
        self._open_file().refusal.require_writable()


def file_handle(handle: DatabaseHandle) -> FileHandle:
    """Return a handle with the type for the layers above."""
    assert isinstance(handle, FileHandle)
    return handle
