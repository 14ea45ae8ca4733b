"""Subscriptions of coroutines: watches that open a parked file, and listeners in an event loop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

from mandrake_sessions import arguments
from mandrake_sessions.aio.to_thread import in_thread
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.engine.protocols import FileParkedError, Handle
from mandrake_sessions.errors import (
    HandleReleasedError,
    MandrakeSessionsError,
    NotInitializedError,
)
from mandrake_sessions.live.event_loops import runs_event_loop
from mandrake_sessions.live.hub import Hub
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


class WakingFollower:
    """Opens the file in a thread, and passes the request on to its follower.

    Args:
        handle: on the database.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._follower: Followed | None = None
        self._has_left = False

    def require_no_lease(self, operation: str) -> None:
        """Do nothing: no thread has a lease of a file that is not open."""

    def subscribe(self, joining: Joining) -> None:
        """Add a subscriber; ``joining`` is settled when it is in, or with its error."""
        start(
            threading.Thread(
                target=self._subscribe, args=(joining,), name="mandrake-async watch", daemon=True
            )
        )

    def leave(self, mailbox: Mailbox) -> None:
        """Remove the subscriber; takes no lock, so a finalizer may call it."""
        self._has_left = True
        if self._follower is not None:
            self._follower.leave(mailbox)

    def _subscribe(self, joining: Joining) -> None:
        try:
            with self._handle.pinned("watch") as file:
                self._follower = Hub.of(file).follower
                self._follower.subscribe(joining)
        except HandleReleasedError:
            joining.settle(NotInitializedError())
        except BaseException as error:  # noqa: BLE001  # the subscriber gets it
            joining.settle(error)
        if self._has_left and self._follower is not None:
            # The subscriber left before it was in.
            self._follower.leave(joining.mailbox)


@block
def followed(handle: Handle) -> Iterator[Followed]:
    """Lend an object that subscribes to a database; never waits for the file."""
    key = object()
    try:
        file = handle.pin_now(key)
    except FileParkedError:
        yield WakingFollower(handle)
        return
    try:
        yield Hub.of(file).follower
    finally:
        file.unpin(key)


async def listen(
    follower: Followed,
    holder: object,
    listener: AsyncTurnListener,
    operation: str,
    make: Callable[[Mailbox], Joining],
) -> Subscription:
    """Have a listener called in this event loop, and return its subscription.

    Args:
        follower: of the file.
        holder: the manager; closing it ends the subscription.
        listener: a function or a coroutine function.
        operation: for errors.
        make: makes the subscription request.

    Raises:
        NotFoundError: there is no such item.
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
    task = asyncio.create_task(_call_each(watch, listener), name=f"mandrake-async {operation}")
    _listening.add(task)
    task.add_done_callback(partial(_ended, watch))
    return Subscription(follower, mailbox)


def _ended(watch: Watch[Any], task: asyncio.Task[None]) -> None:
    # Also after a cancellation before its first step.
    watch.close()
    _listening.discard(task)


async def _call_each(watch: Watch[TurnUpdate], listener: AsyncTurnListener) -> None:
    try:
        async for update in watch:
            await _call(listener, update)
    except MandrakeSessionsError as error:
        get_logger(__name__).warning("listener_ended", error=str(error))


async def _call(listener: AsyncTurnListener, update: TurnUpdate) -> None:
    try:
        answer = listener(update)
        if inspect.isawaitable(answer):
            await answer
    except BaseException as error:
        if _is_from_outside(error):
            raise
        log_failure(error)


def _is_from_outside(error: BaseException) -> bool:
    """Whether an exception in a listener was perhaps not raised by it, and is for its task.

    Ctrl-C is raised wherever the thread of the event loop is.
    """
    if isinstance(error, KeyboardInterrupt) or not runs_event_loop():
        return True
    me = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and me is not None and me.cancelling() > 0
