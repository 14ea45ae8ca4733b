"""Runs the listeners of one file in its own threads; one that blocks delays no other."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from mandrake_sessions.concurrency.threads import has_begun, start_or_undo
from mandrake_sessions.errors import MandrakeSessionsError, ThreadStartError
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.log import get_logger

_STUCK_AFTER = 0.05
"""Seconds in one callback after which another thread takes over the other listeners."""
_MOST_THREADS = 16
_IDLE_SECONDS = 2.0
# A listener with many updates lets others run after this many.
_UPDATES_AT_ONCE = 16


class Listener:
    """A function that is called with the updates of its mailbox, one at a time.

    Attributes:
        mailbox: the updates that the function has not been called with.
        is_scheduled: whether a thread runs the function, or is going to; guarded by the lock of
            ``ListenerThreads``.
        is_asked_again: whether an update came while a thread ran the function.
    """

    def __init__(
        self, listener_threads: ListenerThreads, holder: object, call: Callable[[Any], object]
    ) -> None:
        self.mailbox: Mailbox = Mailbox(holder, lambda _mailbox: listener_threads.ask(self))
        self.call = call
        self.is_scheduled = False
        self.is_asked_again = False


class ListenerThreads:
    """One thread for all listeners, and another only while each is stuck in a callback."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        # One lock for each idle thread; releasing it wakes the thread. Not a Condition: Ctrl-C in
        # a host's thread that enters one can leave it locked.
        self._idle: list[threading.Lock] = []
        self._ready: deque[Listener] = deque()
        # When each thread entered its callback; None outside a callback.
        self._threads: dict[threading.Thread, float | None] = {}
        self._is_stopping = False

    @property
    def is_behind(self) -> bool:
        """Whether a listener waits for a thread."""
        return bool(self._ready)

    def require_thread(self) -> None:
        """Ensure that there is a thread, for a listener that is about to be added.

        Raises:
            ThreadStartError: there is none, and none can be started.
        """
        with self._mutex:
            self._is_stopping = False
            if not any(map(has_begun, self._threads)):
                self._start_thread()

    def ask(self, listener: Listener) -> None:
        """Schedule a listener whose mailbox has an update."""
        with self._mutex:
            if listener.is_scheduled:
                listener.is_asked_again = True
                return
            listener.is_scheduled = True
            self._ready.append(listener)
            self._start_thread_if_stuck()

    def check_stuck(self) -> float | None:
        """Start another thread if all are stuck; return the seconds until the next check."""
        if not self._ready:
            return None
        with self._mutex:
            self._start_thread_if_stuck()
            return _STUCK_AFTER if self._ready else None

    def stop(self) -> None:
        """Have the threads end once every update is delivered."""
        with self._mutex:
            self._is_stopping = True
            while self._idle:
                self._wake_one()

    def _wake_one(self) -> None:
        with contextlib.suppress(IndexError, RuntimeError):
            self._idle.pop().release()

    def _start_thread_if_stuck(self) -> None:
        self._is_stopping = False
        self._wake_one()
        stuck_since = monotonic() - _STUCK_AFTER
        if len(self._threads) < _MOST_THREADS and all(
            since is not None and since <= stuck_since
            for thread, since in self._threads.items()
            if has_begun(thread)
        ):
            # If the system has no thread left, the follower's next check tries again.
            with contextlib.suppress(ThreadStartError):
                self._start_thread()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="mandrake-listeners", daemon=True)
        # It begins by taking the lock, which is held here.
        self._threads[thread] = None
        start_or_undo(thread, partial(self._threads.pop, thread, None))

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            listener = self._next(me)
            if listener is None:
                return
            self._deliver(listener, me)
            with self._mutex:
                self._threads[me] = None
                if listener.is_asked_again or not listener.mailbox.is_empty:
                    self._ready.append(listener)
                else:
                    listener.is_scheduled = False

    def _next(self, me: threading.Thread) -> Listener | None:
        """Wait for a listener with an update; None when the thread is to end."""
        wake = threading.Lock()
        wake.acquire()
        was_asked = True
        while True:
            with self._mutex:
                if self._ready:
                    listener = self._ready.popleft()
                    listener.is_asked_again = False
                    return listener
                if self._is_stopping or not was_asked:
                    with contextlib.suppress(ValueError):
                        self._idle.remove(wake)
                    self._threads.pop(me, None)
                    return None
                if wake not in self._idle:
                    self._idle.append(wake)
            was_asked = wake.acquire(timeout=_IDLE_SECONDS)

    def _deliver(self, listener: Listener, me: threading.Thread) -> None:
        for _ in range(_UPDATES_AT_ONCE):
            self._threads[me] = monotonic()
            try:
                update = listener.mailbox.take()
            except MandrakeSessionsError as error:
                get_logger(__name__).warning("listener_ended", error=str(error))
                return
            if update is None:
                return
            try:
                listener.call(update)
            except BaseException as error:  # noqa: BLE001  # a listener's error ends nothing else
                log_failure(error)


def log_failure(error: BaseException) -> None:
    """Log the error of a listener; if that fails, other listeners are called all the same."""
    with contextlib.suppress(Exception):
        # The places and not the message or the values: those may hold a user's text.
        get_logger(__name__).error(
            "listener_failed",
            error=type(error).__qualname__,
            traceback="".join(traceback.format_tb(error.__traceback__)),
        )
