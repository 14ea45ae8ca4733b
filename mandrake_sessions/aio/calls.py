"""One call of a coroutine: made in its event loop, run in a worker's thread, told in its loop."""

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
"""Seconds between two looks whether a whole call that nobody wants has begun to wait."""


class EscapedError(Exception):
    """Carries what is no ``Exception``, as its cause, out of a host's unit."""


class CallRunner(Protocol):
    """What runs calls."""

    def submit(self, call: Call[Any]) -> None:
        """Take a call, to be run in its turn."""

    def call_withdrawn(self) -> None:
        """Learn that a call need not be run any more."""


class Call(Generic[T]):
    """A unit of work, with the context variables and the budget of the coroutine that wants it.

    Made in the event loop whose coroutine awaits ``outcome``. Whether it happens is decided once:
    by the thread that begins it, or by the coroutine that withdraws it, whoever is first.

    Args:
        unit: the work, called with an open transaction.
        operation: for errors.
        handle: on the database.
        timeout: seconds for the worker's queue, the lease and the work; None for the
            ``busy_timeout``.
        claims: whether the file must be claimed before.
        is_hosts: whether it is a host's function, which only our own thread may run.
        is_whole: whether it takes the lease itself, and is not called with a transaction.

    Attributes:
        is_taken: whether a worker has taken it, which then minds its budget.
        is_withdrawn: whether it was withdrawn before it began.
        is_unwanted: whether its await was cancelled after it began.
        is_over: whether its outcome was told to the event loop.
        is_alone: whether it must not share a transaction: it was lost with one before.
    """

    __slots__ = (
        "_failure",
        "_fate",
        "_future",
        "_is_begun",
        "_is_done",
        "_result",
        "_unit",
        "budget",
        "claims",
        "context",
        "handle",
        "is_alone",
        "is_hosts",
        "is_over",
        "is_taken",
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
        self.is_alone: bool = False
        self.is_taken: bool = False
        self.is_withdrawn: bool = False
        self.is_unwanted: bool = False
        self.is_over: bool = False
        self._unit = unit
        self._future: asyncio.Future[None] = self.loop.create_future()
        # Who gets it first decides whether the call happens.
        self._fate = threading.Lock()
        self._is_begun = False
        self._is_done = False
        self._result: T | None = None
        self._failure: BaseException | None = None

    # -- in the worker's thread -------------------------------------------------------------

    def run(self, tx: Any) -> T | None:
        """Do the work, unless it was withdrawn; called again if its transaction was lost."""
        if self._is_begun:
            # What was done is undone: the last moment for who does not want it any more.
            self._is_done = not self.is_unwanted
        else:
            self._is_begun = self._is_done = self._fate.acquire(blocking=False)
        return self._unit(tx) if self._is_done else None

    def settle(self, result: T | None, failure: BaseException | None) -> None:
        """Keep the outcome, until the event loop is told."""
        self._result = result
        self._failure = failure.__cause__ if isinstance(failure, EscapedError) else failure

    # -- in the event loop ------------------------------------------------------------------

    def tell(self) -> None:
        """Wake the coroutine: the outcome is known."""
        self.is_over = True
        wake(self._future)

    async def outcome(self, runner: CallRunner, *, is_write: bool) -> T:
        """Have the work run and return its result, or raise what it raised.

        Args:
            runner: runs it.
            is_write: whether a cancellation has to wait until it is known what happened.

        Raises:
            CancelledError: ``cancelled_call`` tells what became of it.
        """
        runner.submit(self)
        # Not call_at(): a loop may have a clock of its own.
        expiry = self.loop.call_later(self.budget.body_deadline - monotonic(), self._expire)
        try:
            await self._future
        except asyncio.CancelledError as error:
            await self._give_up(runner, is_write=is_write)
            note_outcome(error, self._cancelled(is_write=is_write))
            raise
        except GeneratorExit:
            # The loop was closed under the coroutine: nobody waits for the call any more.
            if self._withdraw():
                runner.call_withdrawn()
            raise
        finally:
            expiry.cancel()
        if self._failure is not None:
            raise self._taken_failure()
        return self._result  # type: ignore[return-value]  # T itself may be None

    def _expire(self) -> None:
        """End a call that has waited too long behind others, as if it had waited for the lease."""
        if not self.is_taken and self._withdraw():
            self._failure = self.budget.exceeded("queue", self.handle.path, self.operation)
            self.tell()

    def _withdraw(self) -> bool:
        """Make sure that it never happens; False if it has begun."""
        if self._fate.acquire(blocking=False):
            self.is_withdrawn = True
        return self.is_withdrawn

    async def _give_up(self, runner: CallRunner, *, is_write: bool) -> None:
        if self._withdraw():
            runner.call_withdrawn()
            return
        self.is_unwanted = True
        while is_write and not self.is_over:
            self._future = self.loop.create_future()
            if self.is_whole:
                # It has begun, and yet perhaps only waits for the lease.
                runner.call_withdrawn()
            # Cancelled again: what has begun ends soon, and only then it is known how.
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
        """Return the failure and let go of it: its traceback would keep this call alive."""
        failure, self._failure = self._failure, None
        assert failure is not None
        return failure


def tell_all(calls: Iterable[Call[Any]]) -> None:
    """Tell each call in its event loop, all of one loop by one wake-up; from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Call[Any]]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, told in by_loop.items():
        call_in_loop(loop, _tell_each, told)


def _tell_each(calls: list[Call[Any]]) -> None:
    for call in calls:
        call.tell()
