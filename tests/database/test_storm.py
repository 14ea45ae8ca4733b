"""Everything at once, for some seconds: acknowledged rows are there, and no others."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_kit import Task, file_of, new_key, queue_of, raw_of
from kits.entries import add, adding, keys
from kits.waiting import until

from mandrake_sessions import ConnectionPool, DatabaseBusyError, Durability, TransactionLostError
from mandrake_sessions.database.connection.transaction import WriteTransaction

THREADS = 12


class OddError(Exception):
    """A host's own."""


class Storm:
    """Threads that do everything one can do with a handle, at random."""

    def __init__(self, handle: Any, seconds: float) -> None:
        self.handle = handle
        self.acknowledged: set[str] = set()
        self.failed: set[str] = set()
        self.errors: Counter[str] = Counter()
        self.done: Counter[int] = Counter()
        self._until = monotonic() + seconds
        self._mutex = threading.Lock()

    def work(self, number: int) -> None:
        chance = random.Random(number)
        kinds: list[Callable[[str, random.Random], bool]] = [self.join] * 12 + [
            self.fail,
            self.fail,
            self.lose,
            self.solo,
            self.block,
        ]
        kinds += [self.hurry, self.fetch, self.query]
        while monotonic() < self._until:
            key = new_key()
            try:
                is_written = chance.choice(kinds)(key, chance)
            except (OddError, DatabaseBusyError, TransactionLostError) as error:
                with self._mutex:
                    self.failed.add(key)
                    self.errors[type(error).__name__] += 1
            else:
                with self._mutex:
                    self.done[number] += 1
                    if is_written:
                        self.acknowledged.add(key)

    def join(self, key: str, _chance: random.Random) -> bool:
        assert self.handle.transact(adding(key), "join", delegable=True) == key
        return True

    def fail(self, key: str, _chance: random.Random) -> bool:
        def unit(tx: WriteTransaction) -> None:
            add(tx, key)
            raise OddError

        self.handle.transact(unit, "fail", delegable=True)
        return False

    def lose(self, key: str, chance: random.Random) -> bool:
        how_often = chance.choice([1, 2, 9])

        def unit(tx: WriteTransaction) -> None:
            nonlocal how_often
            add(tx, key)
            if how_often:
                how_often -= 1
                raw_of(self.handle).execute("ROLLBACK")

        self.handle.transact(unit, "lose", delegable=True)
        return True

    def solo(self, key: str, _chance: random.Random) -> bool:
        self.handle.transact(adding(key), "solo")
        return True

    def block(self, key: str, chance: random.Random) -> bool:
        with self.handle.write() as tx:
            add(tx, key)
            if chance.random() < 0.2:
                raise OddError
        return True

    def hurry(self, key: str, chance: random.Random) -> bool:
        self.handle.transact(adding(key), "hurry", chance.random() * 0.004, delegable=True)
        return True

    def fetch(self, _key: str, _chance: random.Random) -> bool:
        self.handle.fetch(lambda tx: None)
        return False

    def query(self, _key: str, _chance: random.Random) -> bool:
        assert keys(self.handle) is not None
        return False


@pytest.mark.parametrize(
    ("seconds", "durability"),
    [
        (1.0, Durability.FAST),
        pytest.param(20.0, Durability.DURABLE, marks=pytest.mark.long),
        pytest.param(20.0, Durability.FAST, marks=pytest.mark.long),
    ],
)
def test_a_storm_stores_exactly_what_it_acknowledged(
    make_pool: Callable[..., ConnectionPool], path: Path, seconds: float, durability: Durability
) -> None:
    pool = make_pool(database={"durability": durability, "checkpoint_frames": 200})
    with pool.acquire(path) as handle:
        storm = Storm(handle, seconds)
        for task in [Task(lambda number=number: storm.work(number)) for number in range(THREADS)]:
            task.thread.join(seconds + 30)
            task.result()
        stored = keys(handle)
        assert stored == storm.acknowledged
        assert not stored & storm.failed
        assert set(storm.errors) <= {"OddError", "DatabaseBusyError", "TransactionLostError"}
        assert storm.errors["OddError"]
        stats = handle.stats()
        assert stats.commits < stats.units, "no COMMIT was shared"
        assert stats.replays
        # A checkpoint may have it for a moment.
        until(lambda: queue_of(handle).holder == 0)
        assert stats.waiting == 0
        assert [
            leased.connection.txn_state() for leased in file_of(handle).leased_connections()
        ] == [0, 0]
        # Fair: FIFO gives everybody about the same, but for the kinds of work that chance gave.
        assert max(storm.done.values()) <= 3 * min(storm.done.values())
    with pool.acquire(path) as handle:
        assert keys(handle) == storm.acknowledged
        assert raw_of(handle).pragma("integrity_check") == "ok"
