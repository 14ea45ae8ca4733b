"""The outcome of a flush or of an end, which threads and event loops wait for.

It is no ``concurrent.futures.Future``: Ctrl-C in a thread that waits for one can leave its lock
held. The flusher would wait for that lock, with every stream of the file.
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
    """A result or an error that becomes known once."""

    __slots__ = ("_callbacks", "_error", "_gate", "_value")

    def __init__(self) -> None:
        self._gate = Gate()
        self._callbacks: list[Callable[[], object]] = []
        self._value: T | None = None
        self._error: BaseException | None = None

    @property
    def is_known(self) -> bool:
        """Whether the result or the error is known."""
        return self._gate.is_set()

    def settle(self, value: T) -> None:
        """Give the waiting callers a result."""
        if not self.is_known:
            self._value = value
            self._notify()

    def fail(self, error: BaseException) -> None:
        """Give the waiting callers a copy of the error."""
        if not self.is_known:
            self._error = copy.copy(error)
            self._notify()

    def _notify(self) -> None:
        self._gate.set()
        while self._callbacks:
            # Two threads may be in this loop: each callback is called by one of them.
            with contextlib.suppress(IndexError):
                self._callbacks.pop()()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the outcome is known; return whether it is."""
        return self._gate.wait(timeout)

    def call_when_known(self, callback: Callable[[], object]) -> None:
        """Have a callback called once the outcome is known; it must be quick and must not raise."""
        self._callbacks.append(callback)
        if self.is_known:
            self._notify()

    @property
    def error(self) -> BaseException | None:
        """The error; None if there is none, or if nothing is known yet."""
        return self._error

    def value(self) -> T:
        """Return the result, or raise the error; the outcome must be known."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def future(self) -> Future[T]:
        """Return a ``concurrent.futures.Future`` with the same outcome, for hosts that use them."""
        future: Future[T] = Future()

        def pass_on() -> None:
            try:
                # In another thread, for the reason given at the top of this module.
                start_new_thread(_pass_on, (self, future))
            except RuntimeError:
                # The system has no thread left.
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
    """Wait until all outcomes are known; return whether they are."""
    until = monotonic() + seconds
    # Each gets its own wait: one that is late says nothing about the others.
    known = [each.wait(max(0.0, until - monotonic())) for each in outcomes]
    return all(known)


def settle(waiters: Sequence[Outcome[Any]], result: Any) -> None:
    """Give all waiting callers a result."""
    for outcome in waiters:
        outcome.settle(result)


def fail(waiters: Sequence[Outcome[Any]], error: BaseException) -> None:
    """Give each waiting caller its own copy of an error."""
    for outcome in waiters:
        outcome.fail(error)
