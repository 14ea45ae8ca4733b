"""Reads how far the WAL of an open database is copied into its file, by any process.

SQLite's processes share that in the first bytes of the ``-shm`` (https://sqlite.org/walformat.html).
"""

from __future__ import annotations

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
_FLOCK: Final = struct.Struct("@hhqqi")
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
        identity: of the index; None if there is none.
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
        if not hasattr(fcntl, "F_OFD_GETLK") or sys.maxsize < 1 << 32 or not self._find():
            return True
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _CHECKPOINT_LOCK, 1, 0)
        try:
            found = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, wanted)
        except OSError as error:
            pass_on_timeout(error)
            return True
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

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
