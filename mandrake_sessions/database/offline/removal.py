"""Removes a database's files when no process has it open, and no file of another folder."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

import apsw

from mandrake_sessions.concurrency.blocks import block, closing
from mandrake_sessions.database.error_codes import translate, translate_os
from mandrake_sessions.database.file_format import APPLICATION_ID_AT, MAGIC, PAGES_AT
from mandrake_sessions.database.files import owner
from mandrake_sessions.database.files.atomic import tidy
from mandrake_sessions.database.files.creation import folder_lock
from mandrake_sessions.database.files.folders import Folder, opened_folder
from mandrake_sessions.database.files.paths import Identity
from mandrake_sessions.database.files.raw import RawFile
from mandrake_sessions.database.files.turnstile import turnstile_path
from mandrake_sessions.database.files.views import require_one_view
from mandrake_sessions.database.offline.exclusive import DAMAGE, alone, alone_with_damaged
from mandrake_sessions.database.sidecars import journal_of, shm_of, wal_of
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseMovedError,
    DatabasePathError,
    UnrecognizedDatabaseError,
)
from mandrake_sessions.tables import APPLICATION_ID, TABLES

_OPERATION = "delete"


def remove(path: Path, budget: Budget, *, even_damaged: bool = False) -> None:
    """Remove a database with its sidecars; this process must not have it open.

    Every file is removed from the folder that the database was found in, which stays open: a link
    that comes into its place meanwhile leads to nothing that is removed. A link, or
    anything else, in the place of a sidecar file is removed itself, and is not opened.

    Args:
        path: its real path.
        budget: the time to wait for other processes.
        even_damaged: whether the name is known to be a database's; if so, a file that is no longer
            a database is removed too, and so are the sidecars of a missing one.

    Raises:
        DatabaseBusyError: another process has it open; nothing was removed.
        UnrecognizedDatabaseError: it is another program's, or no file; nothing was removed.
        DatabasePathError: a link is in the way to the file or in its place, or a folder in the
            place of a sidecar file; nothing was removed.
        DatabaseError: the files cannot be removed.
    """
    tidy(path)
    try:
        with opened_folder(path.parent) as folder:
            _remove_from(folder, path, budget, even_damaged=even_damaged)
    except (FileNotFoundError, NotADirectoryError):
        # No folder, no files.
        return
    except OSError as error:
        raise translate_os(error, path) from error


def _remove_from(folder: Folder, path: Path, budget: Budget, *, even_damaged: bool) -> None:
    found = folder.stat(path.name)
    if found is None:
        if even_damaged:
            with folder_lock(path.parent):
                if folder.stat(path.name) is None:
                    _remove_files(folder, path)
        return
    if even_damaged and not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
        raise UnrecognizedDatabaseError("It is no file.", path=path, operation=_OPERATION)
    identity = folder.identify(path.name)
    if identity is None:
        return
    if _is_foreign(path):
        raise UnrecognizedDatabaseError(path=path, operation=_OPERATION)
    with _alone(path, identity, budget, even_damaged=even_damaged):
        if folder.identify(path.name) != identity:
            raise DatabaseMovedError(path=path, operation=_OPERATION)
        _remove_files(folder, path)


def _is_foreign(path: Path) -> bool:
    """Return whether a file is marked as another program's; called before SQLite opens it."""
    try:
        with RawFile(path) as file:
            header = file.read(0, 100)
    except apsw.Error:
        # The lock, taken next, finds the reason.
        return False
    # A file with one page may be a database of this library without its schema yet.
    pages = int.from_bytes(header[PAGES_AT], "big")
    application = int.from_bytes(header[APPLICATION_ID_AT], "big")
    if header[:16] != MAGIC or pages <= 1 or application == APPLICATION_ID:
        return False
    # The mark may be damaged: a database of this library has all its tables.
    return not TABLES.keys() <= _tables_in(path)


def _tables_in(path: Path) -> set[str]:
    """Return the readable names of a database's tables, without a change of the file."""
    try:
        return _read_tables(path)
    except apsw.Error:
        return set()


def _read_tables(path: Path) -> set[str]:
    """Read the names of the tables in the file, and no sidecar."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
    with closing(apsw.Connection(f"{path.as_uri()}?immutable=1", flags=flags)) as raw:
        rows = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        return {str(row[0]) for row in rows}


@block
def _alone(path: Path, identity: Identity, budget: Budget, *, even_damaged: bool) -> Iterator[None]:
    """Keep every other process away from the file for a block."""
    with contextlib.ExitStack() as stack:
        try:
            # The journal mode stays: on leaving WAL mode, SQLite would remove the WAL by its name.
            stack.enter_context(alone(path, identity, budget, _OPERATION))
        except DatabasePathError:
            # Its users have no sidecar open that was put there: SQLite opens no link and no pipe.
            require_one_view(path)
            stack.enter_context(alone_with_damaged(path, identity, budget, _OPERATION))
            if not even_damaged:
                _require_database(path)
        except DAMAGE:
            if not even_damaged:
                raise
            stack.enter_context(alone_with_damaged(path, identity, budget, _OPERATION))
        yield


def _require_database(path: Path) -> None:
    try:
        _read_tables(path)
    except apsw.Error as error:
        raise translate(error, path, _OPERATION) from error


def _sidecars(path: Path) -> tuple[str, ...]:
    # A journal too: SQLite would roll it back into the next file of the name.
    return tuple(each.name for each in (wal_of(path), shm_of(path), journal_of(path)))


def _remove_files(folder: Folder, path: Path) -> None:
    sidecars = _sidecars(path)
    kinds = {name: found.st_mode for name in sidecars if (found := folder.stat(name))}
    for name, mode in kinds.items():
        if stat.S_ISDIR(mode):
            message = f"{name} is a folder: move it away."
            raise DatabasePathError(message, path=path, operation=_OPERATION)
    # First those that may be another user's: if the system does not let this process remove them,
    # every file stays.
    for name, mode in kinds.items():
        if not stat.S_ISREG(mode):
            folder.unlink(name)
    # Before the file: afterwards another process could make it anew, and claim it.
    owner.drop_own(path)
    for id in owner.ids_among(folder.names(), path):
        with contextlib.suppress(OSError):
            folder.unlink(f"{owner.prefix_of(path)}{id}")
    with contextlib.suppress(OSError):
        folder.unlink(turnstile_path(path).name)
    for name in (*sidecars, path.name):
        folder.unlink(name)
