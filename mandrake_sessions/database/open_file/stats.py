"""Figures of a pool and its databases, as frozen records."""

from __future__ import annotations

from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.engine.stats import DatabaseStats


def database_stats(file: DatabaseFile) -> DatabaseStats:
    """Return the figures of an open file; read without its lease, so only each one is exact."""
    connections = file.leased_connections()
    writer = file.writer
    return DatabaseStats(
        path=file.path,
        units=writer.units,
        commits=writer.commits,
        replays=writer.replays,
        retries=sum(leased.connection.busy_waits for leased in connections),
        timeouts=sum(leased.queue.timeouts for leased in connections),
        longest_wait=max(leased.queue.longest_wait for leased in connections),
        waiting=sum(leased.queue.waiting for leased in connections),
        checkpoints=file.checkpointer.runs,
        pages_written=file.checkpointer.written,
    )
