"""Reading: a long conversation, its end, one turn, and page one of many sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench import Bench, Filled
from benchmarks.contestant import PATIENCE
from benchmarks.limits import Limit
from benchmarks.messages import FillSessions, Reading, ReadOften
from benchmarks.pace import Pace
from benchmarks.rivals import (
    ADK_DATABASE,
    ADK_SQLITE,
    BARE,
    BY_HAND,
    OPENAI,
    ORM,
    OURS,
    PEERS,
)

ROUNDS = 1_000
LAST = 20
PAGE = 50

TITLES: dict[Reading, str] = {
    "whole": f"read a conversation of {ROUNDS:,} rounds",
    "last": f"read the last {LAST} of {ROUNDS:,} rounds",
    "turn": "read one answer by its id",
}
EXPECTED: dict[Reading, int] = {"whole": ROUNDS, "last": LAST, "turn": 1}


def faster_than(value: float, *rivals: str) -> Limit:
    """Limit our time by the best one of these."""
    return Limit(metric="median", bound="at most", value=value, against=rivals)


@pytest.fixture(scope="module")
def filled(databases: Path) -> Filled:
    """A file of each store with one long conversation."""
    return Filled(databases / "reading", ROUNDS)


@pytest.mark.parametrize("what", TITLES)
def test_a_conversation(bench: Bench, filled: Filled, what: Reading) -> None:
    comparison = bench.compare(
        f"read-{what}",
        TITLES[what],
        unit="readings",
        stores=(OURS, BARE, *BY_HAND, *PEERS),
        metric="median",
        is_stored=False,
        conversations=1,
        filled=filled,
    )
    comparison.measure(
        lambda store, seconds: store.ask(
            ReadOften(what=what, expected=EXPECTED[what], last=LAST, seconds=seconds),
            seconds + PATIENCE,
        )
    )
    limits = [
        faster_than(2.0, BARE),
        faster_than(1.0, OPENAI),
        faster_than(1.0, ADK_SQLITE, ADK_DATABASE),
        faster_than(1.0, ORM),
    ]
    comparison.judge(*(limits if what == "whole" else ()))


def test_page_one_of_all_sessions(bench: Bench, pace: Pace) -> None:
    sessions = max(each for each in pace.turns if each <= 100_000)
    comparison = bench.compare(
        "read-sessions",
        f"list {PAGE} of {sessions:,} sessions, newest first",
        unit="pages",
        stores=(OURS, BARE, *BY_HAND, *PEERS),
        metric="median",
        is_stored=False,
    )
    comparison.prepare(FillSessions(sessions=sessions))
    comparison.measure(
        lambda store, seconds: store.ask(
            ReadOften(what="sessions", expected=PAGE, last=PAGE, seconds=seconds),
            seconds + PATIENCE,
        )
    )
    comparison.judge()
