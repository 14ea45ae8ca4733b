"""Reading a conversation of 1,000 rounds: what typed records cost above rows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Comparison, Limit
from benchmarks.stores.bare import BareStore
from benchmarks.stores.mandrake import MandrakeStore
from benchmarks.stores.store import ANSWERED, ASKED, made_in
from benchmarks.trace import trace_history
from benchmarks.workload import read_often
from mandrake_sessions import NewTurn
from mandrake_sessions.options import Durability

ROUNDS = 1000
READS = 20
LIMIT = Limit("time", 2.5)
MOST_STATEMENTS = 5


def test_history(benchmark: BenchmarkFixture, folder: Path, rounds: int) -> None:
    with ExitStack() as stack:
        ours = MandrakeStore(made_in(folder, "ours"), Durability.DURABLE)
        stack.callback(ours.close)
        conversation = ours.new_conversation()
        with ours.sessions.transaction() as tx:
            for _ in range(ROUNDS):
                tx.record_round(conversation, ASKED, [NewTurn(content=ANSWERED)])
        history = trace_history(ours, conversation)
        # The copy is the bare one's file, so both read the same rows.
        ours.sessions.backup(made_in(folder, "bare") / "db.sqlite")
        bare = BareStore(folder / "bare", Durability.DURABLE, history=history)
        stack.callback(bare.close)
        comparison = Comparison(benchmark, f"history of {ROUNDS:,} rounds", rounds)
        comparison.measure(
            ours, [bare], lambda store: read_often(store, conversation, READS, ROUNDS)
        )
        benchmark.extra_info["statements"] = [sql for sql, _ in history]
        assert len(history) <= MOST_STATEMENTS
        remark = f"{len(history)} statements, BEGIN and ROLLBACK counted"
        comparison.judge(ours, [bare], LIMIT, remark=remark)
