"""The figures of a scenario as lines of a table, for a terminal and for a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.results import NOT_OFFERED, Figures, Scenario

_HEADINGS = (
    "",
    "per second",
    "ours is",
    "median ms",
    "99 % ms",
    "longest ms",
    "worst ms",
    "errors",
    "found again",
)
DASH = "-"


def significant(value: float) -> str:
    """Return a number with three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio_text(ratio: float) -> str:
    """Return a ratio with as many digits as can be trusted."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def times(ratios: Sequence[float]) -> str:
    """Return how many times a rival's figure ours is, or a dash."""
    return f"{ratio_text(statistics.median(ratios))} x" if ratios else DASH


def lines(scenario: Scenario) -> list[tuple[str, ...]]:
    """Return headings and a line for each store; columns without a value are left out."""
    rows = [_line(each) for each in scenario.figures if each.failed != NOT_OFFERED]
    kept = [
        column
        for column in range(len(_HEADINGS))
        if column == 0 or any(row[column] not in {DASH, "0"} for row in rows)
    ]
    return [tuple(row[column] for column in kept) for row in (_HEADINGS, *rows)]


def _line(figures: Figures) -> tuple[str, ...]:
    if not figures.rounds:
        return (figures.store, *[DASH] * (len(_HEADINGS) - 1))
    return (
        figures.store,
        significant(figures.per_second) if figures.per_second else DASH,
        times(figures.ratios),
        significant(figures.median),
        significant(figures.p99) if figures.p99 else DASH,
        significant(figures.longest) if figures.longest else DASH,
        significant(figures.worst) if figures.worst else DASH,
        f"{sum(figures.errors.values()):,}",
        found_again(figures) if figures.acknowledged else DASH,
    )


def found_again(figures: Figures) -> str:
    """Return how many of the acknowledged exchanges were found again."""
    if figures.found_again == figures.acknowledged:
        return f"all {figures.acknowledged:,}"
    return f"{figures.found_again:,} of {figures.acknowledged:,}"


def not_offering(scenario: Scenario) -> list[str]:
    """Return the stores whose API lacks the call."""
    return [each.store for each in scenario.figures if each.failed == NOT_OFFERED]


def headline(scenario: Scenario) -> str:
    """Return the title with the durability."""
    return ", ".join(each for each in (scenario.title, scenario.durability) if each)


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Print lines of as many cells each, the first cell to the left and the others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for first, *rest in table:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())


def print_scenario(scenario: Scenario) -> None:
    """Print a scenario's table and its verdicts."""
    print(f"\n\n{headline(scenario)}: {scenario.rounds} rounds in turns")
    print_table(lines(scenario))
    for each in scenario.figures:
        for name, value in each.more.items():
            print(f"  {each.store}, {name}: {significant(value)}")
        if each.errors:
            print(f"  {each.store} raised {each.errors}")
        if each.failed and each.failed != NOT_OFFERED:
            print(f"  {each.store}: {each.failed}")
    lacking = not_offering(scenario)
    if lacking:
        print(f"  not offered by {', '.join(lacking)}")
    if scenario.skipped:
        print(
            "  skipped: " + "; ".join(f"{name} ({why})" for name, why in scenario.skipped.items())
        )
    for verdict in scenario.verdicts:
        print(f"  {verdict.text}")
    print(end="", flush=True)
