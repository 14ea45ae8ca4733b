"""Finds other users of a database file in this process, and whether SQLite's locks are lost.

The kernel gives POSIX locks to a process, not to a descriptor. Code in this process that opens and
closes the file without the library's SQLite, such as a second SQLite library, unlocks the file for
every other process, and SQLite does not notice.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

import apsw

from mandrake_sessions.database.kernel_locks import lock_holders

if sys.platform != "win32":
    import fcntl

# The system lists its locks in pieces. While other locks come and go, a lock is missing in about
# one of 5,000 readings (measured with busy writers).
_READINGS = 5
_PAUSE = 0.002


def other_connections_on(path: Path, ours: Collection[apsw.Connection]) -> int:
    """Return how many APSW connections of the host itself may be on a file.

    Args:
        path: the path of the file.
        ours: connections that are neither counted nor touched: a thread may be using them.
    """
    count = 0
    for connection in apsw.connections():
        if not any(connection is own for own in ours):
            try:
                count += os.path.samefile(connection.filename, path)
            except apsw.ThreadingViolationError:
                # Another thread is using it: it may be on the file.
                count += 1
            except (apsw.Error, OSError):
                continue
    return count


def has_lock(path: Path) -> bool | None:
    """Return whether this process has a lock on a file, None if the system shows no locks.

    SQLite keeps one on a database in WAL mode as long as it is open.
    """
    if not _shows_locks():
        return None
    for reading in range(_READINGS):
        if reading:
            time.sleep(_PAUSE)
        found = _holds_lock(path)
        if found is not False:
            return found
    return False


@functools.cache
def _shows_locks() -> bool:
    """Return whether the system shows a lock of this process; only Linux does, not everywhere."""
    if sys.platform == "win32":
        return False
    # Imported late: it imports modules for compressed files.
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(prefix="mandrake-") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return bool(_holds_lock(Path(file.name)))
    except OSError:
        return False


def _holds_lock(path: Path) -> bool | None:
    holders = lock_holders(path)
    return None if holders is None else any(held.pid == os.getpid() for held in holders)
