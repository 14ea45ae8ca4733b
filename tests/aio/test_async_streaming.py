"""AsyncTurnWriter: how a block ends its turn, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import apsw
import pytest
from aio_kit import Ticker, call_of, lease_held, queue_of, run, soon
from kits.waiting import SOON
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseOptions,
    Durability,
    InvalidArgumentError,
    NotInitializedError,
    PoolOptions,
    ResponseNotFoundError,
    TurnInterruptedError,
    TurnStatus,
)
from mandrake_sessions.aio import AsyncSessionManager


async def response_of(sessions):
    session = await sessions.create_session()
    return (await sessions.create_round(session.id, "Hello?")).response.id


def test_a_block_completes_its_turn(manager):
    async def main():
        async with manager as sessions:
            async with sessions.stream_turn(await response_of(sessions), model="any") as turn:
                for token in ("The lock ", "is held."):
                    turn.write(token)
                turn.write_raw("raw")
                turn.tool_call({"name": "ls"}).set_result(["bin"])
                turn.set_usage(output_tokens=7)
                await turn.flush()
                assert turn.unstored_text == ""
                stored = await sessions.get_turn(turn.id)
                assert (stored.content, stored.status) == ("The lock is held.", "streaming")
            assert turn.is_finished
            assert turn.turn == await sessions.get_turn(turn.id)
            assert (turn.turn.status, turn.turn.output_tokens) == (TurnStatus.COMPLETED, 7)

    run(main())


def test_a_block_that_raises_stores_the_error(manager):
    async def main():
        async with manager as sessions:
            with pytest.raises(ValueError, match="no more"):
                async with sessions.stream_turn(await response_of(sessions)) as turn:
                    turn.write("half")
                    raise ValueError("no more")
            stored = await sessions.get_turn(turn.id)
            assert (stored.status, stored.content) == (TurnStatus.ERROR, "half")
            assert stored.error_message == "ValueError: no more"

    run(main())


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_block_is_interrupted_before_the_cancellation_goes_on(manager, times):
    async def stream(sessions, response_id, begun):
        async with sessions.stream_turn(response_id) as turn:
            turn.write("half")
            begun.set_result(turn)
            await asyncio.Event().wait()

    async def main():
        async with manager as sessions:
            begun = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(stream(sessions, await response_of(sessions), begun))
            turn = await begun
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            stored = await sessions.get_turn(turn.id)
            assert (stored.status, stored.content) == (TurnStatus.INTERRUPTED, "half")

    run(main())


def test_a_timeout_around_a_block_is_a_timeout(manager):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), sessions.stream_turn(response_id) as turn:
                    turn.write("half")
                    await asyncio.Event().wait()
            assert (await sessions.get_turn(turn.id)).status is TurnStatus.INTERRUPTED

    run(main())


def test_a_cancelled_beginning_leaves_no_streaming_turn(manager):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            with lease_held(sessions.sync):
                beginning = asyncio.create_task(sessions.stream_turn(response_id).begin())
                await soon(lambda: queue_of(sessions).waiting == 1)
                beginning.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await beginning

            await soon(lambda: not sessions.sync.get_streaming_status(response_id).streaming)

    run(main())


@pytest.mark.parametrize("holder", ["a thread", "another process"])
def test_a_cancelled_beginning_does_not_wait_for_the_lease(manager, path, holder):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            foreign = apsw.Connection(str(path))
            with contextlib.ExitStack() as stack:
                if holder == "a thread":
                    stack.enter_context(lease_held(sessions.sync))
                else:
                    foreign.execute("BEGIN IMMEDIATE")
                    stack.callback(foreign.close)
                beginning = asyncio.create_task(sessions.stream_turn(response_id).begin())
                queue = queue_of(sessions)
                await soon(lambda: queue.waiting or queue.operation == "stream_turn")
                beginning.cancel()
                # The lease comes back only after this block.
                with pytest.raises(asyncio.CancelledError) as raised:
                    await beginning
            assert call_of(raised.value).is_committed is False
            assert not await sessions.list_turns(response_id)
            async with sessions.stream_turn(response_id) as turn:
                turn.write("the next one is not disturbed")

    run(main())


def test_a_cancelled_block_does_not_wait_long_for_another_processes_lock(manager, path):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            foreign = apsw.Connection(str(path))
            begun = asyncio.Event()

            async def agent():
                async with sessions.stream_turn(response_id) as turn:
                    turn.write("as far as it came")
                    await turn.flush()
                    begun.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(agent())
            await begun.wait()
            foreign.execute("BEGIN IMMEDIATE")
            task.cancel()
            # The lock goes only after this; the budget of a call would be a minute.
            done, _ = await asyncio.wait((task,), timeout=SOON)
            assert done == {task}
            assert task.cancelled()
            foreign.close()
            # The end is stored in the background, and its watchers receive it.
            async with sessions.watch_response(response_id) as watch:
                *_, last = [update async for update in watch]
            assert last.turn.status is TurnStatus.INTERRUPTED
            assert last.turn.content == "as far as it came"

    run(main())


def test_cancelling_a_block_that_an_exception_left_waits_a_second_at_most(manager, path):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            foreign = apsw.Connection(str(path))
            left = asyncio.Event()

            async def agent():
                async with sessions.stream_turn(response_id) as turn:
                    turn.write("half")
                    await turn.flush()
                    foreign.execute("BEGIN IMMEDIATE")
                    left.set()
                    raise ValueError("no more")

            task = asyncio.create_task(agent())
            await left.wait()
            # The end of the block waits for the lock by now.
            await asyncio.sleep(0)
            task.cancel()
            # The lock goes only after this; the budget of the end would be a minute.
            done, _ = await asyncio.wait((task,), timeout=SOON)
            assert done == {task}
            assert task.cancelled()
            foreign.close()
            async with sessions.watch_response(response_id) as watch:
                *_, last = [update async for update in watch]
            assert last.turn.status is TurnStatus.ERROR

    run(main())


def test_a_beginning_keeps_its_timeout(manager):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            with lease_held(sessions.sync):
                for _ in range(2):
                    with pytest.raises(DatabaseBusyError):
                        await sessions.stream_turn(response_id, timeout=0.05).begin()
                # Behind another call it runs out in the worker's queue.
                other = asyncio.create_task(sessions.create_session())
                await soon(lambda: queue_of(sessions).waiting == 1)
                with pytest.raises(DatabaseBusyError):
                    await sessions.stream_turn(response_id, timeout=0.05).begin()
                assert not other.done()
            await other
            assert not await sessions.list_turns(response_id)

    run(main())


def test_a_block_whose_turn_the_manager_has_ended_adds_no_note_and_no_event(manager):
    async def main():
        await manager.init()
        response_id = await response_of(manager)
        with capture_logs() as logs, pytest.raises(KeyError) as raised:
            async with manager.stream_turn(response_id) as turn:
                turn.write("half")
                await manager.close()
                raise KeyError
        assert not getattr(raised.value, "__notes__", [])
        assert not [entry for entry in logs if entry["event"] == "stream_end_failed"]
        async with manager as sessions:
            stored = await sessions.get_turn(turn.id)
            assert (stored.status, stored.content) == (TurnStatus.INTERRUPTED, "half")

    run(main())


def test_a_cancelled_end_names_its_outcome(manager):
    async def main():
        async with manager as sessions:
            turn = await sessions.stream_turn(await response_of(sessions)).begin()
            turn.write("whole")
            with lease_held(sessions.sync):
                ending = asyncio.create_task(turn.complete())
                await soon(lambda: queue_of(sessions).waiting == 1)
                ending.cancel()
                await asyncio.sleep(0)
                assert not ending.done()
            with pytest.raises(asyncio.CancelledError) as raised:
                await ending
            call = call_of(raised.value)
            assert call.is_committed is True
            assert call.result == await sessions.get_turn(turn.id)
            assert call.result.status is TurnStatus.COMPLETED

    run(main())


def test_a_block_may_end_its_turn_itself(manager):
    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            async with sessions.stream_turn(response_id) as turn:
                await turn.fail("out of memory")
            assert turn.turn.error_message == "out of memory"
            async with sessions.stream_turn(response_id) as turn:
                await turn.interrupt()
            assert turn.turn.status is TurnStatus.INTERRUPTED
            async with sessions.stream_turn(response_id) as turn:
                await asyncio.to_thread(turn.sync.fail, "by a thread")
            assert turn.turn.error_message == "by a thread"

    run(main())


def test_a_block_waits_for_its_end_with_the_longest_busy_timeout(path):
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=86_400)

    async def main(pool):
        async with AsyncSessionManager(path, pool=pool) as sessions:
            async with sessions.stream_turn(await response_of(sessions)) as turn:
                turn.write("patient")
                await turn.flush()
            assert turn.turn.status is TurnStatus.COMPLETED

    with ConnectionPool(PoolOptions(database=options, linger=0)) as pool:
        run(main(pool))


def test_a_writer_far_ahead_gives_way_in_a_thread_and_never_in_the_event_loop(manager, monkeypatch):
    paused = set()
    sleep = time.sleep

    def noted(seconds):
        paused.add(threading.get_ident())
        sleep(seconds)

    def write_much(write):
        for _ in range(5_000):
            write("a token of the model")
        return threading.get_ident()

    async def main():
        async with manager as sessions:
            async with sessions.stream_turn(await response_of(sessions)) as turn:
                # The flusher stays behind as long as it waits for the lease.
                with lease_held(sessions.sync):
                    assert write_much(turn.write) not in paused
                    assert await asyncio.to_thread(write_much, turn.sync.write) in paused
            assert len(turn.turn.content) == 200_000

    monkeypatch.setattr(time, "sleep", noted)
    run(main())


def test_another_task_can_stop_a_stream(manager):
    async def main():
        async with manager as sessions:
            turn = await sessions.stream_turn(await response_of(sessions)).begin()
            turn.write("A long ")
            await turn.flush()
            await sessions.update_turn(turn.id, status="interrupted")
            with pytest.raises(TurnInterruptedError):
                turn.write("answer")
                await turn.complete()
            assert (await sessions.get_turn(turn.id)).status is TurnStatus.INTERRUPTED

    run(main())


def test_a_stream_with_wrong_arguments_is_refused(manager):
    async def main():
        async with manager as sessions:
            with pytest.raises(ResponseNotFoundError):
                async with sessions.stream_turn("missing"):
                    pass
            with pytest.raises(InvalidArgumentError):
                async with sessions.stream_turn(7):
                    pass
            turn = sessions.stream_turn(await response_of(sessions))
            with pytest.raises(NotInitializedError):
                turn.write("too early")
        with pytest.raises(NotInitializedError):
            manager.stream_turn("response")

    run(main())


def test_closing_the_manager_interrupts_its_streams(manager):
    async def main():
        await manager.init()
        turn = await manager.stream_turn(await response_of(manager)).begin()
        turn.write("half")
        await manager.close()
        assert turn.is_finished
        async with manager as sessions:
            stored = await sessions.get_turn(turn.id)
            assert (stored.status, stored.content) == (TurnStatus.INTERRUPTED, "half")

    run(main())


def test_a_flush_keeps_its_timeout_and_the_loop_goes_on(path):
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=5)

    async def main(pool):
        async with AsyncSessionManager(path, pool=pool) as sessions, Ticker() as ticker:
            turn = await sessions.stream_turn(await response_of(sessions)).begin()
            other = apsw.Connection(str(path))
            other.execute("BEGIN IMMEDIATE")
            turn.write("held up")
            before = ticker.turns
            with pytest.raises(DatabaseBusyError):
                await turn.flush(timeout=0.6)
            assert ticker.turns > before + 20
            other.execute("ROLLBACK")
            other.close()
            await turn.complete()
            assert turn.turn.content == "held up"

    with ConnectionPool(PoolOptions(database=options, linger=0)) as pool:
        run(main(pool))
