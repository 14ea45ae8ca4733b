"""Checks a file's header on disk, past every cache: that it is this library's, and unchanged."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from mandrake_sessions.database.file_format import (
    APPLICATION_ID_AT,
    FORMAT_AT,
    MAGIC,
    PAGES_AT,
    SMALLEST_PAGE,
    USER_VERSION_AT,
    WAL_FORMAT,
)
from mandrake_sessions.database.sidecars import WAL, journal_of
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseMovedError,
    NotADatabaseError,
    UnrecognizedDatabaseError,
)
from mandrake_sessions.tables import APPLICATION_ID

if TYPE_CHECKING:
    from mandrake_sessions.database.connection.connection import Connection

_READINGS = 3
_PAUSE = 0.002
_READINGS_OF_SIZE = 5
_PAUSE_FOR_PAGE = 0.01


def require_ours(connection: Connection) -> bool:
    """Refuse another program's file: one with a header, without a WAL and the application id.

    The check comes before SQLite reads, because reading a WAL database makes a -wal and a -shm.

    Returns:
        Whether there is a WAL.

    Raises:
        UnrecognizedDatabaseError: the file is another program's.
        NotADatabaseError: it is shorter than a page.
        CorruptDatabaseError: it was emptied, and its WAL is left.
        DatabaseMovedError: it is gone.
    """
    path = connection.path
    size, in_wal = _require_not_emptied(path)
    if 0 < size < SMALLEST_PAGE:
        # SQLite would treat a file of one byte as empty.
        raise NotADatabaseError(path=path, operation="open")
    if size == 0 or in_wal is not None:
        return in_wal is not None
    header = connection.header()
    application = int.from_bytes(header[APPLICATION_ID_AT], "big")
    # A file with one page may be the library's: switched to WAL, but without its schema yet.
    pages = int.from_bytes(header[PAGES_AT], "big")
    is_wal = header[:16] == MAGIC and header[FORMAT_AT] == WAL_FORMAT
    is_foreign = is_wal and pages > 1 and application != APPLICATION_ID
    connection.has_schema = application == APPLICATION_ID
    if is_foreign and not os.path.lexists(journal_of(path)):
        raise UnrecognizedDatabaseError(path=path, operation="open")
    return False


def _require_not_emptied(path: Path) -> tuple[int, int | None]:
    """Return the sizes of the file and its WAL, if it has one; refuse an empty file with a WAL.

    SQLite would treat it as new and delete the WAL. A process that makes a database writes the
    first page before the first frame of the WAL. The check is repeated, because a process that has
    just made the file may be setting the WAL of an older one aside.
    """
    wal = f"{path}{WAL}"
    for reading in range(_READINGS_OF_SIZE):
        if reading:
            time.sleep(_PAUSE_FOR_PAGE)
        # The WAL first: a WAL that grows after this belongs to a file with a first page.
        in_wal = _size(wal)
        size = _size(path)
        if size is None:
            raise DatabaseMovedError(path=path, operation="open")
        if size or not in_wal:
            return size, in_wal
    raise CorruptDatabaseError(
        f"The database file is empty, but {path.name}-wal next to it has the stored rows: "
        "salvage it, restore a backup, or move the WAL away.",
        path=path,
        operation="open",
        result_code=apsw.SQLITE_CORRUPT,
    )


def _size(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def difference(header: bytes, stamp: int) -> str | None:
    """Return why a file is not the database that was opened, or None.

    Args:
        header: its first 100 bytes, as they are on disk.
        stamp: of the database that was opened.
    """
    if header[:16] != MAGIC:
        return "the file is no longer a SQLite database"
    if int.from_bytes(header[APPLICATION_ID_AT], "big") not in (0, APPLICATION_ID):
        return "another program's database is in its place"
    # 0: no WAL checkpoint has copied the page with the stamp into the file yet.
    if int.from_bytes(header[USER_VERSION_AT], "big") not in (0, stamp):
        return "another database was copied over it"
    return None


def is_overwritten(connection: Connection, stamp: int) -> bool:
    """Return whether the file certainly has the content of another database.

    A single reading could fall into another process's WAL checkpoint. A header that cannot be read
    counts as unchanged.

    Args:
        connection: the caller must hold its lease.
        stamp: of the database that was opened.
    """
    for reading in range(_READINGS):
        if reading:
            time.sleep(_PAUSE)
        try:
            if difference(connection.header(), stamp) is None:
                return False
        except apsw.Error:
            return False
    return True
