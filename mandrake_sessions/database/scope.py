"""One lease, one transaction: how units and blocks of work run on a connection.

A unit that finds others waiting when its own work is done runs theirs too, each behind a savepoint,
and commits once for all; nobody is acknowledged before::

    thread A   lease ─ BEGIN ─ A's work ─ (savepoint) B's work ─ C's work ─ COMMIT ─ returns
    thread B   queue ............................................................... returns
    thread C   queue ............................................................... returns

Only the library's own work is run for another thread. A host's code could want a lock that its
caller holds, so it runs in its caller's thread, as the first of a transaction. A thread that works
for many callers (that of the asyncio face) brings their further work along as errands: they run
behind savepoints like that of others, but nobody waits in the queue for them.
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

from mandrake_sessions.database.blocks import block
from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.lane import Lane
from mandrake_sessions.database.lease import Bring, Group, Waiter
from mandrake_sessions.database.log_index import LogIndex
from mandrake_sessions.database.transaction import (
    WriteTransaction,
    WriteUnit,
    begin_immediate,
    begin_unmarked,
    commit,
    rollback,
)
from mandrake_sessions.database.turnstile import Turnstile
from mandrake_sessions.database.unforeseen import is_of_a_handler
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    ConstraintViolationError,
    DatabaseError,
    TransactionLostError,
)
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")

_REPLAYS = 2
_GATHERING = 0.001


class WriteLane(Lane):
    """The read-write connection, whose transactions may be shared.

    Args:
        connection: what the lease is for.
        options: how groups are bounded.
        index: of the log; the write lock is in it.
        check: called by every new holder before anything else; raises if the file is not usable.
        check_write: called instead by a holder that is going to write.
        on_unclean: told of a connection that was not given back clean; it must not be used again.
        on_fault: told of what may keep later calls from writing: damage, no space.
        on_commit: called after each COMMIT, with the lease still held.
    """

    def __init__(
        self,
        connection: Connection,
        options: DatabaseOptions,
        index: LogIndex,
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
        self.turnstile = Turnstile(connection.path, index)
        self._beginning = threading.Lock()
        self._is_beginning = False
        # How many threads shared the last COMMIT with the one that made it.
        self._company = 0
        self.commits = 0
        self.units = 0
        self.replays = 0

    def transact(
        self,
        work: WriteUnit[T],
        budget: Budget,
        operation: str,
        *,
        delegable: bool = True,
        even_refused: bool = False,
        bring: Bring | None = None,
        replays: int = _REPLAYS,
    ) -> T:
        """Run work as a unit and return its result once it is committed.

        Args:
            work: may be called again if the transaction it shared was lost.
            budget: for the queue, BEGIN and the body.
            operation: for errors.
            delegable: whether the thread that holds the lease may run it for this one.
            even_refused: for the last writes of a file that closes and takes no more work.
            bring: asked for further work of this thread's callers once the transaction is open;
                not when another thread has run ``work``, nor at the last try.
            replays: how often the work may run again after its transaction was lost, the last
                time alone.

        Raises:
            TransactionLostError: SQLite ended its transaction each time.
        """
        connection = self.connection
        owner = get_ident()
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
            if bring is None and self._company:
                self._gather()
            self._check_write(connection, operation, budget)
            self._begin(budget, operation)
            result = self._run(work, budget, operation)
            self.units += 1
            if replays and (bring is not None or self.queue.waiting):
                self._require_whole_references(operation)
                group = Group(self._options.group_max_units, self._options.group_max_seconds)
                self._run_for_others(group, bring)
            try:
                self._commit(operation, group)
            except CommitOutcomeUnknownError as error:
                error.result = result
                raise
            return result
        except BaseException as error:
            try:
                self._end(error, owner, operation, group)
            except BaseException:
                # A signal in the midst of it: neither the lease nor a member may be left behind.
                self._end(error, owner, operation, group)
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
            bring=bring,
            replays=replays - 1,
        )

    def give_up(self, thread: int) -> None:
        """Have a thread stop waiting, in the queue or for another process, as at its deadline.

        Only for a thread whose own work has come to nothing: what it runs is not stopped.
        """
        if not self.queue.give_up(thread):
            with self._beginning:
                if self._is_beginning and self.queue.holder == thread:
                    self.connection.deadline = 0.0

    def _gather(self) -> None:
        """Give way to those who shared the last COMMIT, for their next work to share this one.

        They are awake and prepare it. If we begin at once, each of them takes the interpreter
        between two of our statements.
        """
        until = monotonic() + _GATHERING
        for _ in range(self._company):
            if self.queue.waiting >= self._company or monotonic() >= until:
                return
            time.sleep(0)

    def _begin(self, budget: Budget, operation: str) -> None:
        """Begin the transaction; ``give_up`` may end the waiting for other processes."""
        self._is_beginning = True
        try:
            begin_immediate(self.connection, budget, operation, self.turnstile)
        finally:
            # Under the mutex: what is set from here on is the deadline of the work.
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

    def _run_for_others(self, group: Group, bring: Bring | None) -> None:
        """Run our errands and what the threads in the queue brought, as long as the group takes it.

        Raises:
            TransactionLostError: SQLite ended the transaction; everybody's work is undone.
        """
        while not group.is_full and (waiter := self._next_work(group, bring)) is not None:
            try:
                self._run_for(waiter)
            except Exception as error:
                if is_of_a_handler(error):
                    # It is for our caller; the others' work is run again, by their own threads.
                    raise
                waiter.failure = error
                if isinstance(error, DatabaseError):
                    self._on_fault(error)
                if not self._undo_to_savepoint():
                    lost = TransactionLostError(
                        path=self.connection.path, operation=waiter.operation
                    )
                    raise lost from error

    def _next_work(self, group: Group, bring: Bring | None) -> Waiter | None:
        """Move the next errand, or the first waiter of the queue, into the group."""
        errand = None if bring is None else bring()
        if errand is None:
            return self.queue.take_work(group)
        group.members.append(errand)
        return errand

    def _run_for(self, waiter: Waiter) -> None:
        connection = self.connection
        connection.deadline = waiter.budget.body_deadline
        # An interrupted statement would end the transaction for everybody.
        connection.interruptible = False
        connection.execute("SAVEPOINT unit")
        assert waiter.work is not None
        assert waiter.context is not None
        waiter.result = waiter.context.run(self._run, waiter.work, waiter.budget, waiter.operation)
        self._require_whole_references(waiter.operation)
        connection.execute("RELEASE unit")
        self.units += 1

    def _require_whole_references(self, operation: str) -> None:
        """Find a broken deferred reference now: at the COMMIT it would undo everybody's work."""
        if self.connection.has_broken_references():
            raise ConstraintViolationError(
                "FOREIGN KEY constraint failed", path=self.connection.path, operation=operation
            )

    @block
    def scope(self, budget: Budget, operation: str) -> Iterator[WriteTransaction]:
        """Hold the lease and one write transaction that commits alone when the block ends."""
        connection = self.connection
        owner = get_ident()
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
                self._end(error, owner, operation)
            except BaseException:
                self._end(error, owner, operation)
                raise
            raise

    @block
    def alone(self, budget: Budget, operation: str) -> Iterator[None]:
        """Hold the lease and the write lock, with nothing to store: no process writes meanwhile."""
        with self.exclusive(budget, operation) as connection:
            try:
                begin_unmarked(connection, budget, operation, self.turnstile)
                yield
            finally:
                try:
                    rollback(connection)
                    self.turnstile.leave()
                finally:
                    # A signal in the midst of it: with a transaction open the file would be
                    # retired.
                    rollback(connection)
                    self.turnstile.leave()

    def _commit(self, operation: str, group: Group | None = None) -> None:
        """Commit for every unit of the group, and give the lease back."""
        try:
            commit(self.connection, operation)
            if group is not None:
                # At once: whatever interrupts this thread from here on, it is committed.
                group.decide(None)
        except DatabaseError as error:
            self._on_fault(error)
            self._release_and_settle(group, error)
            raise
        except BaseException:
            # A signal, before or after the COMMIT: the transaction may still be open, and units
            # that are perhaps stored must not be run again.
            rollback(self.connection)
            unknown = CommitOutcomeUnknownError(path=self.connection.path, operation=operation)
            self._release_and_settle(group, unknown)
            raise
        self.commits += 1
        self._company = 0 if group is None else len(group.members)
        self._on_commit()
        self._release_and_settle(group, None)

    def _end(
        self, error: BaseException, owner: int, operation: str, group: Group | None = None
    ) -> None:
        """Undo what an error has ended, unless it ended the work after the lease was given back."""
        if self.queue.holder == owner:
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
            # A signal: who has left may do so again.
            self.turnstile.leave()
            raise
        finally:
            try:
                self._release()
            finally:
                if group is not None:
                    group.settle()

    def _undo_to_savepoint(self) -> bool:
        """Return whether only this unit was undone: not if SQLite has ended the transaction."""
        if not self.connection.raw.in_transaction:
            return False
        try:
            self.connection.execute("ROLLBACK TO unit")
            self.connection.execute("RELEASE unit")
        except apsw.Error:
            return False
        return True


def _again(error: DatabaseError, waiter: Waiter) -> DatabaseError:
    """Return the error anew for a waiter: each thread raises one of its own."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    if isinstance(again, CommitOutcomeUnknownError):
        again.result = waiter.result
    return again
