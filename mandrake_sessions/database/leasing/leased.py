"""A connection with its queue: short reads, snapshots, and the plain lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TypeVar

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.connection.begin_commit import rollback
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.transaction import ReadTransaction
from mandrake_sessions.database.leasing.queue import LeaseQueue
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.transaction import ReadUnit
from mandrake_sessions.errors import DatabaseError

T = TypeVar("T")
_NONE = apsw.SQLITE_TXN_NONE


class LeasedConnection:
    """A connection with its queue.

    Args:
        connection: the connection to lease.
        check: called first by every new holder; raises if the file is not usable.
        on_unclean: called if a lease is released with an open transaction; the connection must not
            be used again.
        on_fault: called with an error that may keep later calls from writing: damage, no space.

    Attributes:
        is_closed: whether the connection was closed; its lease is never released then.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        check: Callable[[Connection, str], None],
        on_unclean: Callable[..., None],
        on_fault: Callable[[DatabaseError], None],
    ) -> None:
        self.connection = connection
        self.queue: LeaseQueue = LeaseQueue(connection.path)
        self.is_closed = False
        self._check = check
        self._on_unclean = on_unclean
        self._on_fault = on_fault

    def fetch(
        self,
        work: ReadUnit[T],
        budget: Budget,
        operation: str,
        *,
        waits: bool = True,
        even_refused: bool = False,
    ) -> tuple[bool, T | None]:
        """Run reading work outside a transaction: each statement sees what is committed.

        Args:
            work: called with a transaction that reads.
            budget: the budget of the call.
            operation: for errors.
            waits: whether to wait for the connection; otherwise it must be free.
            even_refused: also while new work is refused, for the last reads of the attachment.

        Returns:
            Whether the work has run, and its result.
        """
        thread = get_ident()
        try:
            if waits:
                self.queue.acquire(budget, operation, even_refused=even_refused)
            elif not self.queue.try_acquire(operation, even_refused=even_refused):
                return False, None
            return True, self._fetch(work, budget, operation)
        finally:
            # signal-safe release, inline: a signal at the entry of a function would skip it.
            try:
                if self.queue.holder == thread:
                    self._release()
            finally:
                # signal-safe release
                if self.queue.holder == thread:
                    self._release()

    def _fetch(self, work: ReadUnit[T], budget: Budget, operation: str) -> T:
        connection = self.connection
        self._check(connection, operation)
        connection.deadline = budget.body_deadline
        connection.interruptible = True
        tx = ReadTransaction(connection, budget, operation)
        try:
            return work(tx)
        except BaseException as error:
            if isinstance(error, DatabaseError):
                self._on_fault(error)
            # A signal handler that raises after a statement has run leaves it unfinished.
            rollback(connection)
            raise
        finally:
            tx.end()

    @block
    def snapshot(self, budget: Budget, operation: str) -> Iterator[ReadTransaction]:
        """Hold the lease and one read transaction: all statements see the same state."""
        thread = get_ident()
        try:
            self.queue.acquire(budget, operation)
            connection = self.connection
            self._check(connection, operation)
            connection.deadline = budget.body_deadline
            connection.interruptible = True
            tx = ReadTransaction(connection, budget, operation)
            try:
                connection.execute("BEGIN")
                yield tx
            except DatabaseError as error:
                self._on_fault(error)
                raise
            finally:
                tx.end()
        finally:
            try:
                if self.queue.holder == thread:
                    rollback(self.connection)
                    self._release()
            finally:
                # signal-safe release
                if self.queue.holder == thread:
                    rollback(self.connection)
                    self._release()

    @block
    def exclusive(self, budget: Budget, operation: str) -> Iterator[Connection]:
        """Hold the lease without a transaction, for migrations, WAL checkpoints and the like."""
        thread = get_ident()
        try:
            self.queue.acquire(budget, operation)
            self._check(self.connection, operation)
            self.connection.deadline = budget.body_deadline
            self.connection.interruptible = True
            yield self.connection
        except BaseException:
            # A signal handler that raises between BEGIN and COMMIT must not have the file retired.
            if self.queue.holder == thread:
                rollback(self.connection)
            raise
        finally:
            try:
                if self.queue.holder == thread:
                    self._release()
            finally:
                # signal-safe release
                if self.queue.holder == thread:
                    self._release()

    def _release(self) -> None:
        """Release the lease; retire a connection with an open transaction."""
        connection = self.connection
        try:
            # Only txn_state shows an unfinished SELECT, only in_transaction an empty BEGIN.
            is_open = connection.raw.in_transaction or connection.txn_state() != _NONE
            if is_open and not connection.is_forked:
                rollback(connection)
                self._on_unclean(
                    "a transaction was open when its lease was released",
                    operation=self.queue.operation,
                    recent_sql=connection.recent_sql(),
                )
        finally:
            self.queue.release()
