"""Both faces of a host's managers, behind one set of calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import ConnectionPool, MandrakeManager
from mandrake_sessions.aio import AsyncMandrakeManager

OpenRoot = Callable[[Path], AbstractContextManager[Any]]


class AsyncHost:
    """An ``AsyncMandrakeManager``, callable by a test that knows nothing of coroutines."""

    def __init__(self, made: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._made = made
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._made, name)
        if name == "sessions":
            return AsyncHost(found, self._loop)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            async def in_the_loop() -> Any:
                made = found(*args, **kwargs)
                return await made if asyncio.iscoroutine(made) else made

            made = asyncio.run_coroutine_threadsafe(in_the_loop(), self._loop).result()
            return AsyncHost(made, self._loop) if hasattr(made, "sync") else made

        return call


@contextlib.contextmanager
def _async_host(root: Path, pool: ConnectionPool) -> Iterator[AsyncHost]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    host = AsyncHost(AsyncMandrakeManager(root, pool=pool), loop)
    try:
        host.init()
        try:
            yield host
        finally:
            host.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(params=["sync", "async"])
def open_root(request: pytest.FixtureRequest, pool: ConnectionPool) -> OpenRoot:
    """Open a root for a block, by the managers for threads or by those for coroutines."""
    if request.param == "sync":
        return lambda root: MandrakeManager(root, pool=pool)
    return lambda root: _async_host(root, pool)
