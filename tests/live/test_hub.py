"""The parts of a hub, which are made at their first use, and what ends them before and after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from kits.waiting import PATIENCE

from mandrake_sessions import (
    ConnectionPool,
    DatabaseMovedError,
    ForkedPoolError,
    MandrakeSessionsError,
    PoolClosedError,
    SessionManager,
)
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.live.hub import Hub


def hub_and_response(sessions: SessionManager) -> tuple[Hub, str]:
    session = sessions.create_session()
    return Hub.of(file_handle(sessions.handle).file), sessions.create_round(
        session.id, "q"
    ).response.id


def test_an_opening_and_a_closing_make_neither_flusher_nor_follower(
    path: Path, pool: ConnectionPool
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        hub, _ = hub_and_response(sessions)
        assert sessions.subscriptions == 0

    assert (hub._flusher, hub._follower) == (None, None)


def test_threads_that_come_at_once_get_the_same_parts(path: Path, pool: ConnectionPool) -> None:
    with SessionManager(path, pool=pool) as sessions:
        hub, _ = hub_and_response(sessions)
        found: list[tuple[object, object]] = []
        start = threading.Barrier(8)

        def take() -> None:
            start.wait(PATIENCE)
            found.append((hub.flusher, hub.follower))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

        assert found == [(hub.flusher, hub.follower)] * 8


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda hub: hub.close(0.0), PoolClosedError),
        (lambda hub: hub.retired(), DatabaseMovedError),
        (lambda hub: hub.forget_after_fork(), ForkedPoolError),
    ],
    ids=["closed", "retired", "forked"],
)
def test_a_follower_that_is_made_after_the_end_takes_no_subscription(
    path: Path,
    pool: ConnectionPool,
    end: Callable[[Hub], None],
    error: type[MandrakeSessionsError],
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        hub, response_id = hub_and_response(sessions)
        end(hub)

        with pytest.raises(error):
            sessions.watch_response(response_id)
        assert sessions.subscriptions == 0


@pytest.mark.parametrize(
    "end",
    [lambda hub: hub.close(0.0), lambda hub: hub.forget_after_fork()],
    ids=["closed", "forked"],
)
def test_a_flusher_that_is_made_after_the_end_begins_no_stream(
    path: Path, pool: ConnectionPool, end: Callable[[Hub], None]
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        hub, response_id = hub_and_response(sessions)
        end(hub)

        with pytest.raises(PoolClosedError):
            sessions.stream_turn(response_id)
        assert hub.streams == 0
        assert sessions.list_turns(response_id) == []


def test_a_flusher_that_is_made_after_the_file_was_retired_fails_its_writers(
    path: Path, pool: ConnectionPool
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        hub, response_id = hub_and_response(sessions)
        hub.retired()

        with pytest.raises(DatabaseMovedError), sessions.stream_turn(response_id) as writer:
            writer.write("text")
            writer.flush()


@pytest.mark.parametrize("is_watched", [False, True], ids=["closed at once", "watched first"])
def test_a_thread_of_a_follower_that_never_started_is_replaced(
    path: Path, pool: ConnectionPool, is_watched: bool
) -> None:
    """Ctrl-C may come between its record and its start, and again while the record is undone."""
    with SessionManager(path, pool=pool) as sessions:
        hub, response_id = hub_and_response(sessions)
        hub.follower._thread = threading.Thread(target=int)
        if is_watched:
            with sessions.watch_response(response_id, follow=True) as watch:
                turn = sessions.create_turn(response_id, content="text")
                assert next(watch).id == turn.id


def test_a_thread_of_listeners_that_never_started_is_replaced(
    path: Path, pool: ConnectionPool
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        hub, response_id = hub_and_response(sessions)
        hub.follower._listener_threads._threads[threading.Thread(target=int)] = None
        called = threading.Event()
        with sessions.track_streaming_turns(response_id, lambda _: called.set(), follow=True):
            sessions.create_turn(response_id)
            assert called.wait(PATIENCE)
