"""Compares the length of a database file with its first page, to find pages that were cut off."""

from __future__ import annotations

import time
from time import monotonic
from typing import Final, NamedTuple

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.wal_frames import pages_in_wal
from mandrake_sessions.database.file_format import lock_page, page_size_of, pages_of

_READINGS: Final = 5
_PAUSE: Final = 0.002


class Length(NamedTuple):
    """The length of a file, and the length that its first page states.

    Attributes:
        size: its bytes.
        page_size: bytes of a page.
        pages: how many pages it should have.
        lacking: how many of them it does not have.
        is_cut: whether the WAL lacks those too; None if there was no time to find out.
    """

    size: int
    page_size: int
    pages: int
    lacking: int
    is_cut: bool | None

    def __str__(self) -> str:
        return f"{self.size} bytes, but {self.pages} pages of {self.page_size}: it was cut off"


def lacking_pages(header: bytes, size: int) -> int:
    """Return how many of the pages that a header states are missing in the file.

    Args:
        header: the first 100 bytes of the file.
        size: its bytes.
    """
    page_size = page_size_of(header)
    pages, there = pages_of(header), size // page_size
    if there >= pages:
        return 0
    return max(0, pages - there - (there < lock_page(page_size) <= pages))


def measure(connection: Connection, deadline: float) -> Length:
    """Compare the file's length with its first page, and search missing pages in the WAL.

    A WAL checkpoint of any process writes the first page before the last ones. Pages that the file
    lacks meanwhile are in the WAL, and are still to be copied.

    Args:
        connection: the caller must hold its lease.
        deadline: when the search in the WAL must end (``time.monotonic``).

    Raises:
        apsw.Error: SQLite could not read the file.
        OSError: the file system did not answer.
    """
    found = Length(0, 0, 0, 0, None)
    for reading in range(_READINGS):
        if reading:
            time.sleep(_PAUSE)
        header = connection.header()
        size = connection.path.stat().st_size
        page_size, pages = page_size_of(header), pages_of(header)
        lacking = lacking_pages(header, size)
        found = Length(size, page_size, pages, lacking, is_cut=bool(lacking))
        if not lacking:
            break
        frames, done = connection.wal_backlog()
        # Counted first: a damaged header may state four thousand million pages.
        if lacking <= frames - done:
            if monotonic() >= deadline:
                return found._replace(is_cut=None)
            missing = set(range(size // page_size + 1, pages + 1)) - {lock_page(page_size)}
            if missing <= pages_in_wal(connection, page_size, done, frames):
                return found._replace(is_cut=False)
    return found
