"""SQLite's file format: where a header says what (https://www.sqlite.org/fileformat2.html)."""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100
SMALLEST_PAGE: Final = 512
FORMAT_AT: Final = slice(18, 20)
USER_VERSION_AT: Final = slice(60, 64)
APPLICATION_ID_AT: Final = slice(68, 72)
WAL_FORMAT: Final = b"\2\2"
_LARGEST_PAGE: Final = 65536
_USUAL_PAGE: Final = 4096


def page_size_of(header: bytes) -> int:
    """Return the bytes of a page, as a header states them; SQLite's own size if it cannot be read.

    Args:
        header: the first 100 bytes of the file.
    """
    stated = int.from_bytes(header[16:18], "big")
    if stated == 1:
        return _LARGEST_PAGE
    return stated if stated >= SMALLEST_PAGE else _USUAL_PAGE
