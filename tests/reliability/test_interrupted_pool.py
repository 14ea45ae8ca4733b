"""Ctrl-C at any call of what opens, parks and closes files leaves nobody waiting (RULES 18, 21)."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from interleaving_kit import PATIENCE, Thread, interrupted_at
from sqlalchemy import bindparam, insert, select

from mandrake_sessions import ConnectionPool, DatabaseOptions, Durability, PoolOptions, schema
from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.database.slots import SlotState
from mandrake_sessions.statements.generator.compiler import compiled

ADD = compiled(insert(schema.meta).values(key=bindparam("key"), value=""))
KEYS = compiled(select(schema.meta.c.key))


def open_connections(path: Path) -> int:
    """How many connections of this process have the file open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}") == str(path)
        except FileNotFoundError:
            continue
    return found


def until(condition: Callable[[], bool], why: object) -> None:
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, why
        threading.Event().wait(0.0005)


class Stand:
    """A pool in which one file may be open, and handles on two: ``first`` is parked."""

    def __init__(self, folder: Path, template: bytes) -> None:
        self.folder = folder
        self.template = template
        database = DatabaseOptions(durability=Durability.FAST, busy_timeout=PATIENCE)
        self.pool = ConnectionPool(
            PoolOptions(database=database, linger=0, max_open=1, close_timeout=0.5)
        )
        self.first, self.second = self.acquire("first"), self.acquire("second")

    def new(self, name: str) -> Path:
        path = self.folder / f"{name}.sqlite"
        path.write_bytes(self.template)
        return path

    def acquire(self, name: str) -> DatabaseHandle:
        return self.pool.acquire(self.new(name))

    def is_settled(self) -> bool:
        """Whether nothing is being opened or closed."""
        moving = {SlotState.OPENING, SlotState.CLOSING}
        slots = tuple(self.pool._slots.values())
        return not self.pool._forgotten and not any(slot.state in moving for slot in slots)


def use(handle: DatabaseHandle) -> None:
    handle.fetch(lambda tx: tx.rows(KEYS))


DOING: dict[str, Callable[[Stand], Any]] = {
    "a call that opens a parked file": lambda stand: use(stand.first),
    "an acquire that has one parked": lambda stand: stand.acquire("third").release(),
    "an acquire of a parked file": lambda stand: stand.pool.acquire(stand.first.path).release(),
    "an acquire of an open file": lambda stand: stand.pool.acquire(stand.second.path).release(),
    "a removal": lambda stand: stand.pool.remove(stand.new("third")),
    "the last release": lambda stand: stand.second.release(),
    "the closing of the pool": lambda stand: stand.pool.close(),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database that was opened and closed: opening it again takes no migration."""
    path = tmp_path_factory.mktemp("template") / "db.sqlite"
    with ConnectionPool(PoolOptions(linger=0)) as pool:
        pool.acquire(path).release()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _no_finalizers() -> Iterator[None]:
    """Let no finalizer of an earlier test run amidst, and be what is interrupted."""
    gc.collect()
    gc.disable()
    with warnings.catch_warnings():
        # A handle that was made, and never came to anybody, says so when it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        yield
    gc.enable()


@pytest.mark.parametrize("doing", DOING)
@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_leaves_no_file_stuck(
    doing: str, tmp_path: Path, template: bytes, campaign: Any
) -> None:
    """
    ::

        interrupted   marks a file ─ opens, parks or closes it ─ notes that it has
                      Ctrl-C at each call of it
        others                                                     wait? ─ look ─ go on
    """
    step = campaign.pick(11, 2, 1)
    for number in itertools.count(0, step):
        folder = tmp_path / str(number)
        folder.mkdir()
        stand = Stand(folder, template)
        pool, handles = stand.pool, (stand.first, stand.second)
        work = partial(DOING[doing], stand)
        error = Thread(partial(interrupted_at, number, work)).result()
        until(stand.is_settled, error)
        if not pool.is_closed:
            living = [handle for handle in handles if not handle._is_released]
            for handle in living:
                use(handle)
            # One whose release was interrupted is counted until it is collected.
            assert len(living) <= pool.stats().handles <= len(handles), error
            assert sum(open_connections(handle.path) for handle in handles) <= 2, error
        pool.close()
        assert not pool._slots, error
        assert [open_connections(handle.path) for handle in handles] == [0, 0], error
        if error is None:
            break
        assert isinstance(error, KeyboardInterrupt)
    print(f"\n{doing}: every {step} of {number} places")  # a result
    assert number >= 20


def test_ctrl_c_when_a_statement_has_run_does_not_retire_the_file(
    tmp_path: Path, template: bytes
) -> None:
    """A short read has no transaction to roll back: its statement must not stay unfinished."""
    stand = Stand(tmp_path, template)
    with stand.pool:
        use(stand.second)
        for number in itertools.count():
            error = Thread(partial(interrupted_at, number, partial(use, stand.second))).result()
            use(stand.second)
            if error is None:
                break
        stand.first.release()
        stand.second.release()
