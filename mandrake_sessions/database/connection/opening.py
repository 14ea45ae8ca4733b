"""Opens one file, sets and reads back its settings; a failure leaves nothing behind."""

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
from mandrake_sessions.database.files.own_wal import drop_index, has_index, require_wal
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
    """Open the file, set the required settings, and read them back.

    Args:
        path: as ``real_path`` gave it.
        identity: the identity that the file must still have when it is open.
        options: durability and sizes.
        budget: the time it may take, with the wait for other processes.
        auxiliary: whether it is a second connection, which only reads.

    Raises:
        DatabaseOpenError: each reason has its own subclass; the file is unchanged.
        DatabaseNamesError: a process has the file open by another mount.
        DatabaseBusyError: another process held the file until the deadline.
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
        is_not_own = isinstance(error, StaleLogError | LostLogError) and connection.had_wal
        with contextlib.suppress(apsw.Error):
            # A WAL that existed stays; an empty one of this connection is removed.
            has_wal = is_not_own or connection.has_moved() or connection.wal_backlog()[0] > 0
            connection.close(abandon=has_wal)
        with contextlib.suppress(apsw.Error):
            connection.close(abandon=True)
        if is_not_own and not connection.had_index:
            drop_index(path, identity)
        if isinstance(found, DatabaseError) and leads_elsewhere(path, identity):
            # The path leads to another file, whose sidecars may have caused the error.
            raise DatabaseMovedError(path=path, operation="open") from error
        if found is not error:
            raise found from error
        raise
    return connection


def _opening_error(
    error: BaseException, path: Path, raw: apsw.Connection | None = None
) -> BaseException:
    """Return the typed error of a failed opening; a failure never resets or repairs a file."""
    if not isinstance(error, apsw.Error | OSError):
        return error
    if primary_code(error) == apsw.SQLITE_CANTOPEN and identify(path) is None:
        return DatabaseMissingError(path=path, operation="open", result_code=extended_code(error))
    found = translate(error, path, "open", raw=raw)
    if isinstance(found, StatementError):
        # The cause is no statement, but an unknown VFS, or a file system that cannot have a WAL.
        return DatabaseOpenError(
            found.message, path=path, operation="open", result_code=found.result_code
        )
    return found


def _configure(
    connection: Connection, options: DatabaseOptions, budget: Budget, *, auxiliary: bool
) -> None:
    raw, path = connection.raw, connection.path
    raw.set_busy_handler(connection.on_busy)
    # Before the first read of a WAL database, which makes a -wal and a -shm next to it.
    connection.had_index = has_index(path)
    connection.had_wal = require_ours(connection)
    # The auxiliary connection only reads, which still works in a file that has become read-only.
    if raw.readonly("main") and not auxiliary:
        # SQLite opens such a file without an error and would fail at the first write.
        raise ReadOnlyDatabaseError(path=path, operation="open")
    # The first read opens the WAL by its name. If the folder was replaced since the file was
    # opened, that would be another WAL, so the path is checked before any write.
    connection.require_in_place()
    if not auxiliary or options.read_only:
        require_wal(path, connection.execute, budget, options.vfs)
    # Reads the header, which refuses a file that is no database.
    is_ours = retry_busy(lambda: _is_ours(connection), budget, path, "open", "open", raw=raw)
    connection.require_in_place()
    # Before any setting, because another program's database must stay unchanged. The check is
    # repeated, because another process may be making this library's database.
    if (
        not is_ours
        and connection.value("SELECT count(*) FROM sqlite_schema")
        and not _is_ours(connection)
    ):
        raise UnrecognizedDatabaseError(path=path, operation="open")
    # SQLite does not call the busy handler for a change of the journal mode (3 of 48 openings
    # failed). A backup that was never opened has another mode, in which it can be read.
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
