"""How a transaction begins and ends.

It decides the meaning of a failed COMMIT: SQLite may have stored the data nevertheless, unless the
disk was full and no transaction is left.
"""

from __future__ import annotations

import contextlib
from functools import partial
from time import monotonic

import apsw

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import (
    extended_code,
    free_bytes,
    primary_code,
    translate,
)
from mandrake_sessions.database.files.turnstile import Turnstile
from mandrake_sessions.database.retry import retry_busy
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    DatabaseError,
    ForkedPoolError,
    PoolClosedError,
    StorageFullError,
    TransactionLostError,
)


def begin_immediate(
    connection: Connection, budget: Budget, operation: str, turnstile: Turnstile | None = None
) -> None:
    """Begin a write transaction, and write the mark of the WAL in it if that is due.

    Args:
        connection: the caller must hold its lease.
        budget: gives the deadline.
        operation: for errors.
        turnstile: gives processes a fair order; without one the first to poll the lock gets it.

    Raises:
        DatabaseBusyError: another process held the write lock until the deadline.
        DatabaseError: the mark cannot be written; each reason has its own subclass.
    """
    mark = connection.wal_mark
    if mark is None:
        begin_unmarked(connection, budget, operation, turnstile)
        return
    while True:
        try:
            mark.prepare(budget, operation, turnstile)
        except apsw.BusyError:
            # Another process was writing the header of the WAL index for its COMMIT. SQLite repeats
            # its own reads then, but not the measurement of the backlog.
            prepare = partial(mark.prepare, budget, operation, turnstile)
            retry_busy(prepare, budget, connection.path, operation, "begin")
        except apsw.Error as error:
            raise _failed_begin(error, connection, budget, operation) from error
        begin_unmarked(connection, budget, operation, turnstile)
        if not mark.is_due:
            return
        try:
            if mark.write():
                return
        except apsw.Error as error:
            rollback(connection)
            raise translate(error, connection.path, operation, raw=connection.raw) from error
        rollback(connection)


def begin_unmarked(
    connection: Connection, budget: Budget, operation: str, turnstile: Turnstile | None = None
) -> None:
    """Begin a write transaction; wait for other processes until the budget's deadline.

    Args:
        connection: the caller must hold its lease.
        budget: gives the deadline.
        operation: for errors.
        turnstile: gives processes a fair order; without one the first to poll the lock gets it.

    Raises:
        DatabaseBusyError: another process held the write lock until the deadline.
    """
    connection.deadline = budget.deadline
    connection.interruptible = True
    waits = connection.busy_waits
    since = monotonic()
    connection.turnstile = turnstile
    try:
        if turnstile is not None and (turnstile.is_held or since >= turnstile.checks_at):
            turnstile.give_way(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except apsw.IOError:
            # No change was made yet, so a second attempt on the same connection is safe.
            rollback(connection)
            retry_busy(
                lambda: connection.execute("BEGIN IMMEDIATE"),
                budget,
                connection.path,
                operation,
                "begin",
                raw=connection.raw,
            )
    except apsw.Error as error:
        attempts = connection.busy_waits - waits + 1
        raise _failed_begin(error, connection, budget, operation, attempts) from error
    finally:
        connection.turnstile = None
    connection.deadline = budget.body_deadline
    if connection.busy_waits != waits:
        budget.spent("begin", since)


def _failed_begin(
    error: apsw.Error, connection: Connection, budget: Budget, operation: str, attempts: int = 1
) -> DatabaseError:
    # The deadline can also pass while the statement runs, which is then interrupted.
    if primary_code(error) not in (apsw.SQLITE_BUSY, apsw.SQLITE_INTERRUPT):
        return translate(error, connection.path, operation, raw=connection.raw)
    if connection.is_cancelled:
        return PoolClosedError(path=connection.path, operation=operation)
    return budget.exceeded(
        "begin", connection.path, operation, code=extended_code(error), attempts=attempts
    )


def rollback(connection: Connection) -> None:
    """Undo the open transaction, if there is one; a failure here never hides the first error."""
    if connection.is_forked:
        return
    if connection.raw.in_transaction or connection.in_transaction():
        with contextlib.suppress(apsw.Error):
            connection.execute("ROLLBACK")


def commit(connection: Connection, operation: str) -> None:
    """Commit the open transaction.

    Raises:
        TransactionLostError: SQLite had ended the transaction; none of its changes is stored.
        StorageFullError: there was no space; none of its changes is stored.
        CommitOutcomeUnknownError: the COMMIT failed in a way that may have stored the changes.
        DatabaseError: none of its changes is stored, for another reason.
    """
    path = connection.path
    if connection.is_forked:
        raise ForkedPoolError(path=path, operation=operation)
    if not connection.raw.in_transaction:
        raise TransactionLostError(path=path, operation=operation)
    try:
        connection.execute("COMMIT")
    except apsw.Error as error:
        was_open = connection.in_transaction()
        rollback(connection)
        raise _failed_commit(error, was_open, connection, operation) from error
    mark = connection.wal_mark
    if mark is not None and mark.is_noting:
        mark.committed()


def _failed_commit(
    error: apsw.Error, was_open: bool, connection: Connection, operation: str
) -> DatabaseError:
    code = primary_code(error)
    if code == apsw.SQLITE_FULL and not was_open:
        full = StorageFullError(
            path=connection.path, operation=operation, result_code=extended_code(error)
        )
        full.free_bytes = free_bytes(connection.path)
        return full
    if code in (apsw.SQLITE_CONSTRAINT, apsw.SQLITE_BUSY) and was_open:
        # Refused before any write: a deferred constraint is broken, or a reader is in the way.
        return translate(error, connection.path, operation, raw=connection.raw)
    return CommitOutcomeUnknownError(
        path=connection.path, operation=operation, result_code=extended_code(error)
    )
