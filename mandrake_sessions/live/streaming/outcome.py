"""What comes of a flush or an end, for those who wait for it in threads and event loops.

No ``concurrent.futures.Future``: Ctrl-C in a thread that waits for one can leave its lock held, and
the flusher would wait for that, with every stream of the file.
"""

from __future__ import annotations

import contextlib
import copy
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from time import monotonic
from typing import Any, Generic, TypeVar, cast

from mandrake_sessions.concurrency.gate import Gate

T = TypeVar("T")


class Outcome(Generic[T]):
    """What comes of it, once that is known."""

    __slots__ = ("_callbacks", "_error", "_gate", "_value")

    def __init__(self) -> None:
        self._gate = Gate()
        self._callbacks: list[Callable[[], object]] = []
        self._value: T | None = None
        self._error: BaseException | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is known."""
        return self._gate.is_set()

    def settle(self, value: T) -> None:
        """Give those who wait a result."""
        if not self.is_known:
            self._value = value
            self._tell()

    def fail(self, error: BaseException) -> None:
        """Give those who wait an error of their own."""
        if not self.is_known:
            self._error = copy.copy(error)
            self._tell()

    def _tell(self) -> None:
        self._gate.set()
        while self._callbacks:
            # Of two threads that are at it, one calls each.
            with contextlib.suppress(IndexError):
                self._callbacks.pop()()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is known; return whether it is."""
        return self._gate.wait(timeout)

    def call_when_known(self, callback: Callable[[], object]) -> None:
        """Have something called when it is known, which must be quick and not raise."""
        self._callbacks.append(callback)
        if self.is_known:
            self._tell()

    @property
    def error(self) -> BaseException | None:
        """What went wrong, None if nothing did or nothing is known yet."""
        return self._error

    def value(self) -> T:
        """Return the result, or raise the error; it is known."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def future(self) -> Future[T]:
        """Return a future that has it, for hosts that know such ones."""
        future: Future[T] = Future()

        def pass_on() -> None:
            try:
                # In a thread of its own: see above.
                start_new_thread(_pass_on, (self, future))
            except RuntimeError:
                # There can be no more.
                _pass_on(self, future)

        self.call_when_known(pass_on)
        return future


def _pass_on(outcome: Outcome[Any], future: Future[Any]) -> None:
    with contextlib.suppress(InvalidStateError):
        if not future.set_running_or_notify_cancel():
            return
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.value())


def wait_for_all(outcomes: Sequence[Outcome[Any]], seconds: float) -> bool:
    """Wait until all are known; return whether they are."""
    until = monotonic() + seconds
    # Each of them: one that is late says nothing of the others.
    known = [each.wait(max(0.0, until - monotonic())) for each in outcomes]
    return all(known)


def settle(waiters: Sequence[Outcome[Any]], result: Any) -> None:
    """Give those who wait a result."""
    for outcome in waiters:
        outcome.settle(result)


def fail(waiters: Sequence[Outcome[Any]], error: BaseException) -> None:
    """Give each of those who wait an error of its own."""
    for outcome in waiters:
        outcome.fail(error)
