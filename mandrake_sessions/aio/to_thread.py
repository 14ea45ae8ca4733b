"""Rare blocking calls, such as opening and closing: each runs in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mandrake_sessions.aio.cancellation import CancelledCall, note_outcome
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.errors import ThreadStartError
from mandrake_sessions.live.event_loops import call_in_loop, wake

T = TypeVar("T")


class _ThreadCall(Generic[T]):
    """A function, the thread that runs it, and the event loop that awaits its end."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._work = work
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.is_over = False
        self.result: T | None = None
        self.failure: BaseException | None = None
        start(threading.Thread(target=self._run, name=name, daemon=True))

    def _run(self) -> None:
        try:
            self.result = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001  # the caller that awaits gets it
            self.failure = error
        call_in_loop(self._loop, self._notify)

    def _notify(self) -> None:
        self.is_over = True
        wake(self._over)

    async def over(self) -> None:
        """Wait for its end."""
        await self._over

    async def surely_over(self) -> None:
        """Wait for its end, past every cancellation."""
        while not self.is_over:
            self._over = self._loop.create_future()
            with contextlib.suppress(asyncio.CancelledError):
                await self._over


async def in_thread(
    operation: str,
    work: Callable[[], T],
    *,
    undo: Callable[[T], object] | None = None,
    surely: bool = False,
) -> T:
    """Call ``work`` in its own thread and return its result, or raise its exception.

    Args:
        operation: names it in threads and in the outcome of a cancelled call.
        work: called with the caller's context variables; its waits are bounded.
        undo: called, in a thread too, with a result that a cancelled caller does not get.
        surely: whether it runs in this thread if no other can start, as closing must.

    Raises:
        ThreadStartError: no thread can be started.
        CancelledError: after the work has ended; ``cancelled_call`` returns its outcome.
    """
    try:
        call = _ThreadCall(f"mandrake-async {operation}", work)
    except ThreadStartError:
        if not surely:
            raise
        return work()
    try:
        await call.over()
    except asyncio.CancelledError as error:
        await call.surely_over()
        result, failure = call.result, call.failure
        is_done = failure is None
        if is_done and undo is not None:
            failure = await _undone(
                operation,
                lambda: undo(result),  # type: ignore[arg-type]  # T itself may be None
            )
            is_done, result = False, None
        note_outcome(
            error,
            CancelledCall(
                operation=operation, is_committed=is_done, result=result, failure=failure
            ),
        )
        raise
    failure, call.failure = call.failure, None
    if failure is not None:
        try:
            raise failure
        finally:
            # Its traceback refers to this frame.
            del failure
    return call.result  # type: ignore[return-value]  # T itself may be None


async def _undone(operation: str, undo: Callable[[], object]) -> BaseException | None:
    """Undo the work of a cancelled caller, and return the exception of that."""
    try:
        undoing = _ThreadCall(f"mandrake-async {operation}", undo)
    except ThreadStartError:
        try:
            undo()
        except Exception as error:  # noqa: BLE001  # the cancellation goes on
            return error
        return None
    await undoing.surely_over()
    return undoing.failure
