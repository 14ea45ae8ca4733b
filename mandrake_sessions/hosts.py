"""The managers of a host: the system's, which keeps the registry, and one for each workspace."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final, Self, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.database.files.paths import at_home, identify, real_path
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.pool import ConnectionPool, default_pool
from mandrake_sessions.engine.transaction import WriteUnit
from mandrake_sessions.errors import (
    DatabaseError,
    DatabaseFolderError,
    DatabaseMissingError,
    DatabasePathError,
    MandrakeSessionsError,
    WorkspaceAlreadyExistsError,
)
from mandrake_sessions.log import HostLogger
from mandrake_sessions.manager import SessionManager, seconds_to_wait
from mandrake_sessions.models import Workspace
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records import workspaces
from mandrake_sessions.records.places import Registry
from mandrake_sessions.workspace import (
    DATABASE,
    Root,
    WorkspaceManager,
    directory,
    registry_of,
    remove_files,
    require_in_place,
    spelled,
    workspace_database,
)

ROOT_VARIABLE: Final = "MANDRAKE_DIR"
"""The environment variable for the root; without it the root is ``~/.mandrake``."""

_WORKSPACES: Final = "workspaces"

T = TypeVar("T")


def default_root() -> Path:
    """Return the root of the system database: ``$MANDRAKE_DIR``, or ``~/.mandrake``."""
    named = os.environ.get(ROOT_VARIABLE)
    try:
        return Path(at_home(named or "~/.mandrake"))
    except DatabasePathError as error:
        raise DatabasePathError(f"{error.message} {ROOT_VARIABLE} names another root.") from error


class MandrakeManager(Resource):
    """The system: its own conversations, and the registry of workspaces.

    Args:
        root: its directory; None for ``$MANDRAKE_DIR`` or ``~/.mandrake``. A relative path is
            resolved when the manager is made. The database is ``<root>/db.sqlite``.
        pool: where connections come from; None for the process's ``default_pool()``.
        options: how its databases are opened; None for the pool's.
        read_only: whether its databases are only read, as ``DatabaseOptions.read_only`` says.
        logger: a structlog logger of the host.

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
        read_only: bool = False,
        logger: HostLogger | None = None,
    ) -> None:
        super().__init__()
        self.root: Path = directory(default_root() if root is None else root)
        self._pool = pool
        self._options = options
        self._logger = logger
        self._mutex = threading.RLock()
        self._open: dict[str, WorkspaceManager] = {}
        self._known_registry: tuple[FileHandle, Registry] | None = None
        self.sessions: SessionManager = SessionManager(
            self.root / DATABASE, pool=pool, options=options, read_only=read_only, logger=logger
        )

    @property
    def _handle(self) -> FileHandle:
        return file_handle(self.sessions.handle)

    # -- life -------------------------------------------------------------------------------

    def init(self) -> Self:
        """Open the system database; raises the errors of ``SessionManager.init``."""
        was_open = self.sessions.is_initialized
        try:
            self.sessions.init()
            self._note_move()
        except BaseException:
            if not was_open:
                self.sessions.close()
            raise
        return self

    def close(self) -> None:
        """Close every workspace and the system database, even if one of them fails.

        Raises:
            ExceptionGroup: the failures.
        """
        failures: list[Exception] = []

        def close(part: WorkspaceManager | SessionManager) -> None:
            try:
                part.close()
            except (MandrakeSessionsError, ExceptionGroup) as error:
                failures.append(error)

        # First the registry: without it no thread can open another workspace meanwhile.
        close(self.sessions)
        with self._mutex:
            opened = list(self._open.values())
            self._open.clear()
        for workspace in opened:
            close(workspace)
        if failures:
            raise ExceptionGroup("closing the managers failed", failures)

    def _on_enter(self) -> Self:
        return self.init()

    def _on_left(self) -> None:
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
        name = arguments.workspace_name("name", name)
        self._handle.require_writable()
        handle, registry = self._handle, self._registry()
        folder = registry.root / _WORKSPACES / name if path is None else directory(path)
        place = spelled(folder, self.list_workspaces() if os.path.exists(folder) else ())
        unit = workspaces.register_workspace(registry, name, place, description)
        is_free = workspaces.require_free(registry, name, place)
        handle.fetch(is_free, "create_workspace")
        if self._holds_conversations(folder):
            # Another caller may just have registered it with these: then that is the error.
            handle.fetch(is_free, "create_workspace")
            raise WorkspaceAlreadyExistsError(
                message="The directory holds conversations already: adopt_workspace() takes them."
            )
        return self._register(unit)

    def _holds_conversations(self, folder: Path) -> bool:
        """Return whether a workspace made in a directory would show older conversations.

        A database without any does not count: it is left of an interrupted registration.
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

        If the name is registered, its database is missing and the directory holds one, the
        directory becomes the new place of that workspace, as by ``move_workspace``.

        Args:
            name: 1 to 64 letters, digits, ``-`` and ``_``, starting with a letter or digit.
            path: the directory; its database is made if it has none.
            description: what it is for.

        Raises:
            InvalidArgumentError: the name breaks the rule.
            DatabaseFolderError: there is no such directory.
            WorkspaceAlreadyExistsError: the name or the path is registered already.
        """
        name = arguments.workspace_name("name", name)
        folder = directory(path)
        if not os.path.isdir(folder):
            raise DatabaseFolderError("There is no such directory.", path=folder)
        registry = self._registry()
        place = spelled(folder, self.list_workspaces())
        known = self.find_workspace(name)
        if (
            known is not None
            and not os.path.lexists(workspace_database(known.path))
            and identify(workspace_database(place)) is not None
        ):
            self._move(registry, known.id, place, description)
            return self.get_workspace(known.id)
        return self._register(workspaces.register_workspace(registry, name, place, description))

    def move_workspace(self, id: str, path: Root) -> Workspace:
        """Close a workspace and register the place that its directory was moved to.

        No file is moved. The files at the former place stay, and are no workspace any more.

        Args:
            id: the workspace; it keeps its name.
            path: the directory with its ``.ws`` folder. In a copy of a root, the registered path
                declares that a directory outside is shared with the original.

        Returns:
            The workspace as registered now.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            DatabaseFolderError: there is no such directory.
            DatabaseMissingError: it holds no workspace's database.
            WorkspaceAlreadyExistsError: another workspace has the path.
        """
        self._handle.require_writable()
        registry = self._registry()
        id = self._fetch_workspace(id, "move_workspace").id
        folder = directory(path)
        if not os.path.isdir(folder):
            raise DatabaseFolderError("There is no such directory.", path=folder)
        place = spelled(folder, self.list_workspaces())
        if identify(workspace_database(place)) is None:
            raise DatabaseMissingError(
                "The directory holds no workspace's database.", path=workspace_database(place)
            )
        return self._move(registry, id, place, None)

    def _move(self, registry: Registry, id: str, path: str, description: str | None) -> Workspace:
        with self._mutex:
            workspace = self._transact(
                workspaces.move_workspace_row(registry, id, path, description), "move_workspace"
            )
            known = self._open.pop(id, None)
        if known is not None:
            known.close()
        return workspace

    def _register(self, unit: WriteUnit[Workspace]) -> WorkspaceManager:
        """Register it before it opens: the registry decides between processes with one name."""
        with self._mutex:
            workspace = self._transact(unit, "create_workspace")
            try:
                return self._open_workspace(workspace)
            except BaseException:
                with contextlib.suppress(MandrakeSessionsError):
                    self._transact(
                        workspaces.unregister_workspace_row(self._registry(), workspace.id),
                        "create_workspace",
                    )
                raise

    def get_workspace(self, id: str) -> WorkspaceManager:
        """Return a registered workspace, open; the same object until another place is registered.

        Args:
            id: the id of the workspace.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            DatabaseMissingError: it is registered, but its database is missing.
            WorkspacePlaceError: its place differs from the registration: a link has replaced it, or
                it belongs to the root of which this one is a copy.
        """
        with self._mutex:
            workspace = self._fetch_workspace(id, "get_workspace")
            known = self._open.get(workspace.id)
            if known is not None and known.path != Path(workspace.path):
                # Another manager, perhaps of another process, has registered its new place.
                del self._open[workspace.id]
                known.close()
                known = None
            if known is not None and known.sessions.is_initialized:
                return known
            require_in_place(self._handle, self._registry(), workspace)
            return self._open_workspace(workspace) if known is None else known.init()

    def database_of(self, id: str) -> Path:
        """Return the path of a workspace's database, for tools that work on the file itself.

        Args:
            id: the id of the workspace.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            WorkspacePlaceError: its place differs from the registration.
        """
        workspace = self._fetch_workspace(id, "database_of")
        require_in_place(self._handle, self._registry(), workspace)
        return workspace_database(workspace.path)

    def _registry(self) -> Registry:
        handle, known = self._handle, self._known_registry
        if known is None or known[0] is not handle:
            known = self._known_registry = handle, registry_of(handle)
        return known[1]

    def _note_move(self) -> None:
        """Record where a moved root lies; without this a copy of it would not know its original."""
        if self.sessions.is_read_only:
            return
        registry = self._registry()
        # A full disk keeps no root from opening: the next opening records it.
        with contextlib.suppress(DatabaseError):
            if self._handle.fetch(workspaces.find_outdated_notes(registry), "note_move"):
                self._transact(workspaces.note_move(registry), "note_move")

    def _fetch_workspace(self, id: str, operation: str) -> Workspace:
        unit = workspaces.get_workspace_row(self._registry(), id)
        return self._handle.fetch(unit, operation)

    def _open_workspace(self, workspace: Workspace) -> WorkspaceManager:
        manager = WorkspaceManager(
            workspace.path,
            pool=self._pool,
            options=self._options,
            # Only one that was never opened may be made: a database that existed and is missing
            # was deleted, perhaps by another process, and must not come back empty.
            create=workspace.last_opened_us is None,
            read_only=self.sessions.is_read_only,
            workspace=workspace,
            logger=self._logger,
        )
        manager.init()
        try:
            if not self.sessions.is_read_only:
                manager.workspace = self._transact(
                    workspaces.mark_workspace_opened(self._registry(), workspace.id),
                    "open_workspace",
                )
        except BaseException:
            manager.close()
            raise
        manager.sessions.create = False
        self._open[workspace.id] = manager
        return manager

    def _transact(self, unit: WriteUnit[T], operation: str) -> T:
        return self._handle.transact(unit, operation, delegable=True)

    def list_workspaces(self) -> list[Workspace]:
        """Return the registered workspaces by name."""
        unit = workspaces.list_workspace_rows(self._registry())
        return self._handle.query(unit, "list_workspaces")

    def find_workspace(self, name: str) -> Workspace | None:
        """Return the registered workspace of a name, or None.

        Args:
            name: the name in the registry.

        Raises:
            InvalidArgumentError: no workspace can have this name.
        """
        unit = workspaces.find_workspace_by_name(self._registry(), name)
        return self._handle.fetch(unit, "find_workspace")

    def unregister_workspace(self, id: str) -> Workspace:
        """Close a workspace and remove its entry from the registry; its files stay.

        Args:
            id: the id of the workspace.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
        """
        with self._mutex:
            workspace = self._transact(
                workspaces.unregister_workspace_row(self._registry(), id), "unregister_workspace"
            )
            known = self._open.pop(workspace.id, None)
        if known is not None:
            known.close()
        return workspace

    def delete_workspace(self, id: str, *, timeout: float | None = None) -> Workspace:
        """Delete a workspace's database and remove its entry from the registry.

        No write is accepted for it from then on. Other files in its directory stay. A file of
        another program in the place of its database stays too, and is logged. A damaged database is
        deleted; if the database is missing, the entry is removed.

        Args:
            id: the workspace.
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            WorkspacePlaceError: its place differs from the registration; nothing was deleted.
            DatabaseBusyError: another holder had it open until the deadline; nothing was deleted.
        """
        pool = self._pool or default_pool()
        seconds = seconds_to_wait(timeout, self._options, pool)
        self._handle.require_writable()
        with self._mutex:
            workspace = self._fetch_workspace(id, "delete_workspace")
            require_in_place(self._handle, self._registry(), workspace)
            # It stays known until it is deleted: if that fails, get_workspace() opens it again.
            known = self._open.get(workspace.id)
            if known is not None:
                known.close()
        registry = self._registry()
        remove_files(pool, workspace, seconds, made_in=registry.root / _WORKSPACES)
        with self._mutex:
            self._open.pop(workspace.id, None)
        unit = workspaces.unregister_workspace_row(registry, workspace.id)
        return self._transact(unit, "delete_workspace")

    def sessions_for(self, workspace_id: str | None) -> SessionManager:
        """Return the system's SessionManager for None, otherwise that workspace's.

        Args:
            workspace_id: the id of a workspace; None for the system.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
        """
        if workspace_id is None:
            return self.sessions
        return self.get_workspace(workspace_id).sessions
