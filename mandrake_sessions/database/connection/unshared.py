"""Reads a WAL database without a shared WAL index: on a read-only medium, on a full disk.

The processes that use a WAL share its index (``-shm``). Where no index exists and none can be made,
no process uses the WAL. A connection may then keep an index of its own in memory, or needs none if
there is no WAL. Such a connection takes no lock that other processes see. So every read checks,
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
"""Bytes of the smallest index; a shorter one was begun when the disk was full."""


def may_read_unshared(path: Path, error: DatabaseError) -> bool:
    """Return whether a database may be read unshared, after SQLite could not open it shared.

    Args:
        path: the real path of the database.
        error: the error of that opening.
    """
    code = error.result_code or 0
    return bool(_REASONS & {code, code & 0xFF}) and _is_unshared(path)


def must_read_unshared(path: Path) -> bool:
    """Return whether a database must be read unshared, so that no sidecar is made.

    A sidecar that SQLite makes for a user that may not write the database belongs to that user: the
    processes of the database's owner could not write to it, and it would stay.

    Args:
        path: the real path of the database.
    """
    return not may_write(path) and _is_unshared(path)


def _is_unshared(path: Path) -> bool:
    """Return whether no process uses the WAL of a database, and no rollback journal is left."""
    if _WITHOUT_LOCKS not in apsw.vfs_names():
        return False
    index = shm_of(path)
    # With an index a process may be writing.
    return _size(index) < _INDEX_REGION and _size(journal_of(path)) == 0


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class Unshared:
    """A file that is read without a shared WAL index.

    Args:
        path: the real path of the database.
        identity: its device and inode.

    Attributes:
        has_wal: whether it has a WAL, which has to be read.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self.has_wal: bool = _size(wal_of(path)) > 0
        self._before = self._states()

    def connect(self) -> apsw.Connection:
        """Return a new connection that only reads.

        Raises:
            apsw.Error: it cannot be opened.
        """
        if not self.has_wal:
            # Not through the VFS without locks: closing there drops the locks of this process.
            name = f"file:{quote(str(self._path))}?immutable=1"
            return apsw.Connection(name, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        raw = apsw.Connection(
            str(self._path),
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOFOLLOW,
            vfs=_WITHOUT_LOCKS,
        )
        _open[self._identity] += 1
        # Before the first read, so that the WAL index is in memory.
        raw.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        return raw

    def has_changed(self) -> bool:
        """Return whether a process has written to the file or its WAL, or has begun to use them."""
        return self._states() != self._before

    def close(self, raw: apsw.Connection) -> None:
        """Close a connection, unless that would drop locks of other connections of this process.

        Args:
            raw: a connection that ``connect`` has returned.
        """
        if not self.has_wal:
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
