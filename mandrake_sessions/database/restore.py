"""Puts a backup in the place of a database: all of it or nothing, when nobody has it open.

The copy is checked and stamped beside the target and then renamed. The database that was there is
whole by then: SQLite finds a log by its name, and would replay an old one into the new file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.database import owner
from mandrake_sessions.database.backup import unexplained_problems_of
from mandrake_sessions.database.bad_ids import mend_indexes
from mandrake_sessions.database.blocks import block, closing
from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.creation import alone_in, clear_name, make_folder
from mandrake_sessions.database.exclusive import DAMAGE, alone, alone_with_damaged
from mandrake_sessions.database.faults import primary_code, translate
from mandrake_sessions.database.head import STORED_REVISIONS, is_known, revision_of
from mandrake_sessions.database.header import SMALLEST_PAGE
from mandrake_sessions.database.installing import marks
from mandrake_sessions.database.kept import LOGS, name_for
from mandrake_sessions.database.mark import make_new
from mandrake_sessions.database.names import HOME
from mandrake_sessions.database.own_log import has_log, require_needed_log, require_own_log
from mandrake_sessions.database.paths import (
    Identity,
    aside_of,
    companions,
    identify,
    real_path,
    set_aside,
)
from mandrake_sessions.database.placing import (
    making,
    merge_log,
    put_in_place,
    sync_file,
)
from mandrake_sessions.database.raw import copy_database
from mandrake_sessions.database.salvage.pages import open_pages
from mandrake_sessions.database.sidecars import beside
from mandrake_sessions.database.waiting import Budget
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
    """Return the real path of the backup that shall be put at ``path``.

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
    """Put a backup in the place of a database; nobody in this process has that open.

    The backup stays as it is. The new file gets a stamp of its own, so that nobody takes it for
    the one that was there.

    Args:
        source: as ``require_backup`` gave it.
        path: the real path of the database; its folders are made if they are missing.
        patience: seconds to wait for other processes that have the database open.
        overwrite: whether a file that is there is replaced. A damaged one is kept as
            ``<name>.damaged-…``, with its log.

    Raises:
        RestoreError: there is a file, or the backup is damaged or in use.
        NotADatabaseError: the backup is not a SQLite database.
        UnrecognizedDatabaseError: it is another program's.
        SchemaTooNewError: it was written by a newer version.
        DatabaseBusyError: another process has the database open.
        DatabaseError: a file cannot be written; each reason has its own subclass.
    """
    _require_room(path, overwrite=overwrite)
    try:
        make_folder(path.parent)
        with making(path) as partial:
            _copy(source, partial)
            _check_and_stamp(partial, source, path)
            sync_file(partial)
            with _alone(path, Budget(patience)) as is_there:
                _require_room(path, overwrite=overwrite)
                # Before the new file: afterwards another process could claim it.
                owner.forget_all(path)
                # What was not there is not ours to replace: it came this moment.
                put_in_place(partial, path, overwrite=is_there)
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
    """Make sure that the copy can be used, and make it a file of its own."""
    if partial.stat().st_size < SMALLEST_PAGE and not Path(f"{partial}-wal").exists():
        # SQLite would take it for an empty one.
        raise NotADatabaseError(path=source, operation=_OPERATION)
    try:
        raw = apsw.Connection(
            str(partial), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
        with closing(raw):
            # The file may be anybody's.
            raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            _require_log(raw, partial, source)
            _require_ours(raw, source)
            problems = unexplained_problems_of(raw)
            if problems and _is_mended(raw, source, problems):
                problems = unexplained_problems_of(raw)
            if problems:
                raise RestoreError(
                    f"The backup is damaged: {'; '.join(problems[:3])}.",
                    path=source,
                    operation=_OPERATION,
                    result_code=apsw.SQLITE_CORRUPT,
                )
            _stamp(raw, path)
            # Switched here, the one who opens it needs no rollback journal for that: a process
            # that waits for the old file would find it by its name.
            raw.execute("PRAGMA journal_mode=wal").fetchall()
            merge_log(raw)
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


def _is_mended(raw: apsw.Connection, source: Path, problems: list[str]) -> bool:
    """Make indexes of the copy anew, as a backup does; two rows may have the same id by now."""
    with contextlib.suppress(apsw.ConstraintError):
        return mend_indexes(raw, problems, source)
    return False


def _require_log(raw: apsw.Connection, partial: Path, source: Path) -> None:
    """Make sure, with the copy, that a log at the backup is its own, and that none is missing."""
    try:
        if has_log(partial):
            require_own_log(partial, raw.execute, _OPERATION)
        require_needed_log(partial, raw.execute, _OPERATION)
    except (StaleLogError, LostLogError) as error:
        # What a person can do something about is the backup.
        message = error.message.replace(partial.name, source.name)
        found = type(error)(message, path=source, operation=_OPERATION)
        found.log = companions(source)[0]
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
        # Its log, if it had one, is in it now.
        make_new(raw.execute)


# -- the old file -------------------------------------------------------------------------------


@block
def _alone(path: Path, budget: Budget) -> Iterator[bool]:
    """Keep everybody away from the database for a block; nothing of it is in a log then.

    Returns:
        Whether there is one.
    """
    identity = identify(path)
    if identity is None:
        with alone_in(path.parent):
            # Who has made one this moment keeps it, and its log: ours is refused.
            if identify(path) is None:
                journal = beside(path, "-journal")
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
    """Lock a database out for everybody, with its log in it and gone; a damaged one is kept."""
    # It stays in WAL mode, or comes into it, for the same reason as the new file.
    with alone(path, identity, budget, _OPERATION, journal="wal") as connection:
        if has_log(path):
            _require_own_log(path, connection)
        with open_pages(path) as pages:
            if pages.is_log_damaged:
                # SQLite would forget what stands behind the damage; salvage would not.
                raise CorruptDatabaseError(path=path, operation=_OPERATION)
        try:
            merge_log(connection.raw)
        except apsw.Error as error:
            raise translate(error, path, _OPERATION, raw=connection.raw) from error
        if not _is_sound(connection):
            _keep(path)
        for suffix in (*LOGS, "-shm"):
            beside(path, suffix).unlink(missing_ok=True)
        yield


def _require_own_log(path: Path, connection: Connection) -> None:
    """Refuse to copy a log into a file that it would damage: both are kept."""
    try:
        require_own_log(path, connection.execute, _OPERATION)
    except StaleLogError as error:
        raise CorruptDatabaseError(error.message, path=path, operation=_OPERATION) from error
    except apsw.Error as error:
        raise translate(error, path, _OPERATION, raw=connection.raw) from error


def _is_sound(connection: Connection) -> bool:
    """Whether a database is one of ours, or empty, that this version can use.

    SQLite's quick check takes its time, and is not interrupted.
    """
    connection.interruptible = False
    raw = connection.raw
    # The file may be anybody's.
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
    """Lock a file that cannot be opened any more, and keep it with its log under another name."""
    with alone_with_damaged(path, identity, budget, _OPERATION):
        aside = _keep(path)
        for suffix in LOGS:
            set_aside(beside(path, suffix), Path(f"{aside}{suffix}"))
        Path(f"{path}-shm").unlink(missing_ok=True)
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
