"""The thread of one open file that reads changes and posts them to the subscribers.

It is woken by the commits of this process, by the notifier for those of other processes, and by
writers whose text has grown. It runs while there is a subscriber::

    commit here ──────┐                      ┌─► mailbox ─► iterator, in its caller's thread
    notifier ─────────┼─► follower reads ────┼─► mailbox ─► async iterator, in its event loop
    text has grown ───┘   the changes        └─► mailbox ─► listener, in a thread for listeners
"""

from __future__ import annotations

import contextlib
import copy
import queue
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeVar

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.threads import has_begun, start_or_undo
from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.engine.transaction import ReadUnit
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseMovedError,
    ForkedPoolError,
    MandrakeSessionsError,
    NotADatabaseError,
    PoolClosedError,
)
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.live.watching.backoff import Backoff
from mandrake_sessions.live.watching.listeners import Listener, ListenerThreads
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.targets import Joining
from mandrake_sessions.live.watching.turn_states import KnownTurn
from mandrake_sessions.live.watching.watched import Watched
from mandrake_sessions.log import get_logger

T = TypeVar("T")

_PACE: Final = 0.001
"""Seconds between two reads of the changes after writes of other processes."""

_REFRESH_SHARE: Final = 3
"""The pause after a read, in multiples of its duration, however many commits there are."""

_GROWTH_PACE: Final = 0.005
"""Seconds between two posts of text in flight: 200 a second is more than an eye sees."""

_GROWTH_PAUSE: Final = 0.0002
"""Seconds more for each subscriber: waking 100 threads 200 times a second took 70 % of a core,
which the writers need."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_CLOSE_PATIENCE: Final = 1.0

_ENDS: Final = (
    CorruptDatabaseError,
    NotADatabaseError,
    DatabaseMovedError,
    PoolClosedError,
    ForkedPoolError,
)
"""Errors of a read after which no change can be read any more."""


class Follower:
    """Posts the changes of one open file to its subscribers.

    Args:
        file: the open file.
        texts: the texts of this process's writers, by turn; the flusher adds and removes them.
    """

    def __init__(self, file: Database, texts: dict[str, GrowingText]) -> None:
        self._file = file
        self._texts = texts
        self._failure: MandrakeSessionsError | None = None
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._members: dict[Mailbox, None] = {}
        self._listener_threads = ListenerThreads()
        self._watched = Watched(self._read, self._texts, self._note_growth, self._drop_member)
        # Work for the thread. Appending takes no lock: a finalizer may do it.
        self._asked: deque[Callable[[], None]] = deque()
        self._grown: deque[KnownTurn] = deque()
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_awake = False
        self._has_committed = False
        self._is_notified = False
        self._backoff = Backoff()
        self._next_refresh = 0.0
        self._next_growth = 0.0
        self._pause = 0.0

    # -- called by other threads ------------------------------------------------------------

    @property
    def subscriptions(self) -> int:
        """How many subscribers there are."""
        return len(self._members)

    @property
    def is_quiet(self) -> bool:
        """Whether there is no subscriber, and no last update is being delivered."""
        return not self._members and self._running_thread is None

    def subscriptions_of(self, holder: object) -> int:
        """Return how many subscribers belong to one manager."""
        return sum(mailbox.is_of(holder) for mailbox in tuple(self._members))

    def require_no_lease(self, operation: str) -> None:
        """Raise ReentrantScopeError in a thread that holds a lease of the file."""
        self._file.require_no_lease(operation)

    def subscribe(self, joining: Joining) -> None:
        """Add a subscriber; ``joining`` is settled when it is in, or with its error.

        Raises:
            ThreadStartError: no thread can be started to find updates for it.
        """
        with self._mutex:
            self._require_alive()
            if self._running_thread is None:
                # First: the system may have no thread left. The thread takes this lock to start.
                self._start()
            self._members[joining.mailbox] = None
            self._asked.append(lambda: self._join(joining))
        self._wake_up()

    def listener(self, holder: object, call: Callable[[Any], object]) -> Listener:
        """Return a listener whose mailbox can subscribe.

        Raises:
            ThreadStartError: no thread can be started to call it.
        """
        self._require_alive()
        self._listener_threads.require_thread()
        return Listener(self._listener_threads, holder, call)

    def leave(self, mailbox: Mailbox) -> None:
        """Remove a subscriber; takes no lock, so a finalizer may call it."""
        if mailbox not in self._members:
            return
        # In this order: the thread ends when there is no subscriber and no work.
        self._asked.append(lambda: self._watched.leave(mailbox))
        self._members.pop(mailbox, None)
        self._wake_up()

    def wake(self) -> None:
        """Note that this process has committed; takes no lock and does not wait."""
        if self._members:
            self._has_committed = True
            self._wake_up()

    def close_holder(self, holder: object) -> None:
        """End the subscriptions of a manager that closes, after they got the last states."""
        mine = [mailbox for mailbox in tuple(self._members) if mailbox.is_of(holder)]
        if not mine:
            return
        self._finish(lambda: self._watched.end_of(holder))
        for mailbox in mine:
            mailbox.end()
            self.leave(mailbox)

    def close(self) -> None:
        """End every subscription and the threads: the file is about to close."""
        closed = PoolClosedError(path=self._file.path)
        with self._mutex:
            self._failure = self._failure or closed
            thread = self._running_thread
        if thread is not None:
            self._finish(lambda: self._end_after_last_refresh(closed))
            thread.join(_CLOSE_PATIENCE)
        for mailbox in tuple(self._members):
            mailbox.end(copy.copy(closed))
            self._members.pop(mailbox, None)
        self._listener_threads.stop()

    def fail(self, error: MandrakeSessionsError) -> None:
        """End every subscription with an error; does not wait, as the caller may hold a lease."""
        self._failure = error
        self.end_present(error)

    def end_present(self, error: MandrakeSessionsError) -> None:
        """End the present subscriptions with an error; new ones may come."""
        self._asked.append(lambda: self._end_all(error))
        self._wake_up()

    def forget_after_fork(self) -> None:
        """Drop the parent's threads and subscribers in a child."""
        self._failure = ForkedPoolError(path=self._file.path)
        members = tuple(self._members)
        self._reset()
        for mailbox in members:
            mailbox.forget_after_fork()

    def _require_alive(self) -> None:
        if self._failure is not None:
            # A copy for each caller: a traceback grows with each raise.
            raise copy.copy(self._failure)

    def _finish(self, work: Callable[[], None]) -> None:
        """Have the thread read once more and then do ``work``; wait for it, within bounds."""
        done = Gate()

        def work_and_notify() -> None:
            try:
                work()
            finally:
                done.set()

        with self._mutex:
            if self._running_thread in (None, threading.current_thread()):
                return
            self._asked.append(work_and_notify)
        self._wake_up()
        done.wait(_CLOSE_PATIENCE)

    def _wake_up(self) -> None:
        """Wake the thread, once for all requests that come before it reads."""
        if not self._is_awake:
            self._is_awake = True
            self._signal.put(None)

    def _note_file(self) -> None:
        self._is_notified = True
        self._wake_up()

    def _note_growth(self, known: KnownTurn) -> None:
        self._grown.append(known)
        self._wake_up()

    def _drop_member(self, mailbox: Mailbox) -> None:
        self._members.pop(mailbox, None)

    # -- the thread -------------------------------------------------------------------------

    @property
    def _running_thread(self) -> threading.Thread | None:
        return self._thread if has_begun(self._thread) else None

    def _start(self) -> None:
        self._file.others.watch(self, self._note_file)
        thread = threading.Thread(target=self._run, name="mandrake-follower", daemon=True)
        self._thread = thread
        start_or_undo(thread, self._end_thread)

    def _end_thread(self) -> None:
        self._thread = None
        self._file.others.unwatch(self)

    def _run(self) -> None:
        with self._mutex:
            if self._thread is not threading.current_thread():
                return
        while not self._is_done():
            with contextlib.suppress(queue.Empty):
                self._signal.get(timeout=self._seconds_to_wait())
            # Before the flags are read: a request from now on wakes the thread again.
            self._is_awake = False
            self._work()

    def _is_done(self) -> bool:
        """Whether no subscriber is left; decided under the lock, so a new one starts a thread."""
        if self._is_needed():
            return False
        with self._mutex:
            if self._is_needed():
                return False
            self._end_thread()
        self._listener_threads.stop()
        return True

    def _is_needed(self) -> bool:
        """Whether there is a subscriber, or a listener that blocks holds up the last update."""
        is_behind = self._failure is None and self._listener_threads.is_behind
        return bool(self._members or self._asked or is_behind)

    def _seconds_to_wait(self) -> float | None:
        now = monotonic()
        due = [self._refresh_due(), self._growth_due()]
        stuck = self._listener_threads.check_stuck()
        due.append(None if stuck is None else now + stuck)
        times = [time for time in due if time is not None]
        if self._asked:
            return 0.0
        return max(0.0, min(times) - now) if times else None

    def _refresh_due(self) -> float | None:
        if self._has_committed:
            return self._next_refresh
        # This process's own commits cause notifications too, mostly before they are visible.
        if self._is_notified:
            return self._next_refresh + _PACE
        if self._backoff.due is None:
            return None
        return max(self._backoff.due, self._next_refresh + _PACE)

    def _growth_due(self) -> float | None:
        return self._next_growth if self._grown else None

    def _work(self) -> None:
        """Do the work that is due: read changes, add and remove subscribers, post growth."""
        now = monotonic()
        due = self._refresh_due()
        if self._asked or (due is not None and now >= due):
            self._attempt(self._refresh)
        while self._asked:
            self._attempt(self._asked.popleft())
        growth_due = self._growth_due()
        if growth_due is not None and now >= growth_due:
            self._attempt(self._post_growth)

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do one piece of work; an error ends subscriptions only if reading cannot go on."""
        try:
            work()
        except _ENDS as error:
            self._end_all(error)
        except Exception as error:  # noqa: BLE001  # retried: watchers rely on this thread
            self._pause_after(error)

    def _refresh(self) -> None:
        """Read the changes; clears the flags first, and sets one again if reading fails."""
        if self._is_notified:
            self._is_notified = False
            self._backoff.start(monotonic())
        self._has_committed = False
        began = monotonic()
        try:
            found = self._watched.refresh()
        except BaseException:
            self._has_committed = True
            raise
        now = monotonic()
        self._pause = 0.0
        self._next_refresh = now + _REFRESH_SHARE * (now - began)
        self._backoff.note_refresh(now, found=found)

    def _post_growth(self) -> None:
        grown = [self._grown.popleft() for _ in range(len(self._grown))]
        posted = self._watched.turns.post_all_growth(grown)
        self._next_growth = monotonic() + max(_GROWTH_PACE, _GROWTH_PAUSE * posted)

    def _join(self, joining: Joining) -> None:
        try:
            self._require_alive()
            self._watched.join(joining)
        except Exception as error:  # noqa: BLE001  # of any kind: the subscriber gets it
            self._members.pop(joining.mailbox, None)
            joining.settle(error)
        else:
            joining.settle()

    def _end_after_last_refresh(self, error: MandrakeSessionsError) -> None:
        try:
            self._watched.refresh()
        finally:
            self._end_all(error)

    def _end_all(self, error: MandrakeSessionsError) -> None:
        self._watched.end_all(error)

    def _pause_after(self, error: Exception) -> None:
        """Try again after a pause; logs the first failure of a series."""
        if not self._pause:
            get_logger(__name__).warning(
                "follower_failed", path=str(self._file.path), error=str(error)
            )
        self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
        self._next_refresh = monotonic() + self._pause

    def _read(self, work: ReadUnit[T]) -> T:
        # Also while the file closes: its streams end then, and watchers get their ends.
        return self._file.fetch(work, "follow", even_refused=True)
