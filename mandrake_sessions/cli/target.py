"""The database of a command, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Final

import typer

from mandrake_sessions.cli.errors import CommandError, ExitCode, advising
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.errors import (
    DatabaseMissingError,
    SessionNotFoundError,
    WorkspaceNotFoundError,
)
from mandrake_sessions.hosts import MandrakeManager
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.models import Workspace
from mandrake_sessions.options import DatabaseOptions, PoolOptions

SessionId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The id of a session, or its ending as it is listed."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Directory of the system database; $MANDRAKE_DIR, or ~/.mandrake, when not given.",
        show_default=False,
    ),
]
WorkspaceName = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="NAME",
        help="A registered workspace; the system's own database when not given.",
        show_default=False,
    ),
]
Database = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A database file itself, instead of --root and --workspace.",
        show_default=False,
    ),
]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="How long to wait for a busy database.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
ReadOnly = Annotated[
    bool, typer.Option("--read-only", help="Write nothing, not even what opening would bring up.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option(metavar="N", help="Rows at most, 1 to 10000.")]

TIMEOUT = 30.0

ALLOWS_OTHER_NAMES: Final = ContextVar("allows_other_names", default=False)
"""Whether the command opens files that have another name as well."""


def new_pool(timeout: float) -> ConnectionPool:
    """Return a pool for one command: it closes files at once, as no later call uses them."""
    options = DatabaseOptions(busy_timeout=timeout, allow_other_names=ALLOWS_OTHER_NAMES.get())
    return ConnectionPool(PoolOptions(database=options, linger=0.0))


@contextlib.contextmanager
def open_mandrake(
    root: Path | None, timeout: float, *, create: bool = False, read_only: bool = False
) -> Iterator[MandrakeManager]:
    """Open a system for a block.

    Args:
        root: its directory; None for the default one.
        timeout: seconds to wait for a busy database.
        create: whether a missing system is made.
        read_only: whether nothing is written.
    """
    with new_pool(timeout) as pool:
        mandrake = MandrakeManager(root, pool=pool, read_only=read_only)
        mandrake.sessions.create = create
        hints: dict[type[Exception], str] = {
            WorkspaceNotFoundError: (
                f"`mandrake-sessions workspaces list{target_options(root)}` shows those there are."
            )
        }
        if not os.path.lexists(mandrake.sessions.path):
            hints[DatabaseMissingError] = _first_use(mandrake)
        with advising(hints), mandrake:
            yield mandrake


@contextlib.contextmanager
def open_sessions(
    root: Path | None,
    workspace: str | None,
    database: Path | None,
    timeout: float,
    *,
    read_only: bool = False,
) -> Iterator[SessionManager]:
    """Open the database of a command for a block; a missing one is not made."""
    options = target_options(root, workspace, database)
    hints: dict[type[Exception], str] = {
        SessionNotFoundError: f"`mandrake-sessions sessions list{options}` shows those there are."
    }
    path = database_path(root, workspace, database, timeout, read_only=read_only)
    if database is not None:
        hints[DatabaseMissingError] = "Check the path that --database names."
    elif workspace is None and not os.path.lexists(path):
        hints[DatabaseMissingError] = _first_use(MandrakeManager(root))
    with (
        advising(hints),
        new_pool(timeout) as pool,
        SessionManager(path, pool=pool, create=False, read_only=read_only) as sessions,
    ):
        yield sessions


def target_options(
    root: Path | None, workspace: str | None = None, database: Path | None = None
) -> str:
    """Return the options that name a target, in the form of a command line, for hints."""
    given = (("--root", root), ("-w", workspace), ("--database", database))
    return "".join(
        f" {option} {shlex.quote(str(value))}" for option, value in given if value is not None
    )


def _first_use(mandrake: MandrakeManager) -> str:
    """Return the advice for a system in which nothing was stored yet."""
    is_named = mandrake.root != MandrakeManager().root
    options = target_options(mandrake.root if is_named else None)
    return (
        f"Nothing is stored in {mandrake.root} yet: a host makes it when it runs, "
        f"or `mandrake-sessions workspaces create NAME{options}` does; "
        "--root, --workspace and --database name another place."
    )


def database_path(
    root: Path | None,
    workspace: str | None,
    database: Path | None,
    timeout: float,
    *,
    read_only: bool = False,
) -> Path:
    """Return the database file of a command."""
    if database is not None:
        if root is not None or workspace is not None:
            raise CommandError(
                "--database names the file itself: leave --root and --workspace away.",
                ExitCode.USAGE,
            )
        return database
    if workspace is None:
        return MandrakeManager(root).sessions.path
    with open_mandrake(root, timeout, read_only=read_only) as mandrake:
        return mandrake.database_of(require_workspace(mandrake, workspace).id)


def require_workspace(mandrake: MandrakeManager, name: str) -> Workspace:
    """Return the registered workspace of a name.

    Raises:
        WorkspaceNotFoundError: there is none.
    """
    found = mandrake.find_workspace(name)
    if found is None:
        raise WorkspaceNotFoundError(message=f"There is no workspace named {name!r}.")
    return found
