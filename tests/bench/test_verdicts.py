"""How a limit judges the rounds of this library and of its rivals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.contestant import together
from benchmarks.limits import Limit, figure_of
from benchmarks.messages import Run

NAMES = {"slow": "a slow one", "quick": "a quick one"}


def run(per_second: float, longest: float = 0.0, seconds: float = 1.0) -> Run:
    """Return a round of so many calls a second, the last of which took so long."""
    count = int(per_second * seconds)
    latencies = [1 / per_second] * (count - 1) + [longest or 1 / per_second]
    return Run(began=10.0, ended=10.0 + seconds, latencies=latencies)


def rounds(*per_second: float) -> list[Run]:
    return [run(each) for each in per_second]


def test_the_median_of_the_ratios_of_the_same_rounds_counts() -> None:
    limit = Limit(metric="per_second", bound="at least", value=2.0, against=("slow",))
    verdict = limit.judge(rounds(300, 200, 100), {"slow": rounds(100, 100, 100)}, NAMES)
    assert verdict.value == pytest.approx(2.0)
    assert (verdict.lowest, verdict.highest) == pytest.approx((1.0, 3.0))
    assert verdict.is_met
    assert verdict.against == "a slow one"


def test_a_slow_second_of_the_machine_that_both_meet_changes_nothing() -> None:
    limit = Limit(metric="per_second", bound="at least", value=2.0, against=("slow",))
    verdict = limit.judge(rounds(200, 20, 200), {"slow": rounds(100, 10, 100)}, NAMES)
    assert verdict.lowest == verdict.highest == pytest.approx(2.0)


def test_the_best_of_several_rivals_counts() -> None:
    theirs: dict[str, Sequence[Run]] = {"slow": rounds(50, 50), "quick": rounds(100, 100)}
    most = Limit(metric="per_second", bound="at least", value=3.0, against=("slow", "quick"))
    verdict = most.judge(rounds(200, 200), theirs, NAMES)
    assert verdict.against == "a quick one"
    assert verdict.value == pytest.approx(2.0)
    least = Limit(metric="median", bound="at most", value=0.4, against=("slow", "quick"))
    assert least.judge(rounds(200, 200), theirs, NAMES).value == pytest.approx(0.5)


def test_a_missed_limit_says_by_how_much() -> None:
    limit = Limit(metric="per_second", bound="at least", value=2.0, against=("slow",))
    verdict = limit.judge(rounds(150, 150, 250), {"slow": rounds(100, 100, 100)}, NAMES)
    assert verdict.is_met is False
    assert verdict.text == (
        "throughput at least 2 times a slow one: 1.50 (1.50 to 2.50), MISSED by 25.0%,"
        " though not in every round"
    )


def test_a_limit_in_milliseconds_is_held_against_the_median_of_the_rounds() -> None:
    limit = Limit(metric="longest", bound="at most", value=40.0)
    mine = [run(100, 0.02), run(100, 0.03), run(100, 0.5)]
    verdict = limit.judge(mine, {}, {})
    assert verdict.value == pytest.approx(30.0)
    assert verdict.highest == pytest.approx(500.0)
    assert verdict.is_met


def test_a_rival_that_was_not_measured_is_named_and_nothing_is_claimed() -> None:
    limit = Limit(metric="per_second", bound="at least", value=2.0, against=("quick",))
    verdict = limit.judge(rounds(100), {}, NAMES)
    assert verdict.is_met is None
    assert verdict.text.startswith("throughput at least 2 times a quick one: not held")


def test_a_call_that_failed_is_no_throughput_but_it_is_a_wait() -> None:
    failed = Run(began=0.0, ended=2.0, latencies=[0.1] * 10, failed=[1.5], errors={"BusyError": 1})
    assert figure_of(failed, "per_second") == pytest.approx(5.0)
    assert figure_of(failed, "longest") == pytest.approx(1500.0)


def test_processes_that_run_at_once_are_one_round() -> None:
    one = Run(began=1.0, ended=2.0, latencies=[0.5, 0.5], errors={"BusyError": 1})
    other = Run(began=1.5, ended=3.0, latencies=[0.5, 0.5], errors={"BusyError": 2})
    both = together([one, other])
    assert (both.began, both.ended, len(both.latencies)) == (1.0, 3.0, 4)
    assert both.errors == {"BusyError": 3}
