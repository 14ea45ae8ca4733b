"""SQLite's file format: the offsets and values of a header (sqlite.org/fileformat2.html)."""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100
SMALLEST_PAGE: Final = 512
FORMAT_AT: Final = slice(18, 20)
PAGES_AT: Final = slice(28, 32)
USER_VERSION_AT: Final = slice(60, 64)
APPLICATION_ID_AT: Final = slice(68, 72)
WAL_FORMAT: Final = b"\2\2"
WAL_HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
LOCK_BYTE: Final = 0x40000000
"""The offset of SQLite's locks; SQLite never writes the page that has it."""

_LARGEST_PAGE: Final = 65536
_USUAL_PAGE: Final = 4096


def page_size_of(header: bytes) -> int:
    """Return the page size that a header states, in bytes; SQLite's default if it is not valid.

    Args:
        header: the first 100 bytes of the file.
    """
    stated = int.from_bytes(header[16:18], "big")
    if stated == 1:
        return _LARGEST_PAGE
    return stated if stated >= SMALLEST_PAGE else _USUAL_PAGE


def pages_of(header: bytes) -> int:
    """Return the number of pages that a header states, at least 1."""
    return max(1, int.from_bytes(header[PAGES_AT], "big"))


def lock_page(page_size: int) -> int:
    """Return the number of the page that has SQLite's locks and is never written."""
    return LOCK_BYTE // page_size + 1
