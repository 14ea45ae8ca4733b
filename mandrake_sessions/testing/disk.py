"""A simulated disk: synced bytes, pending writes, and the part of them that a power cut leaves.

A write that is not synced may be there after the cut, or not, or some of its sectors only, and in
any order. So may a new length, and a name that was made or removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeAlias

SECTOR: Final = 512
"""Bytes that a disk writes whole or not at all."""

_CHANCES: Final = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Named:
    """A name was given to a file, new or found; None removes the name."""

    path: str
    file: int | None
    content: bytes = b""
    is_found: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes were written at an offset."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    """A file was cut to a length, or grew to it."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A sync has ended: what happened to the file before ``since`` is on the disk."""

    file: int
    since: int


@dataclass(frozen=True, slots=True)
class FolderSynced:
    """A sync of a folder has ended: the names it had before ``since`` are on the disk."""

    folder: str
    since: int


@dataclass(frozen=True, slots=True)
class Noted:
    """The test noted a value, such as the id of an acknowledged row."""

    value: object


Event: TypeAlias = Named | Written | Resized | Synced | FolderSynced | Noted


@dataclass(slots=True)
class _File:
    content: bytearray
    pending: list[tuple[int, Written | Resized]] = field(default_factory=list)


class Disk:
    """Applies the events of a ``PowerLossVFS`` in their order.

    Attributes:
        notes: the noted values.
    """

    def __init__(self) -> None:
        self.notes: list[object] = []
        self._files: dict[int, _File] = {}
        self._names: dict[str, int | None] = {}
        self._pending_names: dict[str, list[tuple[int, int | None]]] = {}

    def follow(self, index: int, event: Event) -> None:
        """Apply the next event; ``index`` is its place among all."""
        match event:
            case Noted():
                self.notes.append(event.value)
            case Written() | Resized():
                self._files[event.file].pending.append((index, event))
            case Synced():
                self._sync(event)
            case FolderSynced():
                self._sync_folder(event)
            case Named():
                self._name(index, event)

    def _name(self, index: int, event: Named) -> None:
        if event.file is not None:
            self._files[event.file] = _File(bytearray(event.content))
        if event.is_found:
            self._names[event.path] = event.file
            self._pending_names.pop(event.path, None)
        else:
            self._pending_names.setdefault(event.path, []).append((index, event.file))

    def _sync(self, event: Synced) -> None:
        file = self._files[event.file]
        while file.pending and file.pending[0][0] < event.since:
            _apply(file.content, file.pending.pop(0)[1])

    def _sync_folder(self, event: FolderSynced) -> None:
        for path, pending in self._pending_names.items():
            if path.rpartition("/")[0] == event.folder:
                while pending and pending[0][0] < event.since:
                    self._names[path] = pending.pop(0)[1]

    def survivors(self, random: Random | None) -> dict[str, bytes]:
        """Return what a cut now could leave: the contents of the existing files, by path.

        Args:
            random: decides about changes that were not synced; None keeps all of them.
        """
        found = {}
        for path in sorted(self._names.keys() | self._pending_names.keys()):
            number = self._names.get(path)
            pending = self._pending_names.get(path, [])
            # Changes of one path reach the disk in their order, those of two in any.
            reached = len(pending) if random is None else random.randint(0, len(pending))
            if reached:
                number = pending[reached - 1][1]
            if number is not None:
                found[path] = _survivor(self._files[number], random)
        return found


def _survivor(file: _File, random: Random | None) -> bytes:
    """Return what a cut could leave of one file."""
    content = bytearray(file.content)
    # All lost and all kept show as much as a mixture: a WAL that is gone, and a database that has
    # its pages.
    kept = 1.0 if random is None else random.choice(_CHANCES)
    for _, event in file.pending:
        if random is None or random.random() < kept:
            _apply(content, event)
        elif isinstance(event, Written) and random.random() < 0.5:
            for sector in _sectors(event):
                if random.random() < 0.5:
                    _apply(content, sector)
    return bytes(content)


def _sectors(event: Written) -> Iterator[Written]:
    """Yield a write sector by sector; a write within one sector is not torn."""
    position = 0
    while position < len(event.data):
        end = position + SECTOR - (event.offset + position) % SECTOR
        if position == 0 and end >= len(event.data):
            return
        yield Written(event.file, event.offset + position, event.data[position:end])
        position = end


def _apply(content: bytearray, event: Written | Resized) -> None:
    if isinstance(event, Written):
        end = event.offset + len(event.data)
        _lengthen(content, end)
        content[event.offset : end] = event.data
    else:
        _lengthen(content, event.size)
        del content[event.size :]


def _lengthen(content: bytearray, size: int) -> None:
    if len(content) < size:
        content.extend(bytes(size - len(content)))
