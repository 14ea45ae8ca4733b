"""What the layer below offers to a thread that works for many: batched units, and giving up."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from kits.waiting import PATIENCE, until

from mandrake_sessions import DatabaseBusyError, PoolClosedError, StatementError
from mandrake_sessions.database.leasing.queue import LeaseQueue
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.waiters import BatchedUnit
from mandrake_sessions.records.sessions import create_session, list_sessions


def errand(unit, settled):
    return BatchedUnit(Budget(20), "errand", unit, contextvars.copy_context(), settled)


def test_batched_units_share_the_commit_and_are_answered_after_it(sessions):
    file = sessions.handle.file
    answers = []

    def settled(done):
        # The lease is released, and every reader sees the committed rows.
        answers.append(
            (file.writer.queue.holder, done.failure, len(file.read(list_sessions(), "")))
        )

    def fails(tx):
        raise StatementError("no")

    brought = [errand(create_session("b"), settled), errand(fails, settled)]
    commits = file.writer.commits
    made = file.transact(
        create_session("a"), "test", batch=lambda: brought.pop(0) if brought else None
    )

    assert made.title == "a"
    assert file.writer.commits == commits + 1
    assert [(holder, stored) for holder, _, stored in answers] == [(0, 2), (0, 2)]
    assert answers[0][1] is None
    assert isinstance(answers[1][1], StatementError)


def test_batched_units_are_fetched_before_work_of_other_threads(sessions):
    file = sessions.handle.file
    order = []

    def noting(name):
        return lambda tx: order.append(name)

    with ThreadPoolExecutor(1) as executor:

        def first(tx):
            order.append("first")
            other.append(executor.submit(file.transact, noting("other"), "other"))
            until(lambda: file.writer.queue.waiting == 1)

        other: list[Future[str]] = []
        brought = [errand(noting("errand"), lambda _: None)]
        commits = file.writer.commits
        file.transact(first, "test", batch=lambda: brought.pop() if brought else None)
        other[0].result(PATIENCE)

    assert order == ["first", "errand", "other"]
    assert file.writer.commits == commits + 1


@pytest.fixture
def queue(tmp_path):
    """A queue whose lease is held."""
    queue = LeaseQueue(tmp_path)
    assert queue.try_acquire("held")
    return queue


def test_a_waiting_thread_can_be_made_to_give_up(queue):
    with ThreadPoolExecutor(1) as executor:
        ident = executor.submit(threading.get_ident).result()
        assert not queue.give_up(ident)
        waiting = executor.submit(queue.acquire, Budget(20), "waits")
        until(lambda: queue.waiting == 1)
        assert queue.give_up(ident)
        with pytest.raises(DatabaseBusyError) as failed:
            waiting.result(PATIENCE)
    assert failed.value.phase == "queue"
    queue.release()
    assert queue.holder == 0


def test_last_writes_stay_in_a_queue_that_refuses(queue):
    with ThreadPoolExecutor(2) as executor:
        refused = executor.submit(queue.acquire, Budget(20), "refused")
        until(lambda: queue.waiting == 1)
        last = executor.submit(queue.acquire, Budget(20), "last", even_refused=True)
        until(lambda: queue.waiting == 2)
        queue.refuse(PoolClosedError, waiters_too=True)
        with pytest.raises(PoolClosedError):
            refused.result(PATIENCE)
        assert queue.waiting == 1
        queue.release()
        assert last.result(PATIENCE) is None
