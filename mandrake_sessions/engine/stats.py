"""Figures of a pool and its databases, as frozen records."""

from __future__ import annotations

from pathlib import Path

import msgspec


class DatabaseStats(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of an open database since it was opened, or opened again. Times are in seconds.

    Attributes:
        path: the database file.
        units: units of writing work that ran.
        commits: transactions that committed them; fewer than units when COMMITs were shared.
        replays: units that ran again because a shared transaction was lost.
        retries: attempts to get a lock that another process held.
        timeouts: calls whose budget was used up in the queue.
        longest_wait: the longest wait in the queue.
        waiting: threads in the queues at this moment.
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
    """The figures of a pool since it was made.

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
