"""Reads from Linux's lock table which processes hold SQLite's locks, without opening the file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from mandrake_sessions.database.file_format import LOCK_BYTE

# os_unix.c and wal.c: PENDING and RESERVED of the database; the write lock in the WAL index.
_PENDING: Final = LOCK_BYTE
_RESERVED: Final = _PENDING + 1
_WAL_WRITE: Final = 120
_FIELDS: Final = 8
_READINGS: Final = 4
"""How often the table is read; a lock counts as held if one reading has it."""


class Held(msgspec.Struct, frozen=True):
    """One lock on a range of bytes of a file.

    Attributes:
        pid: the process that holds it.
        is_exclusive: whether no other process can hold a lock on the range meanwhile.
        first: the first byte.
        last: the last byte.
    """

    pid: int
    is_exclusive: bool
    first: int
    last: int

    @property
    def is_writer(self) -> bool:
        """Whether it lets its holder write a database that has no WAL."""
        return self.is_exclusive and self.first <= _RESERVED <= self.last

    @property
    def is_wal_writer(self) -> bool:
        """Whether it lets its holder write to a WAL; it must be a lock on the WAL index."""
        return self.is_exclusive and self.first <= _WAL_WRITE <= self.last


def lock_holders(path: Path) -> list[Held] | None:
    """Return the POSIX locks on a file, or None where the system does not show them.

    Locks of processes in another pid namespace are missing.
    """
    try:
        inode = os.stat(path).st_ino
    except FileNotFoundError:
        return []
    except OSError:
        return None
    lines = _lines_about("POSIX", inode)
    if lines is None:
        return None
    return [
        Held(
            int(fields[4]),
            fields[3] == "WRITE",
            int(fields[6]),
            sys.maxsize if fields[7] == "EOF" else int(fields[7]),
        )
        for fields in lines
    ]


def is_flocked(inode: int) -> bool | None:
    """Return whether a process holds an exclusive flock on a file; None without a lock table.

    Args:
        inode: the inode of the file, without its device: some file systems show another
            device in the table.
    """
    lines = _lines_about("FLOCK", inode)
    return None if lines is None else any(fields[3] == "WRITE" for fields in lines)


def _lines_about(kind: str, inode: int) -> list[list[str]] | None:
    """Return the table's lines about a file, in fields; None if the table cannot be read."""
    # The kernel gives the table page by page. While other locks come and go, a reading may lack a
    # lock that stays, or have it twice.
    readings = [_read(kind, inode) for _ in range(_READINGS)]
    had = [reading for reading in readings if reading is not None]
    found = {tuple(fields[1:]): fields for reading in had for fields in reading}
    return list(found.values()) if had else None


def _read(kind: str, inode: int) -> list[list[str]] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/locks", "rb") as table:
            lines = [line.decode(errors="replace").split() for line in table]
    except OSError:
        return None
    # 12: POSIX  ADVISORY  READ 32355 fe:00:2147494 128 128; a waiter has an arrow after "12:".
    return [
        fields
        for fields in lines
        if len(fields) == _FIELDS
        and fields[1] == kind
        and fields[5].rpartition(":")[2] == str(inode)
    ]
