"""The durations of a run."""

from __future__ import annotations

from typing import Literal

import msgspec

from mandrake_sessions import Durability

FEWEST_ROUNDS = 5
LONGER = {Durability.DURABLE: 1.6, Durability.FAST: 0.6}
"""How much longer the pieces with waiting threads are.

A wait cannot show longer than its piece lasts. Where no thread waits for the disk, a short piece
has calls enough.
"""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The durations of a run.

    Attributes:
        mode: the mode of the run.
        rounds: of each comparison.
        seconds: of each store's piece of a round.
        turns: the sizes of a growing file.
        paced: seconds of a stream at a model's pace.
        updates: how many updates watchers get.
        idle: seconds without an event.
    """

    mode: Literal["bench", "full", "brief"]
    rounds: int
    seconds: float
    turns: tuple[int, ...]
    paced: float
    updates: int
    idle: float

    @property
    def holds_limits(self) -> bool:
        """Whether a missed limit fails; a brief run is too short to show it."""
        return self.mode != "brief"


PACES = {
    "bench": Pace(
        mode="bench",
        rounds=5,
        seconds=0.3,
        turns=(1_000, 10_000, 100_000),
        paced=4,
        updates=300,
        idle=5,
    ),
    "full": Pace(
        mode="full",
        rounds=9,
        seconds=1.0,
        turns=(1_000, 10_000, 100_000, 1_000_000),
        paced=10,
        updates=1_000,
        idle=10,
    ),
    "brief": Pace(
        mode="brief", rounds=2, seconds=0.05, turns=(100, 1_000), paced=0.3, updates=20, idle=0.5
    ),
}
