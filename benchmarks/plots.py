"""Plots of the results: SVG with its text as text, for a light page and a dark one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Figures, Results, Scenario
from benchmarks.tables import headline, significant

# Drawn in the first column; a dark page sees the second one.
_COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#30363d"),
    "ours": ("#0969da", "#4493f8"),
    "bare": ("#57606a", "#a5aeb8"),
    "rival": ("#a0a9b2", "#616a75"),
}
_LIGHT = {name: light for name, (light, _) in _COLOURS.items()}
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
_BAR_INCHES = 0.26
_FRAME_INCHES = 1.05
_WIDTH_INCHES = 8.6

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mandrake_sessions",  # the same figures give the same file
    "font.size": 9.5,
    "text.color": _LIGHT["ink"],
    "axes.edgecolor": _LIGHT["line"],
    "axes.labelcolor": _LIGHT["muted"],
    "xtick.color": _LIGHT["muted"],
    "ytick.color": _LIGHT["ink"],
    "figure.facecolor": _LIGHT["paper"],
    "axes.facecolor": _LIGHT["paper"],
}


def draw_all(results: Results, folder: Path) -> dict[str, Path]:
    """Draw what the results have a plot for; return the file of each scenario that has one."""
    folder.mkdir(parents=True, exist_ok=True)
    scenarios = {each.id: each for each in results.scenarios if each.figures}
    drawn = {}
    for id, (name, draw) in _PLOTS.items():
        if id in scenarios:
            drawn[id] = folder / f"{name}.svg"
            with mpl.rc_context(_SETTINGS):
                drawn[id].write_text(_svg(draw(scenarios, scenarios[id])), encoding="utf-8")
    return drawn


def _rate_and_wait(_all: dict[str, Scenario], scenario: Scenario) -> Figure:
    rows = sorted(_measured(scenario), key=lambda each: each.per_second)
    figure, (left, right) = _figure(len(rows), panels=2)
    _dots(left, rows, lambda each: each.per_second, f"{scenario.unit} per second, more is better")
    _dots(right, rows, lambda each: each.longest, "longest wait in ms, less is better")
    return _titled(figure, headline(scenario))


def _times(_all: dict[str, Scenario], scenario: Scenario) -> Figure:
    rows = sorted(_measured(scenario), key=lambda each: -each.median)
    figure, (axes,) = _figure(len(rows), panels=1)
    _dots(axes, rows, lambda each: each.median, "median in ms, less is better")
    return _titled(figure, headline(scenario))


def _streaming(all_of_them: dict[str, Scenario], scenario: Scenario) -> Figure:
    updates = all_of_them.get("update-token")
    rows = [
        _renamed(each, f"{each.store}, update_turn" if "mandrake" in each.store else "")
        for each in (_measured(updates) if updates else [])
        if "autocheckpoint" not in each.store
    ]
    rows = [each for each in rows if each.store] + _measured(scenario)
    rows.sort(key=lambda each: each.per_second)
    figure, (axes,) = _figure(len(rows), panels=1)
    _dots(axes, rows, lambda each: each.per_second, "tokens per second, more is better")
    return _titled(figure, "streaming, durable")


def _renamed(figures: Figures, name: str) -> Figures:
    return Figures(store=name, per_second=figures.per_second, rounds=figures.rounds)


def _growth(all_of_them: dict[str, Scenario], scenario: Scenario) -> Figure:
    panels = [scenario, *(each for id, each in all_of_them.items() if id == "growth-page")]
    figure, several = _figure(7, panels=len(panels), shares_rows=False)
    for axes, each in zip(several, panels, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for figures in _measured(each):
            store, _, size = figures.store.rpartition(", ")
            number, _, unit = size.partition(" ")
            lines.setdefault(store, []).append((int(number.replace(",", "")), figures.median))
        for points in lines.values():
            points.sort()
        # The highest at its end is named above its line, so that no name stands on a line.
        highest = max(lines, key=lambda store: lines[store][-1][1])
        for store, points in lines.items():
            colour = _LIGHT[_kind(store)]
            sizes, medians = [one for one, _ in points], [other for _, other in points]
            axes.plot(sizes, medians, color=colour, marker="o", linewidth=2, markersize=5)
            axes.annotate(
                f"{store}: {significant(medians[-1])} ms",
                (sizes[-1], medians[-1]),
                xytext=(0, 8 if store == highest else -8),
                textcoords="offset points",
                ha="right",
                va="bottom" if store == highest else "top",
                color=colour,
                weight="bold",
            )
        axes.set_xscale("log")
        top = max(median for points in lines.values() for _, median in points)
        axes.set_ylim(0, top * 1.35)
        axes.tick_params(length=0, labelcolor=_LIGHT["muted"])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
        axes.set_xlabel(f"{unit} in the file")
        what = "append" if each is scenario else "page one"
        axes.set_title(f"{what}, median ms", loc="left", fontsize=9.5, color=_LIGHT["muted"])
        axes.grid(axis="y", color=_LIGHT["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    return _titled(figure, "a file that grows")


Draw = Callable[[dict[str, Scenario], Scenario], Figure]

_PLOTS: dict[str, tuple[str, Draw]] = {
    "append-threads-durable": ("threads", _rate_and_wait),
    "append-processes-durable": ("processes", _rate_and_wait),
    "stream-flat-out": ("streaming", _streaming),
    "read-whole": ("reading", _times),
    "growth-append": ("growth", _growth),
}


def _measured(scenario: Scenario) -> list[Figures]:
    return [each for each in scenario.figures if each.rounds]


def _kind(store: str) -> str:
    if store.startswith("mandrake_sessions"):
        return "ours"
    return "bare" if store.startswith("bare") else "rival"


def _figure(rows: int, *, panels: int, shares_rows: bool = True) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(_WIDTH_INCHES, rows * _BAR_INCHES + _FRAME_INCHES))
    axes = figure.subplots(1, panels, squeeze=False, sharey=shares_rows)
    return figure, list(axes[0])


def _dots(
    axes: Axes, rows: Sequence[Figures], value: Callable[[Figures], float], title: str
) -> None:
    """Draw a dot for each row, on a line that leads the eye: a bar of a logarithm has no length."""
    values = [value(each) for each in rows]
    left, right = min(values) / 1.6, max(values) * 2.2
    for place, (row, each) in enumerate(zip(rows, values, strict=True)):
        kind = _kind(row.store)
        axes.plot([left, right], [place, place], color=_LIGHT["line"], linewidth=0.8, zorder=1)
        axes.plot(
            [each], [place], color=_LIGHT[kind], marker="o", markersize=9 if kind == "ours" else 7
        )
        axes.annotate(
            significant(each),
            (each, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            weight="bold" if kind == "ours" else "normal",
            # The line does not run through the number.
            bbox={"facecolor": _LIGHT["paper"], "edgecolor": "none", "pad": 1.0},
        )
    axes.set_yticks(range(len(rows)), [each.store for each in rows])
    axes.tick_params(length=0)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_visible(False)
    for label, row in zip(axes.get_yticklabels(), rows, strict=False):
        label.set_fontweight("bold" if _kind(row.store) == "ours" else "normal")
    axes.set_title(f"{title} (log)", loc="left", fontsize=8.5, color=_LIGHT["muted"])
    for side in axes.spines.values():
        side.set_visible(False)


def _titled(figure: Figure, title: str) -> Figure:
    figure.suptitle(f"{title}", x=0.012, ha="left", fontsize=12, weight="bold")
    figure.tight_layout(w_pad=2.5)
    return figure


def _svg(figure: Figure) -> str:
    """Return the SVG with colours that follow the page's scheme."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"font-family: [^;]*;", "", text)
    for name, light in _LIGHT.items():
        text = text.replace(light, f"var(--{name}, {light})")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    light = "".join(f"--{name}:{each[0]};" for name, each in _COLOURS.items())
    dark = "".join(f"--{name}:{each[1]};" for name, each in _COLOURS.items())
    style = (
        f"<style>svg{{{light}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
        # What names no colour of its own is ink: matplotlib's text is black by default.
        f"text{{fill:var(--ink);font-family:{_FONT}}}</style>"
    )
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", text, count=1)
