"""Listeners of coroutines: called in the event loop that added them, one update at a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from mandrake_sessions import arguments
from mandrake_sessions.aio.to_thread import in_thread
from mandrake_sessions.errors import MandrakeSessionsError
from mandrake_sessions.live.event_loops import runs_event_loop
from mandrake_sessions.live.watching.listeners import log_failure
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.subscription import Followed, Subscription, Watch
from mandrake_sessions.live.watching.targets import Joining
from mandrake_sessions.live.watching.updates import TurnUpdate
from mandrake_sessions.log import get_logger

AsyncTurnListener = Callable[[TurnUpdate], Awaitable[object] | object]
"""A function or a coroutine function that is called with each update of a turn."""

# An event loop refers weakly to its tasks.
_listening: Final[set[asyncio.Task[None]]] = set()


async def listen(
    follower: Followed,
    holder: object,
    listener: AsyncTurnListener,
    operation: str,
    make: Callable[[Mailbox], Joining],
) -> Subscription:
    """Have a listener called in this event loop, and return what stops it.

    Args:
        follower: of the file.
        holder: the manager whose closing ends it.
        listener: a function or a coroutine function.
        operation: for errors.
        make: what the listener joins.

    Raises:
        NotFoundError: there is no such thing.
    """
    arguments.function("listener", listener)
    mailbox = Mailbox(holder)
    watch = Watch[TurnUpdate](follower, mailbox)
    joining = make(mailbox)
    joining.is_waited_for = True
    follower.subscribe(joining)
    try:
        await in_thread(operation, joining.wait)
    except BaseException:
        watch.close()
        raise
    task = asyncio.create_task(_tell_each(watch, listener), name=f"mandrake-async {operation}")
    _listening.add(task)
    task.add_done_callback(partial(_ended, watch))
    return Subscription(follower, mailbox)


def _ended(watch: Watch[Any], task: asyncio.Task[None]) -> None:
    # Also one that was cancelled before its first step.
    watch.close()
    _listening.discard(task)


async def _tell_each(watch: Watch[TurnUpdate], listener: AsyncTurnListener) -> None:
    try:
        async for update in watch:
            await _tell(listener, update)
    except MandrakeSessionsError as error:
        get_logger(__name__).warning("listener_ended", error=str(error))


async def _tell(listener: AsyncTurnListener, update: TurnUpdate) -> None:
    try:
        answer = listener(update)
        if inspect.isawaitable(answer):
            await answer
    except BaseException as error:
        if _is_from_outside(error):
            raise
        log_failure(error)


def _is_from_outside(error: BaseException) -> bool:
    """Whether something was raised in a listener, perhaps not by it, and is for its task.

    A Ctrl-C comes wherever the thread of the event loop is.
    """
    if isinstance(error, KeyboardInterrupt) or not runs_event_loop():
        return True
    me = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and me is not None and me.cancelling() > 0
