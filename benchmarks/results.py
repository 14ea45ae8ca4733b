"""The results of a benchmark run, as kept in a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

NOT_OFFERED = "not offered"
"""The reason for a store without figures whose API lacks the call."""

Metric = Literal["per_second", "median", "p99", "longest"]


class Figures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The figures of one store in all rounds. Times are in milliseconds.

    Attributes:
        per_second: median of the rounds.
        median: of all calls.
        p99: median of the rounds' 99th percentiles.
        longest: median of the rounds' longest calls.
        worst: the longest call of all rounds.
        errors: how often which exception came.
        acknowledged: how many exchanges were acknowledged; 0 if none is stored.
        found_again: how many of those another connection found afterwards.
        rounds: the compared figure, round by round.
        ratios: this library's to this store's, of that figure, round by round.
        failed: why there are no figures, or none of the later rounds.
        remark: a note on this store for readers.
        more: figures that only this scenario or store has.
    """

    store: str
    per_second: float = 0.0
    median: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    worst: float = 0.0
    errors: dict[str, int] = {}
    acknowledged: int = 0
    found_again: int = 0
    rounds: list[float] = []
    ratios: list[float] = []
    failed: str = ""
    remark: str = ""
    more: dict[str, float] = {}


class Verdict(msgspec.Struct, kw_only=True):
    """The result for a limit.

    Attributes:
        limit: in words, without the measured value.
        against: the rival; "" for a limit in milliseconds.
        value: the measured value: the median of the rounds.
        lowest: of the rounds.
        highest: of the rounds.
        bound: the limit's number.
        is_met: None if there was no rival to compare with.
        note: by how much it was missed, or why it was not compared.
    """

    limit: str
    against: str = ""
    value: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    bound: float = 0.0
    is_met: bool | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """The verdict as a sentence."""
        if self.is_met is None:
            return f"{self.limit}: not held, {self.note}"
        rounds = (
            "" if self.lowest == self.highest else f" ({self.lowest:.2f} to {self.highest:.2f})"
        )
        outcome = "met" if self.is_met else "MISSED"
        return f"{self.limit}: {self.value:.2f}{rounds}, {outcome}{self.note}"


class Scenario(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The stores of one comparison.

    Attributes:
        id: for the report.
        title: for people.
        unit: the unit of one call, in the plural.
        durability: "" if nothing is stored, or it makes no difference.
        metric: the figure by which the stores are compared.
        rounds: how many.
        seconds: of each timed piece.
        figures: this library's first.
        verdicts: the limits and their results.
        skipped: the stores that are not installed, with the reason.
        remark: a sentence below the table.
    """

    id: str
    title: str
    unit: str
    durability: str = ""
    metric: Metric = "per_second"
    rounds: int = 0
    seconds: float = 0.0
    figures: list[Figures] = []
    verdicts: list[Verdict] = []
    skipped: dict[str, str] = {}
    remark: str = ""

    def find(self, store: str) -> Figures | None:
        """Return the figures of a store, or None."""
        return next((each for each in self.figures if each.store == store), None)


class Results(msgspec.Struct, kw_only=True):
    """A run.

    Attributes:
        began: when, UTC, ISO 8601.
        mode: ``bench``, ``full`` or ``brief``; a brief one holds no limit and proves nothing.
        machine: the machine of the run.
        versions: of every measured package.
    """

    began: str
    mode: str
    machine: dict[str, str]
    versions: dict[str, str]
    scenarios: list[Scenario] = []

    def save(self, path: Path) -> None:
        """Write them to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file of ``save``."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
