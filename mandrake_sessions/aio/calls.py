"""One call of a coroutine: made in its event loop, run by a worker, settled in the loop again."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from mandrake_sessions.aio.cancellation import CancelledCall, note_outcome
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.errors import CommitOutcomeUnknownError
from mandrake_sessions.live.event_loops import call_in_loop, wake

T = TypeVar("T")

_POLL: Final = 0.05
"""Seconds between two checks whether an unwanted whole call has begun to wait."""


class EscapedError(Exception):
    """Carries an exception that is no ``Exception``, as its cause, out of a host's unit."""


class CallRunner(Protocol):
    """Runs calls."""

    def submit(self, call: Call[Any]) -> None:
        """Queue a call."""

    def call_withdrawn(self) -> None:
        """Note that a queued call was withdrawn."""


class Call(Generic[T]):
    """A unit of work, with the context variables and the budget of the coroutine that wants it.

    It is made in the event loop whose coroutine awaits ``outcome``. Whether it runs is decided
    once: by the thread that begins it, or by the coroutine that withdraws it, whichever is first.

    Args:
        unit: the work, called with an open transaction.
        operation: for errors.
        handle: on the database.
        timeout: seconds for the worker's queue, the lease and the work; None for the
            ``busy_timeout``.
        claims: whether the process must first claim the file as the owner of streaming turns.
        is_hosts: whether it is a host's function, which only this manager's thread may run.
        is_whole: whether it takes the lease itself, and is not called with a transaction.

    Attributes:
        is_taken: whether a worker has taken it; the worker then enforces its budget.
        is_withdrawn: whether it was withdrawn before it began.
        is_unwanted: whether its await was cancelled after it began.
        is_over: whether the event loop has its outcome.
        is_unshared: whether it must not share a transaction, because it was lost with one before.
    """

    __slots__ = (
        "_decision",
        "_failure",
        "_future",
        "_is_begun",
        "_is_done",
        "_result",
        "_unit",
        "budget",
        "claims",
        "context",
        "handle",
        "is_hosts",
        "is_over",
        "is_taken",
        "is_unshared",
        "is_unwanted",
        "is_whole",
        "is_withdrawn",
        "loop",
        "operation",
    )

    def __init__(
        self,
        unit: Callable[[Any], T],
        operation: str,
        handle: Handle,
        timeout: float | None = None,
        *,
        claims: bool = False,
        is_hosts: bool = False,
        is_whole: bool = False,
    ) -> None:
        self.operation: str = operation
        self.handle: Handle = handle
        self.budget: Budget = handle.budget(timeout)
        self.claims: bool = claims
        self.is_hosts: bool = is_hosts
        self.is_whole: bool = is_whole
        self.context: contextvars.Context = contextvars.copy_context()
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.is_unshared: bool = False
        self.is_taken: bool = False
        self.is_withdrawn: bool = False
        self.is_unwanted: bool = False
        self.is_over: bool = False
        self._unit = unit
        self._future: asyncio.Future[None] = self.loop.create_future()
        # The thread or the coroutine that gets it first decides whether the call runs.
        self._decision = threading.Lock()
        self._is_begun = False
        self._is_done = False
        self._result: T | None = None
        self._failure: BaseException | None = None

    # -- in the worker's thread -------------------------------------------------------------

    def run(self, tx: Any) -> T | None:
        """Do the work, unless it was withdrawn; called again if its transaction was lost."""
        if self._is_begun:
            # Its effects were undone, so a caller that cancelled meanwhile can still have its way.
            self._is_done = not self.is_unwanted
        else:
            self._is_begun = self._is_done = self._decision.acquire(blocking=False)
        return self._unit(tx) if self._is_done else None

    def settle(self, result: T | None, failure: BaseException | None) -> None:
        """Keep the outcome until the event loop gets it."""
        self._result = result
        self._failure = failure.__cause__ if isinstance(failure, EscapedError) else failure

    # -- in the event loop ------------------------------------------------------------------

    def notify(self) -> None:
        """Wake the coroutine: the outcome is known."""
        self.is_over = True
        wake(self._future)

    async def outcome(self, runner: CallRunner, *, is_write: bool) -> T:
        """Have the work run and return its result, or raise its exception.

        Args:
            runner: runs it.
            is_write: whether a cancellation has to wait until the outcome is known.

        Raises:
            CancelledError: ``cancelled_call`` returns the outcome of the call.
        """
        runner.submit(self)
        # Not call_at(): the clock of a loop may be its own.
        expiry = self.loop.call_later(self.budget.body_deadline - monotonic(), self._expire)
        try:
            await self._future
        except asyncio.CancelledError as error:
            await self._withdraw_or_wait(runner, is_write=is_write)
            note_outcome(error, self._cancelled(is_write=is_write))
            raise
        except GeneratorExit:
            # The loop was closed under the coroutine: no task waits for the call any more.
            if self._withdraw():
                runner.call_withdrawn()
            raise
        finally:
            expiry.cancel()
        if self._failure is not None:
            raise self._taken_failure()
        return self._result  # type: ignore[return-value]  # T itself may be None

    def _expire(self) -> None:
        """Fail a call that has queued past its deadline, as if it had waited for the lease."""
        if not self.is_taken and self._withdraw():
            self._failure = self.budget.exceeded("queue", self.handle.path, self.operation)
            self.notify()

    def _withdraw(self) -> bool:
        """Ensure that it never runs; False if it has begun."""
        if self._decision.acquire(blocking=False):
            self.is_withdrawn = True
        return self.is_withdrawn

    async def _withdraw_or_wait(self, runner: CallRunner, *, is_write: bool) -> None:
        if self._withdraw():
            runner.call_withdrawn()
            return
        self.is_unwanted = True
        while is_write and not self.is_over:
            self._future = self.loop.create_future()
            if self.is_whole:
                # It has begun, but it may only be waiting for the lease.
                runner.call_withdrawn()
            # Cancelled again: a call that runs ends soon, and only then its outcome is known.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((self._future,), timeout=_POLL if self.is_whole else None)

    def _cancelled(self, *, is_write: bool) -> CancelledCall:
        failure, is_unknown = self._failure, isinstance(self._failure, CommitOutcomeUnknownError)
        is_committed = is_write and self.is_over and self._is_done and failure is None
        result: Any = self._result if is_committed else None
        if isinstance(failure, CommitOutcomeUnknownError):
            result = failure.result
        return CancelledCall(
            operation=self.operation,
            is_committed=None if is_unknown else is_committed,
            result=result,
            failure=failure,
        )

    def _taken_failure(self) -> BaseException:
        """Return the failure and drop it: its traceback would keep this call alive."""
        failure, self._failure = self._failure, None
        assert failure is not None
        return failure


def notify_all(calls: Iterable[Call[Any]]) -> None:
    """Notify each call in its event loop, with one wake-up for each loop; from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Call[Any]]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, group in by_loop.items():
        call_in_loop(loop, _notify_each, group)


def _notify_each(calls: list[Call[Any]]) -> None:
    for call in calls:
        call.notify()
