"""How soon watchers get a COMMIT, and the cost of watching files that do not change."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench import Bench
from benchmarks.pace import Pace
from mandrake_sessions import ConnectionPool, PoolOptions, SessionManager, TurnUpdate, Watch

PAUSE = 0.003
"""Seconds from one update to the next, so that each is delivered separately."""
WATCHERS = 100
PATIENCE = 30.0
IN_PROCESS = 1.0
BETWEEN_PROCESSES = 10.0
BETWEEN_PROCESSES_99 = 50.0
"""Milliseconds: the limits."""
IDLE_FILES = 50
IDLE_SHARE = 0.01

_WRITER = """
import sys, time
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1]) as sessions:
    turn = sessions.create_turn(sys.argv[2])
    for number in range(int(sys.argv[3])):
        time.sleep(0.01)
        sessions.update_turn(turn.id, current_tokens=number + 1)
        print(time.monotonic(), flush=True)
    sessions.update_turn(turn.id, status="completed")
"""


class Arrivals:
    """The times at which each watcher got each update.

    Args:
        watchers: how many watchers get each update.
    """

    def __init__(self, watchers: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(watchers)]
        self._numbers = itertools.count(1)
        self._all_notified = threading.Event()

    def note(self, watcher: int) -> None:
        """Note that a watcher got an update now; the last watcher lets ``wait`` return."""
        self.times[watcher].append(time.monotonic())
        if not next(self._numbers) % len(self.times):
            self._all_notified.set()

    def wait(self) -> None:
        """Wait until every watcher got the same update."""
        assert self._all_notified.wait(PATIENCE), "a watcher got no update"
        self._all_notified.clear()


Watching = Callable[[SessionManager, str, Arrivals], contextlib.AbstractContextManager[None]]
"""Watches a response, once for each watcher, during a block."""


@contextlib.contextmanager
def in_threads(sessions: SessionManager, response: str, arrivals: Arrivals) -> Iterator[None]:
    """Iterate in a thread for each watcher."""

    def follow(number: int, watch: Watch[TurnUpdate]) -> None:
        for _ in watch:
            arrivals.note(number)

    watches = [sessions.watch_response(response, follow=True) for _ in arrivals.times]
    threads = [threading.Thread(target=follow, args=each) for each in enumerate(watches)]
    for thread in threads:
        thread.start()
    yield
    for watch in watches:
        watch.close()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def as_tasks(sessions: SessionManager, response: str, arrivals: Arrivals) -> Iterator[None]:
    """Iterate in a task for each watcher, all in one event loop."""

    async def follow(number: int, watch: Watch[TurnUpdate]) -> None:
        async for _ in watch:
            arrivals.note(number)

    async def follow_all() -> None:
        await asyncio.gather(*itertools.starmap(follow, enumerate(watches)))

    watches = [sessions.watch_response(response, follow=True) for _ in arrivals.times]
    thread = threading.Thread(target=lambda: asyncio.run(follow_all()))
    thread.start()
    yield
    for watch in watches:
        watch.close()
    thread.join()


@contextlib.contextmanager
def as_listeners(sessions: SessionManager, response: str, arrivals: Arrivals) -> Iterator[None]:
    """Have a function called for each watcher."""
    with ExitStack() as stack:
        for number in range(len(arrivals.times)):
            listener = lambda _, number=number: arrivals.note(number)  # noqa: E731
            stack.enter_context(sessions.track_streaming_turns(response, listener, follow=True))
        yield


@pytest.fixture
def sessions(folder: Path) -> Iterator[SessionManager]:
    """A manager with the options it has by default."""
    with (
        ConnectionPool(PoolOptions(linger=0)) as pool,
        SessionManager(folder / "db.sqlite", pool=pool) as sessions,
    ):
        yield sessions


def new_response(sessions: SessionManager) -> str:
    return sessions.create_round(sessions.create_session().id, "?").response.id


class Way(NamedTuple):
    """A way to watch, the number of watchers, and the limit of the median in ms, if there is one.

    A hundred threads have none: waking them takes Python 1.5 ms, whatever they wait for.
    """

    name: str
    watching: Watching
    watchers: int
    limit: float | None = None


WAYS = (
    Way("1 watcher in a thread", in_threads, 1, IN_PROCESS),
    Way("100 watchers in one event loop", as_tasks, WATCHERS),
    Way("100 listeners", as_listeners, WATCHERS),
    Way("100 watchers in threads", in_threads, WATCHERS),
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_delivery_inside_a_process(
    benchmark: BenchmarkFixture, bench: Bench, sessions: SessionManager, way: Way, pace: Pace
) -> None:
    lines = bench.record(
        "watch-in-process",
        "from the return of update_turn() to the watcher, in the process",
        unit="updates",
    )
    arrivals = Arrivals(way.watchers)
    response = new_response(sessions)
    turn = sessions.create_turn(response).id
    returned: list[float] = []

    def measure() -> None:
        with way.watching(sessions, response, arrivals):
            arrivals.wait()
            for number in range(1, pace.updates + 1):
                sessions.update_turn(turn, current_tokens=number)
                returned.append(time.monotonic())
                arrivals.wait()
                time.sleep(PAUSE)

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]
    # An update that came before update_turn() had returned counts as immediate.
    waits = [
        max(0.0, at - since) * 1000
        for each in arrivals.times
        for at, since in zip(each[1:], returned, strict=True)
    ]
    figures = lines.add(way.name, waits)
    if way.watchers > 1:
        lasts = zip(*(each[1:] for each in arrivals.times), strict=True)
        slowest = [
            max(0.0, max(last) - since) * 1000 for last, since in zip(lasts, returned, strict=True)
        ]
        lines.add(f"the last of {way.name}", slowest)
    if way.limit is not None:
        lines.at_most(f"{way.name}: median in ms", figures.median, way.limit)
    lines.judge()


def test_delivery_between_processes(
    benchmark: BenchmarkFixture, bench: Bench, sessions: SessionManager, pace: Pace
) -> None:
    lines = bench.record(
        "watch-processes",
        "from the return of update_turn() in another process to a watcher",
        unit="updates",
    )
    response = new_response(sessions)
    delivered: dict[int, float] = {}
    written: list[float] = []

    def measure() -> None:
        command = [sys.executable, "-c", _WRITER, str(sessions.handle.path)]
        command += [response, str(pace.updates)]
        with (
            sessions.watch_response(response) as watch,
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ):
            for update in watch:
                delivered.setdefault(update.turn.current_tokens, time.monotonic())
            assert process.stdout is not None
            written.extend(map(float, process.stdout))

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]
    # Two updates in quick succession may be delivered as one.
    later = [min(at for number, at in delivered.items() if number > n) for n in range(pace.updates)]
    waits = [max(0.0, at - since) * 1000 for at, since in zip(later, written, strict=True)]
    figures = lines.add("1 watcher in another process", waits)
    if sys.platform.startswith("linux"):
        lines.at_most("median in ms", figures.median, BETWEEN_PROCESSES)
        lines.at_most("99 % in ms", figures.p99, BETWEEN_PROCESSES_99)
    lines.judge()


def test_idle_files(benchmark: BenchmarkFixture, bench: Bench, folder: Path, pace: Pace) -> None:
    lines = bench.record("watch-idle", f"{IDLE_FILES} watched files, idle", unit="seconds")
    shares: list[float] = []

    def measure() -> None:
        with ExitStack() as stack:
            pool = stack.enter_context(ConnectionPool(PoolOptions(linger=0)))
            for number in range(IDLE_FILES):
                path = folder / f"{number}.sqlite"
                manager = stack.enter_context(SessionManager(path, pool=pool))
                stack.enter_context(manager.watch_response(new_response(manager)))
            # The followers read a few times more after the last change.
            time.sleep(2.0)
            cpu, since = time.process_time(), time.monotonic()
            time.sleep(pace.idle)
            shares.append((time.process_time() - cpu) / (time.monotonic() - since))

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]
    lines.add_value("milliseconds of processor time in a second", shares[0] * 1000)
    lines.at_most("share of one core", shares[0], IDLE_SHARE)
    lines.judge()
