"""One workspace: its directory, its manager, and the check of its place against the registry."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.database.files.folders import opened_folder
from mandrake_sessions.database.files.paths import (
    at_home,
    from_here,
    identify,
    real_path,
    refuse_link,
)
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.errors import (
    DatabaseError,
    DatabasePathError,
    InvalidArgumentError,
    UnrecognizedDatabaseError,
    WorkspacePlaceError,
)
from mandrake_sessions.log import HostLogger, get_logger
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.models import Workspace
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records import workspaces
from mandrake_sessions.records.places import Registry

DATABASE: Final = "db.sqlite"
"""The name of a database in its folder, the system's and a workspace's."""

_WORKSPACE_FOLDER: Final = ".ws"

Root = str | os.PathLike[str]


def workspace_database(path: Root) -> Path:
    """Return the path of the database of the workspace at ``path``."""
    return Path(at_home(str(Path(path))), _WORKSPACE_FOLDER, DATABASE)


def directory(path: object) -> Path:
    """Return a directory as an absolute path, which a later ``chdir()`` does not change."""
    given = arguments.path("path", path)
    if not os.fspath(given):
        # It would be the present directory, and often comes from a variable that is not set.
        raise InvalidArgumentError("path must not be empty.")
    return Path(from_here(str(Path(given))))


def registry_of(handle: Handle) -> Registry:
    """Return the registry in an open system database."""
    try:
        return Registry(handle.path, identify(handle.path))
    except DatabaseError:
        # The file is gone: the next statement raises.
        return Registry(handle.path, None)


def spelled(folder: Path, registered: Iterable[Workspace]) -> str:
    """Return the one spelling of a directory; with two, workspaces could share a database.

    Raises:
        DatabasePathError: its database is a link to one that is called otherwise.
    """
    database = real_path(workspace_database(folder))
    path = database.parent.parent
    if workspace_database(path) != database:
        raise DatabasePathError(
            "The database of the directory is a link to a file of another name.", path=database
        )
    # A directory that is mounted twice has two real paths.
    with contextlib.suppress(OSError):
        found = os.stat(path)
        for each in registered:
            with contextlib.suppress(OSError):
                if os.path.samestat(found, os.stat(each.path)):
                    return each.path
    return str(path)


def require_in_place(handle: Handle, registry: Registry, workspace: Workspace) -> None:
    """Require that a workspace is in its registered place, and belongs to this registry.

    Args:
        handle: on the system database.
        registry: the registry in it.
        workspace: its entry.

    Raises:
        WorkspacePlaceError: it is not.
    """
    database = workspace_database(workspace.path)
    try:
        refuse_link(database)
    except DatabasePathError as error:
        raise WorkspacePlaceError(
            f"{error.message} Put back what was registered, name its new place by "
            "move_workspace(), or take it out by unregister_workspace().",
            path=database,
        ) from error
    unit = workspaces.find_registrar(registry, workspace.id)
    original = handle.fetch(unit, "find_registrar")
    if original is not None and _may_be_there(original):
        raise WorkspacePlaceError(
            f"This root is a copy of {original.parent}, whose workspace it is. To share it, "
            "name its place by move_workspace(); unregister_workspace() takes it out.",
            path=database,
        )


def _may_be_there(database: Path) -> bool:
    """Return whether the file exists; True if this process cannot determine it."""
    try:
        return identify(database) is not None
    except DatabaseError:
        return True


def remove_files(
    pool: ConnectionPool, workspace: Workspace, seconds: float, *, made_in: Path
) -> None:
    """Remove a workspace's database, and then the folders that are empty.

    Args:
        pool: where it may be open.
        workspace: its entry.
        seconds: to wait for other holders.
        made_in: where workspaces lie whose own directory was made for them.

    Raises:
        DatabaseBusyError: it was in use until the deadline; nothing was removed.
        DatabaseError: it cannot be removed.
    """
    database = workspace_database(workspace.path)
    try:
        pool.remove(database, timeout=seconds, follow_links=False, even_damaged=True)
    except UnrecognizedDatabaseError:
        get_logger(__name__).warning("foreign_file_kept", path=str(database))
    _remove_empty(database.parent)
    if database.parents[2] == made_in:
        _remove_empty(database.parents[1])


def _remove_empty(folder: Path) -> None:
    """Remove an empty folder; links are not followed."""
    with contextlib.suppress(OSError, DatabasePathError), opened_folder(folder.parent) as above:
        above.rmdir(folder.name)


class WorkspaceManager(Resource):
    """One workspace: a directory with a ``.ws`` folder, and its conversations.

    Args:
        path: the directory; a relative one begins where the process is now.
        pool: where the connection comes from; None for the process's ``default_pool()``.
        options: how the database is opened; None for the pool's.
        create: whether ``init()`` makes a database that is not there.
        read_only: whether the database is only read, as ``DatabaseOptions.read_only`` says.
        workspace: its entry in the registry, if it has one.
        logger: a structlog logger of the host.

    Attributes:
        path: the directory.
        sessions: the SessionManager of the workspace.
        workspace: its entry in the registry, or None.
    """

    def __init__(
        self,
        path: Root,
        *,
        pool: ConnectionPool | None = None,
        options: DatabaseOptions | None = None,
        create: bool = True,
        read_only: bool = False,
        workspace: Workspace | None = None,
        logger: HostLogger | None = None,
    ) -> None:
        super().__init__()
        self.path: Path = directory(path)
        self.workspace = workspace
        self.sessions: SessionManager = SessionManager(
            workspace_database(self.path),
            pool=pool,
            options=options,
            create=create,
            read_only=read_only,
            logger=logger,
        )
        # A registered workspace is used in its registered place, or refused.
        self.sessions.follow_links = workspace is None

    @property
    def id(self) -> str | None:
        """The id in the registry, or None for a workspace that is not registered."""
        return None if self.workspace is None else self.workspace.id

    def init(self) -> Self:
        """Open the workspace's database; raises the errors of ``SessionManager.init``."""
        self.sessions.init()
        return self

    def close(self) -> None:
        """Release the workspace's database; does nothing if it is closed."""
        self.sessions.close()

    def _on_enter(self) -> Self:
        return self.init()

    def _on_left(self) -> None:
        self.close()
