"""Watching and listening in an event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import structlog.testing
from aio_kit import run, soon

from mandrake_sessions import (
    InvalidArgumentError,
    ResponseNotFoundError,
    SessionNotFoundError,
    Turn,
    TurnNotFoundError,
    TurnStatus,
    TurnUpdate,
)


async def response_of(sessions):
    session = await sessions.create_session()
    return (await sessions.create_round(session.id, "Hello?")).response.id


def test_a_watch_delivers_a_stream_of_the_same_loop(manager):
    async def answer(sessions, response_id):
        async with sessions.stream_turn(response_id) as turn:
            for number in range(50):
                turn.write(f"{number} ")
                await asyncio.sleep(0.001)

    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            agent = asyncio.create_task(answer(sessions, response_id))
            shown = ""
            async for update in sessions.watch_response(response_id):
                shown = shown[: update.offset] + update.text
            await agent
            assert shown == "".join(f"{number} " for number in range(50))
            assert update.status is TurnStatus.COMPLETED
            await soon(lambda: sessions.subscriptions == 0)

    run(main())


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_a_listener_is_called_in_the_loop(manager, is_coroutine):
    async def main():
        received, done = [], asyncio.Event()

        def hear(update):
            received.append((threading.current_thread(), update.turn.content))
            if update.status.is_finished:
                done.set()

        async def hear_slowly(update):
            await asyncio.sleep(0)
            hear(update)

        async with manager as sessions:
            response_id = await response_of(sessions)
            subscription = await sessions.track_streaming_turns(
                response_id, hear_slowly if is_coroutine else hear
            )
            async with sessions.stream_turn(response_id) as turn:
                turn.write("Hello.")
            await done.wait()
            assert {thread for thread, _ in received} == {threading.current_thread()}
            assert received[-1][1] == "Hello."
            await soon(lambda: subscription.is_closed and sessions.subscriptions == 0)

    run(main())


def test_a_listener_of_one_turn_is_called_until_it_is_closed(manager):
    async def main():
        received: asyncio.Queue[Any] = asyncio.Queue()
        async with manager as sessions:
            turn = await sessions.create_turn(await response_of(sessions))
            with await sessions.add_turn_update_listener(turn.id, received.put):
                for text in ("a", "ab", "abc"):
                    await sessions.update_turn(turn.id, content=text)
                    while (await received.get()).turn.content != text:
                        pass
            await soon(lambda: sessions.subscriptions == 0)
            await sessions.update_turn(turn.id, content="unheard")
            await sessions.get_turn(turn.id)
            assert received.empty()

    run(main())


def test_a_listener_that_raises_receives_the_next_update_all_the_same(manager):
    async def main():
        done, text = asyncio.Event(), f"{7 * 11 * 13} words"

        async def hear(update):
            if update.status.is_finished:
                done.set()
            # Also a cancellation that is not the listener's own.
            raise asyncio.CancelledError if update.turn.content else ValueError(text)

        async with manager as sessions:
            response_id = await response_of(sessions)
            await sessions.track_streaming_turns(response_id, hear)
            turn = await sessions.create_turn(response_id)
            await sessions.update_turn(turn.id, content="text")
            await sessions.update_turn(turn.id, status="completed")
            await done.wait()

    with structlog.testing.capture_logs() as logs:
        run(main())
    failed = [entry for entry in logs if entry["event"] == "listener_failed"]
    assert failed
    assert "1001 words" not in str(failed)


def test_a_listener_may_call_the_manager_and_close_itself(manager):
    async def main():
        seen: asyncio.Queue[Turn] = asyncio.Queue()
        async with manager as sessions:
            turn = await sessions.create_turn(await response_of(sessions))

            async def hear(update):
                seen.put_nowait(await sessions.get_turn(update.id))
                subscription.close()

            subscription = await sessions.add_turn_update_listener(turn.id, hear)
            await sessions.update_turn(turn.id, content="new")
            assert (await seen.get()).content == "new"
            await soon(lambda: sessions.subscriptions == 0)

    run(main())


def test_watching_a_missing_target_raises(manager):
    async def main():
        async with manager as sessions:
            with pytest.raises(ResponseNotFoundError):
                await anext(sessions.watch_response("missing"))
            with pytest.raises(SessionNotFoundError):
                await anext(sessions.watch_session("missing"))
            with pytest.raises(ResponseNotFoundError):
                await sessions.track_streaming_turns("missing", print)
            with pytest.raises(TurnNotFoundError):
                await sessions.add_turn_update_listener("missing", print)
            with pytest.raises(InvalidArgumentError):
                await sessions.add_turn_update_listener("missing", "print")
            with pytest.raises(InvalidArgumentError):
                sessions.watch_session("missing", last=-1)
            assert sessions.subscriptions == 0

    run(main())


def test_closing_the_manager_ends_its_watches(manager):
    async def follow(watch):
        return [update async for update in watch]

    async def main():
        await manager.init()
        response_id = await response_of(manager)
        turn = await manager.create_turn(response_id)
        watching = asyncio.create_task(follow(manager.watch_response(response_id)))
        received: list[TurnUpdate] = []
        await manager.track_streaming_turns(response_id, received.append)
        await soon(lambda: received)
        await manager.close()
        assert [update.id for update in await watching] == [turn.id]

    run(main())


def test_a_cancelled_watch_is_forgotten(manager):
    async def follow(sessions, response_id):
        async with sessions.watch_response(response_id) as watch:
            async for _ in watch:
                pass

    async def main():
        async with manager as sessions:
            response_id = await response_of(sessions)
            task = asyncio.create_task(follow(sessions, response_id))
            await soon(lambda: sessions.subscriptions == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await soon(lambda: sessions.subscriptions == 0)

    run(main())


def test_a_listener_ends_with_its_loop(manager):
    async def listen():
        await manager.init()
        response_id = await response_of(manager)
        await manager.track_streaming_turns(response_id, print)

    async def close():
        await soon(lambda: manager.subscriptions == 0)
        await manager.close()

    run(listen())
    run(close())
