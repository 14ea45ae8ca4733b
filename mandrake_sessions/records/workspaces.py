"""The registry of workspaces, filled in the system database only."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import (
    ConstraintViolationError,
    WorkspaceAlreadyExistsError,
    WorkspaceNotFoundError,
)
from mandrake_sessions.ids import new_id, now
from mandrake_sessions.models import Workspace
from mandrake_sessions.records import sql
from mandrake_sessions.records.places import Registry, is_outside

# Positions in a row of a workspace.
_NAME_AT = 1
_PATH_AT = 2
_REGISTRAR = "registrar:"
"""The prefix of a key: the id of a workspace outside follows, and its note is the value."""


def register_workspace(
    registry: Registry, name: str, path: str, description: str | None = None
) -> WriteUnit[Workspace]:
    """Register a workspace; no folder is made.

    Args:
        registry: the registry.
        name: 1 to 64 letters, digits, ``-`` and ``_``, starting with a letter or digit.
        path: the absolute path of its directory, in its one spelling.
        description: what it is for.

    Returns:
        The registered workspace.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        WorkspaceAlreadyExistsError: the name or path is taken.
    """
    place = registry.stored(arguments.text("path", path))
    workspace = Workspace(
        id=new_id(),
        name=arguments.workspace_name("name", name),
        path=registry.path(place),
        description=arguments.optional_text("description", description),
        created_us=now(),
        last_opened_us=None,
    )
    stored = msgspec.structs.replace(workspace, path=place)

    def work(tx: WriteTransaction) -> Workspace:
        try:
            tx.run_all((sql.INSERT_WORKSPACE.of(stored),))
        except ConstraintViolationError as violation:
            if not violation.columns or violation.columns[0].split(".")[0] != sql.WORKSPACES:
                raise
            # SQLite names one column even if both are taken.
            taken = _taken(tx, registry, workspace.name, workspace.path)
            if taken is None:
                raise
            raise taken from violation
        _note(tx, registry, workspace.id, stored.path)
        return workspace

    return work


def _note(tx: WriteTransaction, registry: Registry, id: str, stored: str) -> None:
    """Record that a workspace is registered here; one below the root needs no note."""
    key = _REGISTRAR + id
    if is_outside(stored):
        tx.run(sql.PUT_REGISTRAR, {"key": key, "value": registry.document()})
    else:
        tx.run(sql.DELETE_REGISTRAR, {"key": key})


def require_free(registry: Registry, name: str, path: str) -> ReadUnit[None]:
    """Require that no registered workspace has a name or path.

    Args:
        registry: the registry.
        name: the name of a new workspace.
        path: the absolute path of its directory, in its one spelling.

    Raises:
        WorkspaceAlreadyExistsError: the name or the path is taken.
    """
    place = registry.path(registry.stored(path))

    def work(tx: ReadTransaction) -> None:
        taken = _taken(tx, registry, name, place)
        if taken is not None:
            raise taken

    return work


def _taken(
    tx: ReadTransaction, registry: Registry, name: str, path: str
) -> WorkspaceAlreadyExistsError | None:
    """Return the error with the id of the workspace that has the name, otherwise the path."""
    rows = tx.rows(sql.ALL_WORKSPACES)
    for row in rows:
        if row[_NAME_AT] == name:
            return _taken_error(row[0], "name")
    for row in rows:
        if registry.path(row[_PATH_AT]) == path:
            return _taken_error(row[0], "path")
    return None


def _taken_error(id: str, what: str) -> WorkspaceAlreadyExistsError:
    return WorkspaceAlreadyExistsError(id, f"There is already a workspace with this {what}.")


def get_workspace_row(registry: Registry, id: str) -> ReadUnit[Workspace]:
    """Return a registered workspace.

    Args:
        registry: the registry.
        id: the id of the workspace.

    Returns:
        The workspace.

    Raises:
        InvalidArgumentError: the id is not a string.
        WorkspaceNotFoundError: there is no such workspace.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: ReadTransaction) -> Workspace:
        row = tx.row(sql.WORKSPACE_BY_ID, values)
        if row is None:
            raise WorkspaceNotFoundError(id)
        return registry.workspace(row)

    return work


def find_workspace_by_name(registry: Registry, name: str) -> ReadUnit[Workspace | None]:
    """Return the registered workspace of a name, or None if there is none.

    Args:
        registry: the registry.
        name: the name of the workspace; case counts.

    Returns:
        The workspace or None.

    Raises:
        InvalidArgumentError: the name breaks the rule of names.
    """
    values = {"name": arguments.workspace_name("name", name)}

    def work(tx: ReadTransaction) -> Workspace | None:
        row = tx.row(sql.WORKSPACE_BY_NAME, values)
        return None if row is None else registry.workspace(row)

    return work


def list_workspace_rows(registry: Registry) -> ReadUnit[list[Workspace]]:
    """Return the registered workspaces by name.

    Args:
        registry: the registry.

    Returns:
        All of them.
    """

    def work(tx: ReadTransaction) -> list[Workspace]:
        return [registry.workspace(row) for row in tx.rows(sql.ALL_WORKSPACES)]

    return work


def mark_workspace_opened(registry: Registry, id: str) -> WriteUnit[Workspace]:
    """Record that the workspace's database is opened now, and where this registry lies.

    Args:
        registry: the registry.
        id: the id of the workspace.

    Returns:
        The workspace as it is now.

    Raises:
        InvalidArgumentError: the id is not a string.
        WorkspaceNotFoundError: there is no such workspace.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id, "now": now()}

    def work(tx: WriteTransaction) -> Workspace:
        row = tx.row(sql.WORKSPACE_BY_ID, values)
        if row is None:
            raise WorkspaceNotFoundError(id)
        # Earlier versions have stored each directory by its absolute path.
        stored = registry.stored(registry.workspace(row).path)
        opened = tx.rows(sql.OPEN_WORKSPACE, {**values, "path": stored})
        _note(tx, registry, id, stored)
        return registry.workspace(opened[0])

    return work


def move_workspace_row(
    registry: Registry, id: str, path: str, description: str | None = None
) -> WriteUnit[Workspace]:
    """Register another directory for a workspace; no file is moved.

    Args:
        registry: the registry.
        id: the id of the workspace.
        path: the absolute path of its directory, in its one spelling.
        description: what it is for; None leaves it unchanged.

    Returns:
        The workspace as it is now.

    Raises:
        InvalidArgumentError: an argument has the wrong type.
        WorkspaceNotFoundError: there is no such workspace.
        WorkspaceAlreadyExistsError: another one has the path.
    """
    stored = registry.stored(arguments.text("path", path))
    id = arguments.lookup_id("id", id)
    values = {
        "id": id,
        "path": stored,
        "description": arguments.optional_text("description", description),
    }

    def work(tx: WriteTransaction) -> Workspace:
        for each in tx.rows(sql.ALL_WORKSPACES):
            other = registry.workspace(each)
            if other.path == registry.path(stored) and other.id != id:
                raise _taken_error(other.id, "path")
        row = tx.row(sql.MOVE_WORKSPACE, values)
        if row is None:
            raise WorkspaceNotFoundError(id)
        _note(tx, registry, id, stored)
        return registry.workspace(row)

    return work


def find_registrar(registry: Registry, id: str) -> ReadUnit[Path | None]:
    """Return the other database that has registered a workspace outside.

    Args:
        registry: the registry, which may be a copy of that.
        id: the id of the workspace.

    Returns:
        Its path at that time; None if it was this one, or for a workspace below the root.
    """
    id = arguments.lookup_id("id", id)
    values = {"key": _REGISTRAR + id}

    def work(tx: ReadTransaction) -> Path | None:
        row = tx.row(sql.REGISTRAR, values)
        return None if row is None else registry.other(row[0])

    return work


def find_outdated_notes(registry: Registry) -> ReadUnit[list[str]]:
    """Return the notes of workspaces outside that name a former path of the registry.

    Args:
        registry: the registry, which may have been moved.

    Returns:
        Their keys.
    """
    # The end is after the last key with the prefix: in ASCII, a semicolon follows the colon.
    values = {"first": _REGISTRAR, "end": _REGISTRAR[:-1] + ";"}

    def work(tx: ReadTransaction) -> list[str]:
        rows = tx.rows(sql.REGISTRARS, values)
        return [key for key, document in rows if registry.has_moved_since(document)]

    return work


def note_move(registry: Registry) -> WriteUnit[None]:
    """Record where a moved registry lies now, so that a copy of it knows its original.

    Args:
        registry: the registry at its present place.
    """
    find = find_outdated_notes(registry)

    def work(tx: WriteTransaction) -> None:
        for key in find(tx):
            tx.run(sql.PUT_REGISTRAR, {"key": key, "value": registry.document()})

    return work


def unregister_workspace_row(registry: Registry, id: str) -> WriteUnit[Workspace]:
    """Remove a workspace from the registry; its files stay.

    Args:
        registry: the registry.
        id: the id of the workspace.

    Returns:
        The workspace as it was registered.

    Raises:
        InvalidArgumentError: the id is not a string.
        WorkspaceNotFoundError: there is no such workspace.
    """
    id = arguments.lookup_id("id", id)
    get = get_workspace_row(registry, id)

    def work(tx: WriteTransaction) -> Workspace:
        workspace = get(tx)
        tx.run(sql.DELETE_WORKSPACE, {"id": id})
        tx.run(sql.DELETE_REGISTRAR, {"key": _REGISTRAR + id})
        return workspace

    return work
