"""Parses the pages of SQLite's trees, also damaged ones (https://www.sqlite.org/fileformat2.html).

No function raises for damage: a cell that cannot be read is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

from mandrake_sessions.database.files.pages import KINDS, Pages

Value: TypeAlias = str | int | float | bytes | None

_INTERIOR: Final = (2, 5)
_TABLE: Final = (5, 13)
_WIDTHS: Final = (0, 1, 2, 3, 4, 6, 8)
_MOST_COLUMNS: Final = 64
_DEEPEST: Final = 32


class Record(msgspec.Struct, frozen=True):
    """One row, of a table or of an index.

    Attributes:
        rowid: None for an index.
        values: its columns; those after the first ``whole`` are cut or missing.
        whole: how many of its columns are complete.
        columns: how many it should have.
        is_garbled: whether a text was not UTF-8; its bad bytes are replaced.
    """

    rowid: int | None
    values: tuple[Value, ...]
    whole: int
    columns: int
    is_garbled: bool


class Page(msgspec.Struct, frozen=True):
    """The content of a page.

    Attributes:
        kind: 2, 5, 10, 13: interior and leaf, of an index and of a table.
        children: the pages below.
        records: the rows on it.
        bad_cells: how many could not be read.
    """

    kind: int
    children: tuple[int, ...]
    records: tuple[Record, ...]
    bad_cells: int


def parse(pages: Pages, number: int) -> Page | None:
    """Return the content of a page; None if it belongs to no tree, or all of it is damaged."""
    content = pages.read(number)
    if content is None:
        return None
    start = 100 if number == 1 else 0
    kind = content[start]
    if kind not in KINDS:
        return None
    head = start + (12 if kind in _INTERIOR else 8)
    (cells,) = struct.unpack_from(">H", content, start + 3)
    bad = 0
    if cells > (pages.usable - head) // 2:
        # No page has so many cells, so the valid pointers are counted.
        cells, bad = _count_pointers(content, head, pages.usable), 1
    children: list[int] = []
    records: list[Record] = []
    taken: set[int] = set()
    for (pointer,) in struct.iter_unpack(">H", content[head : head + 2 * cells]):
        try:
            at = pointer
            if not head <= at < pages.usable:
                raise ValueError
            if kind in _INTERIOR:
                children.append(struct.unpack_from(">I", content, at)[0])
                at += 4
            if kind != 5:
                records.append(_record(pages, content, at, kind, taken))
        except (IndexError, ValueError, OverflowError, struct.error):
            bad += 1
    if kind in _INTERIOR:
        children.append(struct.unpack_from(">I", content, start + 8)[0])
    if bad and not records and not children:
        return None
    return Page(kind, tuple(children), tuple(records), bad)


def walk(pages: Pages, root: int) -> Iterator[tuple[int, Page | None]]:
    """Yield each page of a tree with its number; None for a damaged page."""
    seen = {root}
    waiting = [(root, 0)]
    while waiting:
        number, depth = waiting.pop()
        page = parse(pages, number)
        yield number, page
        for child in reversed(page.children if page is not None else ()):
            if child in seen or depth == _DEEPEST or not pages.is_there(child):
                yield child, None
            else:
                seen.add(child)
                waiting.append((child, depth + 1))


def _count_pointers(content: bytes, head: int, usable: int) -> int:
    count = 0
    lowest = usable
    while head + 2 * count + 2 <= lowest:
        (pointer,) = struct.unpack_from(">H", content, head + 2 * count)
        if not head + 2 * count < pointer < usable:
            break
        lowest = min(lowest, pointer)
        count += 1
    return count


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = content[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    value = value << 8 | content[at]
    return (value - (1 << 64) if value >> 63 else value), at + 1


def _record(pages: Pages, content: bytes, at: int, kind: int, taken: set[int]) -> Record:
    length, at = _varint(content, at)
    rowid = None
    if kind in _TABLE:
        rowid, at = _varint(content, at)
    if not 0 < length <= pages.count * pages.usable:
        raise ValueError
    local = _local(length, pages.usable, is_table=kind in _TABLE)
    if at + local > pages.usable:
        raise ValueError
    payload = content[at : at + local]
    if local < length:
        (following,) = struct.unpack_from(">I", content, at + local)
        payload += _overflow(pages, following, length - local, taken)
    return _decoded(rowid, payload, length)


def _local(length: int, usable: int, *, is_table: bool) -> int:
    """Return how many bytes of a payload are on the page itself."""
    most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
    if length <= most:
        return length
    least = (usable - 12) * 32 // 255 - 23
    some = least + (length - least) % (usable - 4)
    return some if some <= most else least


def _overflow(pages: Pages, number: int, length: int, taken: set[int]) -> bytes:
    """Return the rest of a payload, as far as its chain of pages can be read.

    A page of a chain belongs to one row. A crafted file may give all rows the same chain. So the
    rows of one page read no page twice, and ``may_follow`` limits the pages of all chains.
    """
    parts: list[bytes] = []
    while number and length > 0 and number not in taken and pages.may_follow():
        taken.add(number)
        page = pages.read(number)
        # A page of zeros is no text: the disk has lost its content.
        if page is None or not any(page):
            break
        (number,) = struct.unpack_from(">I", page)
        part = page[4 : min(pages.usable, 4 + length)]
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _decoded(rowid: int | None, payload: bytes, length: int) -> Record:
    end, at = _varint(payload, 0)
    # The header of a record is always on the page itself, even of a long record.
    if not at <= end <= min(len(payload), length):
        raise ValueError
    kinds: list[int] = []
    while at < end:
        kind, at = _varint(payload, at)
        if kind in (10, 11) or kind < 0 or len(kinds) == _MOST_COLUMNS:
            raise ValueError
        kinds.append(kind)
    if at != end:
        raise ValueError
    if end + sum(_size(kind) for kind in kinds) != length:
        raise ValueError
    values: list[Value] = []
    whole = len(kinds)
    is_garbled = False
    at = end
    for position, kind in enumerate(kinds):
        size = _size(kind)
        part = payload[at : at + size]
        at += size
        if len(part) < size:
            whole = min(whole, position)
            if kind < 12:
                break
        value, was_garbled = _value(kind, part)
        is_garbled |= was_garbled and len(part) == size
        values.append(value)
    return Record(rowid, tuple(values), whole, len(kinds), is_garbled)


def _size(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    return _WIDTHS[kind] if kind < 7 else 8 if kind == 7 else 0


def _value(kind: int, part: bytes) -> tuple[Value, bool]:
    """Return a column's value, and whether bad bytes in it were replaced."""
    if kind < 12:
        return _number(kind, part), False
    if kind % 2 == 0:
        return part, False
    try:
        return part.decode(), False
    except UnicodeDecodeError:
        return part.decode(errors="replace"), True


def _number(kind: int, part: bytes) -> int | float | None:
    if kind == 0:
        return None
    if kind in (8, 9):
        return kind - 8
    if kind == 7:
        return float(struct.unpack(">d", part)[0])
    return int.from_bytes(part, "big", signed=True)
