"""``workspaces``: list, create, adopt, move, unregister, delete; in the system's database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mandrake_sessions.cli.confirmation import confirm
from mandrake_sessions.cli.help import Group
from mandrake_sessions.cli.output import (
    counted_of,
    document_of,
    print_json,
    print_line,
    print_table,
    print_text,
)
from mandrake_sessions.cli.target import (
    TIMEOUT,
    Json,
    Limit,
    ReadOnly,
    Root,
    Timeout,
    Yes,
    open_mandrake,
    require_workspace,
    target_options,
)
from mandrake_sessions.models import Workspace
from mandrake_sessions.workspace import WorkspaceManager, workspace_database

app: typer.Typer = typer.Typer(
    help="List, create, adopt, move and delete workspaces.", no_args_is_help=True, cls=Group
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 letters, digits, '-' and '_'.")]
Description = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What it is for.", show_default=False)
]


def workspace_document(workspace: Workspace) -> dict[str, Any]:
    """Return a workspace for JSON, with the path of its database."""
    return {**document_of(workspace), "database": workspace_database(workspace.path)}


@app.command("list")
def list_(
    *,
    root: Root = None,
    limit: Limit = 100,
    read_only: ReadOnly = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """List the registered workspaces by name."""
    if not 1 <= limit <= 10_000:
        raise typer.BadParameter("limit must be a whole number from 1 to 10000.")
    with open_mandrake(root, timeout, read_only=read_only) as mandrake:
        known = mandrake.list_workspaces()
    shown = known[:limit]
    if as_json:
        print_json(
            {"workspaces": [workspace_document(each) for each in shown], "total": len(known)}
        )
        return
    if not known:
        command = f"mandrake-sessions workspaces create NAME{target_options(root)}"
        print_line(f"No workspaces yet: `{command}` makes one.")
        return
    print_table(
        ("name", "path", "last opened", "description"),
        [(each.name, each.path, each.last_opened_at, each.description) for each in shown],
        cut="description",
    )
    print_text(f"\n{counted_of(len(shown), len(known), 'workspace')}")


@app.command()
def create(
    name: Name,
    *,
    root: Root = None,
    path: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Its directory; ROOT/workspaces/NAME when not given.",
            show_default=False,
        ),
    ] = None,
    description: Description = None,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Register a workspace and make its database; a missing system is made too."""
    with open_mandrake(root, timeout, create=True) as mandrake:
        _print_made("Created", mandrake.create_workspace(name, description, path), as_json=as_json)


@app.command()
def adopt(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that exists.")],
    *,
    root: Root = None,
    description: Description = None,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Register a directory with the conversations it holds, as from another machine."""
    with open_mandrake(root, timeout, create=True) as mandrake:
        _print_made("Adopted", mandrake.adopt_workspace(name, path, description), as_json=as_json)


def _print_made(what: str, made: WorkspaceManager, *, as_json: bool) -> None:
    workspace = made.workspace
    assert workspace is not None  # a registered workspace has its entry
    if as_json:
        print_json({"workspace": workspace_document(workspace)})
    else:
        print_line(f"{what} workspace {workspace.name} in {workspace.path}.")


@app.command()
def move(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Where its directory is now.")],
    *,
    root: Root = None,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Register the place that a workspace's directory was moved to; no file is moved."""
    with open_mandrake(root, timeout) as mandrake:
        workspace = mandrake.move_workspace(require_workspace(mandrake, name).id, path)
    if as_json:
        print_json({"workspace": workspace_document(workspace)})
    else:
        print_line(f"Workspace {name} is in {workspace.path} now.")


@app.command()
def unregister(
    name: Name, *, root: Root = None, timeout: Timeout = TIMEOUT, as_json: Json = False
) -> None:
    """Remove a workspace from the registry; its files stay."""
    with open_mandrake(root, timeout) as mandrake:
        workspace = mandrake.unregister_workspace(require_workspace(mandrake, name).id)
    if as_json:
        print_json({"unregistered": workspace_document(workspace)})
    else:
        print_line(_unregistered(workspace))


def _unregistered(workspace: Workspace) -> str:
    return (
        f"Took workspace {workspace.name} out of the registry; its files stay in {workspace.path}."
    )


@app.command()
def delete(
    name: Name,
    *,
    root: Root = None,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Only remove it from the registry.")
    ] = False,
    yes: Yes = False,
    timeout: Timeout = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Delete a workspace's database and remove it from the registry."""
    with open_mandrake(root, timeout) as mandrake:
        workspace = require_workspace(mandrake, name)
        database = workspace_database(workspace.path)
        was_there = os.path.lexists(database)
        if keep_files:
            mandrake.unregister_workspace(workspace.id)
        else:
            confirm(
                f"Delete workspace {name!r} with every session in {database}?",
                yes=yes,
                as_json=as_json,
            )
            mandrake.delete_workspace(workspace.id)
    is_kept = keep_files or os.path.lexists(database)
    if as_json:
        document = {"deleted": workspace_document(workspace), "files_kept": is_kept}
        print_json({**document, "database_found": was_there})
    elif keep_files:
        print_line(_unregistered(workspace))
    elif is_kept:
        print_line(
            f"Workspace {name} is out of the registry; {database} is another program's and stays."
        )
    elif was_there:
        print_line(f"Workspace {name} is deleted with {database}.")
    else:
        print_line(f"Workspace {name} is out of the registry; its database was gone already.")
