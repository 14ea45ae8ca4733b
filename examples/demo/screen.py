"""Shows the progress of the demo, and its result."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.demo.figures import Figures

_LINE_SECONDS = 1.0


class Screen:
    """Live progress: a picture on a terminal, a line each second elsewhere, nothing for JSON.

    Args:
        seconds: how long the agents work.
        is_silent: whether to show nothing.
    """

    def __init__(self, seconds: float, *, is_silent: bool) -> None:
        self._seconds = seconds
        self._is_silent = is_silent
        self._next_line = 0.0
        self._live: Live | None = None
        if sys.stdout.isatty() and not is_silent:
            self._live = Live(console=Console(), transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, figures: Figures) -> None:
        """Show the progress."""
        if self._is_silent:
            return
        if self._live is not None:
            self._live.update(self._picture(figures), refresh=True)
        elif figures.seconds >= self._next_line and not figures.is_last:
            self._next_line = figures.seconds + _LINE_SECONDS
            print(
                f"{figures.seconds:5.1f} s  {figures.rounds:6d} rounds  {figures.turns:6d} turns  "
                f"{figures.tokens:7d} tokens  {figures.histories:5d} histories  "
                f"{figures.acknowledged:7d} acknowledged",
                flush=True,
            )
            sys.stdout.flush()

    def _picture(self, figures: Figures) -> Group:
        table = Table(box=SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, value in (
            ("rounds", figures.rounds),
            ("turns", figures.turns),
            ("tokens streamed", figures.tokens),
            ("updates watched", figures.watched),
            ("histories read", figures.histories),
            ("acknowledged, on disk", figures.acknowledged),
            ("longest wait", milliseconds(figures.longest_wait)),
            ("errors", len(figures.errors)),
        ):
            table.add_row(Text(name), Text(str(value)))
        done = min(figures.seconds, self._seconds)
        doing = "agents at work" if figures.seconds < self._seconds else "shutting down"
        return Group(
            Text(f"{doing}, {figures.seconds:.1f} of {self._seconds:g} s"),
            ProgressBar(total=self._seconds, completed=done, width=50),
            table,
        )


def milliseconds(seconds: float) -> str:
    """Return a time as people read it."""
    return f"{seconds * 1000:.1f} ms"
