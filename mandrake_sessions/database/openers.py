"""What else has a database file open, as ``/proc`` tells: closing it drops SQLite's locks.

The kernel gives POSIX locks to a process, not to a descriptor. Whatever in this process opens and
closes the file beside our SQLite, a second SQLite library above all, unlocks it for every other
process, and SQLite does not notice.
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

# The system lists its locks in pieces: one is passed over where others come and go meanwhile, in
# about one of 5,000 looks beside busy writers.
_LOOKS = 5
_PAUSE = 0.002


def other_connections_on(path: Path, ours: Collection[apsw.Connection]) -> int:
    """Return how many connections of a host's own, through our SQLite library, may be on a file.

    Args:
        path: of the file.
        ours: connections that are not counted, nor touched: somebody may be using them.
    """
    count = 0
    for connection in apsw.connections():
        if not any(connection is own for own in ours):
            try:
                count += os.path.samefile(connection.filename, path)
            except apsw.ThreadingViolationError:
                # In use this moment: it could be.
                count += 1
            except (apsw.Error, OSError):
                continue
    return count


def has_lock(path: Path) -> bool | None:
    """Return whether this process has a lock on a file, None if the system does not show it.

    SQLite keeps one on a database in WAL mode as long as it is open.
    """
    if not _shows_locks():
        return None
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        found = _holds_lock(path)
        if found is not False:
            return found
    return False


@functools.cache
def _shows_locks() -> bool:
    """Return whether a lock that we have is seen; only Linux shows them, and not everywhere."""
    if sys.platform == "win32":
        return False
    # Late, as are all that bring modules for compressed files.
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
