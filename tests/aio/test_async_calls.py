"""Calls of coroutines: their results, their errors, their context, and what they share."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading

import apsw
import pytest
from aio_kit import Ticker, lease_held, queue_of, run, soon, threads
from kits.waiting import until

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseOptions,
    Durability,
    InvalidArgumentError,
    NotInitializedError,
    PoolOptions,
    ReentrantScopeError,
    SessionManager,
    SessionNotFoundError,
    TransactionLostError,
)
from mandrake_sessions.aio import AsyncSessionManager

where = contextvars.ContextVar("where", default="nowhere")


def test_every_record_method_has_its_twin():
    missing = [
        name
        for name in dir(SessionManager)
        if not name.startswith("_") and not hasattr(AsyncSessionManager, name)
    ]

    # No block: a lease must not be held across an await.
    assert missing == ["transaction"]


@pytest.mark.parametrize("name", ["create_round", "get_turn", "list_sessions"])
def test_a_twin_has_the_signature_and_the_docstring_of_its_method(name):
    twin, method = getattr(AsyncSessionManager, name), getattr(SessionManager, name)

    assert inspect.iscoroutinefunction(twin)
    assert inspect.signature(twin) == inspect.signature(method)
    assert twin.__doc__ == method.__doc__


def test_written_records_are_read_back(manager):
    async def main():
        async with manager as sessions:
            session = await sessions.create_session("A talk")
            round_ = await sessions.create_round(session.id, "Hello?")
            turn = await sessions.create_turn(
                round_.response.id, content="Hello.", status="completed"
            )
            history = await sessions.render_session_history(session.id)
            assert history.rounds[0].turns == (turn,)
            assert [each async for each in sessions.iter_session_history(session.id)] == list(
                history.rounds
            )
            assert (await sessions.get_round(round_.id)).request == round_.request
            assert (await sessions.health()).is_usable
            assert (await sessions.stats()).units >= 3
        assert not manager.is_initialized

    run(main())


def test_errors_are_those_of_the_sync_face(manager):
    async def main():
        with pytest.raises(NotInitializedError):
            await manager.create_session()
        async with manager as sessions:
            with pytest.raises(SessionNotFoundError):
                await sessions.get_session("missing")
            with pytest.raises(SessionNotFoundError):
                await sessions.create_round("missing", "Hello?")
            with pytest.raises(InvalidArgumentError):
                await sessions.create_session(5)
            with pytest.raises(InvalidArgumentError):
                await sessions.transact(lambda tx: None, timeout=-1)
        with pytest.raises(NotInitializedError):
            await manager.create_session()

    run(main())


def test_calls_that_queue_share_a_commit_and_fail_alone(manager):
    async def main():
        async with manager as sessions:
            session = await sessions.create_session()
            with lease_held(sessions.sync):
                calls = [
                    asyncio.create_task(
                        sessions.create_round(session.id if number % 3 else "missing", f"{number}")
                    )
                    for number in range(30)
                ]
                await soon(lambda: queue_of(sessions).waiting == 1)
                before = (await sessions.stats()).commits
            made = await asyncio.gather(*calls, return_exceptions=True)
            after = (await sessions.stats()).commits
            rounds = await sessions.list_rounds(session.id)

        assert [isinstance(each, SessionNotFoundError) for each in made] == [
            number % 3 == 0 for number in range(30)
        ]
        assert [each.request.content for each in rounds] == [
            str(number) for number in range(30) if number % 3
        ]
        # The first call's own transaction was undone; the second brought the others along. One
        # more is that of the thread that held the lease.
        assert after - before == 2

    run(main())


def test_a_call_sees_its_callers_context(manager):
    async def place(sessions, name):
        where.set(name)
        return await sessions.transact(lambda tx: (where.get(), tx.count_sessions()))

    async def main():
        async with manager as sessions:
            places = await asyncio.gather(*(place(sessions, f"task {n}") for n in range(20)))
            assert places == [(f"task {n}", 0) for n in range(20)]
            assert where.get() == "nowhere"

    run(main())


def test_a_hosts_function_runs_in_the_managers_own_thread_only(manager):
    async def main():
        async with manager as sessions:
            ran_in = []

            def work(tx):
                ran_in.append(threading.current_thread().name)
                return tx.create_session().id

            with lease_held(sessions.sync):
                calls = [asyncio.create_task(sessions.transact(work)) for _ in range(5)]
                await soon(lambda: queue_of(sessions).waiting == 1)
            made = await asyncio.gather(*calls)
            assert set(ran_in) == {"mandrake-async write"}
            assert {each.id for each in await sessions.list_sessions()} == set(made)

    run(main())


class Stop(BaseException):
    """No Exception."""


@pytest.mark.parametrize("kind", [ValueError, Stop, asyncio.CancelledError])
def test_an_exception_of_a_hosts_function_reaches_its_caller_alone(manager, kind):
    async def main():
        async with manager as sessions:

            def work(tx):
                tx.create_session("gone")
                raise kind("no")

            with lease_held(sessions.sync):
                calls = [
                    asyncio.create_task(sessions.create_session("first")),
                    asyncio.create_task(sessions.transact(work)),
                    asyncio.create_task(sessions.create_session("last")),
                ]
                await soon(lambda: queue_of(sessions).waiting == 1)
            made = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(made[1], kind)
            titles = {each.title for each in await sessions.list_sessions()}
            assert titles == {"first", "last"}

    run(main())


def test_a_coroutine_function_is_refused(manager):
    async def work(tx):
        raise AssertionError("it was called")

    def returning(function, tx):
        return function(tx)

    async def main():
        async with manager as sessions:
            with pytest.raises(InvalidArgumentError):
                await sessions.transact(work)
            with pytest.raises(InvalidArgumentError):
                await sessions.transact(functools.partial(returning, work))
            with pytest.raises(InvalidArgumentError):
                await sessions.transact("work")

    run(main())


def test_a_hosts_function_must_use_its_transaction(manager):
    async def main():
        async with manager as sessions:
            with pytest.raises(ReentrantScopeError):
                await sessions.transact(lambda tx: sessions.sync.create_session())
            assert await sessions.count_sessions() == 0

    run(main())


def test_a_transaction_that_is_lost_is_run_again(manager):
    lost: list[int] = []

    def work(tx):
        made = tx.create_session("kept").id
        if not lost:
            lost.append(1)
            # What SQLite does by itself when, say, the disk is full.
            manager.sync.handle.file.writer.connection.raw.execute("ROLLBACK")
        return made

    async def main():
        async with manager as sessions:
            with lease_held(sessions.sync):
                calls = [
                    asyncio.create_task(sessions.create_session("before")),
                    asyncio.create_task(sessions.create_session("before too")),
                    asyncio.create_task(sessions.transact(work)),
                    asyncio.create_task(sessions.create_session("after")),
                ]
                await soon(lambda: queue_of(sessions).waiting == 1)
            made = await asyncio.gather(*calls, return_exceptions=True)
            titles = sorted(each.title for each in await sessions.list_sessions())
            # What lost it gets the error, as in a thread; what shared it is run again.
            assert isinstance(made[2], TransactionLostError | str)
            assert [title for title in titles if title != "kept"] == [
                "after",
                "before",
                "before too",
            ]

    run(main())


def test_a_timeout_is_kept_while_others_are_waited_for(manager):
    async def main():
        async with manager as sessions:
            with lease_held(sessions.sync):
                first = asyncio.create_task(sessions.create_session("first"))
                await soon(lambda: queue_of(sessions).waiting == 1)
                with pytest.raises(DatabaseBusyError) as failed:
                    await sessions.transact(lambda tx: tx.create_session("late"), timeout=0.1)
                assert failed.value.phase == "queue"
                assert not first.done()
            await first
            assert [each.title for each in await sessions.list_sessions()] == ["first"]

    run(main())


def test_a_lock_of_another_process_raises_as_in_the_sync_face(path):
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=1.0)

    async def main(pool):
        async with AsyncSessionManager(path, pool=pool) as sessions, Ticker() as ticker:
            other = apsw.Connection(str(path))
            other.execute("BEGIN IMMEDIATE")
            before = ticker.turns
            made = await asyncio.gather(
                *(sessions.create_session() for _ in range(4)), return_exceptions=True
            )
            assert ticker.turns > before + 20
            other.execute("ROLLBACK")
            other.close()
            assert {type(each) for each in made} == {DatabaseBusyError}
            await sessions.create_session()
            assert await sessions.count_sessions() == 1

    with ConnectionPool(PoolOptions(database=options, linger=0)) as pool:
        run(main(pool))


def test_two_event_loops_in_two_threads_share_a_manager(manager, in_threads):
    run(manager.init())
    session = manager.sync.create_session()

    def one_loop(number):
        async def main():
            calls = (manager.create_round(session.id, f"{number}.{n}") for n in range(100))
            return [round_.request.content for round_ in await asyncio.gather(*calls)]

        return run(main())

    try:
        for number, contents in enumerate(in_threads(2, one_loop)):
            assert contents == [f"{number}.{n}" for n in range(100)]
        assert len(manager.sync.list_rounds(session.id)) == 200
    finally:
        run(manager.close())


def test_a_history_that_is_left_early_holds_nothing(manager):
    async def main():
        async with manager as sessions:
            session = await sessions.create_session()
            for number in range(10):
                await sessions.create_round(session.id, f"{number}")
            pages = sessions.iter_session_history(session.id, page_size=2)
            async for exchange in pages:
                if exchange.index == 4:
                    break
            await pages.aclose()
            with pytest.raises(SessionNotFoundError):
                await anext(sessions.iter_session_history("missing"))
            with pytest.raises(InvalidArgumentError):
                sessions.iter_session_history(session.id, page_size=0)

    run(main())


def test_an_idle_thread_ends_and_another_is_started(manager, monkeypatch):
    monkeypatch.setattr("mandrake_sessions.aio.workers.IDLE_SECONDS", 0.01)

    async def main():
        async with manager as sessions:
            for number in range(3):
                await sessions.create_session(f"{number}")
                await sessions.count_sessions()
                await soon(lambda: not threads())

    run(main())


def test_a_forgotten_manager_leaves_no_thread(manager, sessions):
    def forget():
        other = AsyncSessionManager._over(sessions)
        run(other.create_session())
        assert threads()

    forget()
    until(lambda: not threads())
