"""Opening, closing and deleting, while calls are made and while they wait."""

from __future__ import annotations

import asyncio

import pytest
from aio_kit import Ticker, lease_held, queue_of, run, soon, threads
from kits.waiting import SOON, until

from mandrake_sessions import DatabaseMissingError, InvalidArgumentError, NotInitializedError
from mandrake_sessions.aio import AsyncSessionManager


def test_closing_lets_the_calls_end_that_wait(manager):
    async def main():
        await manager.init()
        with lease_held(manager.sync):
            calls = [asyncio.create_task(manager.create_session(f"{n}")) for n in range(20)]
            await soon(lambda: queue_of(manager).waiting == 1)
            closing = asyncio.create_task(manager.close())
            await soon(lambda: not manager.is_initialized)
            with pytest.raises(NotInitializedError):
                await manager.create_session("late")
            assert not closing.done()
        await closing
        assert [(await each).title for each in calls] == [f"{n}" for n in range(20)]
        assert not manager.is_initialized
        async with manager as sessions:
            assert await sessions.count_sessions() == 20

    run(main())
    until(lambda: not threads())


def test_closing_does_not_wait_for_withdrawn_calls(manager, sessions):
    async def main():
        await manager.init()
        # Of the same file, which so stays open.
        with lease_held(sessions):
            call = asyncio.create_task(manager.create_session("never"))
            await soon(lambda: queue_of(manager).waiting == 1)
            call.cancel()
            await manager.close()

    run(main())
    until(lambda: not threads())


def test_a_manager_opens_and_closes_any_number_of_times(manager):
    async def main():
        await asyncio.gather(*(manager.init() for _ in range(5)))
        await manager.create_session()
        await asyncio.gather(*(manager.close() for _ in range(5)))
        await manager.close()
        for _ in range(3):
            async with manager as sessions:
                assert sessions is manager
                assert await sessions.count_sessions() == 1

    run(main())


def test_a_manager_outlives_its_event_loop(manager):
    run(manager.init())
    run(manager.create_session())
    run(manager.create_session())
    run(manager.close())
    until(lambda: not threads())


def test_deleting_removes_the_file(manager, path, pool):
    async def main():
        async with manager as sessions:
            await sessions.create_session()
            with pytest.raises(InvalidArgumentError):
                await sessions.delete(timeout=-1)
            await sessions.delete()
            assert not path.exists()
        with pytest.raises(DatabaseMissingError):
            await AsyncSessionManager(path, pool=pool, create=False).init()

    run(main())


def test_a_backup_is_made_while_other_calls_run(manager, tmp_path, pool):
    async def main():
        async with manager as sessions:
            await sessions.create_session("kept")
            copy = await sessions.backup(tmp_path / "copy.sqlite")
            async with AsyncSessionManager(copy, pool=pool) as copied:
                assert [each.title for each in await copied.list_sessions()] == ["kept"]

    run(main())


def test_the_loop_is_not_blocked(manager):
    async def main():
        async with Ticker() as ticker, manager as sessions:
            session = await sessions.create_session()
            with lease_held(sessions.sync):
                calls = [
                    asyncio.create_task(sessions.create_round(session.id, f"{n}"))
                    for n in range(50)
                ]
                await soon(lambda: queue_of(sessions).waiting == 1)
                assert len(await sessions.list_rounds(session.id)) == 0
                await sessions.health()
            await asyncio.gather(*calls)
        return ticker.longest

    # A call that waited in the loop would never end.
    assert run(main()) < SOON
