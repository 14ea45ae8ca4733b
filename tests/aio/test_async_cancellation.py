"""Cancelled awaits: each call happened or did not, its caller can know, and nothing is left open.

One that has not begun::

    coroutine   call ──────── cancel: withdrawn ─ raises
    worker            waits for the lease ............. finds nothing to do

One that has begun::

    coroutine   call ──────── cancel ...................... answered ─ raises
    worker            BEGIN ─ work ─────────────────── COMMIT
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading

import apsw
import pytest
from aio_kit import call_of, lease_held, queue_of, run, soon, threads
from kits.descriptors import descriptors
from kits.waiting import PATIENCE, until

from mandrake_sessions import SessionManager
from mandrake_sessions.aio import CancelledCall, cancelled_call


async def ended(task):
    """Wait for a cancelled task and return what became of its call."""
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    call = call_of(raised.value)
    assert call is not None
    return call


def test_a_call_that_has_not_begun_never_happens(manager):
    async def main():
        async with manager as sessions:
            with lease_held(sessions.sync):
                first = asyncio.create_task(sessions.create_session("first"))
                second = asyncio.create_task(sessions.create_session("second"))
                await soon(lambda: queue_of(sessions).waiting == 1)
                for task in (first, second):
                    task.cancel()
                    assert await ended(task) == CancelledCall(
                        operation="create_session", is_committed=False
                    )
                # No caller waits any more, and neither does the worker.
                await soon(lambda: queue_of(sessions).waiting == 0)
            assert await sessions.count_sessions() == 0

    run(main())


def test_the_place_in_the_queue_goes_to_the_next_call(manager):
    async def main():
        async with manager as sessions:
            with lease_held(sessions.sync):
                first = asyncio.create_task(sessions.create_session("first"))
                second = asyncio.create_task(sessions.create_session("second"))
                await soon(lambda: queue_of(sessions).waiting == 1)
                first.cancel()
                assert (await ended(first)).is_committed is False
                assert queue_of(sessions).waiting == 1
            assert (await second).title == "second"
            assert await sessions.count_sessions() == 1

    run(main())


def test_a_cancelled_call_does_not_wait_for_another_processes_lock(manager, path):
    async def main():
        async with manager as sessions:
            other = apsw.Connection(str(path))
            other.execute("BEGIN IMMEDIATE")
            connection = sessions.sync.handle.file.writer.connection
            looks = connection.busy_waits
            task = asyncio.create_task(sessions.create_session("never"))
            await soon(lambda: connection.busy_waits > looks)
            task.cancel()
            assert (await ended(task)).is_committed is False
            # The lease is free again though the lock is not.
            await soon(lambda: queue_of(sessions).holder == 0)
            other.execute("ROLLBACK")
            other.close()
            assert await sessions.count_sessions() == 0

    run(main())


@pytest.mark.parametrize("times", [1, 3])
def test_a_call_that_has_begun_is_waited_for(manager, times):
    begun, may_go = threading.Event(), threading.Event()

    def work(tx):
        made = tx.create_session("made")
        begun.set()
        assert may_go.wait(PATIENCE)
        return made.id

    async def main():
        async with manager as sessions:
            task = asyncio.create_task(sessions.transact(work))
            await soon(begun.is_set)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            may_go.set()
            call = await ended(task)
            (session,) = await sessions.list_sessions()
            assert call == CancelledCall(operation="transact", is_committed=True, result=session.id)

    run(main())


def test_a_cancelled_call_that_fails_after_all_says_why(manager):
    begun, may_go = threading.Event(), threading.Event()
    failure = ValueError("no")

    def work(tx):
        begun.set()
        assert may_go.wait(PATIENCE)
        raise failure

    async def main():
        async with manager as sessions:
            task = asyncio.create_task(sessions.transact(work))
            await soon(begun.is_set)
            task.cancel()
            may_go.set()
            call = await ended(task)
            assert (call.is_committed, call.failure) == (False, failure)

    run(main())


def test_a_timeout_stays_a_timeout_and_names_the_outcome(manager):
    may_go = threading.Event()

    async def main():
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(PATIENCE)

        def expire():
            limit.reschedule(loop.time())
            loop.call_later(0.05, may_go.set)

        def work(tx):
            tx.create_session("made")
            # The call has begun: its timeout comes now, and the work ends after it.
            loop.call_soon_threadsafe(expire)
            assert may_go.wait(PATIENCE)

        async with manager as sessions:
            with pytest.raises(TimeoutError) as raised:
                async with limit:
                    await sessions.transact(work)
            assert call_of(raised.value).is_committed is True
            with lease_held(sessions.sync):
                with pytest.raises(TimeoutError) as raised:
                    await asyncio.wait_for(sessions.create_session("never"), 0.02)
                assert call_of(raised.value).is_committed is False
            assert await sessions.count_sessions() == 1

    run(main())


def test_a_cancelled_call_in_a_task_group_leaves_only_the_error_of_the_body(manager):
    async def main():
        async with manager as sessions:
            with lease_held(sessions.sync):
                with pytest.raises(ExceptionGroup) as raised:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(sessions.create_session("never"))
                        await soon(lambda: queue_of(sessions).waiting == 1)
                        raise ValueError("the body fails")
                assert [type(each) for each in raised.value.exceptions] == [ValueError]

    run(main())


def test_a_cancellation_from_elsewhere_has_no_outcome():
    assert cancelled_call(asyncio.CancelledError()) is None
    assert cancelled_call(ValueError()) is None


def test_a_cancelled_read_is_not_waited_for(manager):
    begun, may_go = threading.Event(), threading.Event()

    def read(tx):
        begun.set()
        assert may_go.wait(PATIENCE)

    async def main():
        async with manager as sessions:
            unit = sessions._run_unit(sessions._open_handle(), read, "read", "query")
            task = asyncio.create_task(unit)
            await soon(begun.is_set)
            task.cancel()
            assert (await ended(task)).is_committed is False
            may_go.set()
            assert await sessions.count_sessions() == 0

    run(main())


def test_an_opening_that_is_cancelled_is_undone(manager, path, pool):
    SessionManager(path, pool=pool).init().close()
    until(lambda: not pool.stats().databases)

    async def main():
        other = apsw.Connection(str(path))
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        opening = asyncio.create_task(manager.init())
        await soon(threads)
        opening.cancel()
        await asyncio.sleep(0)
        other.execute("ROLLBACK")
        other.close()
        assert (await ended(opening)).is_committed is False
        assert not manager.is_initialized

    run(main())


def test_a_loop_that_is_closed_leaves_its_calls_to_end(manager):
    begun, may_go = threading.Event(), threading.Event()

    def work(tx):
        begun.set()
        assert may_go.wait(PATIENCE)
        return tx.create_session("made")

    run(manager.init())
    loop = asyncio.new_event_loop()
    task = loop.create_task(manager.transact(work))
    loop.run_until_complete(soon(begun.is_set))
    # Not what anybody should do; the task is destroyed with its loop.
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own way
    loop.close()
    del task
    may_go.set()

    async def main():
        try:
            await soon(lambda: manager.sync.count_sessions() == 1)
            await manager.create_session()
        finally:
            await manager.close()

    run(main())


def test_random_cancellations_lose_nothing(managers, pool):
    """1,000 tasks append to 50 files, and 200 of them are cancelled at random moments."""
    until(lambda: not threads())  # those of the test before
    before_files = len(descriptors())
    dice = random.Random(3)

    cancelled = set(dice.sample(range(1_000), 200))

    async def append(sessions, session_id, number, outcomes):
        if number in cancelled:
            loop, me = asyncio.get_running_loop(), asyncio.current_task()
            assert me is not None
            loop.call_later(dice.choice([0, 0.0001, 0.0005, 0.002, 0.01]), me.cancel)
        try:
            await sessions.create_round(session_id, f"{number}")
            outcomes[number] = True
        except asyncio.CancelledError as error:
            call = call_of(error)
            outcomes[number] = call.is_committed
            if call.is_committed:
                assert call.result.request.content == f"{number}"
            raise

    async def main():
        opened = [await each.init() for each in managers(50)]
        talks = [(await each.create_session()).id for each in opened]
        outcomes: dict[int, bool | None] = {}
        tasks = []
        with contextlib.ExitStack() as held:
            # In some of the files calls have to wait.
            for sessions in opened[::5]:
                held.enter_context(lease_held(sessions.sync))
            for number in range(1_000):
                at = number % 50
                tasks.append(asyncio.create_task(append(opened[at], talks[at], number, outcomes)))
                if number % 100 == 99:
                    await asyncio.sleep(0)
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(outcomes) == 1_000
        for at, sessions in enumerate(opened):
            writer = sessions.sync.handle.file.writer
            await soon(lambda writer=writer: writer.queue.holder == 0)
            assert not writer.connection.in_transaction()
            assert writer.queue.waiting == 0
            stored = {int(r.request.content) for r in await sessions.list_rounds(talks[at])}
            expected = {n for n, is_there in outcomes.items() if is_there and n % 50 == at}
            assert stored == expected
        assert not any(outcomes[n] is None for n in outcomes)
        await asyncio.gather(*(each.close() for each in opened))
        return sum(not each for each in outcomes.values())

    assert 0 < run(main()) < 200
    until(lambda: not threads())
    until(lambda: not pool.stats().databases)
    until(lambda: len(descriptors()) <= before_files)
