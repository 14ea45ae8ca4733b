"""The limits for this library's figures, and the verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from benchmarks.messages import Run
from benchmarks.results import Metric, Verdict

_SMALLER_IS_BETTER = {"median", "p99", "longest"}
_WORDS: dict[Metric, str] = {
    "per_second": "throughput",
    "median": "time",
    "p99": "99 %",
    "longest": "longest wait",
}


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The allowed ratio of this library's figure to a rival's, or the allowed milliseconds.

    Attributes:
        metric: the figure.
        bound: the kind of ``value``.
        value: how many times the rival's figure, or milliseconds.
        against: labels of contestants, the best of which in this figure counts; none for
            milliseconds.
    """

    metric: Metric
    bound: Literal["at least", "at most"]
    value: float
    against: tuple[str, ...] = ()

    def is_met(self, value: float) -> bool:
        """Return whether a measured value keeps it."""
        return value >= self.value if self.bound == "at least" else value <= self.value

    def judge(
        self, mine: Sequence[Run], theirs: dict[str, Sequence[Run]], names: dict[str, str]
    ) -> Verdict:
        """Compare the rounds of this library with it.

        Args:
            mine: the rounds of this library.
            theirs: the rounds of each measured store of ``against``.
            names: their names.
        """
        what = f"{_WORDS[self.metric]} {self.bound}"
        if not self.against:
            return self._verdict(f"{what} {self.value:g} ms", "", rounds_of(mine, self.metric))
        if not theirs:
            several = " or ".join(names[each] for each in self.against)
            limit = f"{what} {self.value:g} times {several}"
            return Verdict(limit=limit, bound=self.value, note="it was not measured")
        all_ratios = {label: ratios_of(mine, runs, self.metric) for label, runs in theirs.items()}
        # The best of them is the one that leaves the least room.
        least = max if self.metric in _SMALLER_IS_BETTER else min
        best = least(all_ratios, key=lambda each: statistics.median(all_ratios[each]))
        ratios = all_ratios[best]
        limit = f"{what} {self.value:g} times {names[best]}"
        return self._verdict(limit, names[best], ratios)

    def _verdict(self, limit: str, against: str, values: Sequence[float]) -> Verdict:
        value = statistics.median(values)
        verdict = Verdict(
            limit=limit,
            against=against,
            value=value,
            lowest=min(values),
            highest=max(values),
            bound=self.value,
            is_met=self.is_met(value),
        )
        if not verdict.is_met:
            verdict.note = f" by {abs(value / self.value - 1):.1%}"
            if any(self.is_met(each) for each in values):
                verdict.note += ", though not in every round"
        return verdict


def at_least(value: float, *rivals: str) -> Limit:
    """Return a limit for this library's throughput by the best of these rivals."""
    return Limit(metric="per_second", bound="at least", value=value, against=rivals)


def at_most(limit: str, value: float, bound: float) -> Verdict:
    """Return the verdict on a single value."""
    verdict = Verdict(
        limit=f"{limit}: at most {bound:g}",
        value=value,
        lowest=value,
        highest=value,
        bound=bound,
        is_met=value <= bound,
    )
    if not verdict.is_met and bound:
        verdict.note = f" by {value / bound - 1:.1%}"
    return verdict


def figure_of(run: Run, metric: Metric) -> float:
    """Return one figure of a round; times in milliseconds."""
    if metric == "per_second":
        return run.per_second
    if metric == "longest":
        return run.longest * 1000
    if metric == "median":
        return statistics.median(run.latencies) * 1000
    return quantile(sorted(run.latencies), 0.99) * 1000


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which a part of the values is."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def rounds_of(runs: Sequence[Run], metric: Metric) -> list[float]:
    """Return a figure, round by round."""
    return [figure_of(run, metric) for run in runs]


def ratios_of(mine: Sequence[Run], theirs: Sequence[Run], metric: Metric) -> list[float]:
    """Return this library's figure divided by the rival's, round by round."""
    return [
        figure_of(one, metric) / max(figure_of(other, metric), 1e-9)
        for one, other in zip(mine, theirs, strict=True)
    ]
