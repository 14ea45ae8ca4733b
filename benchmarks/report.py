"""Writes docs/benchmarks.md and its plots: ``python -m benchmarks.report RESULTS.json``.

It writes the part of the page between the marks; the rest is by hand.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import msgspec

from benchmarks.results import Results, Scenario, Verdict
from benchmarks.sentences import is_ours, meaning, not_first, standing
from benchmarks.tables import headline, lines, not_offering, ratio_text, significant

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN = "<!-- measured: begin; `make bench-report` writes what follows -->"
END = "<!-- measured: end -->"
WIDTH = 120

_CHAPTERS = {
    "Appending": ("append-",),
    "Reading": ("read-",),
    "Starting": ("open-", "import"),
    "Growing": ("growth-", "workspaces"),
    "Streaming": ("stream-", "update-"),
    "Watching": ("watch-",),
}


def page(results: Results, plots: dict[str, str]) -> str:
    """Return the measured part of the page.

    Args:
        results: of a run.
        plots: the picture of each scenario that has one, as the page links it.
    """
    results = msgspec.structs.replace(results, scenarios=sorted(results.scenarios, key=_chapter))
    parts = [_conditions(results), _limits(results), _not_first(results)]
    for title, prefixes in _CHAPTERS.items():
        scenarios = [
            each for each in results.scenarios if each.id.startswith(prefixes) and each.figures
        ]
        if scenarios:
            parts.append(f"## {title}")
            parts += [_scenario(each, plots.get(each.id)) for each in scenarios]
    parts.append(_stores(results))
    return "\n\n".join(each for each in parts if each)


def _chapter(scenario: Scenario) -> int:
    """Return the place of its chapter; inside one the order is that of the run."""
    fitting = (
        place
        for place, prefixes in enumerate(_CHAPTERS.values())
        if scenario.id.startswith(prefixes)
    )
    return next(fitting, len(_CHAPTERS))


def _conditions(results: Results) -> str:
    machine = results.machine
    conditions = [
        f"{results.began[:10]}, `{_command(results.mode)}`",
        *(
            f"{name}: {machine[name]}"
            for name in machine
            if name not in {"mandrake_sessions", "sqlite"}
        ),
        ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    ]
    listed = "\n".join(_wrapped(each, "- ") for each in conditions)
    warning = ""
    if results.mode == "brief":
        warning = (
            "\n\n**A brief run: its rounds are too short for these figures to mean anything.**"
        )
    return f"## Measured on\n\n{listed}{warning}"


def _command(mode: str) -> str:
    return "make bench" if mode == "bench" else f"make bench-{mode}"


def _limits(results: Results) -> str:
    rows = [
        (headline(scenario), verdict)
        for scenario in results.scenarios
        for verdict in scenario.verdicts
    ]
    if not rows:
        return ""
    met = sum(bool(verdict.is_met) for _, verdict in rows)
    missed = sum(verdict.is_met is False for _, verdict in rows)
    unheld = len(rows) - met - missed
    summary = f"{met} of {len(rows)} limits were met and {missed} missed"
    summary += f"; {unheld} had no store to be held against." if unheld else "."
    table = _table(
        [
            ("what", "limit", "measured", "rounds", ""),
            *((title, verdict.limit, *_measured(verdict)) for title, verdict in rows),
        ]
    )
    return f"## Limits\n\n{summary}\n\n{table}"


def _measured(verdict: Verdict) -> tuple[str, str, str]:
    if verdict.is_met is None:
        return "-", "-", verdict.note
    rounds = "-"
    if verdict.lowest != verdict.highest:
        rounds = f"{ratio_text(verdict.lowest)} to {ratio_text(verdict.highest)}"
    outcome = "met" if verdict.is_met else f"**missed**{verdict.note}"
    return ratio_text(verdict.value), rounds, outcome


def _not_first(results: Results) -> str:
    found = not_first(results)
    if not found:
        return "## Where ours is not first\n\nNowhere in this run."
    return "## Where ours is not first\n\n" + "\n".join(_wrapped(each, "- ") for each in found)


def _scenario(scenario: Scenario, plot: str | None) -> str:
    parts = [f"### {_capital(headline(scenario))}"]
    sentences = [meaning(scenario), *standing(scenario), scenario.remark]
    parts.append(_wrapped(" ".join(each for each in sentences if each)))
    if plot is not None:
        parts.append(f"![{_capital(headline(scenario))}: the figures of the table]({plot})")
    table, *rows = lines(scenario)
    named = {each.store for each in scenario.figures if is_ours(each)}
    marked = [(f"**{row[0]}**" if row[0] in named else row[0], *row[1:]) for row in rows]
    parts.append(_table([table, *marked]))
    more = [
        f"{each.store}, {name}: {significant(value)}."
        for each in scenario.figures
        for name, value in each.more.items()
    ]
    lacking = not_offering(scenario)
    more += [f"Not offered by {', '.join(lacking)}."] if lacking else []
    more += [f"{name} was not measured: {why}." for name, why in scenario.skipped.items()]
    if more:
        parts.append(_wrapped(" ".join(more)))
    return "\n\n".join(each for each in parts if each)


def _stores(results: Results) -> str:
    remarks = {
        each.store: each.remark
        for scenario in results.scenarios
        for each in scenario.figures
        if each.remark and not scenario.id.startswith("growth")
    }
    listed = "\n".join(_wrapped(f"**{name}**: {remark}", "- ") for name, remark in remarks.items())
    return f"## The stores\n\n{listed}" if listed else ""


def _table(rows: list[tuple[str, ...]]) -> str:
    headings, *rest = rows
    rule = ["---", *["---:" if _is_numeric(rest, each) else "---" for each in _columns(headings)]]
    cells = [headings, tuple(rule), *rest]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _columns(headings: tuple[str, ...]) -> range:
    return range(1, len(headings))


def _is_numeric(rows: list[tuple[str, ...]], column: int) -> bool:
    return all(row[column][:1].isdigit() or row[column][:1] in {"-", "a"} for row in rows)


def _wrapped(text: str, bullet: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def write(results: Results, target: Path, plots: dict[str, str]) -> None:
    """Put the measured part into a page that has the two marks."""
    before, begin, rest = target.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{target} lacks the marks between which the figures stand")
    target.write_text(f"{before}{BEGIN}\n\n{page(results, plots)}\n\n{END}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    # Not above: a page can be made without the library that draws.
    from benchmarks.plots import draw_all

    results = Results.load(arguments.results)
    folder = arguments.page.parent / arguments.page.stem
    drawn = draw_all(results, folder)
    links = {id: file.relative_to(arguments.page.parent).as_posix() for id, file in drawn.items()}
    write(results, arguments.page, links)


if __name__ == "__main__":
    main()
