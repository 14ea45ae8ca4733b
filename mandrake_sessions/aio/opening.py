"""The life of an AsyncSessionManager: opened and closed in threads, with workers in between."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.aio.calls import Call
from mandrake_sessions.aio.to_thread import in_thread
from mandrake_sessions.aio.workers import ReadWorker, Worker, WriteWorker
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.errors import NotInitializedError
from mandrake_sessions.faces.calls import AwaitedCalls, Kind
from mandrake_sessions.log import HostLogger
from mandrake_sessions.manager import SessionManager
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")


class AsyncOpening(AwaitedCalls):
    """An AsyncSessionManager without its record methods: a database that is opened and closed."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pool: ConnectionPool | None = None,
        options: DatabaseOptions | None = None,
        create: bool = True,
        read_only: bool = False,
        logger: HostLogger | None = None,
    ) -> None:
        self._begin(
            SessionManager(
                path,
                pool=pool,
                options=options,
                create=create,
                read_only=read_only,
                logger=logger,
            )
        )

    @classmethod
    def _over(cls, sync: SessionManager) -> Self:
        """Return the asynchronous face of an existing manager; closing one closes both."""
        manager = cls.__new__(cls)
        manager._begin(sync)
        return manager

    def _begin(self, sync: SessionManager) -> None:
        self.sync = sync
        self._life = threading.Lock()
        self._mutex = threading.Lock()
        self._is_closing = False
        self._workers: dict[Kind, Worker] = {}
        weakref.finalize(self, _abandon_all, self._workers).atexit = False

    # -- life -------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The real path of the database file; while it is open, that of the open file."""
        return self.sync.path

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self.sync.is_initialized and not self._is_closing

    @property
    def is_read_only(self) -> bool:
        """Whether the file is only read."""
        return self.sync.is_read_only

    @property
    def handle(self) -> DatabaseHandle:
        """The handle on the database, for a host's own statements; its calls block the thread.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
        """
        return self.sync.handle

    async def init(self) -> Self:
        """Open the database; raises the errors of ``SessionManager.init``.

        Does nothing if it is open. It can be called again after ``close()``. If it is cancelled,
        the database is closed again.
        """
        if not self.is_initialized:
            await in_thread("init", self._init_now, undo=self._undo_init)
        return self

    async def close(self) -> None:
        """Finish the calls that were made, then release the database.

        Does nothing if it is closed.
        """
        if self.sync.is_initialized:
            await in_thread("close", self._close_now, surely=True)

    def _close_now(self) -> None:
        """Close it in this thread; it blocks, so not in an event loop."""
        if self.sync.is_initialized:
            self._end(self.sync.close)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Close it, then remove the database file; raises the errors of ``SessionManager.delete``.

        Args:
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.
        """
        if timeout is not None:
            timeout = arguments.seconds("timeout", timeout)
        delete = functools.partial(self.sync.delete, timeout=timeout)
        await in_thread("delete", functools.partial(self._end, delete))

    def _init_now(self) -> bool:
        """Open it; return whether it was closed before."""
        with self._life:
            was_closed = not self.sync.is_initialized
            self.sync.init()
            return was_closed

    def _undo_init(self, was_closed: bool) -> None:
        if was_closed:
            self._end(self.sync.close)

    def _end(self, end: Callable[[], None]) -> None:
        """Have the workers finish, then end the synchronous manager."""
        with self._life:
            with self._mutex:
                self._is_closing = True
                workers = list(self._workers.values())
                self._workers.clear()
            try:
                for worker in workers:
                    worker.close()
                end()
            finally:
                self._is_closing = False

    async def __aenter__(self) -> Self:
        return await self.init()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- running calls ----------------------------------------------------------------------

    def _open_handle(self) -> Handle:
        """Return the handle on the database; raises NotInitializedError if there is none."""
        if self._is_closing:
            raise NotInitializedError
        return file_handle(self.sync.handle)

    def _worker(self, kind: Kind) -> Worker:
        """Return the worker for calls of a kind."""
        worker = self._workers.get(kind)
        if worker is None:
            with self._mutex:
                if self._is_closing:
                    raise NotInitializedError
                worker = self._workers.setdefault(kind, _new_worker(kind))
        return worker

    def _run_unit(
        self,
        handle: Handle,
        unit: Callable[[Any], T],
        operation: str,
        kind: Kind,
        *,
        claims: bool = False,
    ) -> Coroutine[Any, Any, T]:
        """Return a coroutine that has the worker of its kind run a unit; else as in the base."""
        call: Call[T] = Call(unit, operation, handle, claims=claims)
        return call.outcome(self._worker(kind), is_write=kind == "write")


def _new_worker(kind: Kind) -> Worker:
    name = f"mandrake-async {kind}"
    return WriteWorker(name) if kind == "write" else ReadWorker(name, is_long=kind == "query")


def _abandon_all(workers: dict[Kind, Worker]) -> None:
    """End the threads of a manager that was dropped."""
    for worker in workers.values():
        worker.abandon()
