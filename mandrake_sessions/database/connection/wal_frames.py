"""Reads the frame headers of an open database's WAL, past every cache."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.file_format import FRAME_HEADER_BYTES, WAL_HEADER_BYTES

_WAL_FILE: Final = 1


def pages_in_wal(connection: Connection, page_size: int, done: int, frames: int) -> set[int]:
    """Return the numbers of the pages that are still to be copied into the file.

    Args:
        connection: the caller must hold its lease.
        page_size: bytes of a page.
        done: how many frames have been copied: they are not copied again.
        frames: how many frames the WAL has.

    Raises:
        apsw.Error: the disk could not read them.
    """
    heads = _heads(connection, page_size, done, frames)
    return {struct.unpack_from(">I", head)[0] for head in heads}


def commits_in_wal(connection: Connection, page_size: int, frames: int) -> int:
    """Return how many transactions end in the first frames of the WAL.

    Args:
        connection: the caller must hold its lease.
        page_size: bytes of a page.
        frames: how many frames are read.

    Raises:
        apsw.Error: the disk could not read them.
    """
    # Only the last frame of a transaction has the number of pages of the database.
    return sum(any(head[4:8]) for head in _heads(connection, page_size, 0, frames))


def _heads(connection: Connection, page_size: int, first: int, end: int) -> Iterator[bytes]:
    salts = _read(connection, 0, WAL_HEADER_BYTES)[16:24]
    for number in range(first, end):
        at = WAL_HEADER_BYTES + number * (FRAME_HEADER_BYTES + page_size)
        head = _read(connection, at, FRAME_HEADER_BYTES)
        # A frame with other salts is older than the last restart of the WAL.
        if head[8:16] == salts:
            yield head


def _read(connection: Connection, offset: int, amount: int) -> bytes:
    return connection.raw.read("main", _WAL_FILE, offset, amount)[1]
