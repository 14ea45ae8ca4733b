"""``health``, ``backup``, ``migrate``: maintenance of a database."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from mandrake_sessions import tables
from mandrake_sessions.cli.confirmation import confirm
from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.cli.output import print_fields, print_json, print_text
from mandrake_sessions.cli.reports import print_report
from mandrake_sessions.cli.target import (
    TIMEOUT,
    Database,
    Json,
    ReadOnly,
    Root,
    Timeout,
    WorkspaceName,
    Yes,
    database_path,
    open_sessions,
)
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.migrations import head
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.health import HealthLevel
from mandrake_sessions.errors import DatabaseMissingError
from mandrake_sessions.options import DatabaseOptions

_COPY_SECONDS = 3600.0
"""Seconds that the copy of a large database may take; ``--timeout`` is for waiting only."""


class Level(enum.StrEnum):
    """How thorough ``health`` is."""

    QUICK = HealthLevel.QUICK
    THOROUGH = HealthLevel.THOROUGH
    FULL = HealthLevel.FULL


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the program."""
    app.command()(health)
    app.command()(backup)
    app.command()(migrate)


def health(
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    level: Annotated[
        Level,
        typer.Option(
            "--level",
            help="thorough: also every page and reference; full: also indexes, on a copy.",
        ),
    ] = Level.QUICK,
    read_only: ReadOnly = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Check a database, say what is wrong and what to do; exit code 5 if it cannot be used."""
    with open_sessions(root, workspace, database, timeout, read_only=read_only) as sessions:
        report = sessions.health(HealthLevel(level.value), _COPY_SECONDS)
    print_report(report, as_json=as_json)
    if not report.is_usable:
        raise typer.Exit(ExitCode.UNUSABLE)


def backup(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The file to make; its folder must exist.")
    ],
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    read_only: ReadOnly = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Copy a database to a file during other work, and check the copy."""
    if os.path.lexists(target) and not overwrite:
        raise CommandError(
            f"There is already something at {target}.",
            ExitCode.EXISTS,
            "Choose another file, or give --overwrite.",
        )
    with open_sessions(root, workspace, database, timeout, read_only=read_only) as sessions:
        source = sessions.path
        copy = sessions.backup(target, overwrite=overwrite, timeout=_COPY_SECONDS)
    size = copy.stat().st_size
    if as_json:
        print_json({"source": source, "backup": copy, "bytes": size})
    else:
        print_fields([("source", source), ("backup", copy), ("bytes", size)])


def migrate(
    *,
    root: Root = None,
    workspace: WorkspaceName = None,
    database: Database = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REV",
            help="The revision to reach, as Alembic names it: head, base, 0001, +1, -1. "
            "With --sql also FROM:TO.",
            show_default=False,
        ),
    ] = None,
    downgrade: Annotated[
        bool, typer.Option("--downgrade", help="Go down to --revision; data may be lost.")
    ] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL and touch no database.")
    ] = False,
    yes: Yes = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Bring a database's schema to a revision; every other command does so when it opens one."""
    if downgrade and revision is None:
        raise typer.BadParameter("--downgrade needs the --revision to go down to.")
    if sql:
        _print_sql(revision, downgrade=downgrade, as_json=as_json)
        return
    wanted = revision or "head"
    if ":" in wanted:
        raise typer.BadParameter("FROM:TO is for --sql; a database knows where it is.")
    from mandrake_sessions.database.migrations import migrate as migrations

    path = real_path(database_path(root, workspace, database, timeout))
    budget = FileBudget(timeout)
    with _opened_as_it_is(path, timeout, budget) as connection:
        before = head.current(connection)
        if downgrade:
            confirm(
                f"Take {path} from revision {before} down to {wanted}? Data may be lost.",
                yes=yes,
                as_json=as_json,
            )
            migrations.downgrade(connection, FileBudget(timeout), wanted)
        else:
            migrations.upgrade(connection, budget, wanted)
        after = head.current(connection)
    if as_json:
        print_json({"database": path, "from": before, "to": after, "head": tables.HEAD})
    else:
        print_fields([("database", path), ("from", before), ("to", after), ("head", tables.HEAD)])


def _print_sql(revision: str | None, *, downgrade: bool, as_json: bool) -> None:
    span = revision or "head"
    if ":" not in span:
        span = f"{tables.HEAD if downgrade else 'base'}:{span}"
    from mandrake_sessions.database.migrations.migrate import offline_sql

    script = offline_sql("downgrade" if downgrade else "upgrade", span)
    if as_json:
        print_json({"revisions": span, "sql": script})
    else:
        print_text(script.rstrip("\n"))


@contextlib.contextmanager
def _opened_as_it_is(path: Path, timeout: float, budget: Budget) -> Iterator[Connection]:
    """Open a database with its present schema: a pool would migrate it to the newest first."""
    identity = identify(path)
    if identity is None:
        raise DatabaseMissingError(path=path, operation="migrate")
    options = DatabaseOptions(busy_timeout=timeout)
    connection = open_connection(path, identity, options, budget)
    try:
        yield connection
    finally:
        connection.close()
