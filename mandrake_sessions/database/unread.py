"""Separates a failed read of the disk from real corruption, where SQLite reports both as corrupt.

SQLite turns EIO into ``SQLITE_IOERR_CORRUPTFS``, and that into ``SQLITE_CORRUPT`` when the
statement ends. The cause is left only in the error number of the system, which the open file keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from typing import Final

import apsw

# The error numbers that SQLite's file layer for Unix treats as a corrupt file system.
_REFUSALS: Final = {errno.EIO, errno.ENXIO, errno.ERANGE}

_FileControl = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_FILE_CONTROL_AT: Final = 10
"""The place of ``xFileControl`` in ``sqlite3_io_methods``."""


def disk_refused(raw: apsw.Connection) -> bool:
    """Return whether the disk has refused a page of the file, or of its WAL, on this connection.

    The number stays until another one replaces it. So a connection that has met a refusal cannot
    show the cause of the next error; the file must then be examined through another connection.

    Args:
        raw: a connection that has just met ``SQLITE_CORRUPT``; the caller must hold its lease.
    """
    number = ctypes.c_int(0)
    with contextlib.suppress(apsw.Error):
        _ask(raw, apsw.SQLITE_FCNTL_LAST_ERRNO, number)
        if number.value in _REFUSALS:
            return True
        wal = ctypes.c_void_p()
        _ask(raw, apsw.SQLITE_FCNTL_JOURNAL_POINTER, wal)
        return wal.value is not None and _errno_of(wal.value) in _REFUSALS
    return False


def _ask(raw: apsw.Connection, question: int, answer: ctypes.c_int | ctypes.c_void_p) -> None:
    raw.file_control("main", question, ctypes.addressof(answer))


def _errno_of(file: int) -> int:
    """Return the last error number of a ``sqlite3_file``; APSW gives that of the database only."""
    methods = ctypes.c_void_p.from_address(file).value
    if not methods:
        # It is not open.
        return 0
    at = methods + _FILE_CONTROL_AT * ctypes.sizeof(ctypes.c_void_p)
    number = ctypes.c_int(0)
    ask = _FileControl(ctypes.c_void_p.from_address(at).value or 0)
    ask(file, apsw.SQLITE_FCNTL_LAST_ERRNO, ctypes.addressof(number))
    return number.value
