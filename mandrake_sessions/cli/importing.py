"""``import``: reads a database of the original system into a workspace."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.cli.output import document_of, print_fields, print_json, print_text
from mandrake_sessions.cli.target import (
    TIMEOUT,
    Json,
    Root,
    Timeout,
    WorkspaceName,
    open_mandrake,
)
from mandrake_sessions.errors import MandrakeSessionsError
from mandrake_sessions.hosts import MandrakeManager
from mandrake_sessions.manager import SessionManager

if TYPE_CHECKING:
    from mandrake_sessions.importers import ImportProgress, ImportReport

# The report always has these counts; of the others, those that are not 0.
_ALWAYS = (
    "sessions",
    "rounds",
    "turns",
    "orphans_recovered",
    "turns_interrupted",
    "times_repaired",
)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command("import")(import_)


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="A database of the original system.")
    ],
    *,
    workspace: WorkspaceName = None,
    root: Root = None,
    recover_orphans: Annotated[
        bool,
        typer.Option("--recover-orphans", help="Keep what deleted sessions left behind, in one."),
    ] = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Read a database of the original system; FILE stays as it is, a second run adds nothing.

    The workspace is made if there is none of this name.
    """
    from mandrake_sessions.importers import import_mandrake

    source = source.expanduser()
    if not source.exists():
        # Before a system or workspace is made for it.
        raise CommandError("There is no file to import.", ExitCode.NOT_FOUND, "Check FILE.")
    with (
        open_mandrake(root, timeout, create=True) as mandrake,
        _target(mandrake, workspace) as sessions,
        _progress(as_json=as_json) as show,
    ):
        report = import_mandrake(source, sessions, recover_orphans=recover_orphans, progress=show)
        database = sessions.path
    if as_json:
        print_json(
            {
                **document_of(report),
                "orphans_found": report.orphans_found,
                "workspace": workspace,
                "database": database,
            }
        )
    else:
        _print_report(report, workspace, database)


@contextlib.contextmanager
def _target(mandrake: MandrakeManager, workspace: str | None) -> Iterator[SessionManager]:
    """Lend the sessions to import into; a workspace made for it is deleted if it stays empty."""
    if workspace is None:
        yield mandrake.sessions
        return
    known = mandrake.find_workspace(workspace)
    if known is not None:
        yield mandrake.get_workspace(known.id).sessions
        return
    made = mandrake.create_workspace(workspace)
    try:
        yield made.sessions
    except MandrakeSessionsError:
        if made.id is not None and made.sessions.count_sessions() == 0:
            mandrake.delete_workspace(made.id)
        raise


@contextlib.contextmanager
def _progress(*, as_json: bool) -> Iterator[Callable[[ImportProgress], None] | None]:
    """Show a progress bar, if stderr is a terminal."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    bar = Progress(
        TextColumn("importing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sessions"),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )
    with bar:
        task = bar.add_task("sessions", total=None)
        yield lambda progress: bar.update(task, completed=progress.done, total=progress.total)


def _print_report(report: ImportReport, workspace: str | None, database: Path) -> None:
    fields: list[tuple[str, object]] = [
        ("source", report.source),
        ("workspace", "(the system's)" if workspace is None else workspace),
        ("database", database),
    ]
    for name in report.__struct_fields__:
        value = getattr(report, name)
        if name != "source" and (value or name in _ALWAYS):
            fields.append((name.replace("_", " "), value))
    fields.append(("orphans found", report.orphans_found))
    print_fields(fields)
    if report.orphans_found and not report.orphans_recovered and not report.recovery_session_id:
        print_text("\nOrphans belong to no session; --recover-orphans keeps them in one.")
