"""Reads a WAL database where SQLite cannot have its index: on a read-only medium, on a full disk.

The index (``-shm``) is what the processes that use a log share. Where it is not there and cannot
be made, no process uses the log: a connection may keep an index of its own in memory, or needs none
if there is no log. Such a connection takes no lock that other processes see, so every read asks,
before and after, whether a process has begun to write.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw

from mandrake_sessions.concurrency.fork import keep_alive
from mandrake_sessions.database.files.paths import Identity, descriptors_on, may_write
from mandrake_sessions.database.files.raw import states_of
from mandrake_sessions.database.sidecars import journal_of, shm_of, wal_of
from mandrake_sessions.errors import DatabaseError

_REASONS: Final = frozenset(
    {
        apsw.SQLITE_CANTOPEN,
        apsw.SQLITE_FULL,
        apsw.SQLITE_IOERR_SHMMAP,
        apsw.SQLITE_IOERR_SHMOPEN,
        apsw.SQLITE_IOERR_SHMSIZE,
        apsw.SQLITE_READONLY_CANTINIT,
        apsw.SQLITE_READONLY_DIRECTORY,
    }
)
_open: Final[Counter[Identity]] = Counter()
"""Connections without locks that this process has open, by file."""

_WITHOUT_LOCKS: Final = "unix-none"
_INDEX_REGION: Final = 32 * 1024
"""Bytes of the smallest index; a shorter one was begun where there was no space for it."""


def may_read_unshared(path: Path, error: DatabaseError) -> bool:
    """Return whether a database that SQLite could not open to share it may be read by itself.

    Args:
        path: the real path of the database.
        error: why it could not be opened.
    """
    code = error.result_code or 0
    return bool(_REASONS & {code, code & 0xFF}) and _is_alone(path)


def must_read_unshared(path: Path) -> bool:
    """Return whether a database is to be read by itself, so that nothing is made beside it.

    What SQLite makes beside a file for a user that may not write the file is that user's: the
    owner's processes could not write to it, and it would stay.

    Args:
        path: the real path of the database.
    """
    return not may_write(path) and _is_alone(path)


def _is_alone(path: Path) -> bool:
    """Return whether no process uses the log of a database, and no journal is to be rolled back."""
    if _WITHOUT_LOCKS not in apsw.vfs_names():
        return False
    index = shm_of(path)
    # With an index there may be a process that writes.
    return _size(index) < _INDEX_REGION and _size(journal_of(path)) == 0


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class Unshared:
    """A file that is read without the index that processes share.

    Args:
        path: the real path of the database.
        identity: its device and inode.

    Attributes:
        has_log: whether it has a log that is to be read.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self.has_log: bool = _size(wal_of(path)) > 0
        self._before = self._states()

    def connect(self) -> apsw.Connection:
        """Return a new connection that only reads.

        Raises:
            apsw.Error: it cannot be opened.
        """
        if not self.has_log:
            # Never through the other file layer: closing there drops the locks of this process.
            name = f"file:{quote(str(self._path))}?immutable=1"
            return apsw.Connection(name, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        raw = apsw.Connection(
            str(self._path),
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOFOLLOW,
            vfs=_WITHOUT_LOCKS,
        )
        _open[self._identity] += 1
        # Before the first read, so that its index of the log is in memory.
        raw.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        return raw

    def has_changed(self) -> bool:
        """Return whether a process has written to the file or its log, or has begun to use them."""
        return self._states() != self._before

    def close(self, raw: apsw.Connection) -> None:
        """Close a connection, unless that would drop locks that others of this process hold.

        Args:
            raw: it was opened here.
        """
        if not self.has_log:
            raw.close(True)
            return
        here = descriptors_on((self._identity,))
        if here is not None and len(here) > _open[self._identity]:
            keep_alive(raw)
            return
        raw.close(True)
        _open[self._identity] -= 1

    def _states(self) -> tuple[object, ...]:
        states = tuple(states_of(self._path).values())
        with contextlib.suppress(OSError):
            found = os.stat(shm_of(self._path))
            return (*states, found.st_ino, found.st_size)
        return states
