"""Stores measured side by side, in turns, and what their figures are to each other.

The machine's speed changes from second to second, and other programs share it. So the stores take
turns, round by round, and what counts is the ratio of two stores in the same round: the median of
these ratios is what a limit is held against. The lowest and the highest stand beside it, to show
how far to trust it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.stores.store import Store
from benchmarks.workload import Run

Round = Callable[[Store], Run]


class Limit(msgspec.Struct, frozen=True):
    """How our time or throughput may stand to a rival's.

    Attributes:
        of: ``time``, which must be at most ``value`` times the rival's, or ``throughput``, which
            must be at least that.
    """

    of: str
    value: float

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.value if self.of == "time" else ratio >= self.value

    def __str__(self) -> str:
        return f"{'at most' if self.of == 'time' else 'at least'} {self.value:.2f}"


class Figures(msgspec.Struct, kw_only=True):
    """What a store did in all rounds. Times are in milliseconds."""

    store: str
    per_second: float
    median: float
    p99: float
    longest: float
    errors: int
    acknowledged: int
    found_again: int


class Verdict(msgspec.Struct, kw_only=True):
    """Ours against one rival, over all rounds."""

    against: str
    limit: str
    ratio: float
    lowest: float
    highest: float
    is_met: bool
    note: str = ""

    @property
    def text(self) -> str:
        """The verdict as a sentence."""
        spread = f"{self.ratio:.2f} ({self.lowest:.2f} to {self.highest:.2f})"
        outcome = "met" if self.is_met else "MISSED"
        return f"{self.limit} times {self.against}: {spread}, {outcome}{self.note}"


class Comparison:
    """Measures stores in turns.

    Args:
        benchmark: takes our times as its own, and everything else as ``extra_info``.
        title: of the table.
        rounds: how often each store is measured, after one round that does not count.
    """

    def __init__(self, benchmark: BenchmarkFixture, title: str, rounds: int) -> None:
        self._benchmark = benchmark
        self._title = title
        self._rounds = rounds
        self._runs: dict[str, list[Run]] = {}
        self._warm_up: dict[str, Run] = {}
        self._found: dict[str, set[str]] = {}

    def measure(self, ours: Store, rivals: Sequence[Store], measure: Round) -> None:
        """Let every store do its round, ours last, again and again."""
        stores = (*rivals, ours)
        for store in stores:
            self._warm_up[store.name] = measure(store)
            self._runs[store.name] = []

        def rivals_first() -> None:
            for store in rivals:
                self._runs[store.name].append(measure(store))

        # pytest-benchmark calls the setup before each round and outside of its clock.
        self._benchmark.pedantic(  # type: ignore[no-untyped-call]
            lambda: self._runs[ours.name].append(measure(ours)),
            setup=rivals_first,
            rounds=self._rounds,
        )
        for store in stores:
            if self._warm_up[store.name].acknowledged:
                self._found[store.name] = store.keys()

    def seconds(self, store: Store) -> float:
        """Return the median of the seconds of a store's rounds."""
        return statistics.median(run.seconds for run in self._runs[store.name])

    def judge(
        self, ours: Store, rivals: Sequence[Store], limit: Limit, *, remark: str = ""
    ) -> None:
        """Print the table, and fail if we miss the limit against the fastest of these rivals.

        Args:
            ours: whose figures are held against the limit.
            rivals: of whom the one with the lowest median counts.
            limit: what the median of the ratios must keep.
            remark: a sentence to print below the table.
        """
        rival = min(rivals, key=self.seconds)
        pairs = zip(self._runs[ours.name], self._runs[rival.name], strict=True)
        ratios = [
            mine.seconds / theirs.seconds if limit.of == "time" else theirs.seconds / mine.seconds
            for mine, theirs in pairs
        ]
        ratio = statistics.median(ratios)
        verdict = Verdict(
            against=rival.name,
            limit=f"{limit.of} {limit}",
            ratio=ratio,
            lowest=min(ratios),
            highest=max(ratios),
            is_met=limit.is_met(ratio),
        )
        if not verdict.is_met:
            verdict.note = f" by {abs(ratio / limit.value - 1):.1%}"
            if any(limit.is_met(each) for each in ratios):
                verdict.note += ", though not in every round"
        table = [self._figures(name) for name in self._runs]
        self._benchmark.extra_info.update(
            title=self._title,
            rounds=self._rounds,
            figures=[msgspec.to_builtins(each) for each in table],
            verdict=msgspec.to_builtins(verdict),
        )
        print(f"\n\n{self._title}, {self._rounds} rounds in turns")
        print_table(table)
        if remark:
            print(f"  {remark}")
        print(f"  {verdict.text}", flush=True)
        lost = [each for each in table if each.found_again != each.acknowledged]
        mine = self._runs[ours.name]
        assert not lost, f"acknowledged, and not found again: {lost}"
        assert not sum(run.errors.total() for run in mine), f"errors: {mine[-1].errors}"
        if not verdict.is_met:
            pytest.fail(verdict.text, pytrace=False)

    def _figures(self, name: str) -> Figures:
        runs = self._runs[name]
        latencies = sorted(each * 1000 for run in runs for each in run.latencies)
        # What the round that does not count has stored must be found too.
        acknowledged = {key for run in (self._warm_up[name], *runs) for key in run.acknowledged}
        return Figures(
            store=name,
            per_second=statistics.median(len(run.latencies) / run.seconds for run in runs),
            median=statistics.median(latencies),
            p99=latencies[int(len(latencies) * 0.99)],
            longest=latencies[-1],
            errors=sum(run.errors.total() for run in runs),
            acknowledged=len(acknowledged),
            found_again=len(acknowledged & self._found.get(name, set())),
        )


_HEADINGS = ("", "per second", "median ms", "99 % ms", "longest ms", "errors", "acked", "found")


def print_table(table: Sequence[Figures]) -> None:
    """Print figures, a line for each store."""
    lines = [
        _HEADINGS,
        *(
            (
                each.store,
                f"{each.per_second:,.0f}",
                f"{each.median:.3f}",
                f"{each.p99:.3f}",
                f"{each.longest:.1f}",
                f"{each.errors}",
                f"{each.acknowledged:,}",
                f"{each.found_again:,}",
            )
            for each in table
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    for first, *rest in lines:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())
