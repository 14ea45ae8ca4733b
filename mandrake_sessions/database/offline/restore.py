"""Puts a backup in the place of a database: all of it or nothing, when no process has it open.

The copy is checked and stamped next to the target and then renamed. The earlier database is whole
by then: SQLite finds a WAL by its name, and would replay an old one into the new file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.concurrency.blocks import block, closing
from mandrake_sessions.database.connection.bad_ids import reindex
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.verification import unexplained_problems_of
from mandrake_sessions.database.error_codes import primary_code, translate
from mandrake_sessions.database.file_format import SMALLEST_PAGE
from mandrake_sessions.database.files import owner
from mandrake_sessions.database.files.atomic import merge_wal, partial_file, replace, sync_file
from mandrake_sessions.database.files.creation import clear_name, folder_lock, make_folder
from mandrake_sessions.database.files.kept import KEPT_SUFFIXES, name_for
from mandrake_sessions.database.files.names import HOME
from mandrake_sessions.database.files.own_wal import has_wal, require_needed_wal, require_own_wal
from mandrake_sessions.database.files.pages import open_pages
from mandrake_sessions.database.files.paths import (
    Identity,
    aside_of,
    identify,
    real_path,
    set_aside,
)
from mandrake_sessions.database.files.raw import copy_database
from mandrake_sessions.database.files.wal_mark import make_new
from mandrake_sessions.database.migrations.head import STORED_REVISIONS, is_known, revision_of
from mandrake_sessions.database.migrations.installing import marks
from mandrake_sessions.database.offline.exclusive import DAMAGE, alone, alone_with_damaged
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.database.sidecars import (
    SHM,
    journal_of,
    shm_of,
    sidecar,
    wal_of,
)
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseMissingError,
    LostLogError,
    NotADatabaseError,
    RestoreError,
    SchemaTooNewError,
    StaleLogError,
    UnrecognizedDatabaseError,
)
from mandrake_sessions.log import get_logger
from mandrake_sessions.tables import APPLICATION_ID

_OPERATION: Final = "restore"
_ATTEMPTS: Final = 3


def require_backup(backup: str | os.PathLike[str], path: Path) -> Path:
    """Return the real path of the backup for ``path``.

    Raises:
        DatabaseMissingError: there is no such file.
        RestoreError: it is the database itself.
        DatabasePathError: it cannot name a file.
    """
    source = real_path(backup)
    identity = identify(source)
    if identity is None:
        raise DatabaseMissingError("There is no backup.", path=source, operation=_OPERATION)
    if source == path or identity == identify(path):
        raise RestoreError("The backup is the database itself.", path=path, operation=_OPERATION)
    return source


def restore(source: Path, path: Path, patience: float, *, overwrite: bool) -> None:
    """Put a backup in the place of a database; no caller in this process has that open.

    The backup stays as it is. The new file gets a stamp of its own, so that no process takes
    it for the earlier one.

    Args:
        source: as ``require_backup`` gave it.
        path: the real path of the database; its folders are made if they are missing.
        patience: seconds to wait for other processes that have the database open.
        overwrite: whether an existing file is replaced. A damaged one is kept as
            ``<name>.damaged-…``, with its WAL.

    Raises:
        RestoreError: the file exists, or the backup is damaged or in use.
        NotADatabaseError: the backup is not a SQLite database.
        UnrecognizedDatabaseError: it is another program's.
        SchemaTooNewError: it was written by a newer version.
        DatabaseBusyError: another process has the database open.
        DatabaseError: a file cannot be written; each reason has its own subclass.
    """
    _require_room(path, overwrite=overwrite)
    try:
        make_folder(path.parent)
        with partial_file(path) as partial:
            _copy(source, partial)
            _check_and_stamp(partial, source, path)
            sync_file(partial)
            with _alone(path, FileBudget(patience)) as is_there:
                _require_room(path, overwrite=overwrite)
                # Before the new file: later another process could claim it.
                owner.forget_all(path)
                # A file that came after the check is not replaced.
                replace(partial, path, overwrite=is_there)
    except FileExistsError:
        _require_room(path, overwrite=False)
        raise
    except (OSError, apsw.Error) as error:
        raise translate(error, path, _OPERATION) from error


def _require_room(path: Path, *, overwrite: bool) -> None:
    if not overwrite and identify(path) is not None:
        raise RestoreError("There is a file already.", path=path, operation=_OPERATION)


# -- the new file -------------------------------------------------------------------------------


def _copy(source: Path, partial: Path) -> None:
    for _ in range(_ATTEMPTS):
        if copy_database(source, partial):
            return
    raise RestoreError(
        "The backup is in use: it changed while it was copied.", path=source, operation=_OPERATION
    )


def _check_and_stamp(partial: Path, source: Path, path: Path) -> None:
    """Check that the copy is usable, and give it a new stamp."""
    if partial.stat().st_size < SMALLEST_PAGE and not wal_of(partial).exists():
        # SQLite would treat it as empty.
        raise NotADatabaseError(path=source, operation=_OPERATION)
    try:
        raw = apsw.Connection(
            str(partial), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
        with closing(raw):
            # The file may come from any source, and a schema can run functions.
            raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            _require_wal(raw, partial, source)
            _require_ours(raw, source)
            problems = unexplained_problems_of(raw)
            if problems and _is_rebuilt(raw, source, problems):
                problems = unexplained_problems_of(raw)
            if problems:
                raise RestoreError(
                    f"The backup is damaged: {'; '.join(problems[:3])}.",
                    path=source,
                    operation=_OPERATION,
                    result_code=apsw.SQLITE_CORRUPT,
                )
            _stamp(raw, path)
            # Set here, so that the first opening needs no rollback journal for it: a process that
            # waits for the old file would find the journal by its name.
            raw.execute("PRAGMA journal_mode=wal").fetchall()
            merge_wal(raw)
    except apsw.Error as error:
        found = translate(error, source, _OPERATION)
        if isinstance(found, CorruptDatabaseError):
            raise RestoreError(
                "The backup is damaged.",
                path=source,
                operation=_OPERATION,
                result_code=found.result_code,
            ) from error
        raise found from error


def _is_rebuilt(raw: apsw.Connection, source: Path, problems: list[str]) -> bool:
    """Rebuild indexes of the copy, as a backup does; return whether they were rebuilt.

    False if two rows now have the same id.
    """
    with contextlib.suppress(apsw.ConstraintError):
        return reindex(raw, problems, source)
    return False


def _require_wal(raw: apsw.Connection, partial: Path, source: Path) -> None:
    """Check, with the copy, that the WAL of the backup is its own, and that none is missing."""
    try:
        if has_wal(partial):
            require_own_wal(partial, raw.execute, _OPERATION)
        require_needed_wal(partial, raw.execute, _OPERATION)
    except (StaleLogError, LostLogError) as error:
        # The error names the backup, which the user knows, not the copy.
        message = error.message.replace(partial.name, source.name)
        found = type(error)(message, path=source, operation=_OPERATION)
        found.log = wal_of(source)
        raise found from None


def _require_ours(raw: apsw.Connection, source: Path) -> None:
    if raw.execute("PRAGMA application_id").fetchall() != [(APPLICATION_ID,)]:
        raise UnrecognizedDatabaseError(path=source, operation=_OPERATION)
    rows = raw.execute(STORED_REVISIONS).fetchall()
    if len(rows) != 1:
        raise UnrecognizedDatabaseError(path=source, operation=_OPERATION)
    if not is_known(revision_of(rows[0][0])):
        raise SchemaTooNewError(path=source, operation=_OPERATION)


def _stamp(raw: apsw.Connection, path: Path) -> None:
    pragmas, facts = marks(path)
    own = {key: facts[key] for key in ("stamp", HOME)}
    with raw:
        raw.execute(f"PRAGMA user_version = {pragmas['user_version']}")
        raw.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", own.items())
        # The WAL of the backup, if it had one, is in the copy now.
        make_new(raw.execute)


# -- the old file -------------------------------------------------------------------------------


@block
def _alone(path: Path, budget: Budget) -> Iterator[bool]:
    """Keep every other process away from the database for a block, with an empty WAL.

    Yields:
        Whether there is a database.
    """
    identity = identify(path)
    if identity is None:
        with folder_lock(path.parent):
            # A process that has made one meanwhile keeps it, with its WAL.
            if identify(path) is None:
                journal = journal_of(path)
                set_aside(journal, aside_of(journal))
                clear_name(path)
            yield False
        return
    is_merged = False
    try:
        with _merged(path, identity, budget):
            is_merged = True
            yield os.path.lexists(path)
    except DAMAGE:
        if is_merged:
            raise
    if not is_merged:
        with _kept(path, identity, budget):
            yield os.path.lexists(path)


@block
def _merged(path: Path, identity: Identity, budget: Budget) -> Iterator[None]:
    """Lock a database, copy its WAL into it and remove the WAL; a damaged database is kept."""
    # It stays in WAL mode, or enters it, for the same reason as the new file.
    with alone(path, identity, budget, _OPERATION, journal="wal") as connection:
        if has_wal(path):
            _require_own_wal(path, connection)
        with open_pages(path) as pages:
            if pages.is_wal_damaged:
                # SQLite would drop the frames after the damage; a salvage reads them.
                raise CorruptDatabaseError(path=path, operation=_OPERATION)
        try:
            merge_wal(connection.raw)
        except apsw.Error as error:
            raise translate(error, path, _OPERATION, raw=connection.raw) from error
        if not _is_sound(connection):
            _keep(path)
        for suffix in (*KEPT_SUFFIXES, SHM):
            sidecar(path, suffix).unlink(missing_ok=True)
        yield


def _require_own_wal(path: Path, connection: Connection) -> None:
    """Raise CorruptDatabaseError for a WAL that would damage the file: both are kept."""
    try:
        require_own_wal(path, connection.execute, _OPERATION)
    except StaleLogError as error:
        raise CorruptDatabaseError(error.message, path=path, operation=_OPERATION) from error
    except apsw.Error as error:
        raise translate(error, path, _OPERATION, raw=connection.raw) from error


def _is_sound(connection: Connection) -> bool:
    """Return whether a database is the library's, or empty, and this version can use it.

    SQLite's quick check may take long, and is not interrupted.
    """
    connection.interruptible = False
    raw = connection.raw
    # The file may come from any source, and a schema can run functions.
    raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    try:
        if connection.query_all("PRAGMA quick_check(1)") != [("ok",)]:
            return False
        if connection.value("SELECT count(*) FROM sqlite_schema"):
            _require_ours(raw, connection.path)
    except apsw.Error as error:
        if primary_code(error) == apsw.SQLITE_ERROR:
            # A table is missing.
            return False
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error
    except (UnrecognizedDatabaseError, SchemaTooNewError):
        return False
    return True


@block
def _kept(path: Path, identity: Identity, budget: Budget) -> Iterator[None]:
    """Lock a file that cannot be opened any more, and keep it with its WAL under another name."""
    with alone_with_damaged(path, identity, budget, _OPERATION):
        aside = _keep(path)
        for suffix in KEPT_SUFFIXES:
            set_aside(sidecar(path, suffix), Path(f"{aside}{suffix}"))
        shm_of(path).unlink(missing_ok=True)
        yield


def _keep(path: Path) -> Path:
    """Give a damaged file another name, so that it stays when the new one gets this one."""
    aside = name_for(path)
    try:
        if not aside.exists():
            os.link(path, aside)
    except OSError:
        # A file system without links.
        os.rename(path, aside)
    get_logger(__name__).warning("database_set_aside", path=str(path), aside=str(aside))
    return aside
