"""The managers of a host for coroutines: the system's, and one for each workspace."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.aio.manager import AsyncSessionManager
from mandrake_sessions.aio.to_thread import in_thread
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.engine.transaction import ReadUnit
from mandrake_sessions.errors import MandrakeSessionsError
from mandrake_sessions.faces.calls import Kind
from mandrake_sessions.hosts import MandrakeManager
from mandrake_sessions.log import HostLogger
from mandrake_sessions.models import Workspace
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records import workspaces
from mandrake_sessions.records.places import Registry
from mandrake_sessions.workspace import Root, WorkspaceManager

T = TypeVar("T")


class AsyncWorkspaceManager:
    """One workspace: a directory with a ``.ws`` folder, and its conversations.

    Args:
        path: the directory; a relative path is resolved when the manager is made.
        pool: where the connection comes from; None for the process's ``default_pool()``.
        options: how the database is opened; None for the pool's.
        create: whether ``init()`` makes a missing database.
        read_only: whether the database is only read, as ``DatabaseOptions.read_only`` says.
        workspace: its entry in the registry, if it has one.
        logger: a structlog logger of the host.

    Attributes:
        sync: the WorkspaceManager behind it, for threads.
        sessions: the AsyncSessionManager of the workspace.
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
        self._begin(
            WorkspaceManager(
                path,
                pool=pool,
                options=options,
                create=create,
                read_only=read_only,
                workspace=workspace,
                logger=logger,
            )
        )

    @classmethod
    def _over(cls, sync: WorkspaceManager) -> Self:
        """Return the asynchronous face of an existing manager; closing one closes both."""
        manager = cls.__new__(cls)
        manager._begin(sync)
        return manager

    def _begin(self, sync: WorkspaceManager) -> None:
        self.sync = sync
        self.sessions: AsyncSessionManager = AsyncSessionManager._over(sync.sessions)

    @property
    def path(self) -> Path:
        """The directory."""
        return self.sync.path

    @property
    def workspace(self) -> Workspace | None:
        """Its entry in the registry, or None."""
        return self.sync.workspace

    @property
    def id(self) -> str | None:
        """The id in the registry, or None for a workspace that is not registered."""
        return self.sync.id

    async def init(self) -> Self:
        """Open the workspace's database; raises the errors of ``SessionManager.init``."""
        await self.sessions.init()
        return self

    async def close(self) -> None:
        """Release the workspace's database; does nothing if it is closed."""
        await self.sessions.close()

    async def __aenter__(self) -> Self:
        return await self.init()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncMandrakeManager:
    """The system: its own conversations, and the registry of workspaces.

    Args:
        root: its directory; None for ``$MANDRAKE_DIR`` or ``~/.mandrake``. A relative path is
            resolved when the manager is made. The database is ``<root>/db.sqlite``.
        pool: where connections come from; None for the process's ``default_pool()``.
        options: how its databases are opened; None for the pool's.
        read_only: whether its databases are only read, as ``DatabaseOptions.read_only`` says.
        logger: a structlog logger of the host.

    Attributes:
        sync: the MandrakeManager behind it, for threads.
        sessions: the AsyncSessionManager of the system.
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
        self.sync: MandrakeManager = MandrakeManager(
            root, pool=pool, options=options, read_only=read_only, logger=logger
        )
        self.sessions: AsyncSessionManager = AsyncSessionManager._over(self.sync.sessions)
        self._mutex = threading.Lock()
        self._known: dict[str, AsyncWorkspaceManager] = {}

    @property
    def root(self) -> Path:
        """Its directory."""
        return self.sync.root

    # -- life -------------------------------------------------------------------------------

    async def init(self) -> Self:
        """Open the system database, or leave it closed; raises ``SessionManager.init``'s errors."""
        was_open = self.sessions.is_initialized
        await self.sessions.init()
        try:
            await in_thread("init", self.sync._note_move)
        except BaseException:
            if not was_open:
                await self.sessions.close()
            raise
        return self

    async def close(self) -> None:
        """Close every workspace and the system database, even if one of them fails.

        Raises:
            ExceptionGroup: the failures.
        """
        with self._mutex:
            parts = [*(known.sessions for known in self._known.values()), self.sessions]
            self._known.clear()
        # In one thread: a caller that cancels leaves none of them open.
        await in_thread("close", functools.partial(self._close_all, parts), surely=True)

    def _close_all(self, parts: Sequence[AsyncSessionManager]) -> None:
        failures: list[Exception] = []
        for part in parts:
            try:
                part._close_now()
            except (MandrakeSessionsError, ExceptionGroup) as error:
                failures.append(error)
        try:
            # Also the workspaces that were opened through the synchronous manager.
            self.sync.close()
        except ExceptionGroup as group:
            failures.extend(group.exceptions)
        if failures:
            raise ExceptionGroup("closing the managers failed", failures)

    async def __aenter__(self) -> Self:
        return await self.init()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- workspaces -------------------------------------------------------------------------

    async def create_workspace(
        self, name: str, description: str | None = None, path: Root | None = None
    ) -> AsyncWorkspaceManager:
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
        return await self._opened(
            "create_workspace",
            functools.partial(self.sync.create_workspace, name, description, path),
        )

    async def adopt_workspace(
        self, name: str, path: Root, description: str | None = None
    ) -> AsyncWorkspaceManager:
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
        return await self._opened(
            "adopt_workspace",
            functools.partial(self.sync.adopt_workspace, name, path, description),
        )

    async def move_workspace(self, id: str, path: Root) -> Workspace:
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
        move = functools.partial(self.sync.move_workspace, path=path)
        return await self._end_known(id, "move_workspace", move)

    async def database_of(self, id: str) -> Path:
        """Return the path of a workspace's database, for tools that work on the file itself.

        Args:
            id: the id of the workspace.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            WorkspacePlaceError: its place differs from the registration.
        """
        return await in_thread("database_of", functools.partial(self.sync.database_of, id))

    async def get_workspace(self, id: str) -> AsyncWorkspaceManager:
        """Return a registered workspace, open; the same object until another place is registered.

        Args:
            id: the id of the workspace.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
            DatabaseMissingError: it is registered, but its database is missing.
            WorkspacePlaceError: its place differs from the registration: a link has replaced it, or
                it belongs to the root of which this one is a copy.
        """
        unit = workspaces.get_workspace_row(self._registry(), id)
        workspace = await self._read(unit, "get_workspace", "fetch")
        known = self._known.get(workspace.id)
        if known is not None and known.sessions.is_initialized:
            if known.sync.path == Path(workspace.path):
                return known
            await known.close()
        open_it = functools.partial(self.sync.get_workspace, workspace.id)
        return await self._opened("get_workspace", open_it)

    def _registry(self) -> Registry:
        self.sessions._open_handle()  # raises while the manager closes
        return self.sync._registry()

    async def _read(self, unit: ReadUnit[T], operation: str, kind: Kind) -> T:
        return await self.sessions._run_unit(self.sessions._open_handle(), unit, operation, kind)

    async def _opened(
        self, operation: str, open_it: Callable[[], WorkspaceManager]
    ) -> AsyncWorkspaceManager:
        """Open a workspace in a thread and return its asynchronous face."""
        # Inside the thread: a cancelled caller must not leave a workspace without its face.
        return await in_thread(operation, lambda: self._face_of(open_it()))

    def _face_of(self, sync: WorkspaceManager) -> AsyncWorkspaceManager:
        """Return the one asynchronous face of an open workspace."""
        assert sync.id is not None
        with self._mutex:
            known = self._known.get(sync.id)
            if known is None or known.sync is not sync:
                known = self._known[sync.id] = AsyncWorkspaceManager._over(sync)
            return known

    async def list_workspaces(self) -> list[Workspace]:
        """Return the registered workspaces by name."""
        unit = workspaces.list_workspace_rows(self._registry())
        return await self._read(unit, "list_workspaces", "query")

    async def find_workspace(self, name: str) -> Workspace | None:
        """Return the registered workspace of a name, or None.

        Args:
            name: the name in the registry.

        Raises:
            InvalidArgumentError: no workspace can have this name.
        """
        unit = workspaces.find_workspace_by_name(self._registry(), name)
        return await self._read(unit, "find_workspace", "fetch")

    async def unregister_workspace(self, id: str) -> Workspace:
        """Close a workspace and remove its entry from the registry; its files stay.

        Args:
            id: the id of the workspace.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
        """
        return await self._end_known(id, "unregister_workspace", self.sync.unregister_workspace)

    async def delete_workspace(self, id: str, *, timeout: float | None = None) -> Workspace:
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
        if timeout is not None:
            timeout = arguments.seconds("timeout", timeout)
        delete = functools.partial(self.sync.delete_workspace, timeout=timeout)
        return await self._end_known(id, "delete_workspace", delete)

    async def _end_known(
        self, id: str, operation: str, work: Callable[[str], Workspace]
    ) -> Workspace:
        """Close the face of a workspace, so that its calls end, work on its id, and forget it."""
        unit = workspaces.get_workspace_row(self._registry(), id)
        id = (await self._read(unit, operation, "fetch")).id
        known = self._known.get(id)
        if known is not None:
            await known.close()
        workspace = await in_thread(operation, functools.partial(work, id))
        with self._mutex:
            self._known.pop(id, None)
        return workspace

    async def sessions_for(self, workspace_id: str | None) -> AsyncSessionManager:
        """Return the system's sessions for None, otherwise that workspace's.

        Args:
            workspace_id: the id of a workspace; None for the system.

        Raises:
            WorkspaceNotFoundError: no workspace has this id.
        """
        if workspace_id is None:
            return self.sessions
        return (await self.get_workspace(workspace_id)).sessions
