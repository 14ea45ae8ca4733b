"""A file's place in the pool, and the decisions about it under the pool's lock.

::

    OPENING ──► OPEN ──► CLOSING ──► GONE
       │ ▲       ▲          │ ▲
       │ │       └──────────┘ │        a thread used it after all
       │ └────── PARKED ◄─────┘        too many are open: its handles open it again
       │            └──► GONE          no handle is left, or it is not the file that was open
       └──► GONE, or PARKED again, with the error for everyone who waited
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Hashable, Iterable
from operator import itemgetter
from pathlib import Path
from threading import get_ident
from time import monotonic

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.database.files.paths import Identity
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.errors import MandrakeSessionsError
from mandrake_sessions.options import PoolOptions


class SlotState(enum.Enum):
    """The state of a slot."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    PARKED = "parked"
    GONE = "gone"


_WITH_FILE = (SlotState.OPENING, SlotState.OPEN)
_WITHOUT_FILE = (SlotState.PARKED, SlotState.GONE)


class Slot:
    """A file's place in the pool, from the first acquire to its closing.

    Attributes:
        file: the open file; of a parked slot, the file that was open.
        references: one for each handle that is not released.
        idle_since: when the last handle was released (``time.monotonic``).
        error: the error of the last opening, for every thread that waited.
        worker: the thread that opens or closes it, or has it closed.
        is_parking: whether it is closed to make room; its handles open it again.
        changed: set when it is open, parked or gone.
        tidy_at: when its folder is checked again for leftovers of killed processes.
    """

    __slots__ = (
        "changed",
        "error",
        "file",
        "identity",
        "idle_since",
        "is_parking",
        "path",
        "references",
        "state",
        "tidy_at",
        "worker",
    )

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.identity: Identity | None = None
        self.state: SlotState = SlotState.OPENING
        self.file: DatabaseFile | None = None
        self.error: MandrakeSessionsError | None = None
        self.worker: int = get_ident()
        # A set and not a number, so that a step that a signal has interrupted can be repeated.
        self.references: set[Hashable] = set()
        self.idle_since: float = 0.0
        self.is_parking: bool = False
        self.tidy_at: float = 0.0
        self.changed: Gate = Gate()

    @property
    def refs(self) -> int:
        """How many handles are not released."""
        return len(self.references)

    @property
    def is_idle(self) -> bool:
        """Whether the file is open without a handle."""
        return self.state is SlotState.OPEN and not self.references


class Slots(dict[Path, Slot]):
    """The slots of a pool, by real path.

    Of thousands of slots all but a few may be parked. Each opening visits only the others, the
    awake ones, and finds a file by its identity in one step. With 1,000 files in turn, visiting all
    slots was a third of the time of each use.

    A signal may interrupt any step. A slot that is then missing among the awake ones was being made
    or removed, and is dropped; the state of a surplus one shows that it is not awake.
    """

    def __init__(self) -> None:
        super().__init__()
        self._awake: dict[Slot, None] = {}
        self._identified: dict[Identity, Slot] = {}

    def __setitem__(self, path: Path, slot: Slot) -> None:
        super().__setitem__(path, slot)
        self._awake[slot] = None

    def awake(self) -> list[Slot]:
        """Return the slots that are not parked."""
        return [slot for slot in self._awake if slot.state not in _WITHOUT_FILE]

    def counted(self) -> list[Slot]:
        """Return the slots whose descriptors are in use and are not being closed."""
        return [slot for slot in self._awake if slot.state in _WITH_FILE]

    def wake(self, slot: Slot) -> None:
        """Record that a parked slot is opened again, before its state changes."""
        self._awake[slot] = None

    def rest(self, slot: Slot) -> None:
        """Record that a slot is parked, after its state has changed, or that it is removed."""
        self._awake.pop(slot, None)

    def identify(self, slot: Slot, identity: Identity) -> None:
        """Record the identity of a slot's file."""
        self._lose_identity(slot)
        slot.identity = identity
        self._identified[identity] = slot

    def of(self, identity: Identity) -> Slot | None:
        """Return the slot of a file by its identity; takes no lock."""
        slot = self._identified.get(identity)
        is_there = slot is not None and self.get(slot.path) is slot and slot.identity == identity
        return slot if is_there else None

    def forget(self, slot: Slot) -> None:
        """Remove a slot, whose state becomes GONE."""
        self.rest(slot)
        # In this order: after a signal in between no thread may find a slot that is gone.
        if self.get(slot.path) is slot:
            del self[slot.path]
        slot.state = SlotState.GONE
        self._lose_identity(slot)

    def _lose_identity(self, slot: Slot) -> None:
        if slot.identity is not None and self._identified.get(slot.identity) is slot:
            del self._identified[slot.identity]


def next_to_close(counted: Collection[Slot], spared: Collection[Slot]) -> Slot | None:
    """Return the slot to close when too many files are open; None if all are in use.

    Of the files without a handle the longest idle one comes first; then, of those that no thread
    uses, the least recently used one.

    Args:
        counted: the slots whose files are open.
        spared: slots that could not be closed.
    """
    idle = [slot for slot in counted if slot.is_idle]
    if idle:
        return min(idle, key=lambda slot: slot.idle_since)
    quiet = [
        (slot.file.used_at, slot.file, slot)
        for slot in counted
        if slot.state is SlotState.OPEN and slot.file is not None and slot not in spared
    ]
    # A busy file is never chosen, even if its call began long ago.
    for _, file, slot in sorted(quiet, key=itemgetter(0)):
        if file.is_quiet:
            return slot
    return None


def begin_closing(slots: Iterable[Slot], *, parks: bool = False) -> None:
    """Mark open slots as closing: a thread that wants one of these files waits until it is closed.

    Args:
        slots: the open slots.
        parks: whether their handles open them again.
    """
    for slot in slots:
        slot.worker, slot.is_parking = get_ident(), parks
        slot.changed.clear()
        slot.state = SlotState.CLOSING


def too_many_idle(slots: Iterable[Slot], options: PoolOptions) -> list[Slot]:
    """Return the idle files to close at once, the longest idle ones first."""
    idle = sorted((slot for slot in slots if slot.is_idle), key=lambda slot: slot.idle_since)
    if options.linger == 0:
        return idle
    return idle[: max(0, len(idle) - options.max_idle)]


def lingered_enough(slots: Iterable[Slot], options: PoolOptions) -> tuple[list[Slot], float | None]:
    """Return the idle files that have lingered long enough, and the seconds until the next."""
    now = monotonic()
    left = {slot: slot.idle_since + options.linger - now for slot in slots if slot.is_idle}
    due = [slot for slot, seconds in left.items() if seconds <= 0]
    return due, min((seconds for seconds in left.values() if seconds > 0), default=None)
