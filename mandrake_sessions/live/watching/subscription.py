"""The objects that a subscriber holds: an iterator of updates, or a listener's registration."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, cast

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.reentry import do_elsewhere, is_unforeseen
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.live.watching.follower import Follower
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.targets import (
    Joining,
    ResponseTarget,
    SessionTarget,
    TurnTarget,
)
from mandrake_sessions.live.watching.updates import SessionEvent, TurnUpdate

U = TypeVar("U", bound=SessionEvent)

TurnListener = Callable[[TurnUpdate], object]
"""A function that is called with each update of a turn."""


class Followed(Protocol):
    """Adds and removes subscribers: the follower of an open file, or an object that opens it."""

    def require_no_lease(self, operation: str) -> None:
        """Raise ReentrantScopeError in a thread that holds a lease of the file."""

    def subscribe(self, joining: Joining) -> None:
        """Add a subscriber; ``joining`` is settled when it is in, or with its error."""

    def leave(self, mailbox: Mailbox) -> None:
        """Remove a subscriber; takes no lock, so a finalizer may call it."""


class Subscription(Resource):
    """A listener that gets updates; call it, ``close()`` it or leave its block to stop.

    It goes on without this object, until the watched item ends or the manager is closed.
    """

    def __init__(self, follower: Followed, mailbox: Mailbox) -> None:
        super().__init__()
        self._follower = follower
        self._mailbox = mailbox

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, or was closed."""
        return self._mailbox.is_over

    def close(self) -> None:
        """Stop; may be called again, and inside the listener itself.

        It does not wait for a call of the listener that is under way in another thread; no other
        call follows.
        """
        if is_unforeseen():
            self._follower.leave(self._mailbox)
            do_elsewhere(self._mailbox.close)
            return
        self._mailbox.close()
        self._follower.leave(self._mailbox)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended and the last update was handled; not inside the listener.

        Args:
            timeout: seconds; None for no limit.

        Returns:
            Whether it has ended.
        """
        if timeout is not None:
            timeout = arguments.seconds("timeout", timeout)
        return self._mailbox.wait_for_end(timeout)

    def __call__(self) -> None:
        """Do what ``close`` does, so that a subscription can be passed as a callback."""
        self.close()

    def _on_left(self) -> None:
        self.close()


class Watch(Subscription, Generic[U]):
    """Updates as they come: an iterator, an async iterator, and both kinds of context manager.

    Each update is the newest state; a slow subscriber skips states in between and never the last
    one. It ends with the watched item, when it is closed, and when the manager is. One that is
    dropped without ``close()`` ends when it is collected.

    Iterating raises ``DatabaseMovedError``, ``PoolClosedError`` or another ``DatabaseError`` if the
    database becomes unavailable.
    """

    def receive(self, timeout: float | None = None) -> U | None:
        """Wait for the next update.

        Args:
            timeout: seconds; None for no limit.

        Returns:
            The update; None if none came in time, or if the watch has ended (``is_closed``).
        """
        deadline = None
        if timeout is not None:
            deadline = monotonic() + arguments.seconds("timeout", timeout)
        mailbox = self._mailbox
        while True:
            update = mailbox.take()
            if update is not None:
                return cast("U", update)
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if mailbox.is_over or not mailbox.wait(left):
                return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> U:
        update = self.receive()
        if update is None:
            raise StopIteration
        return update

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        while True:
            update = self._mailbox.take()
            if update is not None:
                return cast("U", update)
            if self._mailbox.is_over:
                raise StopAsyncIteration
            await self._mailbox.wait_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # No lock: a finalizer may run anywhere, also after the interpreter has cleared modules.
        try:  # noqa: SIM105  # contextlib may be gone
            self._follower.leave(self._mailbox)
        except AttributeError:
            pass


def watch_response(
    follower: Followed,
    holder: object,
    response_id: str,
    *,
    follow: bool = False,
    wait: bool = True,
) -> Watch[TurnUpdate]:
    """Return an iterator of the updates of a response's turns, their present states first.

    It ends when the response is complete: no turn is streaming, and the newest one has completed
    without tool calls, or ended as ``error`` or ``interrupted``. After a turn with tool calls it
    waits for the next one, however long the tools run.

    Args:
        follower: of the file.
        holder: the manager; closing it ends the watch.
        response_id: the response.
        follow: whether to go on until it is closed or the response deleted.
        wait: whether to wait until the response is found; otherwise the first step of the iteration
            raises the error.

    Raises:
        InvalidArgumentError: an argument has the wrong type.
        ResponseNotFoundError: there is no such response.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    arguments.flag("follow", follow)
    mailbox = Mailbox(holder)
    watch = Watch[TurnUpdate](follower, mailbox)
    joining = Joining(mailbox, ResponseTarget, response_id, follow=follow)
    _join(follower, joining, "watch_response", wait=wait)
    return watch


def watch_session(
    follower: Followed,
    holder: object,
    session_id: str,
    *,
    last: int = 1,
    wait: bool = True,
) -> Watch[SessionEvent]:
    """Return an iterator of the events of a session, its present state first.

    At first the session itself and its last rounds, each with its turns; then every change of the
    session, its rounds and all its turns. It ends when the session is deleted.

    Args:
        follower: of the file.
        holder: the manager; closing it ends the watch.
        session_id: the session.
        last: how many of the last rounds are included at first, 0 to 10,000.
        wait: whether to wait until the session is found; otherwise the first step of the iteration
            raises the error.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
    """
    session_id = arguments.lookup_id("session_id", session_id)
    last = arguments.count_of_last("last", last)
    mailbox = Mailbox(holder)
    watch = Watch[SessionEvent](follower, mailbox)
    joining = Joining(mailbox, SessionTarget, session_id, last=last)
    _join(follower, joining, "watch_session", wait=wait)
    return watch


def track_streaming_turns(
    follower: Follower,
    holder: object,
    response_id: str,
    listener: TurnListener,
    *,
    follow: bool = False,
) -> Subscription:
    """Call a listener with the updates that ``watch_response`` yields.

    Args:
        follower: of the file.
        holder: the manager; closing it ends the subscription.
        response_id: the response.
        listener: called with each ``TurnUpdate``, in a thread of the library, one at a time.
        follow: whether to go on until it is closed or the response deleted.

    Raises:
        InvalidArgumentError: an argument has the wrong type.
        ResponseNotFoundError: there is no such response.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    arguments.flag("follow", follow)
    return _listen(
        follower,
        holder,
        listener,
        "track_streaming_turns",
        lambda mailbox: Joining(mailbox, ResponseTarget, response_id, follow=follow),
    )


def add_turn_update_listener(
    follower: Follower, holder: object, turn_id: str, listener: TurnListener
) -> Subscription:
    """Call a listener with every update of a turn from now on.

    It goes on after the turn has ended, until it is closed or the turn deleted.

    Args:
        follower: of the file.
        holder: the manager; closing it ends the subscription.
        turn_id: the turn.
        listener: called with each ``TurnUpdate``, in a thread of the library, one at a time.

    Raises:
        InvalidArgumentError: an argument has the wrong type.
        TurnNotFoundError: there is no such turn.
    """
    turn_id = arguments.lookup_id("turn_id", turn_id)
    return _listen(
        follower,
        holder,
        listener,
        "add_turn_update_listener",
        lambda mailbox: Joining(mailbox, TurnTarget, turn_id),
    )


def _listen(
    follower: Follower,
    holder: object,
    listener: TurnListener,
    operation: str,
    make: Callable[[Mailbox], Joining],
) -> Subscription:
    arguments.function("listener", listener)
    mailbox = follower.listener(holder, listener).mailbox
    subscription = Subscription(follower, mailbox)
    _join(follower, make(mailbox), operation, wait=True)
    return subscription


def _join(follower: Followed, joining: Joining, operation: str, *, wait: bool) -> None:
    """Add a subscriber; a caller that waits must hold no lease, which the follower may need."""
    joining.is_waited_for = wait
    if wait:
        follower.require_no_lease(operation)
    try:
        follower.subscribe(joining)
        if wait:
            joining.wait()
    except BaseException:
        joining.mailbox.close()
        follower.leave(joining.mailbox)
        raise
