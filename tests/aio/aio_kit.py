"""Shared by the tests of the asyncio face: a loop in debug mode, counts of threads and files."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

from kits.waiting import PATIENCE

from mandrake_sessions.aio import AsyncSessionManager, CancelledCall, cancelled_call
from mandrake_sessions.database.leasing.queue import LeaseQueue
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.manager import SessionManager

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new event loop in debug mode; what the loop complains of is raised."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: complaints.append(context)
        )
        return await work

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = asyncio.run(watched(), debug=True)
        gc.collect()
    assert complaints == []
    return result


async def soon(condition: Callable[[], Any]) -> None:
    """Wait in an event loop for what nothing announces."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.0005)


def call_of(error: BaseException) -> CancelledCall:
    """Return the call that a cancellation or a timeout has interrupted."""
    call = cancelled_call(error)
    assert call is not None
    return call


def queue_of(sessions: AsyncSessionManager) -> LeaseQueue:
    """Return the queue in front of the read-write connection."""
    return file_handle(sessions.sync.handle).file.writer.queue


@contextmanager
def lease_held(sessions: SessionManager) -> Iterator[None]:
    """Hold the writer's lease in a thread of its own."""
    has_it, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with sessions.transaction():
            has_it.set()
            assert may_go.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(PATIENCE)
    try:
        yield
    finally:
        may_go.set()
        thread.join()


class Ticker:
    """A task that wants to run all the time, and how often and how late it was let.

    Attributes:
        turns: how often it has run; next to never while a call waits in the loop.
        longest: seconds between two of its turns.
    """

    def __init__(self) -> None:
        self.turns = 0
        self.longest = 0.0

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _tick(self) -> None:
        before = monotonic()
        while True:
            await asyncio.sleep(0)
            now = monotonic()
            self.turns += 1
            self.longest = max(self.longest, now - before)
            before = now


def threads() -> list[str]:
    """Return the names of the threads of the asyncio face."""
    return [each.name for each in threading.enumerate() if each.name.startswith("mandrake-async ")]
