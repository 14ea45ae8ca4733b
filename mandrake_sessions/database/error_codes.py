"""Maps SQLite's extended result codes and errors of the system to typed errors, never by text."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.database.sidecars import JOURNAL, SHM, WAL
from mandrake_sessions.database.unread import disk_refused
from mandrake_sessions.errors import (
    ConstraintViolationError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseFolderError,
    DatabaseIOError,
    DatabaseOpenError,
    DatabasePathError,
    NoMemoryError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    StatementError,
    StorageFullError,
    TooManyFilesError,
)

# By primary result code; a code that is missing here is an error in the statement itself.
_MEANINGS: dict[int, type[DatabaseError]] = {
    apsw.SQLITE_BUSY: DatabaseBusyError,
    apsw.SQLITE_LOCKED: DatabaseBusyError,
    # SQLite tried for ten seconds and did not get the locks of the WAL index.
    apsw.SQLITE_PROTOCOL: DatabaseBusyError,
    apsw.SQLITE_READONLY: ReadOnlyDatabaseError,
    apsw.SQLITE_PERM: ReadOnlyDatabaseError,
    apsw.SQLITE_IOERR: DatabaseIOError,
    apsw.SQLITE_NOMEM: NoMemoryError,
    apsw.SQLITE_CORRUPT: CorruptDatabaseError,
    apsw.SQLITE_NOTADB: NotADatabaseError,
    apsw.SQLITE_FULL: StorageFullError,
    apsw.SQLITE_CANTOPEN: DatabaseOpenError,
}
# By extended code, where the primary one is not precise enough.
_SPECIAL_MEANINGS: dict[int, type[DatabaseError]] = {
    # Pages that the file should have are past its end.
    apsw.SQLITE_IOERR_SHORT_READ: CorruptDatabaseError,
    apsw.SQLITE_IOERR_NOMEM: NoMemoryError,
}


_BY_CLASS = {type(apsw.exception_for(code)): code for code in _MEANINGS}


def extended_code(error: Exception) -> int:
    """Return the extended result code, or 0 for an error that APSW itself raised.

    An error of a VFS written in Python carries no code; its class gives the primary one.
    """
    code = int(getattr(error, "extendedresult", 0) or getattr(error, "result", 0) or 0)
    return code or _BY_CLASS.get(type(error), 0)


def primary_code(error: Exception) -> int:
    """Return the primary result code: the low byte of the extended one."""
    return extended_code(error) & 0xFF


def translate(
    error: apsw.Error | OSError,
    path: Path,
    operation: str,
    attempts: int = 1,
    *,
    raw: apsw.Connection | None = None,
) -> DatabaseError:
    """Return the typed error for an error of APSW or the system; raise it ``from`` that error.

    Args:
        error: the error of APSW or the system.
        path: the path of the database.
        operation: the operation that failed, for the error.
        attempts: how often it was tried.
        raw: the connection that met the error, if its file can be examined for the cause.
    """
    if isinstance(error, OSError):
        return translate_os(error, path)
    code = extended_code(error)
    if code & 0xFF == apsw.SQLITE_CORRUPT and raw is not None and disk_refused(raw):
        code = apsw.SQLITE_IOERR_CORRUPTFS
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
    if code & 0xFF == apsw.SQLITE_CANTOPEN and (cause := _obstacle(path)) is not None:
        cause.operation, cause.result_code, cause.attempts = operation, code, attempts
        return cause
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
    """Return the free bytes of the file system of ``path``, or None if it does not answer."""
    try:
        # Imported late: it is rarely needed and imports every module for compressed files.
        import shutil

        return shutil.disk_usage(path.parent).free
    except OSError:
        return None


DESCRIPTORS_PER_FILE: Final = 7
"""The file and its WAL, twice each; the WAL index; the claim; the turnstile."""


def lacks_descriptors() -> bool:
    """Return whether this process cannot open as many descriptors as a file needs."""
    return _refused_descriptor() is not None


def _refused_descriptor() -> OSError | None:
    """Return the error for as many descriptors as a file needs; None if the system gives them."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(DESCRIPTORS_PER_FILE):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return error
    return None


def _obstacle(path: Path) -> DatabaseError | None:
    """Return why SQLite could not open or make a file; None if unknown.

    SQLite itself gives no reason.
    """
    refused = _refused_descriptor()
    if refused is not None and refused.errno in _SCARCE:
        return translate_os(refused, path)
    if os.path.lexists(path) and not os.access(path, os.R_OK):
        return DatabaseOpenError(_FORBIDDEN.format(path), path=path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return DatabaseFolderError(_FORBIDDEN.format(path.parent), path=path)
    for name in (f"{path.name}{suffix}" for suffix in (WAL, SHM, JOURNAL)):
        if os.path.islink(path.with_name(name)):
            return DatabasePathError(
                f"{name} is a link, and SQLite follows none: remove it.", path=path
            )
    return None


_FORBIDDEN: Final = "This user has no permission for {}: check its owner and mode."


_SCARCE: Final = {
    errno.EMFILE: TooManyFilesError.default_message,
    errno.ENFILE: "The system can open no further file: close some, or raise its limit.",
}


def pass_on_timeout(error: OSError) -> None:
    """Raise an error of a signal handler again: the system has not answered.

    Python's ``TimeoutError`` is an ``OSError``; one that a handler raises has no number. As an
    answer of the system it would mean that a file is gone, or that a process has died.
    """
    if error.errno is None:
        raise error


def translate_os(error: OSError, path: Path) -> DatabaseError:
    """Return the typed error for an error of the operating system while opening ``path``.

    An error that a signal handler raised is raised again.
    """
    pass_on_timeout(error)
    code = error.errno
    reason = os.strerror(code) if code else type(error).__name__
    # A name relative to an open folder would not show where the file is.
    is_whole = isinstance(error.filename, str) and os.path.isabs(error.filename)
    named = error.filename if is_whole else path
    if code in (errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL):
        return DatabasePathError(f"The path cannot name a database: {reason}.", path=path)
    if code in (errno.ENOSPC, errno.EDQUOT):
        full = StorageFullError(path=path, operation="open")
        full.free_bytes = free_bytes(path)
        return full
    if code in _SCARCE:
        return TooManyFilesError(_SCARCE[code], path=path, operation="open")
    if code == errno.EIO:
        return DatabaseIOError(path=path, operation="open")
    if code == errno.ENOMEM:
        return NoMemoryError(path=path, operation="open")
    if code in (errno.EACCES, errno.EPERM):
        message = _FORBIDDEN.format(named)
    elif code == errno.EROFS:
        message = f"{named} is on a file system that is mounted read-only."
    else:
        message = f"The folder of the database cannot be used: {reason}."
    return DatabaseFolderError(message, path=path, operation="open")
