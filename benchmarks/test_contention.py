"""Many threads, one file: what the shared COMMIT gives."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Comparison, Limit
from benchmarks.stores.bare import BareStore
from benchmarks.stores.mandrake import MandrakeStore
from benchmarks.stores.store import made_in
from benchmarks.trace import AppendScript
from benchmarks.workload import append_from_threads
from mandrake_sessions.options import Durability

THREADS = 8
APPENDS = 100
LIMIT = Limit("throughput", 1.3)


def test_eight_threads(
    benchmark: BenchmarkFixture, folder: Path, script: AppendScript, rounds: int
) -> None:
    durability = Durability.DURABLE
    with ExitStack() as stack:
        ours = MandrakeStore(made_in(folder, "ours"), durability)
        stack.callback(ours.close)
        bare = BareStore(made_in(folder, "bare"), durability, script=script)
        stack.callback(bare.close)
        locked = BareStore(made_in(folder, "locked"), durability, script=script, shared=True)
        stack.callback(locked.close)
        plain = BareStore(
            made_in(folder, "plain"), durability, script=script, shared=True, autocheckpoint=True
        )
        stack.callback(plain.close)
        conversations = {
            each.name: [each.new_conversation() for _ in range(THREADS)]
            for each in (ours, bare, locked, plain)
        }
        comparison = Comparison(
            benchmark, f"append, {THREADS} threads, one file, {durability.value}", rounds
        )
        before = ours.sessions.stats()
        comparison.measure(
            ours,
            (bare, locked, plain),
            lambda store: append_from_threads(store, conversations[store.name], APPENDS),
        )
        after = ours.sessions.stats()
        shared = (after.units - before.units) / (after.commits - before.commits)
        benchmark.extra_info["units_per_commit"] = shared
        comparison.judge(
            ours, [bare, locked, plain], LIMIT, remark=f"{shared:.1f} of our units share a COMMIT"
        )
