"""``flock`` on sidecars and folders: a lock that the system releases when a process ends.

It is never used on a database itself, whose locks are SQLite's own.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

if sys.platform != "win32":
    import fcntl

HELD: Final = frozenset({errno.EWOULDBLOCK, errno.EACCES})
"""The error numbers for a lock that another process holds."""


def try_lock(descriptor: int, *, is_shared: bool = False) -> bool:
    """Take the lock if it is free, and return whether it was.

    Raises:
        OSError: the system or the file system has no such locks.
    """
    try:
        _flock(descriptor, is_shared=is_shared, waits=False)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def wait_for_lock(descriptor: int) -> None:
    """Take the lock, after every process that waited before; the wait has no deadline.

    Raises:
        OSError: the system or the file system has no such locks.
    """
    _flock(descriptor, is_shared=False, waits=True)


def unlock(descriptor: int) -> None:
    """Release the lock."""
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _flock(descriptor: int, *, is_shared: bool, waits: bool) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, how if waits else how | fcntl.LOCK_NB)
