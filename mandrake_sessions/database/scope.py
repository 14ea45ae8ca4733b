"""One lease, one transaction: how units and blocks of work run on a connection.

A unit that finds others waiting leaves its transaction open behind a savepoint and passes the
lease on; the last one, or the one that fills the group, commits for all, and nobody is
acknowledged before. Each unit runs in its own caller's thread::

    thread A   lease ─ BEGIN ─ work ─┐ waits ............................ ┌─ returns
    thread B   queue ................└─ SAVEPOINT ─ work ─ RELEASE ─┐ ... ├─ returns
    thread C   queue ...............................................└─ work ─ COMMIT ─ returns
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TypeVar

import apsw

from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.lease import Group, LeaseQueue, MakeError
from mandrake_sessions.database.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
    begin_immediate,
    commit,
    rollback,
)
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    ConstraintViolationError,
    CorruptDatabaseError,
    DatabaseError,
    TransactionLostError,
)
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")

_REPLAYS = 2
"""How often a unit runs again after its shared transaction was lost, the last time alone."""


class Lane:
    """A connection behind its queue.

    Args:
        connection: what the lease is for.
        check: called by every new holder before anything else; raises if the file is not usable.
        on_unclean: told of a connection that was not given back clean; it must not be used again.
        on_corrupt: told that SQLite found the file damaged.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        check: Callable[[Connection, str], None],
        on_unclean: Callable[..., None],
        on_corrupt: Callable[[DatabaseError], None],
    ) -> None:
        self.connection = connection
        self.queue = LeaseQueue(connection.path)
        self._check = check
        self._on_unclean = on_unclean
        self._on_corrupt = on_corrupt

    def fetch(self, work: ReadUnit[T], budget: Budget, operation: str) -> T:
        """Run reading work outside a transaction: each statement sees what is committed."""
        owner = get_ident()
        try:
            self.queue.acquire(budget, operation)
            return self._fetch(work, budget, operation)
        finally:
            if self.queue.holder == owner:
                self._release()

    def fetch_now(self, work: ReadUnit[T], budget: Budget, operation: str) -> tuple[bool, T | None]:
        """Do what ``fetch`` does if the connection is free this moment; return whether it was."""
        owner = get_ident()
        try:
            if not self.queue.try_acquire(operation):
                return False, None
            return True, self._fetch(work, budget, operation)
        finally:
            if self.queue.holder == owner:
                self._release()

    def _fetch(self, work: ReadUnit[T], budget: Budget, operation: str) -> T:
        connection = self.connection
        self._check(connection, operation)
        connection.deadline = budget.body_deadline
        connection.interruptible = True
        tx = ReadTransaction(connection, budget, operation)
        try:
            return work(tx)
        except CorruptDatabaseError as error:
            self._on_corrupt(error)
            raise
        finally:
            tx.end()

    @contextlib.contextmanager
    def snapshot(self, budget: Budget, operation: str) -> Iterator[ReadTransaction]:
        """Hold the lease and one read transaction: all statements see the same state."""
        owner = get_ident()
        try:
            self.queue.acquire(budget, operation)
            connection = self.connection
            self._check(connection, operation)
            connection.deadline = budget.body_deadline
            connection.interruptible = True
            tx = ReadTransaction(connection, budget, operation)
            connection.execute("BEGIN")
            try:
                yield tx
            except CorruptDatabaseError as error:
                self._on_corrupt(error)
                raise
            finally:
                tx.end()
                rollback(connection)
        finally:
            if self.queue.holder == owner:
                self._release()

    @contextlib.contextmanager
    def exclusive(self, budget: Budget, operation: str) -> Iterator[Connection]:
        """Hold the lease with no transaction, for what brings its own: migrations, checkpoints."""
        owner = get_ident()
        try:
            self.queue.acquire(budget, operation)
            self._check(self.connection, operation)
            self.connection.deadline = budget.body_deadline
            self.connection.interruptible = True
            yield self.connection
        finally:
            if self.queue.holder == owner:
                self._release()

    def _release(self) -> None:
        """Give the lease back clean: with a transaction open nobody else may have it."""
        connection = self.connection
        if connection.in_transaction() and not connection.is_forked:
            rollback(connection)
            self._on_unclean(
                "a transaction was open when its lease was given back",
                operation=self.queue.operation,
                recent_sql=connection.recent_sql(),
            )
        self.queue.release()


class WriteLane(Lane):
    """The read-write connection, whose transactions may be shared."""

    def __init__(
        self,
        connection: Connection,
        options: DatabaseOptions,
        *,
        check: Callable[[Connection, str], None],
        on_unclean: Callable[..., None],
        on_corrupt: Callable[[DatabaseError], None],
    ) -> None:
        super().__init__(connection, check=check, on_unclean=on_unclean, on_corrupt=on_corrupt)
        self._options = options
        # The transaction left open by the unit before, while the lease is passed on.
        self._group: Group | None = None
        self.commits = 0
        self.units = 0
        self.replays = 0

    def transact(
        self, work: WriteUnit[T], budget: Budget, operation: str, *, may_join: bool = True
    ) -> T:
        """Run work as a unit and return its result once it is committed.

        Args:
            work: called in this thread, and again if the transaction it shared was lost.
            budget: for the queue, BEGIN and the body.
            operation: for errors.
            may_join: whether it may run in a transaction that others wait for already. Not for a
                host's own code: it could want a lock that one of those others holds.

        Raises:
            TransactionLostError: SQLite ended its transaction each time.
        """
        for left in range(_REPLAYS, -1, -1):
            try:
                return self._transact(
                    work, budget, operation, may_join=may_join and left > 0, alone=left == 0
                )
            except TransactionLostError:
                if left == 0:
                    raise
                self.replays += 1
        raise AssertionError("unreachable")

    def _transact(
        self, work: WriteUnit[T], budget: Budget, operation: str, *, may_join: bool, alone: bool
    ) -> T:
        connection = self.connection
        owner = get_ident()
        try:
            self.queue.acquire(budget, operation, may_join=may_join)
            is_joined = self._group is not None
            if is_joined:
                connection.deadline = budget.body_deadline
                connection.interruptible = False
                connection.execute("SAVEPOINT unit")
            else:
                self._check(connection, operation)
                begin_immediate(connection, budget, operation)
            tx = WriteTransaction(connection, budget, operation)
            try:
                result = work(tx)
            finally:
                tx.end()
            if not connection.raw.in_transaction:
                raise TransactionLostError(path=connection.path, operation=operation)
            if (is_joined or self.queue.waiting) and connection.has_broken_references():
                # Found at the COMMIT, it would undo everybody's work.
                raise ConstraintViolationError(
                    "FOREIGN KEY constraint failed", path=connection.path, operation=operation
                )
            if is_joined:
                connection.execute("RELEASE unit")
            try:
                self._settle(operation, alone=alone)
            except CommitOutcomeUnknownError as error:
                error.result = result
                raise
            return result
        except BaseException as error:
            if self.queue.holder == owner:
                self._undo(error, operation)
            raise

    @contextlib.contextmanager
    def scope(self, budget: Budget, operation: str) -> Iterator[WriteTransaction]:
        """Hold the lease and one write transaction that commits alone when the block ends."""
        connection = self.connection
        owner = get_ident()
        try:
            self.queue.acquire(budget, operation)
            self._check(connection, operation)
            begin_immediate(connection, budget, operation)
            tx = WriteTransaction(connection, budget, operation)
            try:
                yield tx
            finally:
                tx.end()
            self.units += 1
            self._commit(operation)
        except BaseException as error:
            if self.queue.holder == owner:
                self._undo(error, operation)
            raise

    def _settle(self, operation: str, *, alone: bool) -> None:
        """Pass the lease on with the transaction open if others wait, otherwise commit."""
        self.units += 1
        group = self._group
        if group is not None:
            group.units += 1
        if self.queue.waiting and not alone:
            if group is None:
                group = Group(self._options.group_max_seconds)
                group.units = 1
            if not group.is_full(self._options.group_max_units):
                self._group = group
                ticket = group.join()
                if self.queue.hand_over():
                    # From here on another thread holds the lease, and settles the group.
                    group.wait(ticket)
                    return
                group.leave(ticket)
        self._commit(operation)

    def _commit(self, operation: str) -> None:
        """Commit for every unit of the group, and give the lease back."""
        group, self._group = self._group, None
        failure: MakeError | None = lambda: CommitOutcomeUnknownError(  # noqa: E731
            path=self.connection.path, operation=operation
        )
        try:
            commit(self.connection, operation)
            self.commits += 1
            failure = None
        except DatabaseError as error:
            failure = _again(error)
            raise
        finally:
            try:
                self._release()
            finally:
                if group is not None:
                    group.settle(failure)

    def _undo(self, error: BaseException, operation: str) -> None:
        """Undo this thread's unit, and let the others of its group go on."""
        if isinstance(error, CorruptDatabaseError):
            self._on_corrupt(error)
        group = self._group
        if group is None:
            rollback(self.connection)
            self._release()
            return
        if self._undo_to_savepoint():
            if not group.is_full(self._options.group_max_units) and self.queue.hand_over():
                return
            with contextlib.suppress(DatabaseError):  # its members are told by the group
                self._commit(operation)
            return
        self._group = None
        rollback(self.connection)
        lost = TransactionLostError(path=self.connection.path, operation=operation)
        lost.__cause__ = error
        try:
            self._release()
        finally:
            group.settle(_again(lost))

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


def _again(error: DatabaseError) -> MakeError:
    """Return what makes the same error anew: each thread raises one of its own."""

    def make() -> DatabaseError:
        again = copy.copy(error)
        again.__cause__ = error.__cause__
        return again

    return make
