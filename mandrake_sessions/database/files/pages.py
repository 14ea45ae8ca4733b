"""The pages of a file that may be damaged, with what its log has for them; nothing is written.

SQLite reads a log up to the first frame that is damaged. Here the frames behind it count too: each
carries the checksum that the next one begins with.
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
_LOG_MAGIC: Final = 0x377F0682
# Each page of a chain is read when its row is: three or four times, more if rows share it.
_MOST_FOLLOWED: Final = 64
_LEAVES: Final = (10, 13)
KINDS: Final = (2, 5, *_LEAVES)
"""What the first byte of a page of a tree is: interior and leaf, of an index and of a table."""


class Pages:
    """Reads a database file page by page.

    Args:
        file: the database.
        log: its ``-wal``, if there is one.

    Attributes:
        page_size: bytes of a page.
        usable: bytes of it that hold content.
        count: how many pages there are, with those that only the log has.
        header: the first bytes of the file itself, whatever the log has.
        frames: frames of the log that are used.
        lost_frames: those that are damaged.
        is_log_damaged: whether SQLite would leave out some of the log, or all.
        unreadable: pages that the disk did not give.
    """

    def __init__(self, file: RawFile, log: RawFile | None) -> None:
        self._file = file
        self._log = log
        self.unreadable: set[int] = set()
        self.frames: int = 0
        self.lost_frames: int = 0
        self._followed = 0
        self.is_log_damaged: bool = False
        self._in_log: dict[int, int] = {}
        header = _read(file, 0, 100)
        self.header: bytes = header
        self.page_size: int = self._guess_size(header)
        reserved = header[20] if header[:16] == MAGIC and len(header) > 20 else 0
        # Nobody but an encrypted file reserves more.
        self.usable: int = self.page_size - (reserved if reserved <= 32 else 0)
        if log is not None:
            self._read_log(log)
        self._in_file = -(-file.size // self.page_size)
        # A damaged frame may be for a page far behind: what is between is not there.
        self._behind = sorted(number for number in self._in_log if number > self._in_file)
        self.count: int = self._in_file + len(self._behind)

    def read(self, number: int) -> bytes | None:
        """Return a page, or None if there is none or the disk does not give it."""
        if not self.is_there(number):
            return None
        at = self._in_log.get(number)
        if at is not None and self._log is not None:
            page = _read(self._log, at, self.page_size)
        else:
            page = _read(self._file, (number - 1) * self.page_size, self.page_size)
        if len(page) < self.page_size:
            self.unreadable.add(number)
            return None
        return page

    def is_there(self, number: int) -> bool:
        """Whether the file or its log has a page, whatever stands on it."""
        return 1 <= number <= self._in_file or number in self._in_log

    def may_follow(self) -> bool:
        """Take leave to read one more page of a chain; a sound file never needs so many."""
        self._followed += 1
        return self._followed <= _MOST_FOLLOWED * (self.count + 1)

    def is_blank(self, number: int) -> bool:
        """Whether a page holds nothing but zeros, as no page in use does."""
        page = self.read(number)
        return page is not None and not any(page)

    @property
    def whole_in_file(self) -> int:
        """How many pages the database file itself has."""
        return self._file.size // self.page_size

    @property
    def application_id(self) -> int | None:
        """Whose the file is by its own word; None if its first page does not say."""
        first = self.read(1)
        if first is None or first[:16] != MAGIC:
            return None
        return int.from_bytes(first[68:72], "big")

    def numbers(self) -> Iterator[int]:
        """Yield the number of each page there is, in order."""
        yield from range(1, self._in_file + 1)
        yield from self._behind

    def count_missing(self, stated: int) -> int:
        """Return how many of ``stated`` pages neither the file nor the log has."""
        behind = sum(self.whole_in_file < number <= stated for number in self._in_log)
        return max(0, stated - self.whole_in_file - behind)

    def is_in_log(self, number: int) -> bool:
        """Whether the log has a page."""
        return number in self._in_log

    def free(self) -> set[int] | None:
        """Return the pages that hold nothing any more, or None if the list of them is damaged."""
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
        """Return the size of a page: the header's own word, unless the pages say otherwise."""
        stated = int.from_bytes(header[16:18], "big") or 0
        stated = 65536 if stated == 1 else stated
        if stated in _SIZES and int.from_bytes(header[PAGES_AT], "big") * stated == self._file.size:
            # A text may hold what looks like pages of another size, this is no accident.
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
        looked = [_read(self._file, number * size, size) for number in numbers]
        return sum(_looks_like_leaf(page, size) for page in looked) / max(1, len(looked))

    # -- the log ----------------------------------------------------------------------------

    def _read_log(self, log: RawFile) -> None:
        header = _read(log, 0, WAL_HEADER_BYTES)
        if len(header) < WAL_HEADER_BYTES:
            return
        big = int.from_bytes(header[:4], "big") == _LOG_MAGIC + 1
        order = ">" if big else "<"
        is_sound = header[24:32] == _checksum(header[:24], b"\0" * 8, order)
        size = FRAME_HEADER_BYTES + self.page_size
        heads = [
            head
            for at in range(WAL_HEADER_BYTES, log.size - size + 1, size)
            if len(head := _read(log, at, FRAME_HEADER_BYTES)) == FRAME_HEADER_BYTES
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
            content = head[:8] + _read(log, at, self.page_size)
            is_first = number == 0 and not is_sound
            if not is_first and _checksum(content, before, order) != head[16:24]:
                self.lost_frames += 1
                continue
            pending[page] = at
            self.frames += 1
            if committed:
                self._in_log.update(pending)
                pending.clear()
        # What is left was never committed.
        self.frames -= len(pending)
        # Without a sound head SQLite takes the whole log for an empty one.
        self.is_log_damaged = bool(self.lost_frames) or (bool(heads) and not is_sound)

    @staticmethod
    def _salts(header: bytes, heads: list[bytes], is_sound: bool) -> bytes:
        """Return what marks the frames of this round of the log; older ones may stand behind."""
        if is_sound:
            return header[16:24]
        of_first = [head[8:16] for head in heads[:3]]
        return max(of_first, key=of_first.count, default=header[16:24])


def _read(file: RawFile, offset: int, amount: int) -> bytes:
    """Return bytes; none where the disk fails."""
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


def _looks_like_leaf(page: bytes, size: int) -> bool:
    """Whether the cells of a page lie as SQLite lays them: at the end of its own size."""
    if len(page) < size or page[0] not in _LEAVES:
        return False
    (cells,) = struct.unpack_from(">H", page, 3)
    if not 0 < cells <= size // 4:
        return False
    pointers = struct.unpack_from(f">{cells}H", page, 8)
    return bool(min(pointers) >= 8 + 2 * cells and size // 2 <= max(pointers) < size)


@block
def open_pages(path: Path, *, with_log: bool = True) -> Iterator[Pages]:
    """Open a damaged database and its log for a block.

    Args:
        path: the database.
        with_log: whether its log is read.

    Raises:
        apsw.Error: the database cannot be opened at all.
    """
    with RawFile(path) as file, contextlib.ExitStack() as stack:
        log = None
        name = wal_of(path)
        if with_log and name.is_file():
            with contextlib.suppress(apsw.Error):
                log = stack.enter_context(RawFile(name))
        yield Pages(file, log)
