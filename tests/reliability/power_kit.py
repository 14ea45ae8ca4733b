"""Work whose power is cut, and what must be found on the disk then."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
from sweep_kit import plain, require_whole

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    NewTurn,
    PoolOptions,
    SessionManager,
)
from mandrake_sessions.testing import PowerCut, PowerLossVFS

Unit = tuple[int, int]
"""The number of a writer, and how many units it had stored before."""

_UNITS = """
    SELECT rounds.id,
        (SELECT count(*) FROM requests WHERE round_id = rounds.id),
        (SELECT count(*) FROM turns JOIN responses ON responses.id = response_id
            WHERE round_id = rounds.id AND length(content) = 1200),
        (SELECT count(*) FROM sessions WHERE id = 'side-' || rounds.id)
    FROM rounds
"""


def pool_on(vfs: PowerLossVFS | None, durability: Durability, **options: Any) -> ConnectionPool:
    """Make a pool, on a disk whose power can be cut or on a real one."""
    database = DatabaseOptions(
        vfs=None if vfs is None else vfs.name, durability=durability, **options
    )
    return ConnectionPool(PoolOptions(database=database, linger=0.0))


def store(sessions: SessionManager, unit: Unit) -> None:
    """Store a unit: one call, or several in a transaction, in turn."""
    writer, number = unit
    id = f"{writer}-{number}"
    answers = ("answer " * 200)[:1200]
    if number % 2:
        with sessions.transaction() as tx:
            tx.create_session(id=f"side-{id}")
            response = tx.create_round(f"talk-{writer}", "question", id=id).response
            for _ in range(2):
                tx.create_turn(response.id, content=answers, status="completed")
    else:
        turns = [NewTurn(content=answers), NewTurn(content=answers)]
        sessions.record_round(f"talk-{writer}", "question", turns, id=id)


def stored(raw: apsw.Connection) -> set[Unit]:
    """Return the units that are there; half a unit is a failure."""
    found = set()
    for id, requests, turns, sides in raw.execute(_UNITS):
        writer, number = map(int, id.split("-"))
        assert (requests, turns, sides) == (1, 2, number % 2), f"{id} is torn"
        found.add((writer, number))
    sides = raw.execute("SELECT count(*) FROM sessions WHERE id LIKE 'side-%'").get
    assert sides == sum(number % 2 for _, number in found), "a unit is torn"
    return found


@dataclass
class Findings:
    """The findings in the images.

    Attributes:
        images: how many were looked at.
        acknowledged: units that were acknowledged before the cut, over all images.
        lost: those of them that were not there.
        losing: images that had lost some.
        during: what the cuts fell upon.
    """

    images: int = 0
    acknowledged: int = 0
    lost: int = 0
    losing: int = 0
    during: Counter[str] = field(default_factory=Counter)

    def add(self, cut: PowerCut, acknowledged: set[Unit], present: set[Unit]) -> None:
        """Count an image."""
        self.images += 1
        self.acknowledged += len(acknowledged)
        self.lost += len(acknowledged - present)
        self.losing += bool(acknowledged - present)
        self.during[cut.during] += 1

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.acknowledged} acknowledged units, {self.lost} of them "
            f"lost in {self.losing} images; cut after {dict(self.during)}"
        )


def look_at(cuts: Iterable[PowerCut], name: str, folder: Path) -> Findings:
    """Open each image with the library, look whether it is whole, and count what is lost.

    Args:
        cuts: their notes are the acknowledged units.
        name: of the database.
        folder: for the images.
    """
    findings = Findings()
    with pool_on(None, Durability.FAST) as pool:
        for cut in cuts:
            image = folder / "image"
            cut.write(image)
            with SessionManager(image / name, pool=pool) as sessions:
                sessions.create_session()
                with plain(image / name) as raw:
                    require_whole(raw, f"cut at {cut.at}, after {cut.during}")
                    present = stored(raw)
            pool.remove(image / name)
            shutil.rmtree(image)
            acknowledged = {note for note in cut.notes if isinstance(note, tuple)}
            findings.add(cut, acknowledged, present)
            require_no_gap(present)
    return findings


def require_no_gap(present: set[Unit]) -> None:
    """Fail if a unit is there without one that its writer stored before."""
    for writer in {writer for writer, _ in present}:
        numbers = {number for each, number in present if each == writer}
        assert numbers == set(range(len(numbers))), f"writer {writer} has a gap"
