"""Closes the connections of a file: waits for the present work, then interrupts it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import apsw

from mandrake_sessions.database.connection.checkpoint import copy_at_closing
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.leasing.leased import LeasedConnection
from mandrake_sessions.database.leasing.writer import WriterConnection
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.waiters import MakeError
from mandrake_sessions.errors import DatabaseBusyError, DatabaseError
from mandrake_sessions.options import DatabaseOptions

OnStuck = Callable[[int], None] | None
"""Called with the thread that holds a lease when its work is interrupted for closing."""

_OPTIMIZE_PATIENCE = 0.05
_MARK_PATIENCE = 0.05
_LAST_PATIENCE = 0.25


def take_for_closing(
    leased: LeasedConnection, half: Budget, whole: Budget, refusal: MakeError, on_stuck: OnStuck
) -> None:
    """Take the lease of a connection permanently: wait for the present work, then interrupt it.

    Args:
        leased: the connection, which refuses new work already.
        half: the time for work to end by itself.
        whole: the time for all.
        refusal: makes the error of the calls that still wait after the first half.
        on_stuck: called with the thread that holds the lease when its work is interrupted.

    Raises:
        DatabaseBusyError: the holder did not release the lease.
    """
    try:
        leased.queue.acquire(half, "close", even_refused=True)
    except DatabaseBusyError:
        leased.queue.refuse(refusal, waiters_too=True)
        leased.connection.cancel()
        if on_stuck is not None:
            on_stuck(leased.queue.holder)
        patience = FileBudget(max(whole.left(), _LAST_PATIENCE))
        leased.queue.acquire(patience, "close", even_refused=True)


def close_leased(
    leased: LeasedConnection,
    budget: Budget,
    options: DatabaseOptions,
    *,
    abandon: bool,
    is_parking: bool,
) -> None:
    """Close a connection whose lease the caller holds; the lease is never released."""
    connection = leased.connection
    if not abandon and isinstance(leased, WriterConnection):
        _finish(connection, budget, options, is_parking=is_parking)
    connection.deadline = budget.deadline
    try:
        connection.close(abandon=abandon)
    except apsw.Error as error:
        raise DatabaseError(
            "The connection did not close cleanly.", path=connection.path, operation="close"
        ) from error


def _finish(
    connection: Connection, budget: Budget, options: DatabaseOptions, *, is_parking: bool
) -> None:
    """Optimize, write the last mark and copy a long WAL; no failure keeps the file open."""
    has_written = connection.pages_written() > 0
    # For a file that was only read the statistics are unchanged: optimizing takes as long as
    # closing, and needs the write lock.
    if has_written:
        connection.deadline = FileBudget(min(budget.left(), _OPTIMIZE_PATIENCE)).deadline
        connection.interruptible = True
        # A lock that blocks the optimization must not block closing; a later closing repeats it.
        with contextlib.suppress(apsw.Error):
            connection.query_all("PRAGMA optimize")
    if connection.wal_mark is not None:
        patience = FileBudget(min(budget.left(), _MARK_PATIENCE))
        connection.wal_mark.finish(patience, is_parking=is_parking)
    if has_written and budget.left() > 0:
        copy_at_closing(connection, options)
