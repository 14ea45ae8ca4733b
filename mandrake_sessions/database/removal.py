"""Removes a database's files when no process has it open, and no file of another folder."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from mandrake_sessions.database import owner
from mandrake_sessions.database.blocks import block, closing
from mandrake_sessions.database.creation import alone_in
from mandrake_sessions.database.exclusive import DAMAGE, alone, alone_with_damaged
from mandrake_sessions.database.faults import translate, translate_os
from mandrake_sessions.database.folder import Folder, opened_folder
from mandrake_sessions.database.header import MAGIC
from mandrake_sessions.database.paths import Identity, companions
from mandrake_sessions.database.placing import tidy
from mandrake_sessions.database.raw import RawFile
from mandrake_sessions.database.sidecars import beside
from mandrake_sessions.database.turnstile import turnstile_path
from mandrake_sessions.database.views import require_one_view
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import (
    DatabaseMovedError,
    DatabasePathError,
    UnrecognizedDatabaseError,
)
from mandrake_sessions.tables import APPLICATION_ID, TABLES

_OPERATION = "delete"


def remove(path: Path, budget: Budget, *, even_damaged: bool = False) -> None:
    """Remove a database with its sidecar files; nothing in this process has it open.

    Every file is removed from the folder that the database was found in, which stays open: a link
    that comes into its place meanwhile leads to nothing that is removed. What lies in the place of
    a sidecar file is removed itself, a link too, and is not opened.

    Args:
        path: its real path.
        budget: the time to wait for other processes.
        even_damaged: whether the name is known to be a database's: then a file that is
            no database any more is removed too, and so are the sidecar files of one that is gone.

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
    found = folder.look(path.name)
    if found is None:
        if even_damaged:
            with alone_in(path.parent):
                if folder.look(path.name) is None:
                    _remove_files(folder, path)
        return
    if even_damaged and not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
        raise UnrecognizedDatabaseError("It is no file.", path=path, operation=_OPERATION)
    identity = folder.identify(path.name)
    if identity is None:
        return
    if _is_foreign(path):
        raise UnrecognizedDatabaseError(path=path, operation=_OPERATION)
    with _alone(folder, path, identity, budget, even_damaged=even_damaged):
        if folder.identify(path.name) != identity:
            raise DatabaseMovedError(path=path, operation=_OPERATION)
        _remove_files(folder, path)


def _is_foreign(path: Path) -> bool:
    """Return whether a file is marked as another program's; looked at before SQLite opens it."""
    try:
        with RawFile(path) as file:
            header = file.read(0, 100)
    except apsw.Error:
        # What is wrong with it is found by locking it.
        return False
    # One page: a database of this library whose schema is not made yet.
    pages = int.from_bytes(header[28:32], "big")
    application = int.from_bytes(header[68:72], "big")
    if header[:16] != MAGIC or pages <= 1 or application == APPLICATION_ID:
        return False
    # The mark may be what is damaged: then it has all our tables.
    return not TABLES.keys() <= _tables_in(path)


def _tables_in(path: Path) -> set[str]:
    """Return the names of a database's tables, as far as they can be read and nothing changed."""
    try:
        return _read_tables(path)
    except apsw.Error:
        return set()


def _read_tables(path: Path) -> set[str]:
    """Read the names of the tables in the file, and nothing that lies beside it."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
    with closing(apsw.Connection(f"{path.as_uri()}?immutable=1", flags=flags)) as raw:
        rows = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        return {str(row[0]) for row in rows}


@block
def _alone(
    folder: Folder, path: Path, identity: Identity, budget: Budget, *, even_damaged: bool
) -> Iterator[None]:
    """Keep every other process away from the file for a block."""
    with contextlib.ExitStack() as stack:
        try:
            _require_files(folder, path)
            # In the mode that it is in: leaving WAL, SQLite would remove the log by its name.
            stack.enter_context(alone(path, identity, budget, _OPERATION))
        except DatabasePathError:
            # Its users have none of what was put there open: SQLite follows no link.
            require_one_view(path)
            stack.enter_context(alone_with_damaged(path, identity, budget, _OPERATION))
            if not even_damaged:
                _require_database(path)
        except DAMAGE:
            if not even_damaged:
                raise
            stack.enter_context(alone_with_damaged(path, identity, budget, _OPERATION))
        yield


def _require_files(folder: Folder, path: Path) -> None:
    """Make sure that SQLite would find files beside a database: the opening of a pipe may not end.

    Raises:
        DatabasePathError: there is something else.
    """
    for each in _sidecars(path):
        folder.identify(each)


def _require_database(path: Path) -> None:
    try:
        _read_tables(path)
    except apsw.Error as error:
        raise translate(error, path, _OPERATION) from error


def _sidecars(path: Path) -> tuple[str, ...]:
    # A journal too: SQLite would roll it back into the next file of the name.
    return tuple(each.name for each in (*companions(path), beside(path, "-journal")))


def _remove_files(folder: Folder, path: Path) -> None:
    sidecars = _sidecars(path)
    for name in sidecars:
        if _is(stat.S_ISDIR, folder, name):
            message = f"{name} is a folder: move it away."
            raise DatabasePathError(message, path=path, operation=_OPERATION)
    # First what may be another user's, whom the system lets nobody else remove it: then all stays.
    for name in sidecars:
        if not _is(stat.S_ISREG, folder, name):
            folder.unlink(name)
    # Before the file: afterwards another process could make it anew, and claim it.
    owner.let_go(path)
    for id in owner.ids_among(folder.names(), path):
        with contextlib.suppress(OSError):
            folder.unlink(f"{owner.prefix_of(path)}{id}")
    with contextlib.suppress(OSError):
        folder.unlink(turnstile_path(path).name)
    for name in (*sidecars, path.name):
        folder.unlink(name)


def _is(kind: Callable[[int], bool], folder: Folder, name: str) -> bool:
    found = folder.look(name)
    return found is not None and kind(found.st_mode)
