"""Appends of one process: one thread, eight threads, eight files, eight tasks."""

from __future__ import annotations

import pytest

from benchmarks.bench import Bench
from benchmarks.limits import Limit, at_least
from benchmarks.pace import LONGER
from benchmarks.rivals import (
    ADK_DATABASE,
    ADK_SQLITE,
    ASYNC_PEERS,
    BARE,
    BARE_AUTO,
    BARE_LOCKED,
    BARE_LOCKED_AUTO,
    BY_HAND,
    LANGGRAPH,
    LANGGRAPH_ASYNC,
    OPENAI,
    ORM,
    OURS,
    OURS_ASYNC,
    PEERS,
)
from mandrake_sessions import Durability

THREADS = 8

ONE_BY_ONE = (BARE, BARE_AUTO, BARE_LOCKED, BARE_LOCKED_AUTO)
"""Bare APSW when several threads write: every append has its own COMMIT."""

ONE_THREAD_LIMITS = {Durability.DURABLE: 0.92, Durability.FAST: 0.80}


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
def test_one_thread(bench: Bench, durability: Durability) -> None:
    comparison = bench.compare(
        f"append-one-{durability.value}",
        "append, one thread",
        unit="appends",
        stores=(OURS, BARE, BARE_AUTO, *BY_HAND, *PEERS),
        durability=durability,
        conversations=1,
    )
    comparison.measure(lambda store, seconds: store.append(seconds))
    comparison.check()
    comparison.judge(at_least(ONE_THREAD_LIMITS[durability], BARE, BARE_AUTO))


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
def test_eight_threads_and_one_file(bench: Bench, durability: Durability) -> None:
    comparison = bench.compare(
        f"append-threads-{durability.value}",
        f"append, {THREADS} threads, one file",
        unit="appends",
        stores=(OURS, *ONE_BY_ONE, *BY_HAND, *PEERS),
        durability=durability,
        longer=LONGER[durability],
        conversations=THREADS,
    )
    comparison.measure(lambda store, seconds: store.append(seconds))
    comparison.check()
    limits = [
        at_least(1.8, *ONE_BY_ONE),
        Limit(metric="p99", bound="at most", value=8.0),
        Limit(metric="longest", bound="at most", value=40.0),
        at_least(2.5, OPENAI),
        at_least(1.5, LANGGRAPH),
        at_least(20.0, ADK_SQLITE, ADK_DATABASE),
        at_least(12.0, ORM),
    ]
    comparison.judge(*(limits if durability is Durability.DURABLE else ()))


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
def test_eight_threads_and_eight_files(bench: Bench, durability: Durability) -> None:
    comparison = bench.compare(
        f"append-files-{durability.value}",
        f"append, {THREADS} threads, a file each",
        unit="appends",
        stores=(OURS, BARE, BARE_AUTO, *BY_HAND, *PEERS),
        durability=durability,
        files=THREADS,
        longer=min(1.0, LONGER[durability]),
        conversations=THREADS,
    )
    comparison.measure(lambda store, seconds: store.append(seconds))
    comparison.check()
    comparison.judge()


def test_eight_tasks(bench: Bench) -> None:
    comparison = bench.compare(
        "append-tasks-durable",
        f"append, {THREADS} tasks of one event loop, one file",
        unit="appends",
        stores=(OURS_ASYNC, OURS, *ASYNC_PEERS),
        conversations=THREADS,
    )
    comparison.measure(lambda store, seconds: store.append(seconds))
    comparison.check()
    comparison.judge(at_least(0.7, OURS), at_least(2.0, LANGGRAPH_ASYNC))
