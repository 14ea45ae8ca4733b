"""The lease: one holder, first come first served, and a deadline that is one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_kit import Task, ends_in_time
from kits.waiting import until, until_set

from mandrake_sessions.database.leasing import queue as queue_module
from mandrake_sessions.database.leasing.queue import Group, LeaseQueue
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.waiters import Waiter
from mandrake_sessions.errors import DatabaseBusyError, PoolClosedError, TransactionLostError

WAITERS = 20


@pytest.fixture
def queue(tmp_path: Path) -> LeaseQueue:
    return LeaseQueue(tmp_path / "db.sqlite")


def waiting(queue: LeaseQueue, seconds: float = 20.0, **options: Any) -> Task[None]:
    """Return a thread that is in the queue."""
    before = queue.waiting
    task = Task(lambda: queue.acquire(Budget(seconds), "wait", **options))
    until(lambda: queue.waiting > before or task.is_over)
    return task


def test_twenty_waiters_get_the_lease_in_their_order_of_arrival(queue: LeaseQueue) -> None:
    order: list[int] = []

    def work(number: int) -> None:
        queue.acquire(Budget(20), f"work {number}")
        order.append(number)
        queue.release()

    queue.acquire(Budget(1), "first")
    tasks = []
    for number in range(WAITERS):
        tasks.append(Task(lambda number=number: work(number)))
        until(lambda number=number: queue.waiting == number + 1)
    queue.release()
    for task in tasks:
        task.result()
    assert order == list(range(WAITERS))
    assert queue.holder == 0


def test_the_lease_never_has_two_holders(queue: LeaseQueue) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            queue.acquire(Budget(20), "work")
            inside += 1
            most = max(most, inside)
            inside -= 1
            queue.release()

    for task in [Task(work) for _ in range(8)]:
        task.result()
    assert most == 1
    assert queue.holder == 0
    assert queue.waiting == 0


def test_a_free_lease_goes_to_no_thread_that_would_overtake_a_waiter(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    task = waiting(queue)
    assert not queue.try_acquire("overtake")
    queue.release()
    task.result()
    assert queue.holder == task.thread.ident


def test_the_deadline_ends_the_wait_in_time(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    errors = ends_in_time(lambda: Task(lambda: queue.acquire(Budget(0.2), "late")).result(), 0.2)
    assert errors[-1].phase == "queue"
    assert errors[-1].operation == "late"
    assert list(errors[-1].phases) == ["queue"]
    assert queue.timeouts == len(errors)
    assert queue.waiting == 0


def test_a_waiter_that_timed_out_never_gets_the_lease(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    late = waiting(queue, 0.05)
    next_one = waiting(queue)
    with pytest.raises(DatabaseBusyError):
        late.result()
    queue.release()
    next_one.result()
    assert queue.holder == next_one.thread.ident


def test_a_lease_that_comes_with_the_deadline_is_taken(queue: LeaseQueue) -> None:
    """The wait ends by time; before the waiter can leave the queue, the lease is granted.

    ::

        waiter   acquire ─ deadline ................. withdraw: no, it is mine ─ returns
        holder            (held) ─ release: grant ─┘
    """
    queue.acquire(Budget(1), "first")
    at_the_deadline, granted = threading.Event(), threading.Event()
    withdraw = queue._withdraw

    def withdraw_late(waiter: Waiter) -> bool:
        at_the_deadline.set()
        until_set(granted)
        return withdraw(waiter)

    queue._withdraw = withdraw_late  # type: ignore[method-assign]
    waiter = waiting(queue, 0.05)
    until_set(at_the_deadline)
    queue.release()
    granted.set()
    waiter.result()
    assert queue.holder == waiter.thread.ident
    assert queue.timeouts == 0


def test_a_refusal_that_comes_with_the_deadline_is_raised(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    at_the_deadline, refused = threading.Event(), threading.Event()
    withdraw = queue._withdraw

    def withdraw_late(waiter: Waiter) -> bool:
        at_the_deadline.set()
        until_set(refused)
        return withdraw(waiter)

    queue._withdraw = withdraw_late  # type: ignore[method-assign]
    waiter = waiting(queue, 0.05)
    until_set(at_the_deadline)
    queue.refuse(PoolClosedError, waiters_too=True)
    refused.set()
    with pytest.raises(PoolClosedError):
        waiter.result()
    assert queue.waiting == 0


def test_a_waiter_that_withdrew_first_is_passed_over(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    gone = Waiter(Budget(20), "gone", None)
    queue._waiters.append(gone)
    next_one = waiting(queue)
    assert queue._withdraw(gone)
    queue.release()
    next_one.result()
    assert not gone.is_granted
    assert queue.holder == next_one.thread.ident


def test_a_budget_of_zero_takes_a_free_lease(queue: LeaseQueue) -> None:
    queue.acquire(Budget(0), "free")
    with pytest.raises(DatabaseBusyError):
        Task(lambda: queue.acquire(Budget(0), "taken")).result()


def test_a_queue_that_refuses_lets_its_waiters_go_on_unless_asked_otherwise(
    queue: LeaseQueue,
) -> None:
    queue.acquire(Budget(1), "first")
    waiter = waiting(queue)
    queue.refuse(PoolClosedError, waiters_too=False)
    with pytest.raises(PoolClosedError):
        queue.acquire(Budget(1), "newcomer")
    with pytest.raises(PoolClosedError):
        LeaseQueue.acquire(queue, Budget(1), "newcomer", work=nothing)
    queue.release()
    waiter.result()


def test_refusing_wakes_every_waiter_with_an_error_of_its_own(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    waiters = [waiting(queue) for _ in range(5)]
    queue.refuse(PoolClosedError, waiters_too=True)
    errors = []
    for waiter in waiters:
        with pytest.raises(PoolClosedError) as caught:
            waiter.result()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 5
    queue.release()
    assert queue.holder == 0


def test_the_closing_thread_gets_the_lease_of_a_queue_that_refuses(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    queue.refuse(PoolClosedError, waiters_too=False)
    closer = waiting(queue, even_refused=True)
    queue.release()
    closer.result()
    assert queue.holder == closer.thread.ident


def test_only_the_work_of_the_first_waiter_is_taken(queue: LeaseQueue) -> None:
    """Work behind one that must have the lease itself would overtake it."""
    queue.acquire(Budget(1), "first")
    alone = waiting(queue)
    worker = waiting(queue, work=nothing)
    assert queue.take_work(Group(10, 600)) is None
    queue.release()
    alone.result()
    assert queue.take_work(Group(10, 600)) is not None
    assert queue.waiting == 0
    assert not worker.is_over


def test_a_waiter_whose_work_was_taken_waits_past_its_deadline(queue: LeaseQueue) -> None:
    """::

    waiter   acquire ─ deadline ......................... outcome
    holder           └─ takes the work ─ (runs) ─ settles ─┘
    """
    queue.acquire(Budget(1), "first")
    deadline = monotonic() + 0.1
    worker = waiting(queue, 0.1, work=nothing)
    group = Group(10, 600)
    waiter = queue.take_work(group)
    assert waiter is not None
    assert group.members == [waiter]
    until(lambda: monotonic() > deadline + 0.1)
    assert not worker.is_over
    waiter.result = "done"
    group.decide(None)
    group.settle()
    assert worker.result() is waiter
    assert waiter.outcome() == "done"
    assert queue.holder != worker.thread.ident
    assert queue.timeouts == 0


def test_work_whose_deadline_has_passed_is_not_taken(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    late = Waiter(Budget(0), "late", nothing)
    queue._waiters.append(late)
    assert queue.take_work(Group(10, 600)) is None
    assert queue._withdraw(late)


def test_work_that_was_withdrawn_is_never_done(queue: LeaseQueue) -> None:
    queue.acquire(Budget(1), "first")
    with pytest.raises(DatabaseBusyError):
        waiting(queue, 0.05, work=nothing).result()
    assert queue.take_work(Group(10, 600)) is None


def nothing(_tx: object) -> None:
    pass


@pytest.mark.parametrize("stop_at", range(1, 4))
def test_an_interruption_anywhere_in_the_queue_leaves_no_waiter_in_it(
    queue: LeaseQueue, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Ctrl-C runs its handler after any call: the clock stands for all of them here.

    An interrupted thread either holds the lease, which its caller sees, or is not in the queue.
    Otherwise the lease would go to a thread that never gives it back.
    """
    queue.acquire(Budget(1), "first")
    calls = itertools.count(1)
    me: list[int] = []

    def interrupted() -> float:
        if threading.get_ident() in me and next(calls) == stop_at:
            raise KeyboardInterrupt
        return monotonic()

    def wait() -> None:
        budget = Budget(0.05)
        me.append(threading.get_ident())
        queue.acquire(budget, "interrupted")

    monkeypatch.setattr(queue_module, "monotonic", interrupted)
    task = Task(wait)
    task.join()
    assert isinstance(task.error, KeyboardInterrupt | DatabaseBusyError)
    assert queue.waiting == 0
    queue.release()
    assert queue.holder == 0


def test_a_waiter_that_gets_ctrl_c_leaves_the_queue(
    start_child: Callable[..., Any], path: Path
) -> None:
    child = start_child(
        """
import os, signal, threading
from mandrake_sessions import ConnectionPool
handle = ConnectionPool().acquire(sys.argv[1])
queue = handle._file.writer.queue
has_it, may_go = threading.Event(), threading.Event()
def hold():
    with handle.write():
        has_it.set()
        may_go.wait()
def interrupt():
    while not queue.waiting:
        pass
    os.kill(os.getpid(), signal.SIGINT)
holder = threading.Thread(target=hold)
holder.start()
has_it.wait()
threading.Thread(target=interrupt).start()
try:
    handle.transact(lambda tx: None, delegable=True)
except KeyboardInterrupt:
    send(queue.waiting)
may_go.set()
holder.join()
handle.transact(lambda tx: None)
send(queue.holder)
handle.release()
""",
        path,
    )
    assert child.receive() == 0
    assert child.receive() == 0
    child.finish()


# -- groups ---------------------------------------------------------------------------------


def member(failure: BaseException | None = None) -> Waiter:
    waiter = Waiter(Budget(20), "member", nothing)
    waiter.is_taken = True
    waiter.failure = failure
    return waiter


def test_a_group_is_bounded_in_count_and_in_time() -> None:
    group = Group(3, 600)
    assert not group.is_full
    group.members.append(member())
    assert not group.is_full
    # The leader is one of the three.
    group.members.append(member())
    assert group.is_full
    assert Group(1000, 0).is_full


def test_every_member_learns_how_its_group_ended() -> None:
    own = ValueError("its own")
    group = Group(10, 600)
    group.members += [member(), member(own), member()]
    tasks = [Task(each.wait_for_outcome) for each in group.members]
    group.decide(lambda waiter: TransactionLostError(operation=waiter.operation))
    group.settle()
    for task in tasks:
        task.result()
    first, second, third = (each.failure for each in group.members)
    assert isinstance(first, TransactionLostError)
    assert isinstance(third, TransactionLostError)
    assert first is not third
    assert second is own
    for each in group.members:
        with pytest.raises((TransactionLostError, ValueError)):
            each.outcome()


def test_a_group_that_committed_gives_each_member_its_result() -> None:
    group = Group(10, 600)
    group.members.append(member())
    group.members[0].result = 17
    group.decide(None)
    group.settle()
    group.members[0].wait_for_outcome()
    assert group.members[0].outcome() == 17


def test_ctrl_c_during_the_wait_for_an_outcome_is_raised_after_it() -> None:
    class Interrupted:
        looked = 0

        def acquire(self) -> None:
            self.looked += 1
            if self.looked == 1:
                raise KeyboardInterrupt

    waiter = member()
    waiter.wake = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        waiter.wait_for_outcome()
    assert waiter.wake.looked == 2  # type: ignore[attr-defined]
