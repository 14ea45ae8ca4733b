"""The managers of a host: the system's, which keeps the registry, and one for each workspace."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Self, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.database.paths import from_here, identify, real_path
from mandrake_sessions.database.pool import ConnectionPool, default_pool
from mandrake_sessions.database.transaction import WriteUnit
from mandrake_sessions.errors import (
    DatabaseFolderError,
    DatabaseMissingError,
    InvalidArgumentError,
    MandrakeSessionsError,
    WorkspaceAlreadyExistsError,
)
from mandrake_sessions.log import HostLogger
from mandrake_sessions.manager import SessionManager, seconds_to_wait
from mandrake_sessions.models import Workspace
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records import workspaces

ROOT_VARIABLE = "MANDRAKE_DIR"
"""Names the root in the environment; without it the root is ``~/.mandrake``."""

_DATABASE = "db.sqlite"
_WORKSPACE_FOLDER = ".ws"
_WORKSPACES = "workspaces"

T = TypeVar("T")
Root = str | os.PathLike[str]


def default_root() -> Path:
    """Return the root of the system database: ``$MANDRAKE_DIR``, or ``~/.mandrake``."""
    return Path(os.environ.get(ROOT_VARIABLE) or "~/.mandrake").expanduser()


def workspace_database(path: Root) -> Path:
    """Return where the database of the workspace at ``path`` lives."""
    return Path(path).expanduser() / _WORKSPACE_FOLDER / _DATABASE


def _folder(path: object) -> Path:
    """Return a directory by a name that stays the same wherever the process goes."""
    given = arguments.path("path", path)
    if not os.fspath(given):
        # It would be the present directory, as it comes of a variable that is not set.
        raise InvalidArgumentError("path must not be empty.")
    return Path(from_here(str(Path(given))))


def _spelled(folder: Path) -> str:
    """Return the one spelling of a directory, or two workspaces could share a database."""
    return str(real_path(workspace_database(folder)).parent.parent)


class WorkspaceManager:
    """One workspace: a directory with a ``.ws`` folder, and its conversations.

    Args:
        path: the directory; a relative one begins where the process is now.
        pool: where the connection comes from; None for the process's ``default_pool()``.
        options: how the database is opened; None for the pool's.
        create: whether ``init()`` makes a database that is not there.
        workspace: its entry in the registry, where it has one.
        logger: a structlog logger of the host's.

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
        workspace: Workspace | None = None,
        logger: HostLogger | None = None,
    ) -> None:
        self.path = _folder(path)
        self.workspace = workspace
        self.sessions = SessionManager(
            workspace_database(self.path),
            pool=pool,
            options=options,
            create=create,
            logger=logger,
        )

    @property
    def id(self) -> str | None:
        """The id in the registry, or None for a workspace that is not registered."""
        return None if self.workspace is None else self.workspace.id

    def init(self) -> Self:
        """Open the workspace's database; raises what ``SessionManager.init`` does."""
        self.sessions.init()
        return self

    def close(self) -> None:
        """Give the workspace's database back; does nothing when it is closed."""
        self.sessions.close()

    def __enter__(self) -> Self:
        return self.init()

    def __exit__(self, *_: object) -> None:
        self.close()


class MandrakeManager:
    """The system: its own conversations, and the registry of workspaces.

    Args:
        root: its directory; None for ``$MANDRAKE_DIR`` or ``~/.mandrake``. A relative one begins
            where the process is now. The database is ``<root>/db.sqlite``.
        pool: where connections come from; None for the process's ``default_pool()``.
        options: how its databases are opened; None for the pool's.
        logger: a structlog logger of the host's.

    Attributes:
        root: its directory.
        sessions: the SessionManager of the system.
    """

    def __init__(
        self,
        root: Root | None = None,
        *,
        pool: ConnectionPool | None = None,
        options: DatabaseOptions | None = None,
        logger: HostLogger | None = None,
    ) -> None:
        self.root = _folder(default_root() if root is None else root)
        self._pool = pool
        self._options = options
        self._logger = logger
        self._mutex = threading.RLock()
        self._open: dict[str, WorkspaceManager] = {}
        self.sessions = SessionManager(
            self.root / _DATABASE, pool=pool, options=options, logger=logger
        )

    # -- life -------------------------------------------------------------------------------

    def init(self) -> Self:
        """Open the system database; raises what ``SessionManager.init`` does."""
        self.sessions.init()
        return self

    def close(self) -> None:
        """Close every workspace and the system database, also if one of them fails.

        Raises:
            ExceptionGroup: what failed.
        """
        failures: list[Exception] = []

        def close(part: WorkspaceManager | SessionManager) -> None:
            try:
                part.close()
            except (MandrakeSessionsError, ExceptionGroup) as error:
                failures.append(error)

        # First the registry: without it nobody opens another workspace behind us.
        close(self.sessions)
        with self._mutex:
            opened = list(self._open.values())
            self._open.clear()
        for workspace in opened:
            close(workspace)
        if failures:
            raise ExceptionGroup("closing the managers failed", failures)

    def __enter__(self) -> Self:
        return self.init()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- workspaces -------------------------------------------------------------------------

    def create_workspace(
        self, name: str, description: str | None = None, path: Root | None = None
    ) -> WorkspaceManager:
        """Register a new workspace, make its directory and database, and open it.

        Args:
            name: 1 to 64 letters, digits, ``-`` and ``_``, starting with a letter or digit.
            description: what it is for.
            path: its directory; None for ``<root>/workspaces/<name>``.

        Returns:
            The open workspace, without conversations.

        Raises:
            InvalidArgumentError: the name breaks the rule.
            WorkspaceAlreadyExistsError: the name or the path is registered already, with the
                ``id``; or, without one, the directory holds conversations: adopt it.
            DatabaseOpenError: its database cannot be made; it is not registered then.
        """
        arguments.workspace_name("name", name)
        folder = self.root / _WORKSPACES / name if path is None else _folder(path)
        spelled = _spelled(folder)
        unit = workspaces.register_workspace(name, spelled, description)
        registry, is_free = self.sessions.handle, workspaces.require_free(name, spelled)
        registry.fetch(is_free, "create_workspace")
        if self._holds_conversations(folder):
            # Others may have made them just now, in a workspace of theirs: then that is the error.
            registry.fetch(is_free, "create_workspace")
            raise WorkspaceAlreadyExistsError(
                message="The directory holds conversations already: adopt_workspace() takes them."
            )
        return self._register(unit)

    def _holds_conversations(self, folder: Path) -> bool:
        """Return whether a workspace made in a directory would show what was stored there before.

        A database without any is as good as none: making a workspace was broken off.
        """
        if identify(real_path(workspace_database(folder))) is None:
            return False
        there = WorkspaceManager(folder, pool=self._pool, options=self._options, create=False)
        try:
            with there:
                return there.sessions.count_sessions() > 0
        except DatabaseMissingError:
            return False

    def adopt_workspace(
        self, name: str, path: Root, description: str | None = None
    ) -> WorkspaceManager:
        """Register a directory that exists, with the conversations it may hold, and open it.

        Args:
            name: 1 to 64 letters, digits, ``-`` and ``_``, starting with a letter or digit.
            path: the directory; its database is made if it has none.
            description: what it is for.

        Raises:
            InvalidArgumentError: the name breaks the rule.
            DatabaseFolderError: there is no such directory.
            WorkspaceAlreadyExistsError: the name or the path is registered already.
        """
        arguments.workspace_name("name", name)
        folder = _folder(path)
        if not folder.is_dir():
            raise DatabaseFolderError("There is no such directory.", path=folder)
        return self._register(workspaces.register_workspace(name, _spelled(folder), description))

    def _register(self, unit: WriteUnit[Workspace]) -> WorkspaceManager:
        """Enter it first: the registry decides between two processes who want one name."""
        with self._mutex:
            workspace = self._transact(unit, "create_workspace")
            try:
                return self._open_workspace(workspace)
            except BaseException:
                with contextlib.suppress(MandrakeSessionsError):
                    self._transact(
                        workspaces.unregister_workspace_row(workspace.id), "create_workspace"
                    )
                raise

    def get_workspace(self, id: str) -> WorkspaceManager:
        """Return a registered workspace, open; the same object each time.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            DatabaseMissingError: it is registered, but its database is gone.
        """
        with self._mutex:
            workspace = self.sessions.handle.fetch(
                workspaces.get_workspace_row(id), "get_workspace"
            )
            known = self._open.get(id)
            if known is not None:
                return known.init()
            return self._open_workspace(workspace)

    def _open_workspace(self, workspace: Workspace) -> WorkspaceManager:
        manager = WorkspaceManager(
            workspace.path,
            pool=self._pool,
            options=self._options,
            # Only one that was never opened may be made: a database that was there and is gone
            # was deleted, perhaps by another process, and must not come back empty.
            create=workspace.last_opened_us is None,
            workspace=workspace,
            logger=self._logger,
        )
        manager.init()
        try:
            manager.workspace = self._transact(
                workspaces.mark_workspace_opened(workspace.id), "open_workspace"
            )
        except BaseException:
            manager.close()
            raise
        manager.sessions.create = False
        self._open[workspace.id] = manager
        return manager

    def _transact(self, unit: WriteUnit[T], operation: str) -> T:
        return self.sessions.handle.transact(unit, operation, delegable=True)

    def list_workspaces(self) -> list[Workspace]:
        """Return the registered workspaces by name."""
        return self.sessions.handle.query(workspaces.list_workspace_rows(), "list_workspaces")

    def find_workspace(self, name: str) -> Workspace | None:
        """Return the registered workspace of a name, or None.

        Raises:
            InvalidArgumentError: no workspace can have this name.
        """
        return self.sessions.handle.fetch(workspaces.find_workspace_by_name(name), "find_workspace")

    def unregister_workspace(self, id: str) -> Workspace:
        """Close a workspace and take it out of the registry; its files stay as they are.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
        """
        with self._mutex:
            workspace = self._transact(
                workspaces.unregister_workspace_row(id), "unregister_workspace"
            )
            known = self._open.pop(id, None)
        if known is not None:
            known.close()
        return workspace

    def delete_workspace(self, id: str, *, timeout: float | None = None) -> Workspace:
        """Delete a workspace's database and take it out of the registry.

        No write is accepted for it from then on. Other files in its directory are left alone.

        Args:
            id: the workspace.
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            DatabaseBusyError: somebody else had it open until the deadline; nothing was deleted.
        """
        pool = self._pool or default_pool()
        seconds = seconds_to_wait(timeout, self._options, pool)
        with self._mutex:
            workspace = self.sessions.handle.fetch(
                workspaces.get_workspace_row(id), "delete_workspace"
            )
            # It stays known until it is deleted: should that fail, get_workspace() opens it again.
            known = self._open.get(id)
            if known is not None:
                known.close()
        database = workspace_database(workspace.path)
        pool.remove(database, timeout=seconds)
        with contextlib.suppress(OSError):  # a folder that holds something else stays
            database.parent.rmdir()
            if database.parents[2] == real_path(self.root / _WORKSPACES):
                database.parents[1].rmdir()
        with self._mutex:
            self._open.pop(id, None)
        return self._transact(workspaces.unregister_workspace_row(id), "delete_workspace")

    def sessions_for(self, workspace_id: str | None) -> SessionManager:
        """Return the system's SessionManager for None, otherwise that workspace's.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
        """
        if workspace_id is None:
            return self.sessions
        return self.get_workspace(workspace_id).sessions
