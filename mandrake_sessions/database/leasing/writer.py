"""Runs units and blocks on the read-write connection: one lease, one transaction.

A thread that finds others waiting after its own unit runs their units too, each behind a savepoint,
and commits once for all. No call returns before the COMMIT::

    thread A   lease ─ BEGIN ─ A's work ─ (savepoint) B's work ─ C's work ─ COMMIT ─ returns
    thread B   queue ............................................................... returns
    thread C   queue ............................................................... returns

Only the library's own units run in another thread. Code of a host could need a lock that its caller
holds, so it runs in its caller's thread, as the first unit of a transaction. A thread that works
for many callers (that of the asyncio face) batches their further units. These run behind savepoints
too, but no thread waits in the queue for them.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import get_ident
from time import monotonic
from typing import TypeVar

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.reentry import is_of_a_handler
from mandrake_sessions.database.connection.begin_commit import (
    begin_immediate,
    begin_unmarked,
    commit,
    rollback,
)
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.transaction import WriteTransaction
from mandrake_sessions.database.files.turnstile import Turnstile
from mandrake_sessions.database.files.wal_index import WalIndex
from mandrake_sessions.database.leasing.leased import LeasedConnection
from mandrake_sessions.database.leasing.queue import Group
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.transaction import WriteUnit
from mandrake_sessions.engine.waiters import BatchSource, Waiter
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    ConstraintViolationError,
    DatabaseError,
    TransactionLostError,
)
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")

_REPLAYS = 2
_WAIT_FOR_COMPANY = 0.001


class WriterConnection(LeasedConnection):
    """The read-write connection, whose transactions may be shared.

    Args:
        connection: the connection to lease.
        options: give the limits of groups.
        index: the index of the WAL; the write lock is in it.
        check: called first by every new holder; raises if the file is not usable.
        check_write: called instead by a holder that is going to write.
        on_unclean: called if a lease is released with an open transaction; the connection must not
            be used again.
        on_fault: called with an error that may keep later calls from writing: damage, no space.
        on_commit: called after each COMMIT, with the lease still held.
    """

    def __init__(
        self,
        connection: Connection,
        options: DatabaseOptions,
        index: WalIndex,
        *,
        check: Callable[[Connection, str], None],
        check_write: Callable[[Connection, str, Budget], None],
        on_unclean: Callable[..., None],
        on_fault: Callable[[DatabaseError], None],
        on_commit: Callable[[], None],
    ) -> None:
        super().__init__(connection, check=check, on_unclean=on_unclean, on_fault=on_fault)
        self._check_write = check_write
        self._options = options
        self._on_commit = on_commit
        self.turnstile: Turnstile = Turnstile(connection.path, index)
        self._beginning = threading.Lock()
        self._is_beginning = False
        # How many other threads shared the last COMMIT.
        self._company = 0
        self.commits: int = 0
        self.units: int = 0
        self.replays: int = 0

    def transact(
        self,
        work: WriteUnit[T],
        budget: Budget,
        operation: str,
        *,
        delegable: bool = True,
        even_refused: bool = False,
        batch: BatchSource | None = None,
        replays: int = _REPLAYS,
    ) -> T:
        """Run work as a unit and return its result once it is committed.

        Args:
            work: may be called again if the transaction it shared was lost.
            budget: for the queue, BEGIN and the body.
            operation: for errors.
            delegable: whether the thread that holds the lease may run it for this one.
            even_refused: also while new work is refused, for the last writes of the attachment.
            batch: gives further units once the transaction is open; not called if another thread
                has run ``work``, nor at the last try.
            replays: how often the work may run again after its transaction was lost; the last time
                it runs in a transaction of its own.

        Raises:
            TransactionLostError: SQLite ended its transaction each time.
        """
        connection = self.connection
        thread = get_ident()
        group: Group | None = None
        try:
            waiter = self.queue.acquire(
                budget,
                operation,
                work=work if delegable and replays else None,
                even_refused=even_refused,
            )
            if waiter is not None:
                done: T = waiter.outcome()
                return done
            if batch is None and self._company:
                self._wait_for_company()
            self._check_write(connection, operation, budget)
            self._begin(budget, operation)
            result = self._run(work, budget, operation)
            self.units += 1
            if replays and (batch is not None or self.queue.waiting):
                self._require_whole_references(operation)
                group = Group(self._options.group_max_units, self._options.group_max_seconds)
                self._run_for_others(group, batch)
            try:
                self._commit(operation, group)
            except CommitOutcomeUnknownError as error:
                error.result = result
                raise
            return result
        except BaseException as error:
            try:
                self._end(error, thread, operation, group)
            except BaseException:
                # signal-safe release, of the lease and of the group's members
                self._end(error, thread, operation, group)
                raise
            if not replays or not isinstance(error, TransactionLostError):
                raise
        self.replays += 1
        return self.transact(
            work,
            budget,
            operation,
            delegable=delegable,
            even_refused=even_refused,
            batch=batch,
            replays=replays - 1,
        )

    def give_up(self, thread: int) -> None:
        """End a thread's wait, in the queue or for another process, as at its deadline.

        Only for a thread whose work has not begun: running work is not stopped.
        """
        if not self.queue.give_up(thread):
            with self._beginning:
                if self._is_beginning and self.queue.holder == thread:
                    self.connection.deadline = 0.0

    def _wait_for_company(self) -> None:
        """Wait up to 1 ms for the threads of the last COMMIT, so that they share this one.

        These threads are awake and prepare their next units. If this thread begins at once, each of
        them takes the interpreter between two of its statements.
        """
        until = monotonic() + _WAIT_FOR_COMPANY
        for _ in range(self._company):
            if self.queue.waiting >= self._company or monotonic() >= until:
                return
            time.sleep(0)

    def _begin(self, budget: Budget, operation: str) -> None:
        """Begin the transaction; ``give_up`` may end the wait for other processes."""
        self._is_beginning = True
        try:
            begin_immediate(self.connection, budget, operation, self.turnstile)
        finally:
            # Under the mutex: a deadline that is set after this is that of the work.
            with self._beginning:
                self._is_beginning = False

    def _run(self, work: WriteUnit[T], budget: Budget, operation: str) -> T:
        """Run one unit's work in the open transaction."""
        tx = WriteTransaction(self.connection, budget, operation)
        try:
            result = work(tx)
        finally:
            tx.end()
        if not self.connection.raw.in_transaction:
            raise TransactionLostError(path=self.connection.path, operation=operation)
        return result

    def _run_for_others(self, group: Group, batch: BatchSource | None) -> None:
        """Run the units of the batch and of the queue, as long as the group takes them.

        Raises:
            TransactionLostError: SQLite ended the transaction; all its units are undone.
        """
        while not group.is_full and (waiter := self._next_work(group, batch)) is not None:
            try:
                self._run_for(waiter)
            except Exception as error:
                if is_of_a_handler(error):
                    # A signal handler's error is for this caller; other threads run their own units
                    # again.
                    raise
                waiter.failure = error
                if isinstance(error, DatabaseError):
                    self._on_fault(error)
                if not self._undo_to_savepoint():
                    lost = TransactionLostError(
                        path=self.connection.path, operation=waiter.operation
                    )
                    raise lost from error

    def _next_work(self, group: Group, batch: BatchSource | None) -> Waiter | None:
        """Move the next unit, or the first waiter of the queue, into the group."""
        unit = None if batch is None else batch()
        if unit is None:
            return self.queue.take_work(group)
        group.members.append(unit)
        return unit

    def _run_for(self, waiter: Waiter) -> None:
        connection = self.connection
        connection.deadline = waiter.budget.body_deadline
        # An interrupted statement would end the transaction of all units.
        connection.interruptible = False
        connection.execute("SAVEPOINT unit")
        assert waiter.work is not None
        assert waiter.context is not None
        waiter.result = waiter.context.run(self._run, waiter.work, waiter.budget, waiter.operation)
        self._require_whole_references(waiter.operation)
        connection.execute("RELEASE unit")
        self.units += 1

    def _require_whole_references(self, operation: str) -> None:
        """Raise for a broken deferred reference, which would fail the COMMIT of all units."""
        if self.connection.has_broken_references():
            raise ConstraintViolationError(
                "FOREIGN KEY constraint failed", path=self.connection.path, operation=operation
            )

    @block
    def scope(self, budget: Budget, operation: str) -> Iterator[WriteTransaction]:
        """Hold the lease and one write transaction, which commits at the end of the block."""
        connection = self.connection
        thread = get_ident()
        try:
            self.queue.acquire(budget, operation)
            self._check_write(connection, operation, budget)
            begin_immediate(connection, budget, operation, self.turnstile)
            tx = WriteTransaction(connection, budget, operation)
            try:
                yield tx
            finally:
                tx.end()
            self.units += 1
            self._commit(operation)
        except BaseException as error:
            try:
                self._end(error, thread, operation)
            except BaseException:
                self._end(error, thread, operation)
                raise
            raise

    @block
    def alone(self, budget: Budget, operation: str) -> Iterator[None]:
        """Hold the lease and an empty write transaction: no process writes meanwhile."""
        with self.exclusive(budget, operation) as connection:
            try:
                begin_unmarked(connection, budget, operation, self.turnstile)
                yield
            finally:
                try:
                    rollback(connection)
                    self.turnstile.leave()
                finally:
                    # signal-safe release: an open transaction would have the file retired.
                    rollback(connection)
                    self.turnstile.leave()

    def _commit(self, operation: str, group: Group | None = None) -> None:
        """Commit for every unit of the group, and release the lease."""
        try:
            commit(self.connection, operation)
            if group is not None:
                # At once: an interruption after this does not change that it is committed.
                group.decide(None)
        except DatabaseError as error:
            self._on_fault(error)
            self._release_and_settle(group, error)
            raise
        except BaseException:
            # A signal, before or after the COMMIT: the transaction may still be open, and units
            # that may be stored must not run again.
            rollback(self.connection)
            unknown = CommitOutcomeUnknownError(path=self.connection.path, operation=operation)
            self._release_and_settle(group, unknown)
            raise
        self.commits += 1
        self._company = 0 if group is None else len(group.members)
        self._on_commit()
        self._release_and_settle(group, None)

    def _end(
        self, error: BaseException, thread: int, operation: str, group: Group | None = None
    ) -> None:
        """Undo the transaction after an error, unless the lease was released already."""
        if self.queue.holder == thread:
            self._undo(error, operation, group)
        elif group is not None:
            group.settle()

    def _undo(self, error: BaseException, operation: str, group: Group | None = None) -> None:
        """Undo the open transaction; the other units of its group are run again."""
        rollback(self.connection)
        lost = TransactionLostError(path=self.connection.path, operation=operation)
        lost.__cause__ = error
        self._release_and_settle(group, lost)
        if isinstance(error, DatabaseError):
            self._on_fault(error)

    def _release_and_settle(self, group: Group | None, failure: DatabaseError | None) -> None:
        if group is not None:
            group.decide(None if failure is None else partial(_again, failure))
        try:
            self.turnstile.leave()
        except BaseException:
            # signal-safe release: leaving a second time is harmless.
            self.turnstile.leave()
            raise
        finally:
            try:
                self._release()
            finally:
                if group is not None:
                    group.settle()

    def _undo_to_savepoint(self) -> bool:
        """Undo the last unit; return False if SQLite has ended the whole transaction."""
        if not self.connection.raw.in_transaction:
            return False
        try:
            self.connection.execute("ROLLBACK TO unit")
            self.connection.execute("RELEASE unit")
        except apsw.Error:
            return False
        return True


def _again(error: DatabaseError, waiter: Waiter) -> DatabaseError:
    """Return a copy of the error for a waiter: each thread raises its own one."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    if isinstance(again, CommitOutcomeUnknownError):
        again.result = waiter.result
    return again
