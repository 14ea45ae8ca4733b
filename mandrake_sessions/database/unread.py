"""Whether SQLite calls a file corrupt whose page the disk has not given.

SQLite makes ``SQLITE_IOERR_CORRUPTFS`` of EIO, and of that ``SQLITE_CORRUPT`` when the statement
ends. What is left of the cause is the number that the system gave, which the open file keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from typing import Final

import apsw

# What SQLite's file layer for Unix takes for a file system that is corrupt.
_REFUSALS: Final = {errno.EIO, errno.ENXIO, errno.ERANGE}

_FileControl = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_FILE_CONTROL_AT: Final = 10
"""The place of ``xFileControl`` in ``sqlite3_io_methods``."""


def disk_refused(raw: apsw.Connection) -> bool:
    """Return whether the disk has refused a page of the file, or of its log, on this connection.

    The number stays until another one takes its place. So a connection that has met a refusal
    cannot say of the next fault what it is: the file is to be looked at through another one.

    Args:
        raw: a connection that has just met ``SQLITE_CORRUPT``; its lease is the caller's.
    """
    number = ctypes.c_int(0)
    with contextlib.suppress(apsw.Error):
        _ask(raw, apsw.SQLITE_FCNTL_LAST_ERRNO, number)
        if number.value in _REFUSALS:
            return True
        log = ctypes.c_void_p()
        _ask(raw, apsw.SQLITE_FCNTL_JOURNAL_POINTER, log)
        return log.value is not None and _errno_of(log.value) in _REFUSALS
    return False


def _ask(raw: apsw.Connection, question: int, answer: ctypes.c_int | ctypes.c_void_p) -> None:
    raw.file_control("main", question, ctypes.addressof(answer))


def _errno_of(file: int) -> int:
    """Return the last number of a ``sqlite3_file``; APSW asks that of the database only."""
    methods = ctypes.c_void_p.from_address(file).value
    if not methods:
        # It is not open.
        return 0
    at = methods + _FILE_CONTROL_AT * ctypes.sizeof(ctypes.c_void_p)
    number = ctypes.c_int(0)
    ask = _FileControl(ctypes.c_void_p.from_address(at).value or 0)
    ask(file, apsw.SQLITE_FCNTL_LAST_ERRNO, ctypes.addressof(number))
    return number.value
