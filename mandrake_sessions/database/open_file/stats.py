"""Figures of a pool and its databases, as frozen records."""

from __future__ import annotations

from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.engine.stats import DatabaseStats


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
