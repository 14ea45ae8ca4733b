"""What the first bytes of the file on disk say, past every cache: is it ours, and is it still?"""

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

_LOOKS = 3
_PAUSE = 0.002
_LOOKS_FOR_PAGE = 5
_PAUSE_FOR_PAGE = 0.01


def require_ours(connection: Connection) -> bool:
    """Look at the header on disk: what has one, no -wal and not our mark is another program's.

    Asked before SQLite reads: of a WAL database that makes a -wal and a -shm beside it.

    Returns:
        Whether there is a log.
    """
    path = connection.path
    size, in_log = _require_not_emptied(path)
    if 0 < size < SMALLEST_PAGE:
        # SQLite would take a file of one byte for an empty one.
        raise NotADatabaseError(path=path, operation="open")
    if size == 0 or in_log is not None:
        return in_log is not None
    header = connection.header()
    application = int.from_bytes(header[APPLICATION_ID_AT], "big")
    # One page: a file of ours that was switched to WAL, and its schema is not made yet.
    pages = int.from_bytes(header[PAGES_AT], "big")
    is_wal = header[:16] == MAGIC and header[FORMAT_AT] == WAL_FORMAT
    is_foreign = is_wal and pages > 1 and application != APPLICATION_ID
    if is_foreign and not os.path.lexists(journal_of(path)):
        raise UnrecognizedDatabaseError(path=path, operation="open")
    return False


def _require_not_emptied(path: Path) -> tuple[int, int | None]:
    """Return the sizes of the file and its log, if it has one; refuse an empty one with a log.

    SQLite would take it for a new one and delete the log. Who makes a database has written its
    first page before there is anything in the log. Looked at again, for who has just made the file
    may be setting the log of an older one aside.
    """
    log = f"{path}{WAL}"
    for look in range(_LOOKS_FOR_PAGE):
        if look:
            time.sleep(_PAUSE_FOR_PAGE)
        # The log first: what comes into it later is of a file that has its first page.
        in_log = _size(log)
        size = _size(path)
        if size is None:
            raise DatabaseMovedError(path=path, operation="open")
        if size or not in_log:
            return size, in_log
    raise CorruptDatabaseError(
        f"The database file is empty, but {path.name}-wal beside it holds what was stored: "
        "salvage it, restore a backup, or move the log away.",
        path=path,
        operation="open",
        result_code=apsw.SQLITE_CORRUPT,
    )


def _size(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def strangeness(header: bytes, stamp: int) -> str | None:
    """Return why a file is not the database that was opened, or None.

    Args:
        header: its first 100 bytes, as they are on disk.
        stamp: of the database that was opened.
    """
    if header[:16] != MAGIC:
        return "the file is no SQLite database any more"
    if int.from_bytes(header[APPLICATION_ID_AT], "big") not in (0, APPLICATION_ID):
        return "another program's database is there"
    # 0: the page that carries it has not been checkpointed into the file yet.
    if int.from_bytes(header[USER_VERSION_AT], "big") not in (0, stamp):
        return "another database was copied over it"
    return None


def is_overwritten(connection: Connection, stamp: int) -> bool:
    """Return whether other bytes are in the place of our database, for certain.

    One look could meet another process's checkpoint half way; what cannot be read is not judged.

    Args:
        connection: whose lease the caller holds.
        stamp: of the database that was opened.
    """
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        try:
            if strangeness(connection.header(), stamp) is None:
                return False
        except apsw.Error:
            return False
    return True
