"""What an SQLite error means: from the extended result code to a typed error, never by its text."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import apsw

from mandrake_sessions.errors import (
    ConstraintViolationError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseFolderError,
    DatabaseIOError,
    DatabaseOpenError,
    DatabasePathError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    StatementError,
    StorageFullError,
)

# By primary result code; what is missing here is an error in the statement itself.
_MEANINGS: dict[int, type[DatabaseError]] = {
    apsw.SQLITE_BUSY: DatabaseBusyError,
    apsw.SQLITE_LOCKED: DatabaseBusyError,
    apsw.SQLITE_READONLY: ReadOnlyDatabaseError,
    apsw.SQLITE_PERM: ReadOnlyDatabaseError,
    apsw.SQLITE_IOERR: DatabaseIOError,
    apsw.SQLITE_NOMEM: DatabaseIOError,
    apsw.SQLITE_CORRUPT: CorruptDatabaseError,
    apsw.SQLITE_NOTADB: NotADatabaseError,
    apsw.SQLITE_FULL: StorageFullError,
    apsw.SQLITE_CANTOPEN: DatabaseOpenError,
}
# By extended code, where the primary one says too little.
_SPECIAL_MEANINGS: dict[int, type[DatabaseError]] = {
    # Pages that should be there are past the end of the file.
    apsw.SQLITE_IOERR_SHORT_READ: CorruptDatabaseError,
    apsw.SQLITE_IOERR_CORRUPTFS: CorruptDatabaseError,
}


_BY_CLASS = {type(apsw.exception_for(code)): code for code in _MEANINGS}


def extended_code(error: apsw.Error) -> int:
    """Return the extended result code, or 0 for an error that APSW itself raised.

    One that a VFS written in Python raised carries no code, but its class does.
    """
    code = int(getattr(error, "extendedresult", 0) or getattr(error, "result", 0) or 0)
    return code or _BY_CLASS.get(type(error), 0)


def primary_code(error: apsw.Error) -> int:
    """Return the primary result code: the low byte of the extended one."""
    return extended_code(error) & 0xFF


def translate(error: apsw.Error, path: Path, operation: str, attempts: int = 1) -> DatabaseError:
    """Return the typed error for one that APSW raised; raise it ``from`` that one."""
    code = extended_code(error)
    if isinstance(error, apsw.ConstraintError):
        return ConstraintViolationError(
            # SQLite names columns here, never values.
            str(error),
            columns=_columns(str(error)),
            path=path,
            operation=operation,
            result_code=code,
            attempts=attempts,
        )
    meaning = _SPECIAL_MEANINGS.get(code) or _MEANINGS.get(code & 0xFF, StatementError)
    message = str(error) if meaning is StatementError else None
    found = meaning(message, path=path, operation=operation, result_code=code, attempts=attempts)
    if isinstance(found, StorageFullError):
        found.free_bytes = free_bytes(path)
    return found


def _columns(message: str) -> tuple[str, ...]:
    """Return the columns that ``UNIQUE constraint failed: a.b, a.c`` names."""
    _, colon, names = message.partition("failed: ")
    return tuple(names.split(", ")) if colon else ()


def free_bytes(path: Path) -> int | None:
    """Return what the file system of ``path`` has free, or None if it does not answer."""
    try:
        # Late, as it is rarely needed: it brings every module for compressed files.
        import shutil

        return shutil.disk_usage(path.parent).free
    except OSError:
        return None


def translate_os(error: OSError, path: Path) -> DatabaseError:
    """Return the typed error for one that the operating system raised while opening ``path``."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL):
        return DatabasePathError(f"The path cannot name a database: {reason}.", path=path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = StorageFullError(path=path, operation="open")
        full.free_bytes = free_bytes(path)
        return full
    return DatabaseFolderError(
        f"The folder of the database cannot be used: {reason}.", path=path, operation="open"
    )
