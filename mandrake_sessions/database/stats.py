"""Figures of a pool and its databases, as frozen records."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mandrake_sessions.database.file import DatabaseFile


class DatabaseStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an open database did since it was opened, or opened again. Times are in seconds.

    Attributes:
        path: the database file.
        units: units of writing work that ran.
        commits: transactions that committed them; fewer than units when COMMITs were shared.
        replays: units that ran again because a shared transaction was lost.
        retries: looks at a lock that another process held.
        timeouts: calls whose budget was used up in the queue.
        longest_wait: the longest wait in the queue.
        waiting: threads in the queues this moment.
        checkpoints: checkpoints made by this process.
        pages_written: pages written to the WAL by this process.
    """

    path: Path
    units: int
    commits: int
    replays: int
    retries: int
    timeouts: int
    longest_wait: float
    waiting: int
    checkpoints: int
    pages_written: int


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool did since it was made.

    Attributes:
        opened: files opened in all.
        closed: files closed in all.
        handles: handles that are not released.
        idle: open files without a handle.
        parked: files that have handles and are closed until one of them is used.
        parkings: how often a file was parked; counted in ``closed`` too.
        reopenings: how often one was opened again; counted in ``opened`` too.
        databases: one for each open file.
    """

    opened: int
    closed: int
    handles: int
    idle: int
    parked: int
    parkings: int
    reopenings: int
    databases: tuple[DatabaseStats, ...]


def database_stats(file: DatabaseFile) -> DatabaseStats:
    """Return the figures of an open file; read without its lease, each is true by itself."""
    lanes = file.lanes()
    writer = file.writer
    return DatabaseStats(
        path=file.path,
        units=writer.units,
        commits=writer.commits,
        replays=writer.replays,
        retries=sum(lane.connection.busy_waits for lane in lanes),
        timeouts=sum(lane.queue.timeouts for lane in lanes),
        longest_wait=max(lane.queue.longest_wait for lane in lanes),
        waiting=sum(lane.queue.waiting for lane in lanes),
        checkpoints=file.checkpointer.runs,
        pages_written=file.checkpointer.written,
    )
