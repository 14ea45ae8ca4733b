"""Where the newest states wait for one subscriber: one place for each turn, never a queue."""

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
    """The states that one subscriber has not been told yet, the newest of each turn.

    The follower posts, the subscriber takes; neither waits for the other.

    Args:
        holder: the manager whose closing ends it.
        on_mail: told when there is something to take, or the end; None for who waits here.

    Attributes:
        is_closed: whether nothing more is posted: its end was told, or it was closed.
    """

    def __init__(self, holder: object, on_mail: Callable[[Mailbox], None] | None = None) -> None:
        self._holder = weakref.ref(holder)
        self._on_mail = on_mail
        self._mutex = threading.Lock()
        # Who waits in a thread, each on a lock of its own.
        self._sleepers: list[threading.Lock] = []
        self._waiters: list[Waiter] = []
        self._news: dict[str, News] = {}
        self._told: dict[str, DeliveredState] = {}
        # Turns that were taken, some of them perhaps not noted as told yet.
        self._taken: set[str] = set()
        self._error: BaseException | None = None
        self._finished = Gate()
        self.is_closed: bool = False

    def is_of(self, holder: object) -> bool:
        """Whether it belongs to this manager."""
        return self._holder() is holder

    # -- the follower's side ----------------------------------------------------------------

    def post(self, news: News) -> None:
        """Put the newest state of a turn, round or session in the place of the one before."""
        tell_loops(self.put(news))

    def put(self, news: News) -> list[Waiter]:
        """Do what ``post`` does, and return who is still to be told by ``tell_loops``."""
        key = news.turn.id if isinstance(news, TurnState) else news.id
        with self._mutex:
            if self.is_closed:
                return []
            if isinstance(news, TurnState) and news.is_deleted and key not in self._taken:
                # Who was never told of it need not be told that it is gone.
                self._news.pop(key, None)
                return []
            had_news = bool(self._news)
            self._news[key] = news
            if had_news:
                return []
            waiters = self._wake()
        self._tell_listener()
        return waiters

    def end(self, error: BaseException | None = None) -> None:
        """Let nothing more in; what is there is still told, and then the end."""
        with self._mutex:
            if self.is_closed:
                return
            # In this order: who sees that it is closed, without the lock, sees the error too.
            self._error = error
            self.is_closed = True
            waiters = self._wake()
        self._tell(waiters)

    def close(self) -> None:
        """End it now: what is there is not told any more."""
        with self._mutex:
            self.is_closed = True
            self._error = None
            self._news.clear()
            self._told.clear()
            self._taken.clear()
            waiters = self._wake()
        self._finished.set()
        self._tell(waiters)

    def forget_after_fork(self) -> None:
        """End it in a child, where its locks may be held for ever by threads of the parent."""
        self._mutex = threading.Lock()
        self._sleepers = []
        self._waiters = []
        self._finished = Gate()
        self._news = {}
        if not self.is_closed:
            self.is_closed = True
            self._error = ForkedPoolError("The subscription is the parent's, from before a fork.")

    def _wake(self) -> list[Waiter]:
        """Wake who waits in a thread, and return who waits in an event loop."""
        if self._sleepers:
            for sleeper in self._sleepers:
                sleeper.release()
            self._sleepers = []
        waiters = self._waiters
        if waiters:
            self._waiters = []
        return waiters

    def _tell(self, waiters: list[Waiter]) -> None:
        tell_loops(waiters)
        self._tell_listener()

    def _tell_listener(self) -> None:
        if self._on_mail is not None and not self._finished.is_set():
            self._on_mail(self)

    # -- the subscriber's side --------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take this moment."""
        return not self._news

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to take, and never will be: not before the error was raised."""
        return self.is_closed and not self._news and self._error is None

    def take(self) -> SessionEvent | None:
        """Return the update that waits longest; None if there is none.

        Raises:
            DatabaseError: the watching was ended by it; told once, after the last update.
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
                told = self._told.get(key)
            update = self._update(news, told)
            if update is not None:
                return update

    def _update(self, state: TurnState, told: DeliveredState | None) -> TurnUpdate | None:
        """Return what is new in a state; None if nothing is."""
        turn = state.turn
        if state.is_deleted:
            self._told.pop(turn.id, None)
            return TurnUpdate(
                turn, None, offset=0, length=0, text="", is_in_flight=False, is_deleted=True
            )
        length = state.length()
        now = DeliveredState(state.known, turn.revision, state.version, length)
        if told == now:
            return None
        offset = min(state.known.offset_for(told, state), length)
        self._told[turn.id] = now
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
        """Wait until the subscriber was told everything, or closed it; False after ``timeout``."""
        return self._finished.wait(timeout)

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is something to take, or the end; return False after ``timeout``."""
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
        """Wait until there is something to take, or the end, without blocking the event loop."""
        # Whoever awaits this has imported it.
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
            # Still there where the waiting was cancelled.
            with self._mutex, contextlib.suppress(ValueError):
                self._waiters.remove(waiter)


def tell_loops(waiters: list[Waiter]) -> None:
    """Wake those who wait in event loops: each loop once, which is what it costs."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        call_in_loop(loop, _wake_each, futures)


def _wake_each(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        wake(future)
