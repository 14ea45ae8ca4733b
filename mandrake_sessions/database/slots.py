"""A file's place in the pool, and what is decided about it under the pool's lock.

::

    OPENING ──► OPEN ──► CLOSING ──► (gone)
       └──► (gone, with the error for everyone who waited)
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.paths import Identity
from mandrake_sessions.errors import MandrakeSessionsError
from mandrake_sessions.options import PoolOptions


class SlotState(enum.Enum):
    """Where a slot stands."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


class Slot:
    """A file's place in the pool, from the first acquire to its closing.

    Attributes:
        refs: handles that are not released.
        idle_since: when the last one was (``time.monotonic``).
        error: why it could not be opened, for everyone who waited.
        changed: set when it is open, has failed to open, or is closed.
    """

    __slots__ = ("changed", "error", "file", "identity", "idle_since", "path", "refs", "state")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: Identity | None = None
        self.state = SlotState.OPENING
        self.file: DatabaseFile | None = None
        self.error: MandrakeSessionsError | None = None
        self.refs = 0
        self.idle_since = 0.0
        self.changed = threading.Event()

    @property
    def is_idle(self) -> bool:
        """Whether the file is open and nobody has a handle on it."""
        return self.state is SlotState.OPEN and self.refs == 0


def begin_closing(slots: Iterable[Slot]) -> None:
    """Mark slots: whoever wants one of these files from now on waits until it is closed."""
    for slot in slots:
        slot.state = SlotState.CLOSING
        slot.changed.clear()


def too_many_idle(slots: Iterable[Slot], options: PoolOptions) -> list[Slot]:
    """Return which idle files to close at once, the longest idle ones first."""
    idle = sorted((slot for slot in slots if slot.is_idle), key=lambda slot: slot.idle_since)
    if options.linger == 0:
        return idle
    return idle[: max(0, len(idle) - options.max_idle)]


def lingered_enough(slots: Iterable[Slot], options: PoolOptions) -> tuple[list[Slot], float | None]:
    """Return which idle files have lingered long enough, and in how many seconds the next has."""
    now = monotonic()
    left = {slot: slot.idle_since + options.linger - now for slot in slots if slot.is_idle}
    due = [slot for slot, seconds in left.items() if seconds <= 0]
    return due, min((seconds for seconds in left.values() if seconds > 0), default=None)
