"""Streaming turns: tokens a second, how old stored text gets, and who is held up by it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from time import monotonic

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.streams import (
    ages,
    calls_in_order,
    delays_in_order,
    foreign_lock,
    median,
    quantile,
    render_while,
    require_whole,
    sampled,
    stream_from_threads,
    update_each_token,
)
from mandrake_sessions import NewTurn, SessionManager
from mandrake_sessions.database.pool import ConnectionPool
from mandrake_sessions.options import DatabaseOptions, Durability, PoolOptions

STREAMS = 8
TOKENS = 20_000
BARE_TOKENS = 60
TIMES_FASTER = 50
PACE = 1 / 500
PACED_SECONDS = 4
READERS = 2
HISTORY = 200
LONG_HISTORY = 10_000
READERS_SLOWER = 3.0
QUICK_CALL = 1.0
LONGEST_CALL = 50.0
COMMIT = 50.0
"""Milliseconds: what a commit may take beside eight threads that never wait."""


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


def judge_calls(calls: Sequence[float], longest: float = LONGEST_CALL) -> None:
    """Print the figures of ``write()``, and fail if they miss their limits."""
    figures = (
        f"write(): median {median(calls) * 1000:.2f} µs, 99.9 % {quantile(calls, 0.999):.3f} ms, "
        f"longest {calls[-1]:.1f} ms of {len(calls):,}"
    )
    print(f"  {figures}", flush=True)
    assert quantile(calls, 0.999) < QUICK_CALL, figures
    assert calls[-1] < longest, figures


def full_collections() -> int:
    """Return how often the garbage collector has looked through the whole heap."""
    return int(gc.get_stats()[2]["collections"])


def print_delays(delays: Sequence[float]) -> None:
    """Print how late the tokens of a pace came, for which no limit is set.

    A thread that sleeps notices a pause of the whole process here, and hardly ever in ``write()``,
    which takes a microsecond. What is left are the 5 ms for which a thread that renders keeps the
    others from running, several times when several others are waiting too.
    """
    print(
        f"  a token came late by: median {median(delays):.2f} ms, 99.9 % "
        f"{quantile(delays, 0.999):.1f}, most {delays[-1]:.1f}",
        flush=True,
    )


def test_flat_out(benchmark: BenchmarkFixture, sessions: SessionManager, rounds: int) -> None:
    print(f"\n\n{STREAMS} streams x {TOKENS:,} tokens of 20 bytes, flat out, {rounds} rounds")
    ratios, oldest, rates, calls = [], [], [], []

    def measure() -> None:
        responses = new_responses(sessions, STREAMS)
        turns = [sessions.create_turn(response).id for response in responses]
        bare = update_each_token(sessions.handle.path, turns, BARE_TOKENS)
        gc.collect()
        with sampled(sessions.handle.path) as samples:
            seconds, streams = stream_from_threads(sessions, responses, TOKENS)
        require_whole(streams, sessions)
        rates.append(STREAMS * TOKENS / seconds)
        ratios.append(rates[-1] / (STREAMS * BARE_TOKENS / bare))
        oldest.extend(ages(samples, streams))
        calls.extend(calls_in_order(streams))

    benchmark.pedantic(measure, rounds=rounds)  # type: ignore[no-untyped-call]
    oldest.sort()
    calls.sort()
    limit = 2 * sessions.handle.file.options.flush_interval * 1000 + COMMIT
    print(f"  {median(rates):,.0f} tokens a second to the end of the last turn")
    print(f"  {median(ratios):,.0f} times one UPDATE per token ({min(ratios):,.0f} at least)")
    print(
        f"  another process found text {median(oldest):.0f} ms old, 99 % "
        f"{quantile(oldest, 0.99):.0f}, oldest {oldest[-1]:.0f} of {len(oldest):,} looks"
    )
    benchmark.extra_info.update(ratio=median(ratios), oldest=oldest[-1])
    # No limit for the longest: threads that only count hold each other up for as long.
    judge_calls(calls, longest=inf)
    assert median(ratios) >= TIMES_FASTER
    assert quantile(oldest, 0.99) <= limit


def test_readers_beside_paced_streams(
    benchmark: BenchmarkFixture, sessions: SessionManager
) -> None:
    print(f"\n\n{STREAMS} streams of {1 / PACE:.0f} tokens a second, {READERS} readers")
    history = new_history(sessions, HISTORY)
    responses = new_responses(sessions, STREAMS)

    def measure() -> None:
        until = monotonic() + PACED_SECONDS
        quiet = render_while(sessions, history, READERS, lambda: monotonic() > until)
        is_over = threading.Event()
        busy: list[float] = []
        readers = threading.Thread(
            target=lambda: busy.extend(render_while(sessions, history, READERS, is_over.is_set))
        )
        readers.start()
        _, streams = stream_from_threads(sessions, responses, int(PACED_SECONDS / PACE), PACE)
        is_over.set()
        readers.join()
        require_whole(streams, sessions)
        slower = quantile(busy, 0.99) / quantile(quiet, 0.99)
        print(
            f"  99 % of the renderings: {quantile(quiet, 0.99):.1f} ms quiet, "
            f"{quantile(busy, 0.99):.1f} ms beside the streams, {slower:.2f} times"
        )
        benchmark.extra_info.update(slower=slower)
        judge_calls(calls_in_order(streams))
        print_delays(delays_in_order(streams))
        assert slower <= READERS_SLOWER

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]


def test_writing_beside_a_long_history_and_a_foreign_lock(
    benchmark: BenchmarkFixture, sessions: SessionManager
) -> None:
    print(f"\n\n{STREAMS} streams beside a history of {LONG_HISTORY:,} rounds and a foreign lock")
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
        _, streams = stream_from_threads(sessions, responses, int(PACED_SECONDS / PACE), PACE)
        locker.join()
        is_over.set()
        readers.join()
        require_whole(streams, sessions)
        judge_calls(calls_in_order(streams))
        print_delays(delays_in_order(streams))
        # Each held every thread up for 60 to 75 ms, and longer in a larger heap.
        collections = full_collections() - collections
        print(f"  full garbage collections meanwhile: {collections}", flush=True)
        assert not collections

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]


def _lock_for_a_second(path: Path) -> None:
    with foreign_lock(path, 1.0):
        pass
