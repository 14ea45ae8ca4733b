"""The registry of workspaces, filled in the system database only."""

from __future__ import annotations

from mandrake_sessions import arguments
from mandrake_sessions.database.transaction import (
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


def register_workspace(
    name: str, path: str, description: str | None = None
) -> WriteUnit[Workspace]:
    """Enter a workspace into the registry; no folder is made.

    Args:
        name: 1 to 64 letters, digits, ``-`` and ``_``, starting with a letter or digit.
        path: the absolute path of its directory, spelled in one way only.
        description: what it is for.

    Returns:
        The registered workspace.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        WorkspaceAlreadyExistsError: the name or path is taken.
    """
    workspace = Workspace(
        id=new_id(),
        name=arguments.workspace_name("name", name),
        path=arguments.text("path", path),
        description=arguments.optional_text("description", description),
        created_us=now(),
        last_opened_us=None,
    )

    def work(tx: WriteTransaction) -> Workspace:
        try:
            tx.run_all((sql.INSERT_WORKSPACE.of(workspace),))
        except ConstraintViolationError as violation:
            if not violation.columns or violation.columns[0].split(".")[0] != sql.WORKSPACES:
                raise
            # SQLite names one column though both may be taken.
            taken = _taken(tx, workspace.name, workspace.path)
            if taken is None:
                raise
            raise taken from violation
        return workspace

    return work


def require_free(name: str, path: str) -> ReadUnit[None]:
    """Make sure that no registered workspace has a name or path.

    Args:
        name: the name of a new workspace.
        path: the absolute path of its directory, spelled in one way only.

    Raises:
        WorkspaceAlreadyExistsError: one of both is taken.
    """

    def work(tx: ReadTransaction) -> None:
        taken = _taken(tx, name, path)
        if taken is not None:
            raise taken

    return work


def _taken(tx: ReadTransaction, name: str, path: str) -> WorkspaceAlreadyExistsError | None:
    """Return the error that names the workspace with a name, otherwise that with a path."""
    registered = [Workspace(*row) for row in tx.rows(sql.ALL_WORKSPACES)]
    for what, value in (("name", name), ("path", path)):
        for each in registered:
            if getattr(each, what) == value:
                return WorkspaceAlreadyExistsError(
                    each.id, f"There is already a workspace with this {what}."
                )
    return None


def get_workspace_row(id: str) -> ReadUnit[Workspace]:
    """Return a registered workspace.

    Args:
        id: the id of the workspace.

    Returns:
        The workspace.

    Raises:
        InvalidArgumentError: the id is not a string.
        WorkspaceNotFoundError: there is no such workspace.
    """
    values = {"id": arguments.lookup_id("id", id)}

    def work(tx: ReadTransaction) -> Workspace:
        row = tx.row(sql.WORKSPACE_BY_ID, values)
        if row is None:
            raise WorkspaceNotFoundError(id)
        return Workspace(*row)

    return work


def find_workspace_by_name(name: str) -> ReadUnit[Workspace | None]:
    """Return the registered workspace of a name, or None if there is none.

    Args:
        name: the name of the workspace; case counts.

    Returns:
        The workspace or None.

    Raises:
        InvalidArgumentError: the name breaks the rule of names.
    """
    values = {"name": arguments.workspace_name("name", name)}

    def work(tx: ReadTransaction) -> Workspace | None:
        row = tx.row(sql.WORKSPACE_BY_NAME, values)
        return None if row is None else Workspace(*row)

    return work


def list_workspace_rows() -> ReadUnit[list[Workspace]]:
    """Return the registered workspaces by name.

    Returns:
        All of them.
    """

    def work(tx: ReadTransaction) -> list[Workspace]:
        return [Workspace(*row) for row in tx.rows(sql.ALL_WORKSPACES)]

    return work


def mark_workspace_opened(id: str) -> WriteUnit[Workspace]:
    """Note that the workspace's database is opened now.

    Args:
        id: the id of the workspace.

    Returns:
        The workspace as it is now.

    Raises:
        InvalidArgumentError: the id is not a string.
        WorkspaceNotFoundError: there is no such workspace.
    """
    values = {"id": arguments.lookup_id("id", id), "now": now()}

    def work(tx: WriteTransaction) -> Workspace:
        row = tx.row(sql.OPEN_WORKSPACE, values)
        if row is None:
            raise WorkspaceNotFoundError(id)
        return Workspace(*row)

    return work


def unregister_workspace_row(id: str) -> WriteUnit[Workspace]:
    """Take a workspace out of the registry; its files stay as they are.

    Args:
        id: the id of the workspace.

    Returns:
        The workspace as it was registered.

    Raises:
        InvalidArgumentError: the id is not a string.
        WorkspaceNotFoundError: there is no such workspace.
    """
    values = {"id": arguments.lookup_id("id", id)}

    def work(tx: WriteTransaction) -> Workspace:
        row = tx.row(sql.DELETE_WORKSPACE, values)
        if row is None:
            raise WorkspaceNotFoundError(id)
        return Workspace(*row)

    return work
