"""Reads the pages of a possibly damaged file, with those in its WAL; nothing is written.

SQLite reads a WAL up to the first damaged frame. Here the frames after it count too: each carries
the checksum with which the next one begins.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.file_format import (
    FRAME_HEADER_BYTES,
    MAGIC,
    PAGES_AT,
    WAL_HEADER_BYTES,
)
from mandrake_sessions.database.files.raw import RawFile
from mandrake_sessions.database.sidecars import wal_of

_SIZES: Final = tuple(1 << power for power in range(9, 17))
_USUAL: Final = 4096
_SAMPLE: Final = 100
_WAL_MAGIC: Final = 0x377F0682
# A page of a chain is read with its row, three or four times; more often if rows share it.
_MOST_FOLLOWED: Final = 64
_LEAVES: Final = (10, 13)
KINDS: Final = (2, 5, *_LEAVES)
"""The first byte of a page of a tree: interior and leaf, of an index and of a table."""


class Pages:
    """Reads a database file page by page.

    Args:
        file: the database.
        wal: its ``-wal``, if there is one.

    Attributes:
        page_size: bytes of a page.
        usable: bytes of it that hold content.
        count: how many pages there are, with those that only the WAL has.
        header: the first bytes of the file itself, not of its first page in the WAL.
        frames: frames of the WAL that are used.
        lost_frames: damaged frames of the WAL.
        is_wal_damaged: whether SQLite would ignore a part of the WAL, or all of it.
        unreadable: pages that the disk could not read.
    """

    def __init__(self, file: RawFile, wal: RawFile | None) -> None:
        self._file = file
        self._wal = wal
        self.unreadable: set[int] = set()
        self.frames: int = 0
        self.lost_frames: int = 0
        self._followed = 0
        self.is_wal_damaged: bool = False
        self._in_wal: dict[int, int] = {}
        header = _read(file, 0, 100)
        self.header: bytes = header
        self.page_size: int = self._guess_size(header)
        reserved = header[20] if header[:16] == MAGIC and len(header) > 20 else 0
        # Only an encrypted file reserves more.
        self.usable: int = self.page_size - (reserved if reserved <= 32 else 0)
        if wal is not None:
            self._read_wal(wal)
        self._in_file = -(-file.size // self.page_size)
        # A frame may be for a page far past the end: the pages in between do not exist.
        self._behind = sorted(number for number in self._in_wal if number > self._in_file)
        self.count: int = self._in_file + len(self._behind)

    def read(self, number: int) -> bytes | None:
        """Return a page, or None if it does not exist or the disk cannot read it."""
        if not self.is_there(number):
            return None
        at = self._in_wal.get(number)
        if at is not None and self._wal is not None:
            page = _read(self._wal, at, self.page_size)
        else:
            page = _read(self._file, (number - 1) * self.page_size, self.page_size)
        if len(page) < self.page_size:
            self.unreadable.add(number)
            return None
        return page

    def is_there(self, number: int) -> bool:
        """Whether the file or its WAL has a page, damaged or not."""
        return 1 <= number <= self._in_file or number in self._in_wal

    def may_follow(self) -> bool:
        """Count one more page of a chain; return False past a limit that no sound file reaches."""
        self._followed += 1
        return self._followed <= _MOST_FOLLOWED * (self.count + 1)

    def is_blank(self, number: int) -> bool:
        """Whether a page has only zeros, as no page in use has."""
        page = self.read(number)
        return page is not None and not any(page)

    @property
    def whole_in_file(self) -> int:
        """How many pages the database file itself has."""
        return self._file.size // self.page_size

    @property
    def application_id(self) -> int | None:
        """The application id in the first page; None if that page is not readable."""
        first = self.read(1)
        if first is None or first[:16] != MAGIC:
            return None
        return int.from_bytes(first[68:72], "big")

    def numbers(self) -> Iterator[int]:
        """Yield the number of each existing page, in order."""
        yield from range(1, self._in_file + 1)
        yield from self._behind

    def count_missing(self, stated: int) -> int:
        """Return how many of ``stated`` pages neither the file nor the WAL has."""
        behind = sum(self.whole_in_file < number <= stated for number in self._in_wal)
        return max(0, stated - self.whole_in_file - behind)

    def is_in_wal(self, number: int) -> bool:
        """Whether the WAL has a page."""
        return number in self._in_wal

    def free(self) -> set[int] | None:
        """Return the free pages, or None if the list of them is damaged."""
        first = self.read(1)
        if first is None or first[:16] != MAGIC:
            return None
        found: set[int] = set()
        trunk, total = struct.unpack_from(">II", first, 32)
        while trunk:
            page = self.read(trunk)
            if page is None or trunk in found:
                return None
            found.add(trunk)
            trunk, leaves = struct.unpack_from(">II", page)
            if leaves > self.usable // 4 - 2:
                return None
            found.update(struct.unpack_from(f">{leaves}I", page, 8))
        return found if len(found) == total else None

    def _guess_size(self, header: bytes) -> int:
        """Return the size of a page: the stated one, unless the pages fit another one better."""
        stated = int.from_bytes(header[16:18], "big") or 0
        stated = 65536 if stated == 1 else stated
        if stated in _SIZES and int.from_bytes(header[PAGES_AT], "big") * stated == self._file.size:
            # This cannot be chance, while a text may contain the form of pages of another size.
            return stated
        candidates = [stated] if stated in _SIZES else []
        candidates += [size for size in (_USUAL, *_SIZES) if size not in candidates]
        scores = {size: self._plausible(size) for size in candidates}
        best = max(candidates, key=lambda size: scores[size])
        return best if scores[best] else candidates[0]

    def _plausible(self, size: int) -> float:
        count = self._file.size // size
        step = max(1, count // _SAMPLE)
        numbers = range(1, count, step)
        sample = [_read(self._file, number * size, size) for number in numbers]
        return sum(_resembles_leaf(page, size) for page in sample) / max(1, len(sample))

    # -- the WAL ----------------------------------------------------------------------------

    def _read_wal(self, wal: RawFile) -> None:
        header = _read(wal, 0, WAL_HEADER_BYTES)
        if len(header) < WAL_HEADER_BYTES:
            return
        big = int.from_bytes(header[:4], "big") == _WAL_MAGIC + 1
        order = ">" if big else "<"
        is_sound = header[24:32] == _checksum(header[:24], b"\0" * 8, order)
        size = FRAME_HEADER_BYTES + self.page_size
        heads = [
            head
            for at in range(WAL_HEADER_BYTES, wal.size - size + 1, size)
            if len(head := _read(wal, at, FRAME_HEADER_BYTES)) == FRAME_HEADER_BYTES
        ]
        salts = self._salts(header, heads, is_sound)
        pending: dict[int, int] = {}
        seed = header[24:32]
        for number, head in enumerate(heads):
            at = WAL_HEADER_BYTES + number * size + FRAME_HEADER_BYTES
            page, committed = struct.unpack_from(">II", head)
            before, seed = seed, head[16:24]
            if head[8:16] != salts or not page:
                continue
            content = head[:8] + _read(wal, at, self.page_size)
            is_first = number == 0 and not is_sound
            if not is_first and _checksum(content, before, order) != head[16:24]:
                self.lost_frames += 1
                continue
            pending[page] = at
            self.frames += 1
            if committed:
                self._in_wal.update(pending)
                pending.clear()
        # The remaining frames were never committed.
        self.frames -= len(pending)
        # Without a sound header SQLite treats the whole WAL as empty.
        self.is_wal_damaged = bool(self.lost_frames) or (bool(heads) and not is_sound)

    @staticmethod
    def _salts(header: bytes, heads: list[bytes], is_sound: bool) -> bytes:
        """Return the salts of the WAL's present frames; older frames may follow them."""
        if is_sound:
            return header[16:24]
        of_first = [head[8:16] for head in heads[:3]]
        return max(of_first, key=of_first.count, default=header[16:24])


def _read(file: RawFile, offset: int, amount: int) -> bytes:
    """Return bytes of a file; none if the disk fails."""
    with contextlib.suppress(apsw.Error):
        return file.read(offset, amount)
    return b""


def _checksum(content: bytes, seed: bytes, order: str) -> bytes:
    first, second = struct.unpack(">II", seed)
    words = struct.unpack(f"{order}{len(content) // 4}I", content[: len(content) // 8 * 8])
    for at in range(0, len(words) - 1, 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)


def _resembles_leaf(page: bytes, size: int) -> bool:
    """Whether the cells of a page are where SQLite puts them: at the end of a page of this size."""
    if len(page) < size or page[0] not in _LEAVES:
        return False
    (cells,) = struct.unpack_from(">H", page, 3)
    if not 0 < cells <= size // 4:
        return False
    pointers = struct.unpack_from(f">{cells}H", page, 8)
    return bool(min(pointers) >= 8 + 2 * cells and size // 2 <= max(pointers) < size)


@block
def open_pages(path: Path, *, with_wal: bool = True) -> Iterator[Pages]:
    """Open a damaged database and its WAL for a block.

    Args:
        path: the database.
        with_wal: whether its WAL is read.

    Raises:
        apsw.Error: the database cannot be opened at all.
    """
    with RawFile(path) as file, contextlib.ExitStack() as stack:
        wal = None
        name = wal_of(path)
        if with_wal and name.is_file():
            with contextlib.suppress(apsw.Error):
                wal = stack.enter_context(RawFile(name))
        yield Pages(file, wal)
