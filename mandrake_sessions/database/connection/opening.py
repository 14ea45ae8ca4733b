"""Opens one file: pragmas set and read back, identity taken, nothing left behind on failure."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from mandrake_sessions.database.connection.header import require_ours
from mandrake_sessions.database.connection.settings import apply_settings
from mandrake_sessions.database.connection.unshared import (
    Unshared,
    may_read_unshared,
    must_read_unshared,
)
from mandrake_sessions.database.error_codes import extended_code, primary_code, translate
from mandrake_sessions.database.files.own_wal import drop_index, has_index, require_log
from mandrake_sessions.database.files.paths import (
    Identity,
    identify,
    leads_elsewhere,
    refuse_planted,
)
from mandrake_sessions.database.files.views import require_one_view
from mandrake_sessions.database.retry import retry_busy
from mandrake_sessions.database.sqlite_library import require_safe_sqlite
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseError,
    DatabaseMissingError,
    DatabaseMovedError,
    DatabaseOpenError,
    LostLogError,
    ReadOnlyDatabaseError,
    StaleLogError,
    StatementError,
    UnrecognizedDatabaseError,
)
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.tables import APPLICATION_ID

if TYPE_CHECKING:
    pass
from mandrake_sessions.database.connection.connection import Connection

_PROGRESS_STEPS = 20_000


def open_connection(
    path: Path,
    identity: Identity,
    options: DatabaseOptions,
    budget: Budget,
    *,
    auxiliary: bool = False,
) -> Connection:
    """Open the file, set what the rules ask for, and read it back.

    Args:
        path: as ``real_path`` gave it.
        identity: what the file must still be when it is open.
        options: durability and sizes.
        budget: the time it may take, waiting for other processes.
        auxiliary: a second connection, which only reads.

    Raises:
        DatabaseOpenError: one of its kinds; the file is as it was.
        DatabaseNamesError: a process has it open by another mount.
        DatabaseBusyError: another process held it until the deadline.
    """
    require_safe_sqlite(path)
    if not auxiliary and not options.allow_other_names:
        require_one_view(path)
    if not options.read_only:
        return _open(path, identity, options, budget, auxiliary=auxiliary)
    if options.vfs is not None:
        return _open(path, identity, options, budget, auxiliary=True)
    if not must_read_unshared(path):
        try:
            return _open(path, identity, options, budget, auxiliary=True)
        except DatabaseError as error:
            if not may_read_unshared(path, error):
                raise
    return _open(path, identity, options, budget, auxiliary=True, shares=False)


def _open(
    path: Path,
    identity: Identity,
    options: DatabaseOptions,
    budget: Budget,
    *,
    auxiliary: bool,
    shares: bool = True,
) -> Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    refuse_planted(path)
    unshared = None if shares else Unshared(path, identity)
    try:
        if unshared is None:
            raw = apsw.Connection(str(path), flags=flags, vfs=options.vfs)
        else:
            raw = unshared.connect()
    except apsw.Error as error:
        raise _opening_error(error, path) from error
    connection = Connection(raw, path, identity, unshared)
    try:
        connection.deadline = budget.deadline
        _configure(connection, options, budget, auxiliary=auxiliary)
        if connection.has_moved() or identify(path) != identity:
            raise DatabaseMovedError(path=path, operation="open")
    except BaseException as error:
        found = _opening_error(error, path, raw)
        is_not_own = isinstance(error, StaleLogError | LostLogError) and connection.had_log
        with contextlib.suppress(apsw.Error):
            # A log that was there stays as it is; an empty one of ours goes away again.
            has_log = is_not_own or connection.has_moved() or connection.wal_backlog()[0] > 0
            connection.close(abandon=has_log)
        with contextlib.suppress(apsw.Error):
            connection.close(abandon=True)
        if is_not_own and not connection.had_index:
            drop_index(path, identity)
        if isinstance(found, DatabaseError) and leads_elsewhere(path, identity):
            # What it found by its name was that of the file which came in its place.
            raise DatabaseMovedError(path=path, operation="open") from error
        if found is not error:
            raise found from error
        raise
    return connection


def _opening_error(
    error: BaseException, path: Path, raw: apsw.Connection | None = None
) -> BaseException:
    """Return what a failed opening means; nothing is ever reset or repaired because of it."""
    if not isinstance(error, apsw.Error | OSError):
        return error
    if primary_code(error) == apsw.SQLITE_CANTOPEN and identify(path) is None:
        return DatabaseMissingError(path=path, operation="open", result_code=extended_code(error))
    found = translate(error, path, "open", raw=raw)
    if isinstance(found, StatementError):
        # Not a statement of anybody's: an unknown VFS, a file system without what WAL needs.
        return DatabaseOpenError(
            found.message, path=path, operation="open", result_code=found.result_code
        )
    return found


def _configure(
    connection: Connection, options: DatabaseOptions, budget: Budget, *, auxiliary: bool
) -> None:
    raw, path = connection.raw, connection.path
    raw.set_busy_handler(connection.on_busy)
    # Before the first read of a WAL database, which makes a -wal and a -shm beside it.
    connection.had_index = has_index(path)
    connection.had_log = require_ours(connection)
    # The auxiliary one only reads: that goes on in a file that has become read-only.
    if raw.readonly("main") and not auxiliary:
        # SQLite opens an unwritable file without complaint and would fail at the first write.
        raise ReadOnlyDatabaseError(path=path, operation="open")
    # The first read opens the log by its name. A folder that was swapped for another one since the
    # file was opened would give that one's log: before anything is written this is found out.
    connection.require_in_place()
    if not auxiliary or options.read_only:
        require_log(path, connection.execute, budget, options.vfs)
    # Reads the header: here a file that is no database is told from one that is.
    is_ours = retry_busy(lambda: _is_ours(connection), budget, path, "open", "open", raw=raw)
    connection.require_in_place()
    # Before anything is set: another program's database must stay as it is. Asked twice, because
    # another process may be making ours this moment.
    if (
        not is_ours
        and connection.value("SELECT count(*) FROM sqlite_schema")
        and not _is_ours(connection)
    ):
        raise UnrecognizedDatabaseError(path=path, operation="open")
    # The busy handler is not asked while the journal mode changes (3 of 48 openings failed). A
    # backup that was never opened has another mode, in which it can be read.
    mode = options.read_only or retry_busy(
        lambda: connection.value("PRAGMA journal_mode=wal"), budget, path, "open", "open", raw=raw
    )
    if mode not in (True, "wal"):
        raise DatabaseOpenError(
            f"The file system does not allow WAL (journal mode {mode}).", path=path
        )
    lost = apply_settings(connection, options, auxiliary=auxiliary)
    if lost:
        raise DatabaseOpenError(f"SQLite did not accept: {', '.join(lost)}.", path=path)
    raw.set_progress_handler(connection.on_progress, _PROGRESS_STEPS)


def _is_ours(connection: Connection) -> bool:
    return bool(connection.value("PRAGMA application_id") == APPLICATION_ID)
