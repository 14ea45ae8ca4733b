"""Reads how far the WAL of an open database is copied into its file, and waits for its write lock.

SQLite's processes share that in the first bytes of the ``-shm`` (https://sqlite.org/walformat.html).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import ClassVar, Final, NamedTuple

from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.files.paths import Identity, descriptors_on, is_on

if sys.platform != "win32":
    import fcntl

_BYTES: Final = 136
_HEADER: Final = struct.Struct("=8xI4xII8x8s8x")
_COPY: Final = slice(0, _HEADER.size)
_AGAIN: Final = slice(_HEADER.size, 2 * _HEADER.size)
_COPIED: Final = struct.Struct("=I")
_COPIED_AT: Final = 96
_BEGUN_AT: Final = 128
_CHECKPOINT_LOCK: Final = 121
_WRITE_LOCK: Final = 120
_FLOCK: Final = struct.Struct("@hhqqi")
# Locks of an open file itself, and not of the process; of 64-bit Linux, whose structure this is.
_HAS_OWN_LOCKS: Final = (
    sys.platform == "linux" and sys.maxsize > 1 << 32 and hasattr(fcntl, "F_OFD_SETLKW")
)
_READINGS: Final = 3
_NEAR: Final = 16
"""Descriptors that are checked before all are listed."""


class WalState(NamedTuple):
    """The state of a WAL according to its index.

    Attributes:
        salts: random numbers, which change when SQLite restarts the WAL.
        copied: how many of its frames a WAL checkpoint has copied into the file.
        begun: how many a WAL checkpoint has begun to copy; more than ``copied`` while one is under
            way, and after one that was killed.
        frames: how many it has.
        commits: the number of transactions, which continues when SQLite restarts the WAL.
        pages: how many the database has after the last commit; 0 if it has not been written.
    """

    salts: bytes
    copied: int
    begun: int
    frames: int
    commits: int
    pages: int

    @property
    def is_at_rest(self) -> bool:
        """Whether no WAL checkpoint is under way, and none was killed."""
        return self.copied == self.begun

    @property
    def is_copied(self) -> bool:
        """Whether the whole WAL is in the file, so that SQLite may restart it."""
        return self.frames == self.copied


class WalIndex:
    """Reads the WAL index of an open database through the descriptor that SQLite has on it.

    A further descriptor, opened and closed, would drop the locks of this process.

    Args:
        identity: the identity of the index; None if there is none.
    """

    _found_last: ClassVar[int] = 3

    def __init__(self, identity: Identity | None) -> None:
        self._identity = identity
        self._descriptor = -1

    def state(self) -> WalState | None:
        """Return the state of the WAL; None where the system does not show it."""
        if not self._find():
            return None
        for _ in range(_READINGS):
            try:
                found = os.pread(self._descriptor, _BYTES, 0)
            except OSError as error:
                pass_on_timeout(error)
                return None
            # SQLite writes the header twice, one after the other, and compares both copies too.
            if len(found) == _BYTES and found[_COPY] == found[_AGAIN]:
                commits, frames, pages, salts = _HEADER.unpack(found[_COPY])
                copied = _COPIED.unpack_from(found, _COPIED_AT)[0]
                begun = _COPIED.unpack_from(found, _BEGUN_AT)[0]
                return WalState(salts, copied, begun, frames, commits, pages)
        return None

    def is_copying(self) -> bool:
        """Return whether a process holds the WAL checkpoint lock, or that is not known."""
        if not _HAS_OWN_LOCKS or not self._find():
            return True
        try:
            kind = _ask(self._descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, _CHECKPOINT_LOCK)
        except OSError as error:
            pass_on_timeout(error)
            return True
        return kind != fcntl.F_UNLCK

    def wait_for_write_lock(self) -> int:
        """Wait in the kernel, without a deadline, for a lock on the byte of SQLite's write lock.

        It is another lock than SQLite's own: the two exclude each other, within this process too,
        and releasing one does not release the other.

        Returns:
            The descriptor that has it, for ``release_write_lock``.

        Raises:
            OSError: the system has no such locks, or SQLite no such descriptor.
        """
        if not _HAS_OWN_LOCKS or not self._find():
            raise OSError(errno.ENOTSUP, "no lock to wait for")
        descriptor = self._descriptor
        _ask(descriptor, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, _WRITE_LOCK)
        return descriptor

    def descriptor_after_fork(self) -> int | None:
        """Return the descriptor that a forked child has from its parent; None if there is none."""
        if (
            self._identity is None
            or not _HAS_OWN_LOCKS
            or not is_on(self._descriptor, (self._identity,))
        ):
            return None
        return self._descriptor

    def _find(self) -> bool:
        if self._identity is None:
            return False
        wanted = (self._identity,)
        if self._descriptor >= 0 and is_on(self._descriptor, wanted):
            return True
        # First the number that the last file had, and a few after it.
        near = WalIndex._found_last
        for each in range(near, near + _NEAR):
            if is_on(each, wanted):
                break
        else:
            each = next(iter(descriptors_on(wanted) or ()), -1)
            if each < 0:
                return False
        self._descriptor = WalIndex._found_last = each
        return True


def release_write_lock(descriptor: int) -> None:
    """Release the lock of ``wait_for_write_lock``; the file may have been closed meanwhile."""
    try:
        _ask(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _WRITE_LOCK)
    except OSError as error:
        pass_on_timeout(error)


def _ask(descriptor: int, command: int, kind: int, byte: int) -> int:
    """Call the kernel for the lock on one byte; return the kind of lock that it answers."""
    wanted = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
    return int(_FLOCK.unpack(fcntl.fcntl(descriptor, command, wanted))[0])
