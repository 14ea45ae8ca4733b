"""What a file's size does to an append and to page one of its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.contestant import PATIENCE
from benchmarks.limits import Limit
from benchmarks.messages import FillSessions, Grow, ReadOften
from benchmarks.pace import Pace
from benchmarks.rivals import BARE_AUTO, OURS
from mandrake_sessions import Durability

TURNS_OF_A_SESSION = 100
PAGE = 50
MOST_SESSIONS = 100_000
STORES = {"mandrake_sessions": OURS, "bare APSW, autocheckpoint": BARE_AUTO}
SLOWER = 1.3


class Grown(NamedTuple):
    """A store at one size of its file."""

    name: str
    where: str
    size: int


def test_append(bench: Bench, pace: Pace) -> None:
    grown = each_size(pace.turns, "turns")
    comparison = bench.compare(
        "growth-append",
        "append to a file that grows, one thread",
        unit="appends",
        durability=Durability.FAST,
        metric="median",
        stores=[each.where for each in grown],
        names=[each.name for each in grown],
    )
    comparison.prepare_each(
        {each.name: Grow(exchanges=each.size, each=TURNS_OF_A_SESSION) for each in grown}
    )
    comparison.measure(lambda store, seconds: store.append(seconds))
    comparison.check()
    comparison.judge(no_slower_than_the_smallest(grown))


def test_page(bench: Bench, pace: Pace) -> None:
    grown = each_size([each for each in pace.turns if each <= MOST_SESSIONS], "sessions")
    comparison = bench.compare(
        "growth-page",
        f"list {PAGE} sessions of a file that grows",
        unit="pages",
        is_stored=False,
        metric="median",
        stores=[each.where for each in grown],
        names=[each.name for each in grown],
    )
    comparison.prepare_each({each.name: FillSessions(sessions=each.size) for each in grown})
    comparison.measure(
        lambda store, seconds: store.ask(
            ReadOften(what="sessions", expected=PAGE, last=PAGE, seconds=seconds),
            seconds + PATIENCE,
        )
    )
    comparison.judge(no_slower_than_the_smallest(grown))


def each_size(sizes: Sequence[int], unit: str) -> list[Grown]:
    """Return every store at every size, ours at the largest one first."""
    return [
        Grown(f"{name}, {size:,} {unit}", where, size)
        for name, where in STORES.items()
        for size in sorted(sizes, reverse=True)
    ]


def no_slower_than_the_smallest(grown: Sequence[Grown]) -> Limit:
    smallest = [each.name for each in grown if each.where == OURS][-1]
    return Limit(metric="median", bound="at most", value=SLOWER, against=(smallest,))
