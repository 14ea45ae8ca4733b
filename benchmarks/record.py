"""A scenario of this library alone: the times of its parts, and the limits of each."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.limits import at_most, quantile
from benchmarks.results import Figures, Scenario, Verdict
from benchmarks.tables import print_scenario


class Record:
    """Collects a scenario's lines and verdicts.

    Args:
        benchmark: gets them as its ``extra_info``.
        scenario: gets the figures.
        are_limits_held: whether a missed limit fails.
    """

    def __init__(
        self, benchmark: BenchmarkFixture, scenario: Scenario, *, are_limits_held: bool
    ) -> None:
        self._benchmark = benchmark
        self.scenario = scenario
        self._are_limits_held = are_limits_held
        self._verdicts: list[Verdict] = []

    def add(
        self, name: str, milliseconds: Iterable[float], more: dict[str, float] | None = None
    ) -> Figures:
        """Add a line of so many times, and return it."""
        ordered = sorted(milliseconds)
        figures = Figures(
            store=name,
            median=statistics.median(ordered),
            p99=quantile(ordered, 0.99),
            longest=ordered[-1],
            rounds=[statistics.median(ordered)],
            more=more or {},
        )
        self.scenario.figures.append(figures)
        return figures

    def add_value(self, name: str, milliseconds: float) -> None:
        """Add a line of one number."""
        self.scenario.figures.append(
            Figures(store=name, median=milliseconds, rounds=[milliseconds])
        )

    def at_most(self, limit: str, value: float, bound: float) -> None:
        """Compare a value with a limit."""
        if self._are_limits_held:
            self._verdicts.append(at_most(limit, value, bound))

    def judge(self) -> None:
        """Print the table, and fail if a limit was missed."""
        self.scenario.verdicts += self._verdicts
        self._benchmark.extra_info["scenario"] = msgspec.to_builtins(self.scenario)
        print_scenario(self.scenario)
        missed = [each.text for each in self._verdicts if not each.is_met]
        if missed:
            pytest.fail("\n".join(missed), pytrace=False)
