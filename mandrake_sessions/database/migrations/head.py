"""Reads the revision of a database, and brings it to that of this version.

A fresh file is installed from compiled texts. Alembic and SQLAlchemy are imported only for a
database that is at another revision.
"""

from __future__ import annotations

from typing import Final

import apsw

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.database.migrations.ddl import REVISIONS
from mandrake_sessions.database.migrations.installing import install, is_fresh, settle
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import MigrationError, SchemaTooNewError
from mandrake_sessions.late_imports import late_import
from mandrake_sessions.tables import APPLICATION_ID, HEAD

_OPERATION = "migrate"

STORED_REVISIONS: Final = "SELECT CAST(version_num AS BLOB) FROM alembic_version"
"""Reads the revisions as bytes, also damaged ones; ``revision_of`` decodes one."""


def revision_of(stored: object) -> str:
    """Return a revision that ``STORED_REVISIONS`` has read; a damaged one becomes unknown."""
    return stored.decode(errors="replace") if isinstance(stored, bytes) else str(stored)


def current(connection: Connection) -> str | None:
    """Return the revision of the database, or None for a fresh one.

    Raises:
        DatabaseError: it cannot be read.
    """
    try:
        # One transaction makes both, so a file with the application id has the table.
        if connection.value("PRAGMA application_id") != APPLICATION_ID:
            return None
        return _stored_revision(connection)
    except apsw.Error as error:
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error


def _stored_revision(connection: Connection) -> str | None:
    revision = connection.value(STORED_REVISIONS)
    return None if revision is None else revision_of(revision)


def is_at_head(connection: Connection) -> bool:
    """Return whether an opened database has the schema of this version.

    The application id was checked at the opening: the file is this library's, or has no table.

    Raises:
        DatabaseError: it cannot be read.
    """
    try:
        return _stored_revision(connection) == HEAD
    except apsw.SQLError:
        # The table does not exist, or no longer.
        return False
    except apsw.Error as error:
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error


def bring_to_head(connection: Connection, budget: Budget) -> None:
    """Bring an opened database to the schema of this version.

    Raises:
        SchemaTooNewError: it is at a revision that this version does not know.
        MigrationError: or another error of ``install`` or ``migrate.upgrade``.
    """
    if not is_at_head(connection):
        _migrate(connection, budget)
    settle(connection, budget)


def _migrate(connection: Connection, budget: Budget) -> None:
    if is_fresh(connection):
        install(connection, budget)
    # Read again: another process, perhaps of another version, may have installed its schema first.
    revision = current(connection)
    if revision == HEAD:
        return
    if revision is not None and not is_known(revision):
        raise SchemaTooNewError(path=connection.path, operation=_OPERATION)
    with late_import:
        from mandrake_sessions.database.migrations.migrate import upgrade

    upgrade(connection, budget)


def require_head(connection: Connection) -> None:
    """Check that a database that is only read has the schema of this version.

    Raises:
        SchemaTooNewError: it was written by a newer version.
        MigrationError: its schema is an older one, or not made yet.
        DatabaseError: it cannot be read.
    """
    revision = current(connection)
    if revision == HEAD:
        return
    if revision is not None and not is_known(revision):
        raise SchemaTooNewError(path=connection.path, operation="open")
    found = "no schema yet" if revision is None else f"the older schema {revision}"
    raise MigrationError(
        f"The database has {found}; open it once without read_only to bring it up to date.",
        path=connection.path,
        operation="open",
    )


def is_known(revision: str) -> bool:
    """Return whether this version knows a revision."""
    return revision in REVISIONS
