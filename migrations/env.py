"""The entry of the ``alembic`` command; opening a database does not use it.

There is never an engine on ``sqlite://``: it is a second SQLite library in the process, and when
it closes a file that a pool has open, data is lost. A connection comes from the caller, in
``config.attributes["connection"]``, or from the library, for ``-x path=FILE``.
"""

from __future__ import annotations

from alembic import command, context
from alembic.util import CommandError

from mandrake_sessions.database.migrations import migrate, revisions
from mandrake_sessions.errors import MandrakeSessionsError


def migrate_file() -> None:
    """Migrate the file that the command line names."""
    path = context.get_x_argument(as_dictionary=True).get("path")
    if path is None:
        raise CommandError("Name the database: alembic -x path=FILE ...")
    asked_for = getattr(context.config.cmd_opts, "cmd", (None,))[0]
    try:
        with migrate.migrating_file(path, create=asked_for is command.upgrade) as connection:
            revisions.run_migrations(context, connection)
    except MandrakeSessionsError as error:
        # One line on the terminal instead of a traceback.
        raise CommandError(str(error)) from error


if context.is_offline_mode():
    revisions.write_sql(context)
elif (given := context.config.attributes.get("connection")) is not None:
    revisions.run_migrations(context, given)
else:
    migrate_file()
