"""How the connections of a file end: work interrupted, the log kept from another file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import apsw
import structlog

from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.faults import translate_os
from mandrake_sessions.database.lease import MakeError
from mandrake_sessions.database.paths import Identity, identify
from mandrake_sessions.database.scope import Lane, WriteLane
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import DatabaseBusyError, DatabaseError
from mandrake_sessions.ids import new_id

OnStuck = Callable[[int], None] | None
"""Told the thread that holds a lease when its work is interrupted for closing."""

_OPTIMIZE_PATIENCE = 0.05
_LAST_PATIENCE = 0.25


def take_for_closing(
    lane: Lane, half: Budget, whole: Budget, refusal: MakeError, on_stuck: OnStuck
) -> None:
    """Get a lane's lease for good: wait for work under way, then interrupt it.

    Args:
        lane: it refuses new work already.
        half: the time for work to end by itself.
        whole: the time for all.
        refusal: what those who still wait are refused with after the first half.
        on_stuck: told the thread that holds the lease when it is interrupted.

    Raises:
        DatabaseBusyError: the holder did not let go.
    """
    try:
        lane.queue.acquire(half, "close", even_refused=True)
    except DatabaseBusyError:
        lane.queue.refuse(refusal, waiters_too=True)
        lane.connection.cancel()
        if on_stuck is not None:
            on_stuck(lane.queue.holder)
        patience = Budget(max(whole.left(), _LAST_PATIENCE))
        lane.queue.acquire(patience, "close", even_refused=True)


def close_lane(lane: Lane, budget: Budget, *, abandon: bool) -> None:
    """Close a connection whose lease the caller holds; the lease is never given back."""
    connection = lane.connection
    if not abandon and isinstance(lane, WriteLane):
        connection.deadline = Budget(min(budget.left(), _OPTIMIZE_PATIENCE)).deadline
        connection.interruptible = True
        # What it would improve can wait for another day; what blocks it must not block closing.
        with contextlib.suppress(apsw.Error):
            connection.query_all("PRAGMA optimize")
    connection.deadline = budget.deadline
    try:
        connection.close(abandon=abandon)
    except apsw.Error as error:
        raise DatabaseError(
            "The connection did not close cleanly.", path=connection.path, operation="close"
        ) from error


def save_moved_file(
    connection: Connection, logs: Iterable[tuple[Path, Identity | None]], budget: Budget
) -> None:
    """Complete a file that went away, and keep its log from the one that took its place.

    SQLite finds a log by its name: it would replay ours into whatever file is there now.

    Args:
        connection: whose lease the caller holds; it still writes to the file that went away.
        logs: the log and its index, with the identities they had when the file was opened.
        budget: the time it may take.
    """
    connection.deadline = budget.deadline
    try:
        connection.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        frames, done = connection.wal_backlog()
        is_saved = frames == done
    except apsw.Error:
        is_saved = False
    for log, identity in logs:
        if identity is None or identify(log) != identity:
            continue
        if is_saved:
            with contextlib.suppress(OSError):
                log.unlink()
        else:
            aside = log.with_name(f"{log.name}.of-moved-file-{new_id()}")
            try:
                log.rename(aside)
            except OSError as error:
                raise translate_os(error, log) from error
            structlog.get_logger(__name__).error(
                "database_log_set_aside", path=str(connection.path), log=str(aside)
            )
