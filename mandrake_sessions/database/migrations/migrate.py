"""Brings a schema to a revision, inside one BEGIN IMMEDIATE: of eight openers one migrates.

``head`` says whether there is something to do; only then is this imported.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
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
    """Bring a database up to a revision; if it is there already, nothing happens.

    Args:
        connection: the read-write one, with no transaction open; its lease is the caller's.
        budget: for what others hold. The steps themselves take the time they take: a large table
            that is rebuilt for longer could otherwise never be opened again.
        revision: as Alembic names it; ``head`` of our scripts is the one of this version.
        scripts: the folder of the migration scripts; None for ours.

    Raises:
        SchemaTooNewError: the database is at a revision that the scripts do not know.
        MigrationError: a step failed; the ``__cause__`` says why. Nothing was changed.
        DatabaseBusyError: others held the database until the deadline.
        DatabaseError: the disk is full, the file damaged or the like. Nothing was changed.
        CommitOutcomeUnknownError: the last moment failed: open it again to see.
    """
    _migrate(connection, budget, "upgrade", revision, scripts)


def downgrade(
    connection: Connection, budget: Budget, revision: str, *, scripts: Path | None = None
) -> None:
    """Bring a database down to a revision, ``base`` for none; else as ``upgrade``."""
    _migrate(connection, budget, "downgrade", revision, scripts)


def offline_sql(direction: Direction, revisions: str = "base:head") -> str:
    """Return a migration as an SQL script.

    Args:
        direction: ``upgrade`` or ``downgrade``.
        revisions: ``from:to``, as Alembic names them.

    Raises:
        MigrationError: there are no such revisions, or a step needs a database to look at.
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
        # Not by Alembic's commands: they put another global, ``alembic.context``, under us.
        environment = make_environment(direction, revision, scripts)
        run_migrations(environment, borrowed, budget)
        if is_to_this_version:
            _require_schema(connection)


def _require_schema(connection: Connection) -> None:
    """Make sure, before the COMMIT, that what the scripts have made is what this code works with.

    Raises:
        MigrationError: they are those of another version.
    """
    columns: dict[str, list[str]] = {table: [] for table in TABLES}
    for table, column in connection.query_all(_COLUMNS):
        columns.setdefault(table, []).append(column)
    wanted = ((table, [column.name for column in TABLES[table]]) for table in TABLES)
    different = [table for table, names in wanted if columns[table] != names]
    revision = connection.value("SELECT version_num FROM alembic_version")
    if different or revision != HEAD:
        raise MigrationError(
            f"The migration scripts are those of another version: they lead to revision {revision} "
            f"instead of {HEAD}, with other columns in {', '.join(different) or 'no table'}; "
            "nothing was changed. Install the package anew.",
            path=connection.path,
            operation=_OPERATION,
        )


# -- lending ------------------------------------------------------------------------------------


@block
def migrating(connection: Connection, budget: Budget) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection for one migration, in one transaction; raises what ``upgrade`` does.

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
            # The file is as it was: it is its own backup.
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

    The connection is a new one, also when a pool of this process has the file open: APSW is the
    only SQLite here, so its close takes nothing from the pool's connection, and the two meet in
    SQLite as two processes do. The pool itself cannot lend a file at another revision: opening
    brings it to head.

    Args:
        path: of the database.
        create: whether a missing file is made.

    Raises:
        DatabaseOpenError: the file cannot be opened.
        MigrationError: and what else ``upgrade`` raises.
    """
    options = DatabaseOptions()
    budget = FileBudget(options.busy_timeout)
    real = real_path(path)
    identity = make_file(real) if create else identify(real)
    if identity is None:
        raise DatabaseMissingError(path=real, operation=_OPERATION)
    require_home(real, options)
    connection = open_connection(real, identity, options, budget)
    try:
        with migrating(connection, budget) as borrowed:
            yield borrowed
    finally:
        # The migration is stored or is not, whatever goes wrong with closing.
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
    """Return the typed error for what ended a migration.

    A full disk or a damaged file is not the migration's fault and keeps its own error.
    """
    typed = typed_cause(error)
    if isinstance(typed, _NOT_THE_MIGRATIONS_FAULT):
        return typed
    code = None if typed is None else typed.result_code
    return MigrationError(path=connection.path, operation=_OPERATION, result_code=code)
