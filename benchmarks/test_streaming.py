"""Streaming turns: tokens a second, the age of stored text, and the delays it causes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench import Bench
from benchmarks.contestant import PATIENCE
from benchmarks.limits import at_least, quantile
from benchmarks.messages import Run, Update
from benchmarks.pace import Pace
from benchmarks.record import Record
from benchmarks.rivals import BARE, BARE_AUTO, OURS
from benchmarks.streams import (
    ages,
    calls_in_order,
    delays_in_order,
    foreign_lock,
    render_while,
    require_whole,
    sampled,
    stream_from_threads,
    update_each_token,
)
from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    NewTurn,
    PoolOptions,
    SessionManager,
)

STREAMS = 8
TOKENS = 20_000
BARE_TOKENS = 60
TIMES_FASTER = 50
PACE = 1 / 500
READERS = 2
HISTORY = 200
LONG_HISTORY = 10_000
READERS_SLOWER = 3.0
QUICK_CALL = 1.0
LONGEST_CALL = 50.0
COMMIT = 50.0
"""Milliseconds that a commit may take with eight threads that never wait."""

WRITER = "mandrake_sessions, stream_turn"
BARE_UPDATES = "bare APSW, one UPDATE per token"


@pytest.fixture
def sessions(folder: Path) -> Iterator[SessionManager]:
    """A manager with the options it has by default."""
    options = DatabaseOptions(durability=Durability.DURABLE)
    with (
        ConnectionPool(PoolOptions(linger=0)) as pool,
        SessionManager(folder / "db.sqlite", pool=pool, options=options) as sessions,
    ):
        yield sessions


def new_responses(sessions: SessionManager, count: int) -> list[str]:
    session = sessions.create_session().id
    return [sessions.create_round(session, "?").response.id for _ in range(count)]


def new_history(sessions: SessionManager, rounds: int) -> str:
    session = sessions.create_session().id
    with sessions.transaction() as tx:
        for _ in range(rounds):
            tx.record_round(session, "A question?", [NewTurn(content="An answer. " * 40)])
    return session


def judge_calls(record: Record, calls: list[float]) -> None:
    """Add the figures of ``write()``, and hold them against their limits."""
    most = quantile(calls, 0.999)
    record.add("write()", calls, {"99.9 % ms": most})
    record.at_most("write(): 99.9 % in ms", most, QUICK_CALL)
    record.at_most("write(): longest in ms", calls[-1], LONGEST_CALL)


def full_collections() -> int:
    """Return how often the garbage collector has looked through the whole heap."""
    return int(gc.get_stats()[2]["collections"])


def add_delays(record: Record, delays: list[float]) -> None:
    """Add how late the tokens of a pace came, for which no limit is set.

    A thread that sleeps notices a pause of the whole process here, and hardly ever in ``write()``,
    which takes a microsecond. The rest are the 5 ms for which a thread that renders keeps the
    others from running, several times if several others are waiting too.
    """
    record.add("a token came late by", delays)


def test_flat_out(bench: Bench, sessions: SessionManager, pace: Pace) -> None:
    tokens = TOKENS if pace.holds_limits else TOKENS // 20
    comparison = bench.compare_runs(
        "stream-flat-out",
        f"{STREAMS} streams of {tokens:,} tokens of 20 bytes, flat out",
        unit="tokens",
        names=[WRITER, BARE_UPDATES],
    )
    oldest: list[float] = []
    calls: list[float] = []

    def stream() -> Run:
        responses = new_responses(sessions, STREAMS)
        gc.collect()
        with sampled(sessions.handle.path) as samples:
            began = monotonic()
            seconds, streams = stream_from_threads(sessions, responses, tokens)
        require_whole(streams, sessions)
        oldest.extend(ages(samples, streams))
        latencies = calls_in_order(streams)
        calls.extend(latencies)
        return Run(
            began=began, ended=began + seconds, latencies=[each / 1000 for each in latencies]
        )

    def update() -> Run:
        responses = new_responses(sessions, STREAMS)
        turns = [sessions.create_turn(response).id for response in responses]
        return update_each_token(sessions.handle.path, turns, BARE_TOKENS)

    comparison.measure(lambda store, _: stream() if store.label == WRITER else update())
    oldest.sort()
    calls.sort()
    ages_found = bench.record(
        "stream-age",
        "how old the text is that another process finds during these streams",
        unit="looks",
    )
    ages_found.add("text not yet found", oldest or [0.0])
    ages_found.add("write()", calls, {"99.9 % ms": quantile(calls, 0.999)})
    # No limit for the longest: threads that only count delay each other as long.
    ages_found.at_most("write(): 99.9 % in ms", quantile(calls, 0.999), QUICK_CALL)
    limit = 2 * sessions.handle.options.flush_interval * 1000 + COMMIT
    ages_found.at_most("99 % of the looks in ms", quantile(oldest or [0.0], 0.99), limit)
    comparison.judge(at_least(TIMES_FASTER, BARE_UPDATES))
    ages_found.judge()


def test_update_turn_for_each_token(bench: Bench) -> None:
    comparison = bench.compare(
        "update-token",
        "a call of update_turn for each token, one thread",
        unit="tokens",
        stores=(OURS, BARE, BARE_AUTO),
        conversations=1,
    )
    comparison.measure(
        lambda store, seconds: store.ask(Update(seconds=seconds), seconds + PATIENCE)
    )
    comparison.judge(at_least(0.8, BARE, BARE_AUTO))


def test_readers_with_paced_streams(
    benchmark: BenchmarkFixture, bench: Bench, sessions: SessionManager, pace: Pace
) -> None:
    lines = bench.record(
        "stream-readers",
        f"{STREAMS} streams of {1 / PACE:.0f} tokens a second,"
        f" and {READERS} readers of a {HISTORY}-round history",
        unit="renderings",
    )
    history = new_history(sessions, HISTORY)
    responses = new_responses(sessions, STREAMS)

    def measure() -> None:
        until = monotonic() + pace.paced
        quiet = render_while(sessions, history, READERS, lambda: monotonic() > until)
        is_over = threading.Event()
        busy: list[float] = []
        readers = threading.Thread(
            target=lambda: busy.extend(render_while(sessions, history, READERS, is_over.is_set))
        )
        readers.start()
        _, streams = stream_from_threads(sessions, responses, int(pace.paced / PACE), PACE)
        is_over.set()
        readers.join()
        require_whole(streams, sessions)
        lines.add("a rendering, quiet", quiet)
        lines.add("a rendering during the streams", busy)
        slower = quantile(busy, 0.99) / quantile(quiet, 0.99)
        lines.at_most("99 % of the renderings to that of the quiet ones", slower, READERS_SLOWER)
        judge_calls(lines, calls_in_order(streams))
        add_delays(lines, delays_in_order(streams))

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]
    lines.judge()


def test_writing_with_a_long_history_and_a_foreign_lock(
    benchmark: BenchmarkFixture, bench: Bench, sessions: SessionManager, pace: Pace
) -> None:
    lines = bench.record(
        "stream-foreign-lock",
        f"{STREAMS} streams and a reader of {LONG_HISTORY:,} rounds,"
        " while another process holds the lock for a second",
        unit="tokens",
    )
    history = new_history(sessions, LONG_HISTORY)
    responses = new_responses(sessions, STREAMS)
    gc.collect()

    def measure() -> None:
        collections = full_collections()
        is_over = threading.Event()
        readers = threading.Thread(
            target=lambda: render_while(sessions, history, 1, is_over.is_set)
        )
        readers.start()
        locker = threading.Timer(0.5, _lock_for_a_second, args=(sessions.handle.path,))
        locker.start()
        _, streams = stream_from_threads(sessions, responses, int(pace.paced / PACE), PACE)
        locker.join()
        is_over.set()
        readers.join()
        require_whole(streams, sessions)
        judge_calls(lines, calls_in_order(streams))
        add_delays(lines, delays_in_order(streams))
        # Each held every thread up for 60 to 75 ms, and longer in a larger heap.
        collections = full_collections() - collections
        lines.at_most("full garbage collections meanwhile", collections, 0)

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]
    lines.judge()


def _lock_for_a_second(path: Path) -> None:
    with foreign_lock(path, 1.0):
        pass
