"""The threads that run the calls of coroutines: started at the first call, ended when idle.

One thread writes. It takes the first call, runs it as a unit, and brings along the calls that have
queued meanwhile: they share one COMMIT, each with its savepoint. Other threads read, so that a long
history delays neither an append nor a short read.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from time import monotonic
from typing import Any, Final

from mandrake_sessions.aio.calls import Call, notify_all
from mandrake_sessions.concurrency.fork import after_fork
from mandrake_sessions.concurrency.threads import has_begun, start_or_undo
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.waiters import BatchedUnit, Waiter
from mandrake_sessions.errors import NotInitializedError, TransactionLostError

IDLE_SECONDS: Final = 5.0
"""Seconds that a thread waits for the next call before it ends."""

CROWD: Final = 64
"""Idle threads in the process above which an idle thread ends soon."""

_CROWDED_SECONDS: Final = 0.05
"""Seconds that it waits then: many databases used in turn would leave three threads each behind."""

# Adding and discarding is one step each, so it needs no lock.
_idle: Final[set[int]] = set()
after_fork(_idle.clear)

_GRACE: Final = 1.0
"""Seconds that closing waits for a call beyond the end of its budget."""

_POLL: Final = 0.05
"""Seconds between two checks, at closing, whether a thread only waits for a withdrawn call."""


class Worker:
    """A thread with a queue of calls.

    Args:
        name: the name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._mutex = threading.Lock()
        self._calls: deque[Call[Any]] = deque()
        self._thread: threading.Thread | None = None
        self._current: Call[Any] | None = None
        self._is_idle = False
        self._is_closing = False
        # Held while the thread is idle; submitting a call releases it.
        self._wake = threading.Lock()
        self._wake.acquire()

    def submit(self, call: Call[Any]) -> None:
        """Queue a call.

        Raises:
            NotInitializedError: the worker was closed.
            ThreadStartError: no thread can be started to run it.
        """
        with self._mutex:
            if self._is_closing:
                raise NotInitializedError
            if not has_begun(self._thread):
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread = thread
                start_or_undo(thread, self._forget_thread)
            self._calls.append(call)
            self._wake_up()

    def _forget_thread(self) -> None:
        self._thread = None

    def call_withdrawn(self) -> None:
        """Note that a queued call was withdrawn."""
        with self._mutex:
            self._stop_waiting()

    def close(self) -> None:
        """Run the queued calls, then end the thread; takes no more calls. It blocks."""
        with self._mutex:
            self._is_closing = True
            self._stop_waiting()
            self._wake_up()
            thread = self._thread if has_begun(self._thread) else None
            waited_for = [call for call in (self._current, *self._calls) if call is not None]
        if thread is not None and thread is not threading.current_thread():
            latest = max((call.budget.body_deadline for call in waited_for), default=0.0)
            # A host's function that never returns must not keep others from closing.
            deadline = max(latest, monotonic()) + _GRACE
            while thread.is_alive() and monotonic() < deadline:
                thread.join(_POLL)
                with self._mutex:
                    self._stop_waiting()

    def abandon(self) -> None:
        """End the thread after the queued calls, without waiting for it."""
        with self._mutex:
            self._is_closing = True
            self._wake_up()

    def _wake_up(self) -> None:
        if self._is_idle:
            self._is_idle = False
            self._wake.release()

    def _run(self) -> None:
        with self._mutex:
            if self._thread is not threading.current_thread():
                return
        while (call := self._next()) is not None:
            self._work(call)
            # An idle thread keeps no reference to a call.
            del call

    def _next(self) -> Call[Any] | None:
        """Wait for the next call; None when the thread is to end."""
        while True:
            with self._mutex:
                self._current = self._pop()
                if self._current is not None:
                    self._current.is_taken = True
                    return self._current
                if self._is_closing:
                    self._thread = None
                    return None
                self._is_idle = True
            if not self._wait_for_call():
                with self._mutex:
                    if self._is_idle:
                        self._is_idle = False
                        self._thread = None
                        return None
                # A call came in the same moment.
                self._wake.acquire()

    def _wait_for_call(self) -> bool:
        """Return whether a call came before the idle time was over."""
        me = threading.get_ident()
        _idle.add(me)
        try:
            return self._wake.acquire(
                timeout=IDLE_SECONDS if len(_idle) <= CROWD else _CROWDED_SECONDS
            )
        finally:
            _idle.discard(me)

    def _pop(self) -> Call[Any] | None:
        """Remove the first call that may still run from the queue, and return it."""
        call = self._first()
        if call is not None:
            self._calls.popleft()
        return call

    def _first(self) -> Call[Any] | None:
        """Return the first call that may still run; the loops settle those that may not."""
        calls = self._calls
        while calls and (calls[0].is_withdrawn or monotonic() >= calls[0].budget.body_deadline):
            calls.popleft()
        return calls[0] if calls else None

    def _work(self, call: Call[Any]) -> None:
        """Run one call and settle it; raises nothing."""
        raise NotImplementedError

    def _stop_waiting(self) -> None:
        """End a wait that only a withdrawn call needs. The mutex is held."""


class ReadWorker(Worker):
    """Runs reading calls, one after the other.

    Args:
        name: the name of the thread.
        is_long: whether each call has its own snapshot, on the connection that only reads.
    """

    def __init__(self, name: str, *, is_long: bool) -> None:
        super().__init__(name)
        self._is_long = is_long

    def _work(self, call: Call[Any]) -> None:
        result, failure = None, None
        read = call.handle.query if self._is_long else call.handle.fetch
        try:
            result = call.context.run(read, call.run, call.operation, call.budget.left())
        except BaseException as error:  # noqa: BLE001  # the caller that awaits gets it
            failure = error
        call.settle(result, failure)
        del failure
        notify_all((call,))


class WriteWorker(Worker):
    """Runs writing calls; queued calls share the COMMIT of the first."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._finished: list[Call[Any]] = []
        # Lost with a shared transaction: first in the queue, and each in its own transaction.
        self._again: deque[Call[Any]] = deque()
        self._ident = 0

    def _work(self, call: Call[Any]) -> None:
        self._ident = threading.get_ident()
        handle = call.handle
        if call.is_withdrawn:
            return
        result, failure = None, None
        try:
            if call.is_whole:
                result = call.context.run(call.run, None)
            else:
                result = self._transact(call, handle)
        except BaseException as error:  # noqa: BLE001  # the caller that awaits gets it
            failure = error
        call.settle(result, failure)
        del failure
        self._finished.append(call)
        finished, self._finished = self._finished, []
        notify_all(finished)

    def _transact(self, call: Call[Any], handle: Handle) -> Any:
        return call.context.run(
            handle.transact,
            call.run,
            call.operation,
            call.budget.left(),
            # Another thread could run this call, but if more are queued, this thread runs them in
            # one transaction, so they share a COMMIT too.
            delegable=not call.is_hosts and not self._calls,
            batch=None if call.is_unshared else partial(self._next_batched, handle),
            claims=call.claims,
        )

    def _next_batched(self, handle: Handle) -> Waiter | None:
        """Return the next call as a batched unit, if it may share the open transaction."""
        if self._again:
            return None
        with self._mutex:
            call = self._first()
            if call is None or call.is_whole or call.handle is not handle:
                return None
            if call.claims and handle.owner is None:
                return None
            self._calls.popleft()
        call.is_taken = True
        return BatchedUnit(
            call.budget,
            call.operation,
            call.run,
            call.context,
            partial(self._unit_settled, call),
        )

    def _unit_settled(self, call: Call[Any], unit: BatchedUnit) -> None:
        if isinstance(unit.failure, TransactionLostError):
            call.is_unshared = True
            self._again.append(call)
            return
        call.settle(unit.result, unit.failure)
        self._finished.append(call)

    def _pop(self) -> Call[Any] | None:
        return self._again.popleft() if self._again else super()._pop()

    def _stop_waiting(self) -> None:
        call = self._current
        if call is None:
            return
        # A whole call has no batch; the place of another call in the queue is of use to the next.
        is_last = call.is_whole or (not self._again and self._first() is None)
        if (call.is_withdrawn or call.is_unwanted) and is_last:
            call.handle.give_up(self._ident)
