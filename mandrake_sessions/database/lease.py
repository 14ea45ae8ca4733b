"""The FIFO queue in front of a connection, and the group that shares one COMMIT.

Nothing here knows SQL. The queue decides who may use the connection; a group is what connects the
units that ran in one transaction until they all learn its outcome.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from time import monotonic

from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import MandrakeSessionsError

MakeError = Callable[[], MandrakeSessionsError]


class _Waiter:
    """A thread in the queue. Its lock is held from the beginning; who releases it wakes it."""

    __slots__ = ("granted", "may_join", "operation", "refusal", "thread", "wake")

    def __init__(self, operation: str, may_join: bool) -> None:
        self.operation = operation
        self.may_join = may_join
        self.thread = get_ident()
        self.granted = False
        self.refusal: MakeError | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


class LeaseQueue:
    """Gives the exclusive right to a connection, first come, first served, with a deadline.

    Attributes:
        holder: the thread that has the lease, 0 for none. A thread may ask without a lock whether
            it is the holder itself: only it can change that answer.
        operation: what the holder does, or the last one did.
        longest_wait: seconds the longest wait took.
    """

    def __init__(self, path: Path) -> None:
        self.holder = 0
        self.operation = ""
        self.longest_wait = 0.0
        self.timeouts = 0
        self._path = path
        self._mutex = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self._refusal: MakeError | None = None

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiters)

    def try_acquire(self, operation: str, *, even_refused: bool = False) -> bool:
        """Take the lease if it is free and nobody waits for it."""
        with self._mutex:
            if not self._is_free(even_refused=even_refused):
                return False
            self.holder = get_ident()
            self.operation = operation
            return True

    def acquire(
        self, budget: Budget, operation: str, *, may_join: bool = False, even_refused: bool = False
    ) -> None:
        """Wait for the lease, at most until the budget's deadline.

        Args:
            budget: the deadline; the time spent here is noted in it as ``queue``.
            operation: for the error.
            may_join: whether the lease may arrive with a shared transaction open.
            even_refused: for who closes the queue, and must get the lease all the same.

        Raises:
            DatabaseBusyError: the deadline passed; this waiter will never be given the lease.
            PoolClosedError: or what else the queue refuses work with.
        """
        if self.try_acquire(operation, even_refused=even_refused):
            return
        waiter = _Waiter(operation, may_join)
        since = monotonic()
        try:
            if not self._enqueue(waiter, even_refused=even_refused):
                return
            waiter.wake.acquire(timeout=max(0.0, budget.deadline - since))
            budget.spent("queue", since)
            self.longest_wait = max(self.longest_wait, monotonic() - since)
            if waiter.refusal is None and not waiter.granted and self._withdraw(waiter):
                self.timeouts += 1
                raise budget.exceeded("queue", self._path, operation)
            if waiter.refusal is not None:
                raise waiter.refusal()
        except BaseException:
            # A signal's handler raised. If the lease came in the same moment it stays with this
            # thread, perhaps with a shared transaction open: the caller sees it in ``holder``.
            self._withdraw(waiter)
            raise

    def _enqueue(self, waiter: _Waiter, *, even_refused: bool) -> bool:
        """Stand in the queue; False if the lease was free after all and is the waiter's now."""
        with self._mutex:
            if self._is_free(even_refused=even_refused):
                self._grant(waiter)
                return False
            self._waiters.append(waiter)
            return True

    def _is_free(self, *, even_refused: bool) -> bool:
        if self._refusal is not None and not even_refused:
            raise self._refusal()
        return not self.holder and not self._waiters

    def release(self) -> None:
        """Give the lease to the first waiter, or make it free. No transaction may be open."""
        with self._mutex:
            if self._waiters:
                self._grant(self._waiters.popleft())
            else:
                self.holder = 0

    def hand_over(self) -> bool:
        """Give the lease to the first waiter if it may join an open transaction."""
        with self._mutex:
            if not self._waiters or not self._waiters[0].may_join:
                return False
            self._grant(self._waiters.popleft())
            return True

    def refuse(self, make_error: MakeError, *, waiters_too: bool) -> None:
        """Refuse who comes from now on, and those who wait already if ``waiters_too``."""
        with self._mutex:
            self._refusal = make_error
            if waiters_too:
                while self._waiters:
                    waiter = self._waiters.popleft()
                    waiter.refusal = make_error
                    waiter.wake.release()

    def _grant(self, waiter: _Waiter) -> None:
        self.holder = waiter.thread
        self.operation = waiter.operation
        waiter.granted = True
        waiter.wake.release()

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Leave the queue; False if the lease or a refusal came in the same moment."""
        with self._mutex:
            if waiter.granted or waiter.refusal is not None:
                return False
            # It is not there if the interruption came before it stood in the queue.
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            return True


class Group:
    """The units that share one transaction, from the first one's BEGIN to the COMMIT.

    A unit joins before it passes the lease on, and then waits; the one that ends the transaction
    settles the group for all of them. Only the holder of the lease touches a group that is not
    settled.
    """

    __slots__ = ("_closes_at", "_failure", "_members", "units")

    def __init__(self, seconds: float) -> None:
        self.units = 0
        self._closes_at = monotonic() + seconds
        self._members: list[threading.Lock] = []
        self._failure: MakeError | None = None

    @property
    def is_shared(self) -> bool:
        """Whether somebody waits for the outcome."""
        return bool(self._members)

    def is_full(self, most: int) -> bool:
        """Whether no further unit may join: groups are bounded in count and in time."""
        return self.units >= most or monotonic() >= self._closes_at

    def join(self) -> threading.Lock:
        """Return the ticket to ``wait`` with."""
        ticket = threading.Lock()
        ticket.acquire()
        self._members.append(ticket)
        return ticket

    def leave(self, ticket: threading.Lock) -> None:
        """Take a ticket back: nobody was there to pass the lease to."""
        self._members.remove(ticket)

    def settle(self, failure: MakeError | None) -> None:
        """Tell every member how the transaction ended: None for committed."""
        self._failure = failure
        for ticket in self._members:
            ticket.release()

    def wait(self, ticket: threading.Lock) -> None:
        """Wait for the outcome, past any deadline: the unit has run and may be committed.

        Raises:
            MandrakeSessionsError: the transaction failed.
        """
        interruption: BaseException | None = None
        while True:
            try:
                ticket.acquire()
                break
            except BaseException as error:  # noqa: BLE001  # a signal: the outcome comes first
                interruption = error
        if interruption is not None:
            raise interruption
        if self._failure is not None:
            raise self._failure()
