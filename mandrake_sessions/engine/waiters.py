"""Threads that wait for a connection, and units that another thread's transaction runs."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from threading import get_ident
from typing import Any

from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.transaction import WriteUnit
from mandrake_sessions.errors import MandrakeSessionsError

MakeError = Callable[[], MandrakeSessionsError]


class Waiter:
    """A thread in the queue, and the work it brought, if any.

    Its lock is held from the beginning; releasing it wakes the thread.

    Attributes:
        work: the unit that the lease holder may run for it; None if only the thread can run it.
        context: the caller's context variables, for the work.
        even_refused: whether it stays in a queue that refuses work.
        is_taken: whether a holder took the work; from then on only the outcome counts.
        is_settled: whether the outcome is known.
        result: what the work returned.
        failure: the exception for the waiting thread.
    """

    __slots__ = (
        "budget",
        "context",
        "even_refused",
        "failure",
        "is_granted",
        "is_settled",
        "is_taken",
        "operation",
        "refusal",
        "result",
        "thread",
        "wake",
        "work",
    )

    def __init__(self, budget: Budget, operation: str, work: WriteUnit[Any] | None) -> None:
        self.budget: Budget = budget
        self.operation: str = operation
        self.work: WriteUnit[Any] | None = work
        self.context: contextvars.Context | None = (
            None if work is None else contextvars.copy_context()
        )
        self.thread: int = get_ident()
        self.is_granted: bool = False
        self.is_taken: bool = False
        self.is_settled: bool = False
        self.refusal: MakeError | None = None
        self.result: Any = None
        self.failure: BaseException | None = None
        self.even_refused: bool = False
        self.wake: threading.Lock = threading.Lock()
        self.wake.acquire()

    def wait_for_outcome(self) -> None:
        """Wait until the work's transaction has ended, past any deadline: it may be committed."""
        interruption: BaseException | None = None
        while True:
            try:
                self.wake.acquire()
                break
            except BaseException as error:  # noqa: BLE001  # a signal: the outcome comes first
                interruption = error
        if interruption is not None:
            raise interruption

    def outcome(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if self.failure is not None:
            raise self.failure
        return self.result

    def notify(self) -> None:
        """Wake the thread; it may have been woken before."""
        with contextlib.suppress(RuntimeError):
            self.wake.release()


class BatchedUnit(Waiter):
    """Work that a thread brings along when it takes the lease; no thread queues for it.

    Args:
        budget: the time its caller gave.
        operation: for errors.
        work: run behind a savepoint, in the thread that brought it.
        context: the caller's context variables.
        settled: called once, after the lease is released, when the outcome is known. It is quick
            and does not raise.
    """

    __slots__ = ("_settled",)

    def __init__(
        self,
        budget: Budget,
        operation: str,
        work: WriteUnit[Any],
        context: contextvars.Context,
        settled: Callable[[BatchedUnit], None],
    ) -> None:
        # Not through super(), which would copy a context and make a lock for each call.
        self.budget = budget
        self.operation = operation
        self.work: WriteUnit[Any] | None = work
        self.context: contextvars.Context | None = context
        self.is_taken = True
        self.is_settled = False
        self.result: Any = None
        self.failure: BaseException | None = None
        self._settled: Callable[[BatchedUnit], None] | None = settled

    def notify(self) -> None:
        """Pass the outcome on."""
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(self)


BatchSource = Callable[[], Waiter | None]
"""Returns the next unit for a transaction that is open, None when there is none."""
