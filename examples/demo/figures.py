"""The progress that the process with the agents reports: one line of JSON each time."""

from __future__ import annotations

import msgspec


class Figures(msgspec.Struct, kw_only=True):
    """The progress of the demo. Times are in seconds.

    Attributes:
        seconds: since the agents began.
        rounds: rounds acknowledged.
        turns: turns acknowledged.
        updates: flushes and ends of streams acknowledged.
        tokens: tokens written to streams.
        watched: states and pieces of text that watchers got.
        histories: histories that the readers rendered and checked.
        acknowledged: entries that are in the log and fsynced.
        refused: calls that were refused at the shutdown.
        longest_call: the longest call of an agent, all of it.
        longest_wait: the longest wait in a database's queue.
        retries: attempts to get a lock of another process, and units that ran again.
        commits: transactions that carried the writes; fewer, because threads share them.
        errors: the errors; must stay empty.
        shutdown: seconds that closing took, once it is over.
        signal: the signal that requested it.
        is_last: whether this is the closing line.
    """

    seconds: float = 0.0
    rounds: int = 0
    turns: int = 0
    updates: int = 0
    tokens: int = 0
    watched: int = 0
    histories: int = 0
    acknowledged: int = 0
    refused: int = 0
    longest_call: float = 0.0
    longest_wait: float = 0.0
    retries: int = 0
    commits: int = 0
    errors: list[str] = []
    shutdown: float | None = None
    signal: int | None = None
    is_last: bool = False
