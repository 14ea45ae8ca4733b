"""Appends of several processes to one file."""

from __future__ import annotations

import pytest

from benchmarks.bench import Bench
from benchmarks.limits import Limit, at_least
from benchmarks.pace import LONGER
from benchmarks.rivals import BARE, BARE_LOCKED, BY_HAND, OPENAI, OURS, PEERS
from mandrake_sessions import Durability

PROCESSES = 4
THREADS_OF_A_PROCESS = 2


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
def test_four_processes_and_one_file(bench: Bench, durability: Durability) -> None:
    rivals = (BARE, BARE_LOCKED, *BY_HAND, *PEERS)
    comparison = bench.compare(
        f"append-processes-{durability.value}",
        f"append, {PROCESSES} processes of {THREADS_OF_A_PROCESS} threads, one file",
        unit="appends",
        stores=(OURS, *rivals),
        durability=durability,
        longer=LONGER[durability],
        processes=PROCESSES,
        conversations=THREADS_OF_A_PROCESS,
    )
    comparison.measure(lambda store, seconds: store.append(seconds))
    comparison.check()
    limits = [
        at_least(1.2, OPENAI),
        Limit(metric="longest", bound="at most", value=0.2, against=rivals),
    ]
    comparison.judge(*(limits if durability is Durability.DURABLE else ()))
