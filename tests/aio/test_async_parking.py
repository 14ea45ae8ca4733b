"""The asyncio face on files that gave way to others: nothing waits for them in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aio_kit import run, soon

from mandrake_sessions import (
    ConnectionPool,
    DatabaseMovedError,
    PoolOptions,
    ResponseNotFoundError,
    TurnStatus,
)
from mandrake_sessions.aio import AsyncSessionManager, workers
from mandrake_sessions.database.open_file.file import DatabaseFile


@pytest.fixture
def small_pool() -> Any:
    """A pool in which two files may be open."""
    with ConnectionPool(PoolOptions(linger=0, max_open=2)) as pool:
        yield pool


@contextlib.asynccontextmanager
async def five(
    small_pool: ConnectionPool, tmp_path: Path
) -> AsyncIterator[list[AsyncSessionManager]]:
    """Five open managers; the files of the first three are parked."""
    made = [AsyncSessionManager(tmp_path / f"{number}", pool=small_pool) for number in range(5)]
    for manager in made:
        await manager.init()
    assert [parked(manager) for manager in made] == [True, True, True, False, False]
    yield made
    for manager in made:
        await manager.close()


def parked(manager: AsyncSessionManager) -> bool:
    """Return whether the manager's file is closed for others."""
    return manager.handle._file.is_parked


def with_five(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a coroutine function as a test of five managers."""

    def run_it(small_pool: ConnectionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with five(small_pool, tmp_path) as managers:
                await test(managers, monkeypatch)

        run(main())

    run_it.__name__ = test.__name__
    return run_it


async def response_of(manager: AsyncSessionManager) -> str:
    """Return the id of a new response."""
    session = await manager.create_session("A talk")
    return (await manager.create_round(session.id, "Hello?")).response.id


@with_five
async def test_every_kind_of_call_opens_a_parked_file_again(
    managers: list[AsyncSessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, *_ = managers
    session = await first.create_session("A talk")
    assert (await second.count_sessions(), await third.find_session("none")) == (0, None)
    assert parked(first)
    assert (await first.get_session(session.id)).title == "A talk"
    await asyncio.gather(*(manager.create_session("More") for manager in managers * 4))
    assert [await manager.count_sessions() for manager in managers] == [5, 4, 4, 4, 4]
    made = await second.transact(lambda tx: tx.create_session("By hand"))
    assert await second.get_session(made.id) == made


@with_five
async def test_a_turn_that_streams_keeps_its_file_open(
    managers: list[AsyncSessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = managers
    response = await response_of(first)
    for other in others:
        await other.count_sessions()
    assert parked(first)
    async with first.stream_turn(response) as turn:
        turn.write("one ")
        for other in others:
            await other.count_sessions()
        assert not parked(first)
        turn.write("two")
    for other in others:
        await other.count_sessions()
    assert parked(first)
    assert (await first.get_turn(turn.id)).content == "one two"


@with_five
async def test_create_turn_claims_the_file_that_is_open(
    managers: list[AsyncSessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = managers
    response = await response_of(first)
    for other in others:
        await other.count_sessions()
    turn = await first.create_turn(response, status=TurnStatus.STREAMING)
    assert await first.recover_interrupted() == []
    assert (await first.get_turn(turn.id)).status is TurnStatus.STREAMING
    await first.update_turn(turn.id, status=TurnStatus.COMPLETED)


@with_five
async def test_a_watcher_of_a_parked_file_receives_updates(
    managers: list[AsyncSessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = managers
    response = await response_of(first)
    for other in others:
        await other.count_sessions()
    assert parked(first)
    opened_in: list[int] = []
    really_open = DatabaseFile.open

    def open_(*args: Any, **options: Any) -> DatabaseFile:
        opened_in.append(threading.get_ident())
        return really_open(*args, **options)

    monkeypatch.setattr(DatabaseFile, "open", open_)
    watch = first.watch_response(response)
    await first.create_turn(response, content="Said", status=TurnStatus.COMPLETED)
    contents = [update.turn.content async for update in watch]
    assert contents[-1] == "Said"
    assert opened_in
    assert threading.get_ident() not in opened_in


@with_five
async def test_the_first_step_of_a_watch_in_a_parked_file_raises_for_a_missing_target(
    managers: list[AsyncSessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, *_ = managers
    with pytest.raises(ResponseNotFoundError):
        await anext(first.watch_response("none"))
    with pytest.raises(ResponseNotFoundError):
        await second.track_streaming_turns("none", print)
    third.path.unlink()
    with pytest.raises(DatabaseMovedError):
        await anext(third.watch_session("none"))


@with_five
async def test_a_watch_that_is_closed_before_its_file_is_open_leaves_nothing(
    managers: list[AsyncSessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = managers[0]
    opening, may_go = threading.Event(), threading.Event()
    really_open = DatabaseFile.open

    def slow(*args: Any, **options: Any) -> DatabaseFile:
        opening.set()
        may_go.wait(20.0)
        return really_open(*args, **options)

    monkeypatch.setattr(DatabaseFile, "open", slow)
    watch = first.watch_session("none")
    await asyncio.to_thread(opening.wait, 20.0)
    watch.close()
    may_go.set()
    assert await first.count_sessions() == 0
    await soon(lambda: first.subscriptions == 0)


def test_threads_of_many_managers_end_soon(
    small_pool: ConnectionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above a crowd of idle ones; below it they wait for the next call."""
    monkeypatch.setattr(workers, "CROWD", 4)

    def idle() -> int:
        return sum(thread.name.startswith("mandrake-async") for thread in threading.enumerate())

    async def main() -> None:
        made = [AsyncSessionManager(tmp_path / f"{at}", pool=small_pool) for at in range(20)]
        for manager in made:
            await manager.init()
            await manager.create_session("A talk")
        await soon(lambda: idle() <= 5)
        assert idle() >= 1
        for manager in made:
            assert await manager.count_sessions() == 1
            await manager.close()

    run(main())
