"""A thousand workspaces in turn, all held open, with far fewer files than that.

The managers are never closed. A busy file - streamed into, watched, written to repeatedly - is
opened once; every other file gives way and comes back, and no caller sees an error.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    PoolOptions,
    SessionManager,
)

HOST = """
import asyncio, os, random, resource, threading
from time import perf_counter

from mandrake_sessions import (
    ConnectionPool, DatabaseOptions, Durability, MandrakeManager, PoolOptions, TurnStatus,
)
from mandrake_sessions.aio import AsyncSessionManager

root, count, limit, max_open, uses = sys.argv[1], *map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
options = PoolOptions(
    max_open=max_open, database=DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
)
most = 0

def look():
    global most
    most = max(most, len(os.listdir("/proc/self/fd")))

with ConnectionPool(options) as pool, MandrakeManager(root, pool=pool) as mandrake:
    began = perf_counter()
    works = [mandrake.create_workspace(f"w{number}") for number in range(count)]
    making = perf_counter() - began
    sessions = [work.sessions.create_session("A talk").id for work in works]

    streamed, watched, written = (works[number].sessions for number in range(3))
    turn = streamed.stream_turn(streamed.create_round(sessions[0], "?").response.id)
    watch = watched.watch_session(sessions[1])
    busy = [streamed, watched, written]
    written.create_round(sessions[2], "0")
    files = [manager.handle.file for manager in busy]
    pieces, is_over = 0, threading.Event()

    def stream():
        global pieces
        while not is_over.wait(0.002):
            turn.write("token ")
            pieces += 1

    streamer = threading.Thread(target=stream)
    streamer.start()
    rounds = [0] * count
    order = list(range(3, count))
    took = []
    for pass_ in range(uses):
        for number in order:
            began = perf_counter()
            made = works[number].sessions.create_round(sessions[number], f"{pass_}")
            works[number].sessions.create_turn(
                made.response.id, content="Said", status=TurnStatus.COMPLETED
            )
            took.append(perf_counter() - began)
            rounds[number] += 1
            written.create_round(sessions[2], f"{pass_}")
            rounds[2] += 1
            look()
        random.Random(pass_).shuffle(order)

    async def read_all():
        threads = 0
        for number in order:
            face = AsyncSessionManager._over(works[number].sessions)
            found = await face.list_rounds(sessions[number])
            await face.create_round(sessions[number], "async")
            rounds[number] += 1
            assert len(found) == uses, (number, len(found))
            faces.append(face)
            written.create_round(sessions[2], "async")
            rounds[2] += 1
            threads = max(threads, threading.active_count())
            look()
        return threads

    faces = []
    threads = asyncio.run(read_all())
    is_over.set()
    streamer.join()
    turn.complete()
    assert [manager.handle.file is file for manager, file in zip(busy, files)] == [True] * 3
    assert streamed.get_turn(turn.id).content == "token " * pieces
    rounds[2] += 1
    rounds[0] = 1
    stored = [work.sessions.get_session(id) and len(work.sessions.list_rounds(id))
              for work, id in zip(works, sessions)]
    assert stored == rounds, [n for n, pair in enumerate(zip(stored, rounds)) if len(set(pair)) > 1]
    updates = 0
    while watch.receive(0) is not None:
        updates += 1
    watch.close()
    figures = pool.stats()
    took.sort()
    result = {
        "databases": count, "descriptors": most, "limit": limit, "pieces": pieces,
        "making_ms": round(making / count * 1e3, 1),
        "use_ms_median": round(took[len(took) // 2] * 1e3, 1),
        "use_ms_99": round(took[len(took) * 99 // 100] * 1e3, 1),
        "parkings": figures.parkings, "reopenings": figures.reopenings,
        "parked": figures.parked, "threads": threads,
    }
send(result)
"""


@pytest.mark.timeout(600)
def test_a_thousand_workspaces_are_served_in_turn(
    start_child: Callable[..., Any], tmp_path: Path, campaign: Any
) -> None:
    count = campaign.pick(30, 300, 1_000)
    max_open = campaign.pick(8, 256, 256)
    child = start_child(
        HOST, tmp_path, count, 512, max_open, campaign.pick(1, 1, 3), PYTHONUNBUFFERED="1"
    )
    result = child.receive()
    child.finish()
    print(result)  # the figures are the result
    assert result["descriptors"] <= 512
    assert result["parked"] >= count - campaign.pick(8, 54, 54) - 1
    assert result["reopenings"] >= count
    # Two for each database that was used lately, and what there is one of.
    assert result["threads"] <= 64 + 64


@pytest.mark.timeout(300)
def test_threads_share_many_files(tmp_path: Path, campaign: Any, in_threads: Any) -> None:
    """Sixteen threads choose at random; more of them than files may be open."""
    count, uses = campaign.pick(20, 100, 200), campaign.pick(6, 40, 400)
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
    with ConnectionPool(PoolOptions(max_open=10, database=options)) as pool:
        managers = [
            SessionManager(tmp_path / f"{number}.sqlite", pool=pool).init()
            for number in range(count)
        ]
        sessions = [manager.create_session("A talk").id for manager in managers]
        stored = [0] * count
        adding = threading.Lock()

        def use(thread: int) -> float:
            choice = random.Random(thread)
            longest = 0.0
            for _ in range(uses):
                place = choice.randrange(count)
                began = monotonic()
                managers[place].create_round(sessions[place], f"of {thread}")
                managers[place].list_rounds(sessions[place], limit=1)
                longest = max(longest, monotonic() - began)
                with adding:
                    stored[place] += 1
            return longest

        began = monotonic()
        longest = max(in_threads(16, use))
        took = monotonic() - began
        figures = pool.stats()
        print(  # the figures are the result
            f"{16 * uses} uses of {count} files in {took:.1f} s, longest {longest * 1e3:.0f} ms, "
            f"{figures.parkings} parkings, {figures.reopenings} reopenings"
        )
        assert [
            len(manager.list_rounds(session))
            for manager, session in zip(managers, sessions, strict=True)
        ] == stored
        for manager in managers:
            manager.close()
    assert figures.reopenings > 0
