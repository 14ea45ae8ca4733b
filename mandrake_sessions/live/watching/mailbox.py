"""The newest states that wait for one subscriber: one place for each turn, never a queue."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.errors import ForkedPoolError
from mandrake_sessions.live.event_loops import call_in_loop, wake
from mandrake_sessions.live.watching.turn_states import DeliveredState, TurnState
from mandrake_sessions.live.watching.updates import (
    RoundUpdate,
    SessionEvent,
    SessionUpdate,
    TurnUpdate,
)

if TYPE_CHECKING:
    import asyncio

News = TurnState | RoundUpdate | SessionUpdate
Waiter: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]"


class Mailbox:
    """The states that one subscriber has not received yet, the newest of each turn.

    The follower posts and the subscriber takes; neither waits for the other.

    Args:
        holder: the manager; closing it ends the subscription.
        on_mail: called when there is a state to take, or the end; None for a subscriber that waits.

    Attributes:
        is_closed: whether it accepts no more states, after its end or its closing.
    """

    def __init__(self, holder: object, on_mail: Callable[[Mailbox], None] | None = None) -> None:
        self._holder = weakref.ref(holder)
        self._on_mail = on_mail
        self._mutex = threading.Lock()
        # The waiting threads, each with its own lock.
        self._sleepers: list[threading.Lock] = []
        self._waiters: list[Waiter] = []
        self._news: dict[str, News] = {}
        self._delivered: dict[str, DeliveredState] = {}
        # Turns whose state was taken, some of them perhaps not recorded as delivered yet.
        self._taken: set[str] = set()
        self._error: BaseException | None = None
        self._finished = Gate()
        self.is_closed: bool = False

    def is_of(self, holder: object) -> bool:
        """Whether it belongs to this manager."""
        return self._holder() is holder

    # -- called by the follower -------------------------------------------------------------

    def post(self, news: News) -> None:
        """Replace the waiting state of a turn, round or session by the newest one."""
        wake_loops(self.put(news))

    def put(self, news: News) -> list[Waiter]:
        """Post without waking event loops; return their waiters for ``wake_loops``."""
        key = news.turn.id if isinstance(news, TurnState) else news.id
        with self._mutex:
            if self.is_closed:
                return []
            if isinstance(news, TurnState) and news.is_deleted and key not in self._taken:
                # A subscriber that never got the turn need not learn that it is deleted.
                self._news.pop(key, None)
                return []
            had_news = bool(self._news)
            self._news[key] = news
            if had_news:
                return []
            waiters = self._wake()
        self._notify_listener()
        return waiters

    def end(self, error: BaseException | None = None) -> None:
        """Accept no more states; those present are still delivered, and then the end."""
        with self._mutex:
            if self.is_closed:
                return
            # In this order: a thread that sees it closed, without the lock, sees the error too.
            self._error = error
            self.is_closed = True
            waiters = self._wake()
        self._notify(waiters)

    def close(self) -> None:
        """Close it at once: states that wait are not delivered."""
        with self._mutex:
            self.is_closed = True
            self._error = None
            self._news.clear()
            self._delivered.clear()
            self._taken.clear()
            waiters = self._wake()
        self._finished.set()
        self._notify(waiters)

    def forget_after_fork(self) -> None:
        """Close it in a child, where a thread of the parent may hold its locks without end."""
        self._mutex = threading.Lock()
        self._sleepers = []
        self._waiters = []
        self._finished = Gate()
        self._news = {}
        if not self.is_closed:
            self.is_closed = True
            self._error = ForkedPoolError("The subscription is the parent's, from before a fork.")

    def _wake(self) -> list[Waiter]:
        """Wake the waiting threads, and return the waiters in event loops."""
        if self._sleepers:
            for sleeper in self._sleepers:
                sleeper.release()
            self._sleepers = []
        waiters = self._waiters
        if waiters:
            self._waiters = []
        return waiters

    def _notify(self, waiters: list[Waiter]) -> None:
        wake_loops(waiters)
        self._notify_listener()

    def _notify_listener(self) -> None:
        if self._on_mail is not None and not self._finished.is_set():
            self._on_mail(self)

    # -- called by the subscriber -----------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take at the moment."""
        return not self._news

    @property
    def is_over(self) -> bool:
        """Whether there is and will be nothing to take; False until the error was raised."""
        return self.is_closed and not self._news and self._error is None

    def take(self) -> SessionEvent | None:
        """Return the update that has waited longest; None if there is none.

        Raises:
            DatabaseError: the error that has ended the subscription; raised once, after the last
                update.
        """
        while True:
            with self._mutex:
                if not self._news:
                    if self.is_closed:
                        self._finished.set()
                    error, self._error = self._error, None
                    if error is not None:
                        raise error
                    return None
                key = next(iter(self._news))
                news = self._news.pop(key)
                if not isinstance(news, TurnState):
                    return news
                if news.is_deleted:
                    self._taken.discard(key)
                else:
                    self._taken.add(key)
                delivered = self._delivered.get(key)
            update = self._update(news, delivered)
            if update is not None:
                return update

    def _update(self, state: TurnState, delivered: DeliveredState | None) -> TurnUpdate | None:
        """Return the part of a state that is new; None if nothing is."""
        turn = state.turn
        if state.is_deleted:
            self._delivered.pop(turn.id, None)
            return TurnUpdate(
                turn, None, offset=0, length=0, text="", is_in_flight=False, is_deleted=True
            )
        length = state.length()
        now = DeliveredState(state.known, turn.revision, state.version, length)
        if delivered == now:
            return None
        offset = min(state.known.offset_for(delivered, state), length)
        self._delivered[turn.id] = now
        return TurnUpdate(
            turn,
            state.text,
            offset=offset,
            length=length,
            text=state.since(offset, length),
            is_in_flight=state.text is not None and length > state.text.stored,
            is_deleted=False,
        )

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait until the subscriber took the last update or closed it; False on ``timeout``."""
        return self._finished.wait(timeout)

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is an update to take, or the end; return False on ``timeout``."""
        sleeper = threading.Lock()
        sleeper.acquire()
        with self._mutex:
            if self._news or self.is_closed:
                return True
            self._sleepers.append(sleeper)
        is_awake = False
        try:
            is_awake = sleeper.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            if not is_awake:
                with self._mutex, contextlib.suppress(ValueError):
                    self._sleepers.remove(sleeper)
        return is_awake

    async def wait_async(self) -> None:
        """Wait until there is an update to take, or the end, without blocking the event loop."""
        # A caller that awaits this has imported it.
        import asyncio

        loop = asyncio.get_running_loop()
        with self._mutex:
            if self._news or self.is_closed:
                return
            waiter = loop, loop.create_future()
            self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            # Still there if the waiting was cancelled.
            with self._mutex, contextlib.suppress(ValueError):
                self._waiters.remove(waiter)


def wake_loops(waiters: list[Waiter]) -> None:
    """Wake the waiters in event loops, with one call for each loop, which is what costs time."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        call_in_loop(loop, _wake_each, futures)


def _wake_each(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        wake(future)
