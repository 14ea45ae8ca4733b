"""The FIFO queue in front of a connection, and the group that shares one COMMIT.

Nothing here knows SQL. The queue decides who may use the connection. A waiter may bring work that
the holder of the lease can do for it: then the holder takes the waiter out of the queue, runs the
work in its own transaction, and wakes it when the outcome is known. An unit is such work without
a thread that waits: the holder itself brings it along.
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
        holder: the thread that has the lease, 0 for none. A thread may ask without a lock whether
            it is the holder itself: only it can change that answer.
        operation: what the holder does, or the last one did.
        longest_wait: seconds the longest wait took, for the lease or for an outcome.
        timeouts: how many waiters gave up at their deadline.
    """

    def __init__(self, path: Path) -> None:
        self.holder: int = 0
        self.operation: str = ""
        self.longest_wait: float = 0.0
        self.timeouts: int = 0
        self._path = path
        # Re-entrant, so that a finalizer or a signal's handler that comes here sees it.
        self._mutex = threading.RLock()
        self._is_owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]
        self._waiters: deque[Waiter] = deque()
        self._refusal: MakeError | None = None
        # Keys and not a number: what a signal has interrupted can be done again.
        self._pins: set[object] = set()

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiters)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody has the lease, waits for it or has pinned it, this moment."""
        return not (self.holder or self._waiters or self._pins)

    def pin(self, key: object) -> None:
        """Keep the queue from being shut until ``unpin``; any number may do so at once.

        Args:
            key: for ``unpin``.

        Raises:
            PoolClosedError: or what else the queue refuses work with.
        """
        with self._mutex:
            if self._refusal is not None:
                raise self._refusal()
            self._pins.add(key)

    def unpin(self, key: object) -> None:
        """Undo a ``pin``; it may have been undone before."""
        self._pins.discard(key)

    def shut(self, make_error: MakeError) -> bool:
        """Refuse who comes from now on, if it is quiet and takes work; return whether it was."""
        with self._mutex:
            if self._refusal is not None or not self.is_quiet:
                return False
            self._refusal = make_error
            return True

    def unshut(self, make_error: MakeError) -> None:
        """Undo ``shut``, unless the queue refuses work for another reason by now."""
        with self._mutex:
            if self._refusal == make_error:
                self._refusal = None

    def try_acquire(self, operation: str, *, even_refused: bool = False) -> bool:
        """Take the lease if it is free and nobody waits for it."""
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

        If a signal's handler raises while it waits, and the lease came in the same moment, the
        lease stays with this thread: the caller sees it in ``holder``.

        Args:
            budget: the deadline; the time spent here is noted in it as ``queue``.
            operation: for the error.
            work: what the holder of the lease may run for this thread while it waits.
            even_refused: for who closes the queue, and must get the lease all the same.

        Returns:
            None with the lease; the waiter, with its outcome, if a holder has run the work.

        Raises:
            DatabaseBusyError: the deadline passed; this waiter will never be given the lease.
            PoolClosedError: or what else the queue refuses work with.
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
                # The lease, a refusal or a holder came in the same moment.
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
        """Move the first waiter into ``group`` if its work can be done for it now."""
        with self._mutex:
            first = self._first()
            if first is None or first.work is None or monotonic() >= first.budget.deadline:
                return None
            # In this order: whatever interrupts us, the group wakes whom the queue has lost.
            group.members.append(first)
            first.is_taken = True
            return self._waiters.popleft()

    def release(self) -> None:
        """Give the lease to the first waiter, or make it free. No transaction may be open."""
        with self._mutex:
            # Asked here first, for most leases have nobody behind them.
            first = self._first() if self._waiters else None
            if first is None:
                self.holder = 0
            else:
                # In this order: a signal in between must not lose anybody from the queue.
                self._grant(first)
                self._waiters.popleft()

    def refuse(self, make_error: MakeError, *, waiters_too: bool) -> None:
        """Refuse who comes from now on, and those who wait already if ``waiters_too``."""
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
        """End the waiting of a thread now, as if its deadline had passed; return if it waited."""
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
            f"{operation} was called by a finalizer or by a signal's handler while this thread "
            "was about to get the database for another call. Call it from outside."
        )

    def _first(self) -> Waiter | None:
        """Return who is next; a signal can have left somebody here who waits no more."""
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
        """Leave the queue; False if the lease, a refusal or a holder came in the same moment."""
        with self._mutex:
            if waiter.is_granted or waiter.is_taken or waiter.refusal is not None:
                return False
            # It is not there if the interruption came before it stood in the queue.
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            return True


class Group:
    """The waiters whose work ran in one transaction; they all learn how it ended."""

    __slots__ = ("_closes_at", "_failure", "_is_decided", "_most", "members")

    def __init__(self, most: int, seconds: float) -> None:
        self.members: list[Waiter] = []
        self._most = most
        self._is_decided = False
        self._failure: Callable[[Waiter], BaseException] | None = None
        self._closes_at = monotonic() + seconds

    @property
    def is_full(self) -> bool:
        """Whether it must end now: groups are bounded in count and in time."""
        return len(self.members) + 1 >= self._most or monotonic() >= self._closes_at

    def decide(self, failure: Callable[[Waiter], BaseException] | None) -> None:
        """Note how the transaction ended, None for committed; what was noted first stands."""
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
                    # Again after an interruption: it may have been woken before.
                    waiter.notify()
                break
            except BaseException as error:  # noqa: BLE001  # a signal: nobody may be left asleep
                interruption = error
        if interruption is not None:
            raise interruption

    @staticmethod
    def _make_failure(make: Callable[[Waiter], BaseException], waiter: Waiter) -> BaseException:
        try:
            return make(waiter)
        except Exception as error:  # noqa: BLE001  # an outcome too; trying again would be for ever
            return error
