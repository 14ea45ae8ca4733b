"""The FIFO queue in front of a connection, and the group that shares one COMMIT.

This module runs no SQL. The queue decides which thread may use the connection. A waiter may have
work that the holder of the lease can run for it. Then the holder takes the waiter out of the queue,
runs the work in its own transaction, and wakes the waiter when the outcome is known. A batched unit
is such work without a waiting thread: the holder itself adds it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.waiters import MakeError, Waiter
from mandrake_sessions.errors import ReentrantScopeError

if TYPE_CHECKING:
    from mandrake_sessions.engine.transaction import WriteUnit


class LeaseQueue:
    """Gives the exclusive right to a connection, first come, first served, with a deadline.

    Attributes:
        holder: the thread that has the lease, 0 for none. A thread may check without a lock whether
            it is the holder itself, because only that thread can change the answer.
        operation: that of the present holder, or of the last one.
        longest_wait: seconds of the longest wait, for the lease or for an outcome.
        timeouts: how many waiters gave up at their deadline.
    """

    def __init__(self, path: Path) -> None:
        self.holder: int = 0
        self.operation: str = ""
        self.longest_wait: float = 0.0
        self.timeouts: int = 0
        self._path = path
        # Re-entrant, so that a finalizer or a signal handler can detect that its thread is in here.
        self._mutex = threading.RLock()
        self._is_owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]
        self._waiters: deque[Waiter] = deque()
        self._refusal: MakeError | None = None
        # Keys and not a number, so that a step that a signal has interrupted can be repeated.
        self._pins: set[object] = set()

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiters)

    @property
    def is_quiet(self) -> bool:
        """Whether no thread has the lease, waits for it or has pinned the queue."""
        return not (self.holder or self._waiters or self._pins)

    def pin(self, key: object) -> None:
        """Keep the queue from being shut until ``unpin``; any number may do so at once.

        Args:
            key: for ``unpin``.

        Raises:
            PoolClosedError: or another error with which the queue refuses work.
        """
        with self._mutex:
            if self._refusal is not None:
                raise self._refusal()
            self._pins.add(key)

    def unpin(self, key: object) -> None:
        """Undo a ``pin``, which may have been undone before."""
        self._pins.discard(key)

    def shut(self, make_error: MakeError) -> bool:
        """Refuse new calls if the queue is quiet and takes work; return whether it was and did."""
        with self._mutex:
            if self._refusal is not None or not self.is_quiet:
                return False
            self._refusal = make_error
            return True

    def unshut(self, make_error: MakeError) -> None:
        """Undo ``shut``, unless the queue now refuses work for another reason."""
        with self._mutex:
            if self._refusal == make_error:
                self._refusal = None

    def try_acquire(self, operation: str, *, even_refused: bool = False) -> bool:
        """Take the lease if it is free and no thread waits for it; return whether it was taken."""
        if self._is_owned():
            raise self._reentrant(operation)
        with self._mutex:
            if self._refusal is not None and not even_refused:
                raise self._refusal()
            if self.holder or self._waiters:
                return False
            self.holder = get_ident()
            self.operation = operation
            return True

    def acquire(
        self,
        budget: Budget,
        operation: str,
        *,
        work: WriteUnit[Any] | None = None,
        even_refused: bool = False,
    ) -> Waiter | None:
        """Wait for the lease, at most until the budget's deadline.

        If a signal handler raises during the wait, and the lease came at the same time, this thread
        keeps the lease: the caller sees it in ``holder``.

        Args:
            budget: the deadline; the time of the wait counts there as ``queue``.
            operation: for the error.
            work: the unit that the holder of the lease may run for this thread while it waits.
            even_refused: for the thread that closes the queue, and must get the lease nevertheless.

        Returns:
            None with the lease; the waiter, with its outcome, if a holder has run the work.

        Raises:
            DatabaseBusyError: the deadline passed; this waiter will never get the lease.
            PoolClosedError: or another error with which the queue refuses work.
        """
        if self._is_owned():
            raise self._reentrant(operation)
        waiter: Waiter | None = None
        try:
            with self._mutex:
                if self._refusal is not None and not even_refused:
                    raise self._refusal()
                if not (self.holder or self._waiters):
                    self.holder = get_ident()
                    self.operation = operation
                    return None
                if any(waiting.thread == get_ident() for waiting in self._waiters):
                    raise self._reentrant(operation)
                waiter = Waiter(budget, operation, work)
                waiter.even_refused = even_refused
                self._waiters.append(waiter)
            since = monotonic()
            if not waiter.wake.acquire(timeout=max(0.0, budget.deadline - since)):
                if self._withdraw(waiter):
                    self.timeouts += 1
                    raise budget.exceeded("queue", self._path, operation)
                # The lease, a refusal or a holder came at the same time.
                waiter.wait_for_outcome()
        except BaseException:
            if (
                waiter is not None
                and not self._withdraw(waiter)
                and waiter.is_taken
                and not waiter.is_settled
            ):
                waiter.wait_for_outcome()
            raise
        budget.spent("queue", since)
        self.longest_wait = max(self.longest_wait, monotonic() - since)
        if waiter.refusal is not None:
            raise waiter.refusal()
        return waiter if waiter.is_taken else None

    def take_work(self, group: Group) -> Waiter | None:
        """Move the first waiter into ``group`` if the holder can run its work now."""
        with self._mutex:
            first = self._first()
            if first is None or first.work is None or monotonic() >= first.budget.deadline:
                return None
            # In this order: after an interruption the group wakes a waiter that the queue has lost.
            group.members.append(first)
            first.is_taken = True
            return self._waiters.popleft()

    def release(self) -> None:
        """Give the lease to the first waiter, or make it free. No transaction may be open."""
        with self._mutex:
            # Checked here first, because most leases have no waiter.
            first = self._first() if self._waiters else None
            if first is None:
                self.holder = 0
            else:
                # In this order: a signal in between must not lose a waiter.
                self._grant(first)
                self._waiters.popleft()

    def refuse(self, make_error: MakeError, *, waiters_too: bool) -> None:
        """Refuse new calls, and the waiting ones too if ``waiters_too``."""
        with self._mutex:
            self._refusal = make_error
            if waiters_too:
                stay = [waiter for waiter in self._waiters if waiter.even_refused]
                for waiter in self._waiters:
                    if not waiter.even_refused:
                        waiter.refusal = make_error
                        waiter.notify()
                self._waiters = deque(stay)

    def give_up(self, thread: int) -> bool:
        """End the wait of a thread as at its deadline; return whether it waited."""
        with self._mutex:
            for waiter in self._waiters:
                if waiter.thread == thread:
                    waiter.refusal = partial(
                        waiter.budget.exceeded, "queue", self._path, waiter.operation
                    )
                    waiter.notify()
                    self._waiters.remove(waiter)
                    return True
        return False

    def _reentrant(self, operation: str) -> ReentrantScopeError:
        return ReentrantScopeError(
            f"{operation} was called by a finalizer or by a signal handler while this thread "
            "was about to get the database for another call. Call it from outside."
        )

    def _first(self) -> Waiter | None:
        """Return the first waiter; a signal may have left one here that no longer waits."""
        waiters = self._waiters
        while waiters and (waiters[0].is_granted or waiters[0].refusal is not None):
            waiters.popleft()
        return waiters[0] if waiters else None

    def _grant(self, waiter: Waiter) -> None:
        self.holder = waiter.thread
        self.operation = waiter.operation
        waiter.is_granted = True
        waiter.wake.release()

    def _withdraw(self, waiter: Waiter) -> bool:
        """Leave the queue; False if the lease, a refusal or a holder came at the same time."""
        with self._mutex:
            if waiter.is_granted or waiter.is_taken or waiter.refusal is not None:
                return False
            # It is missing if the interruption came before it entered the queue.
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            return True


class Group:
    """The waiters whose work ran in one transaction; all of them get its outcome."""

    __slots__ = ("_closes_at", "_failure", "_is_decided", "_most", "members")

    def __init__(self, most: int, seconds: float) -> None:
        self.members: list[Waiter] = []
        self._most = most
        self._is_decided = False
        self._failure: Callable[[Waiter], BaseException] | None = None
        self._closes_at = monotonic() + seconds

    @property
    def is_full(self) -> bool:
        """Whether the group takes no more members: it is limited in number and time."""
        return len(self.members) + 1 >= self._most or monotonic() >= self._closes_at

    def decide(self, failure: Callable[[Waiter], BaseException] | None) -> None:
        """Record how the transaction ended, None for committed; only the first call counts."""
        if not self._is_decided:
            self._failure, self._is_decided = failure, True

    def settle(self) -> None:
        """Wake every member; those whose own work did not fail get the group's failure, if any."""
        interruption: BaseException | None = None
        while True:
            try:
                for waiter in self.members:
                    if waiter.failure is None and self._failure is not None:
                        waiter.failure = self._make_failure(self._failure, waiter)
                    waiter.is_settled = True
                    # May wake it a second time, after an interruption.
                    waiter.notify()
                break
            except BaseException as error:  # noqa: BLE001  # a signal: wake every thread first
                interruption = error
        if interruption is not None:
            raise interruption

    @staticmethod
    def _make_failure(make: Callable[[Waiter], BaseException], waiter: Waiter) -> BaseException:
        try:
            return make(waiter)
        except Exception as error:  # noqa: BLE001  # the outcome; a retry would never end
            return error
