"""One append, one thread: what the library adds to SQLite's own work."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Comparison, Limit
from benchmarks.stores.bare import BareStore
from benchmarks.stores.mandrake import MandrakeStore
from benchmarks.stores.store import made_in
from benchmarks.trace import AppendScript
from benchmarks.workload import append_here
from mandrake_sessions.options import Durability

# Few enough that no file reaches the 10,000 changes above which ours trims: the bare one does not.
APPENDS = {Durability.FAST: 800, Durability.DURABLE: 300}
LIMITS = {Durability.FAST: Limit("time", 1.5), Durability.DURABLE: Limit("time", 1.2)}


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
def test_append(
    benchmark: BenchmarkFixture,
    folder: Path,
    script: AppendScript,
    rounds: int,
    durability: Durability,
) -> None:
    with ExitStack() as stack:
        ours = MandrakeStore(made_in(folder, "ours"), durability)
        stack.callback(ours.close)
        bare = BareStore(made_in(folder, "bare"), durability, script=script)
        stack.callback(bare.close)
        plain = BareStore(made_in(folder, "plain"), durability, script=script, autocheckpoint=True)
        stack.callback(plain.close)
        conversation = {each.name: each.new_conversation() for each in (ours, bare, plain)}
        comparison = Comparison(benchmark, f"append, one thread, {durability.value}", rounds)
        comparison.measure(
            ours,
            (plain, bare),
            lambda store: append_here(store, conversation[store.name], APPENDS[durability]),
        )
        comparison.judge(ours, [plain, bare], LIMITS[durability])
