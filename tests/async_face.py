"""The async manager, callable by a test that knows nothing of coroutines.

Each call is made in an event loop of its own thread, and waited for. So one test body shows both
faces to behave alike.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from mandrake_sessions import ConnectionPool, DatabaseHandle, SessionManager
from mandrake_sessions.aio import AsyncSessionManager, AsyncTurnWriter

T = TypeVar("T")


class AsyncFace:
    """An ``AsyncSessionManager`` with the calls of a ``SessionManager``."""

    def __init__(self, path: Path, pool: ConnectionPool) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_debug(True)
        # The tests say when it is slow; in debug mode a busy machine would say it too.
        self._loop.slow_callback_duration = 10.0
        self._thread = threading.Thread(target=self._loop.run_forever, name="async-face")
        self._manager = AsyncSessionManager(path, pool=pool)
        # For the statements of a test's own, which the async face does not lend.
        self._beside = SessionManager(path, pool=pool)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._manager.init())
        self._beside.init()
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.close()
        self._run(self._manager.close())
        self._run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def handle(self) -> DatabaseHandle:
        """A handle on the same open file."""
        return self._beside.handle

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._manager, name)
        return _Call(self, found) if callable(found) else found

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call in the loop, and wait for what comes of it."""

        async def in_the_loop() -> Any:
            made = function(*args, **kwargs)
            return await made if inspect.iscoroutine(made) else made

        made = self._run(in_the_loop())
        if inspect.isasyncgen(made):
            return self._iterate(made)
        if isinstance(made, AsyncTurnWriter):
            # The sync face begins a turn at once, this one when its block is entered.
            self._run(made.begin())
            return _Writer(self, made)
        return made

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def step() -> T:
            return await anext(items)

        while True:
            try:
                item = self._run(step())
            except StopAsyncIteration:
                return
            yield item


class _Call:
    """A method of the async face, called as if it were one of the sync face."""

    def __init__(self, face: AsyncFace, function: Callable[..., Any]) -> None:
        self._face = face
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._face.call(self._function, *args, **kwargs)


class _Writer:
    """An ``AsyncTurnWriter`` with the calls of a ``TurnWriter``."""

    def __init__(self, face: AsyncFace, writer: AsyncTurnWriter) -> None:
        self._face = face
        self._writer = writer

    def __enter__(self) -> Self:
        self._face.call(self._writer.__aenter__)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._face.call(self._writer.__aexit__, *exception)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._writer, name)
        return _Call(self._face, found) if callable(found) else found
