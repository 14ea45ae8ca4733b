"""What the frames of an open database's log hold, read past every cache."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mandrake_sessions.database.connection import Connection

LOG_HEADER: Final = 32
"""Bytes before the first frame of a log."""
FRAME_HEADER: Final = 24
"""Bytes of a frame before its page."""

_LOG: Final = 1


def pages_in_log(connection: Connection, page_size: int, done: int, frames: int) -> set[int]:
    """Return the numbers of the pages that are still to be copied into the file.

    Args:
        connection: whose lease the caller holds.
        page_size: bytes of a page.
        done: how many frames have been copied: they are not copied again.
        frames: how many frames the log has.

    Raises:
        apsw.Error: the disk did not give them.
    """
    heads = _heads(connection, page_size, done, frames)
    return {struct.unpack_from(">I", head)[0] for head in heads}


def commits_in_log(connection: Connection, page_size: int, frames: int) -> int:
    """Return how many transactions the first frames of the log are of.

    Args:
        connection: whose lease the caller holds.
        page_size: bytes of a page.
        frames: how many frames are looked at.

    Raises:
        apsw.Error: the disk did not give them.
    """
    # The last frame of a transaction says how long the database is.
    return sum(any(head[4:8]) for head in _heads(connection, page_size, 0, frames))


def _heads(connection: Connection, page_size: int, first: int, end: int) -> Iterator[bytes]:
    salts = _read(connection, 0, LOG_HEADER)[16:24]
    for number in range(first, end):
        at = LOG_HEADER + number * (FRAME_HEADER + page_size)
        head = _read(connection, at, FRAME_HEADER)
        # With other salts it is of an earlier round of the log, which has begun anew meanwhile.
        if head[8:16] == salts:
            yield head


def _read(connection: Connection, offset: int, amount: int) -> bytes:
    return connection.raw.read("main", _LOG, offset, amount)[1]
