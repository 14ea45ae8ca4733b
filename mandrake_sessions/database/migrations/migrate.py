"""Brings a schema to a revision in one BEGIN IMMEDIATE: of eight processes one migrates.

``head`` imports this module only if a migration is needed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import apsw
import sqlalchemy

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.dialect import lend, typed_cause
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.settings import foreign_keys_off
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.names import require_home
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.files.wal_mark import raise_number
from mandrake_sessions.database.migrations.revisions import (
    RUN,
    Direction,
    Run,
    make_environment,
    run_migrations,
    write_sql,
)
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseIOError,
    DatabaseMissingError,
    DatabaseMovedError,
    MigrationError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    StorageFullError,
)
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.tables import HEAD, TABLES

_OPERATION = "migrate"
_HAS_META = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'meta'"
_COLUMNS = (
    "SELECT s.name, c.name FROM sqlite_schema AS s, pragma_table_info(s.name) AS c "
    "WHERE s.type = 'table' ORDER BY s.name, c.cid"
)
_NOT_THE_MIGRATIONS_FAULT = (
    MigrationError,
    CommitOutcomeUnknownError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseIOError,
    DatabaseMovedError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    StorageFullError,
)


# -- migrating ----------------------------------------------------------------------------------


def upgrade(
    connection: Connection,
    budget: Budget,
    revision: str = "head",
    *,
    scripts: Path | None = None,
) -> None:
    """Bring a database up to a revision; do nothing if it has that revision already.

    Args:
        connection: the writer, without an open transaction; the caller must hold its lease.
        budget: limits the wait for others. The steps themselves have no limit: otherwise a file
            with a large table, whose rebuild takes longer, could never be opened again.
        revision: as Alembic names it; ``head`` of the library's scripts is that of this version.
        scripts: the folder of the migration scripts; None for the library's own.

    Raises:
        SchemaTooNewError: the database is at a revision that the scripts do not know.
        MigrationError: a step failed; the ``__cause__`` is the reason. Nothing was changed.
        DatabaseBusyError: others held the database until the deadline.
        DatabaseError: the disk is full, the file is damaged or the like. Nothing was changed.
        CommitOutcomeUnknownError: the COMMIT failed: open the file again to see the outcome.
    """
    _migrate(connection, budget, "upgrade", revision, scripts)


def downgrade(
    connection: Connection, budget: Budget, revision: str, *, scripts: Path | None = None
) -> None:
    """Bring a database down to a revision, ``base`` for none; otherwise as ``upgrade``."""
    _migrate(connection, budget, "downgrade", revision, scripts)


def offline_sql(direction: Direction, revisions: str = "base:head") -> str:
    """Return a migration as an SQL script.

    Args:
        direction: ``upgrade`` or ``downgrade``.
        revisions: ``from:to``, as Alembic names them.

    Raises:
        MigrationError: the revisions do not exist, or a step has to read a database.
    """
    start, _, end = revisions.partition(":")
    buffer = io.StringIO()
    try:
        environment = make_environment(direction, end, None, starting_rev=start, as_sql=True)
        write_sql(environment, output_buffer=buffer)
    except DatabaseError:
        raise
    except Exception as error:
        raise MigrationError(operation="offline_sql") from error
    return buffer.getvalue()


def _migrate(
    connection: Connection,
    budget: Budget,
    direction: Direction,
    revision: str,
    scripts: Path | None,
) -> None:
    is_to_this_version = scripts is None and direction == "upgrade" and revision == "head"
    with migrating(connection, budget) as borrowed:
        if is_to_this_version:
            revision = HEAD
        # Not by Alembic's commands, which replace the global ``alembic.context``.
        environment = make_environment(direction, revision, scripts)
        run_migrations(environment, borrowed, budget)
        if is_to_this_version:
            _require_schema(connection)


def _require_schema(connection: Connection) -> None:
    """Check, before the COMMIT, that the scripts have made the schema of this version.

    Raises:
        MigrationError: the scripts are those of another version.
    """
    columns: dict[str, list[str]] = {table: [] for table in TABLES}
    for table, column in connection.query_all(_COLUMNS):
        columns.setdefault(table, []).append(column)
    wanted = {table: [column.name for column in TABLES[table]] for table in TABLES}
    different = [
        _first_difference(table, columns[table], names)
        for table, names in wanted.items()
        if columns[table] != names
    ]
    revision = connection.value("SELECT version_num FROM alembic_version")
    if revision != HEAD:
        different.insert(0, f"the revision is {revision} instead of {HEAD}")
    if different:
        raise MigrationError(
            "The migration scripts do not make the schema of this version: "
            f"{', '.join(different)}; nothing was changed. Install the package anew; in a "
            "checkout, correct the newest script, or the order of the columns in schema.py.",
            path=connection.path,
            operation=_OPERATION,
        )


def _first_difference(table: str, found: Sequence[str], wanted: Sequence[str]) -> str:
    pairs = enumerate(zip_longest(found, wanted), 1)
    place, (there, here) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    return f"column {place} of {table} is {there or 'missing'} instead of {here or 'none'}"


# -- lending ------------------------------------------------------------------------------------


@block
def migrating(connection: Connection, budget: Budget) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection for one migration, in one transaction; raise the errors of ``upgrade``.

    Foreign keys are off, and checked before COMMIT if a step was made.
    """
    run = Run()
    try:
        with foreign_keys_off(connection), lend(connection, budget, _OPERATION) as borrowed:
            connection.interruptible = False
            borrowed.info[RUN] = run
            yield borrowed
            if run.steps:
                _require_references(connection, borrowed)
                if connection.value(_HAS_META):
                    raise_number(connection.execute)
    except BaseException as error:
        if run.backup is not None and not isinstance(error, CommitOutcomeUnknownError):
            # The file is unchanged, so the backup is not needed.
            run.backup.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        found = _meaning(error, connection)
        if found is error:
            raise
        raise found from error


@block
def migrating_file(path: str, *, create: bool) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection to the file at ``path`` for one migration, for the ``alembic`` command.

    The connection is always a new one. If a pool of this process has the file open, closing the
    new connection drops no lock of the pool's, because APSW is the only SQLite here; the two
    connections exclude each other as those of two processes do. The pool itself cannot lend a file
    at another revision, because opening a file brings it to head.

    Args:
        path: the path of the database.
        create: whether a missing file is made.

    Raises:
        DatabaseOpenError: the file cannot be opened.
        MigrationError: or another error of ``upgrade``.
    """
    options = DatabaseOptions()
    budget = FileBudget(options.busy_timeout)
    real = real_path(path)
    identity = make_file(real) if create else identify(real)
    if identity is None:
        raise DatabaseMissingError(
            "There is no database file at this path; `alembic … upgrade head` makes one.",
            path=real,
            operation=_OPERATION,
        )
    require_home(real, options)
    connection = open_connection(real, identity, options, budget)
    try:
        with migrating(connection, budget) as borrowed:
            yield borrowed
    finally:
        # An error of closing does not change the outcome of the migration.
        with contextlib.suppress(apsw.Error):
            connection.close()


def _require_references(connection: Connection, borrowed: sqlalchemy.Connection) -> None:
    broken = borrowed.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        tables = ", ".join(sorted({str(row[0]) for row in broken}))
        raise MigrationError(
            f"The migration would leave {len(broken)} rows without the row they refer to, in "
            f"{tables}; nothing was changed.",
            path=connection.path,
            operation=_OPERATION,
        )


def _meaning(error: Exception, connection: Connection) -> DatabaseError:
    """Return the typed error for an error that ended a migration.

    A full disk or a damaged file is no failure of the migration and keeps its own error.
    """
    typed = typed_cause(error)
    if isinstance(typed, _NOT_THE_MIGRATIONS_FAULT):
        return typed
    code = None if typed is None else typed.result_code
    return MigrationError(path=connection.path, operation=_OPERATION, result_code=code)
