"""Checkpoints: off the commit path, and never the error of a COMMIT (RULES 15 and 23)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from database_kit import (
    KEYS,
    Task,
    adding,
    file_of,
    keys,
    raw_of,
    until,
    until_set,
)

from mandrake_sessions import ConnectionPool, DatabaseIOError, HealthStatus
from mandrake_sessions.database import lifecycle
from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.testing import FaultVFS

MakePool = Callable[..., ConnectionPool]
FRAME = 4096 + 24


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def status_of(handle: DatabaseHandle, name: str) -> HealthStatus:
    return next(check.status for check in handle.health().checks if check.name == name)


def fill(handle: DatabaseHandle, count: int, name: str = "key") -> None:
    for number in range(count):
        handle.transact(adding(f"{name} {number}", "x" * 5000), delegable=True)


def test_rule_23_the_wal_of_a_busy_writer_stays_bounded(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(database={"checkpoint_frames": 50, "wal_limit_bytes": 400 * FRAME})
    with pool.acquire(path) as handle:
        largest = 0
        for turn in range(240):
            fill(handle, 25, str(turn))
            largest = max(largest, wal_of(path).stat().st_size)
        assert handle.stats().checkpoints
        # Some 18,000 frames were written. Above 4,000 the rest is copied while nobody writes, and
        # meanwhile 400 more may come, and one unit for each 0.1 s that the disk takes to copy.
        assert largest < 8000 * FRAME
        assert len(keys(handle)) == 6000


def test_rule_23_a_writer_faster_than_the_disk_is_held_up(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    """A disk that takes a second to copy does not make the WAL grow for a second.

    writer:      units · · · 400 frames · · · · · · one each 0.1 s · · · · at full pace
    checkpoint:        |---- sync of the database takes 1 s ----|
    """
    frames: list[int] = []
    pool = make_pool(
        database={"checkpoint_frames": 50, "wal_limit_bytes": 400 * FRAME, "vfs": vfs.name}
    )
    with pool.acquire(path) as handle:

        def be_slow() -> None:
            before = handle.stats().pages_written
            time.sleep(1.0)
            frames.append(handle.stats().pages_written - before)

        with vfs.watching("db", "sync", be_slow):
            turn = 0
            while not frames:
                fill(handle, 1, str(turn))
                turn += 1
        # At three frames a unit: about 400, and then ten units; without the hold some 10,000.
        assert frames[0] < 1000
        assert len(keys(handle)) == turn


def test_rule_23_nothing_is_checkpointed_below_the_threshold(
    make_pool: MakePool, path: Path
) -> None:
    with make_pool().acquire(path) as handle:
        fill(handle, 20)
        assert handle.stats().checkpoints == 0
        assert handle.stats().pages_written > 40


def test_rule_23_no_checkpoint_runs_on_the_writers_connection(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    """The writer's thread never writes to the database file, only to the WAL."""
    writers: set[str] = set()

    def look() -> None:
        writers.add(threading.current_thread().name)

    pool = make_pool(database={"checkpoint_frames": 20, "vfs": vfs.name}, linger=3600.0)
    with pool.acquire(path) as handle:
        with vfs.watching("db", "write", look):
            fill(handle, 100)
            until(lambda: writers)
        assert writers == {"mandrake-pool"}
        assert raw_of(handle).pragma("wal_autocheckpoint") == 0


def test_rule_23_a_long_reader_only_puts_it_off(make_pool: MakePool, path: Path) -> None:
    with make_pool(database={"checkpoint_frames": 20}).acquire(path) as handle:
        reading, may_go = threading.Event(), threading.Event()

        def read() -> None:
            with handle.read() as tx:
                tx.rows(KEYS)
                reading.set()
                until_set(may_go)

        reader = Task(read)
        until_set(reading)
        fill(handle, 30)
        assert handle.stats().checkpoints == 0
        may_go.set()
        reader.result()
        fill(handle, 1, "more")
        until(lambda: handle.stats().checkpoints)
        assert status_of(handle, "checkpoints") is HealthStatus.OK


@pytest.mark.parametrize(
    ("operation", "code"),
    [("write", apsw.SQLITE_IOERR_WRITE), ("write", apsw.SQLITE_FULL), ("sync", apsw.SQLITE_IOERR)],
)
def test_rule_15_a_failing_checkpoint_is_a_fact_and_no_error(
    make_pool: MakePool, path: Path, vfs: FaultVFS, operation: str, code: int
) -> None:
    pool = make_pool(database={"checkpoint_frames": 20, "vfs": vfs.name})
    with pool.acquire(path) as handle:
        keys(handle)
        with vfs.failing("db", operation, code):
            fill(handle, 60)
            until(lambda: file_of(handle).checkpointer.runs)
            fill(handle, 5, "more")
            # With nobody writing: the file is synced only where everything was copied.
            file_of(handle).checkpoint()
            assert file_of(handle).checkpointer.failure == code
            assert status_of(handle, "checkpoints") is HealthStatus.DEGRADED
            assert handle.health().is_usable
        before = handle.stats().checkpoints
        fill(handle, 60, "again")
        until(lambda: handle.stats().checkpoints > before)
        until(lambda: file_of(handle).checkpointer.failure is None)
        assert len(keys(handle)) == 125
        assert status_of(handle, "checkpoints") is HealthStatus.OK


def test_rule_23_an_auxiliary_connection_that_cannot_be_opened_only_puts_it_off(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is free for a moment; later there is a checkpoint all the same."""
    really_open = lifecycle.open_connection
    attempts: list[str] = []

    def failing(*args: Any, **options: Any) -> Any:
        if options.get("auxiliary"):
            attempts.append("auxiliary")
            raise DatabaseIOError(path=path, operation="open")
        return really_open(*args, **options)

    with make_pool(database={"checkpoint_frames": 20}).acquire(path) as handle:
        monkeypatch.setattr(lifecycle, "open_connection", failing)
        fill(handle, 20)
        until(lambda: attempts)
        monkeypatch.setattr(lifecycle, "open_connection", really_open)
        fill(handle, 60, "more")
        until(lambda: handle.stats().checkpoints)


def test_rule_23_a_read_fault_in_a_checkpoint_does_not_end_checkpoints(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    pool = make_pool(database={"checkpoint_frames": 20, "vfs": vfs.name})
    with pool.acquire(path) as handle:
        keys(handle)
        before = handle.stats().checkpoints
        with vfs.failing("wal", "read", apsw.SQLITE_IOERR_READ):
            fill(handle, 20)
            until(lambda: handle.stats().checkpoints > before)
            until(lambda: file_of(handle).lanes()[1].queue.holder == 0)
        before = handle.stats().checkpoints
        fill(handle, 60, "more")
        until(lambda: handle.stats().checkpoints > before)


def test_a_closed_database_needs_no_wal(make_pool: MakePool, path: Path) -> None:
    with make_pool(database={"checkpoint_frames": 20}).acquire(path) as handle:
        fill(handle, 50)
    assert not wal_of(path).exists()
    plain = apsw.Connection(str(path))
    assert plain.pragma("integrity_check") == "ok"
    assert plain.execute("SELECT count(*) FROM meta").fetchall() == [(53,)]
    plain.close()
