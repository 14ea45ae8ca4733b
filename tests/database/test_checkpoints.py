"""Checkpoints: off the commit path, and never the error of a COMMIT."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import apsw
import pytest
from database_kit import Held, Task, file_of, queue_of, queued, raw_of
from kits.descriptors import descriptors
from kits.entries import KEYS, adding, keys
from kits.waiting import PATIENCE, SOON, until, until_set

from mandrake_sessions import ConnectionPool, DatabaseIOError, HealthStatus
from mandrake_sessions.database.connection import checkpoint
from mandrake_sessions.database.connection.begin_commit import rollback
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.leasing import writer
from mandrake_sessions.database.maintenance import Maintenance
from mandrake_sessions.database.open_file import file as database_file
from mandrake_sessions.database.open_file import lifecycle
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.testing import FaultVFS

MakePool = Callable[..., ConnectionPool]
FRAME = 4096 + 24


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def status_of(handle: FileHandle, name: str) -> HealthStatus:
    return next(check.status for check in handle.health().checks if check.name == name)


def fill(handle: FileHandle, count: int, name: str = "key") -> None:
    for number in range(count):
        handle.transact(adding(f"{name} {number}", "x" * 5000), delegable=True)


def until_idle(pool: ConnectionPool) -> None:
    """Wait until the checkpoints that the commits have asked for are over."""
    idle = threading.Event()
    pool._files.maintenance.call_later("idle", 0.0, idle.set)
    until_set(idle)


@contextlib.contextmanager
def busy_thread(pool: ConnectionPool) -> Iterator[None]:
    """Keep the pool's thread from doing anything else for a block."""
    is_busy, may_go = threading.Event(), threading.Event()

    def be_busy() -> None:
        is_busy.set()
        until_set(may_go)

    pool._files.maintenance.call_later("busy", 0.0, be_busy)
    until_set(is_busy)
    try:
        yield
    finally:
        may_go.set()


@contextlib.contextmanager
def opened_elsewhere(path: Path, sql: str = "SELECT count(*) FROM meta") -> Iterator[Any]:
    """Have the file open without the library for a block, as another process may."""
    other = apsw.Connection(str(path))
    try:
        other.execute(sql).fetchall()
        yield other
    finally:
        other.close()


SNAPSHOT = "BEGIN; SELECT count(*) FROM meta"


def backlog(connection: apsw.Connection) -> int:
    connection.execute("SELECT count(*) FROM meta").fetchall()
    frames, done = connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP)
    return frames - done


@contextlib.contextmanager
def interrupted_in(code: CodeType, caller: CodeType | None = None) -> Iterator[None]:
    """Have a KeyboardInterrupt at the entry of a function, once, as a signal may come there."""

    def look(frame: FrameType, event: str, _what: object) -> None:
        is_it = event == "call" and frame.f_code is code
        if is_it and (caller is None or (frame.f_back and frame.f_back.f_code is caller)):
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_the_wal_of_a_busy_writer_stays_bounded(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(database={"checkpoint_frames": 50, "wal_limit_bytes": 400 * FRAME})
    with file_handle(pool.acquire(path)) as handle:
        largest = 0
        for turn in range(240):
            fill(handle, 25, str(turn))
            largest = max(largest, wal_of(path).stat().st_size)
        assert handle.stats().checkpoints
        # Some 18,000 frames were written. Above 4,000 the rest is copied while no thread writes.
        # Meanwhile 400 more may come, and one unit for each 0.1 s that the disk takes to copy.
        assert largest < 8000 * FRAME
        assert len(keys(handle)) == 6000


def test_a_writer_that_is_faster_than_the_disk_waits_for_a_checkpoint(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    """A disk that takes half a second to copy does not make the WAL grow for so long.

    writer:      units · · · 400 frames · · · · · · one each 0.1 s · · · · at full pace
    checkpoint:        |--- sync of the database takes 0.5 s ---|
    """
    frames: list[int] = []
    pool = make_pool(
        database={"checkpoint_frames": 50, "wal_limit_bytes": 400 * FRAME, "vfs": vfs.name}
    )
    with file_handle(pool.acquire(path)) as handle:

        def be_slow() -> None:
            if not frames:
                before = handle.stats().pages_written
                time.sleep(0.5)
                frames.append(handle.stats().pages_written - before)

        with vfs.watching("db", "sync", be_slow):
            turn = 0
            while not frames:
                fill(handle, 1, str(turn))
                turn += 1
        # At three frames a unit: about 400, and then five units; without the hold some 5,000.
        assert frames[0] < 1000
        assert len(keys(handle)) == turn


def test_a_short_read_does_not_wait_for_the_sync_of_a_checkpoint(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    """The disk does not answer, a thread writes meanwhile, and reading goes on::

    checkpoint   auxiliary ─ sync of the database ............................. answers
    writer                    main ─ write() block ................... commits
    reader                                 reads what is committed
    """
    is_syncing, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        # Not of one that ends a checkpoint, and keeps writers out for that.
        if handle.file.writer.queue.holder != threading.get_ident():
            is_syncing.set()
            may_end.wait(60)

    pool = make_pool(database={"checkpoint_frames": 50, "vfs": vfs.name})
    with file_handle(pool.acquire(path)) as handle, vfs.watching("db", "sync", wait):
        turn = 0
        while not is_syncing.is_set():
            fill(handle, 1, str(turn))
            turn += 1
        try:
            with handle.write() as tx:
                stored = tx.rows(KEYS)
                before = len(descriptors(path))
                tasks = [Task(lambda: handle.fetch(lambda tx: tx.rows(KEYS))) for _ in range(3)]
                for task in tasks:
                    assert task.result() == stored
                assert not may_end.is_set()
                assert len(descriptors(path)) <= before + 1
        finally:
            may_end.set()


def test_nothing_is_checkpointed_below_the_threshold(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        fill(handle, 20)
        assert handle.stats().checkpoints == 0
        assert handle.stats().pages_written > 40


def test_no_checkpoint_runs_on_the_writers_connection(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    """The writer's thread never writes to the database file, only to the WAL."""
    writers: set[str] = set()

    def look() -> None:
        writers.add(threading.current_thread().name)

    pool = make_pool(database={"checkpoint_frames": 20, "vfs": vfs.name}, linger=3600.0)
    with file_handle(pool.acquire(path)) as handle:
        with vfs.watching("db", "write", look):
            fill(handle, 100)
            until(lambda: writers)
        assert writers == {"mandrake-pool"}
        assert raw_of(handle).pragma("wal_autocheckpoint") == 0


def test_a_long_reader_only_puts_a_checkpoint_off(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool(database={"checkpoint_frames": 20}).acquire(path)) as handle:
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


@pytest.mark.parametrize("by", ["a block", "another process"])
def test_readers_go_on_while_a_checkpoint_waits_for_the_writer(
    make_pool: MakePool, path: Path, by: str
) -> None:
    """
    ::

        reader      snapshot ─┘                      fetch: on the auxiliary, which is free
        writer                 block ............................................. ─┘
        checkpoint              └─ copies ─ waits for the writer, a quarter of a second at most
    """
    pool = make_pool(database={"checkpoint_frames": 20})
    with file_handle(pool.acquire(path)) as handle, contextlib.ExitStack() as stack:
        reading, may_go = threading.Event(), threading.Event()

        def read() -> None:
            with handle.read() as tx:
                tx.rows(KEYS)
                reading.set()
                until_set(may_go)

        # So that there is a long log, and a checkpoint that is asked for.
        reader = Task(read)
        until_set(reading)
        fill(handle, 40)
        if by == "a block":
            stack.enter_context(Held(handle))
        else:
            stack.enter_context(opened_elsewhere(path, "BEGIN IMMEDIATE"))
        began = monotonic()
        may_go.set()
        reader.join()
        if by == "a block":
            queued(handle, 1)
        else:
            until(lambda: queue_of(handle).holder)
        assert len(handle.fetch(lambda tx: tx.rows(KEYS))) == 43
        # The tasks of other files do not wait longer either.
        until_idle(pool)
        assert monotonic() - began < SOON
        assert handle.stats().checkpoints


def test_a_checkpoint_that_could_not_be_requested_is_requested_again(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There can be no thread more for a moment; the one that is asked for later starts it."""
    really_start = threading.Thread.start
    refused: list[str] = []

    def start(thread: threading.Thread) -> None:
        if thread.name == "mandrake-pool" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        really_start(thread)

    with file_handle(make_pool(database={"checkpoint_frames": 20}).acquire(path)) as handle:
        monkeypatch.setattr(threading.Thread, "start", start)
        fill(handle, 10)
        assert refused
        fill(handle, 10, "more")
        until(lambda: handle.stats().checkpoints)


def test_ctrl_c_during_the_request_of_a_checkpoint_only_puts_it_off(
    make_pool: MakePool, path: Path
) -> None:
    with file_handle(make_pool(database={"checkpoint_frames": 20}).acquire(path)) as handle:
        with (
            interrupted_in(Maintenance.call_later.__code__),
            pytest.raises(KeyboardInterrupt),
        ):
            fill(handle, 10)
        fill(handle, 10, "more")
        until(lambda: handle.stats().checkpoints)


def test_ctrl_c_while_a_checkpoint_ends_retires_no_file(make_pool: MakePool, path: Path) -> None:
    """A monitor's look heals in its caller's thread, which is the one that gets signals."""
    pool = make_pool(database={"checkpoint_frames": 20})
    with file_handle(pool.acquire(path)) as handle:
        with busy_thread(pool):
            fill(handle, 40)
            alone = writer.WriterConnection.alone.__wrapped__.__code__  # type: ignore[attr-defined]
            with (
                interrupted_in(rollback.__code__, alone),
                pytest.raises(KeyboardInterrupt),
            ):
                file_of(handle).checkpoint()
            assert queue_of(handle).holder == 0
        fill(handle, 1, "more")
        assert len(keys(handle)) == 41


def test_the_first_commit_after_an_opening_requests_a_checkpoint_of_a_long_wal(
    make_pool: MakePool, ready_path: Path
) -> None:
    """Processes that end before they have written enough never ask for a checkpoint."""
    with opened_elsewhere(ready_path) as other:
        for number in range(10):
            other.execute("INSERT INTO meta VALUES (?, ?)", (f"other {number}", "x" * 5000))
        with file_handle(
            make_pool(database={"checkpoint_frames": 20}).acquire(ready_path)
        ) as handle:
            handle.transact(adding("key"))
            until(lambda: handle.stats().checkpoints and backlog(other) == 0)


def test_a_writer_that_closes_leaves_no_long_wal_to_processes_that_only_read(
    make_pool: MakePool, ready_path: Path
) -> None:
    pool = make_pool(database={"checkpoint_frames": 30})
    with opened_elsewhere(ready_path) as other:
        with busy_thread(pool), file_handle(pool.acquire(ready_path)) as handle:
            fill(handle, 5)
        # Short enough; closing does not copy what costs more than it does itself.
        assert backlog(other) >= 10
        with busy_thread(pool), file_handle(pool.acquire(ready_path)) as handle:
            fill(handle, 15, "more")
        assert backlog(other) == 0
    assert not wal_of(ready_path).exists()


def test_a_long_reader_in_another_process_holds_no_writer_up(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncating would wait for it with the write lock held, again and again.

    The WAL grows meanwhile, health reports it, and it is truncated when the reader has ended.
    """
    monkeypatch.setattr(checkpoint, "_TRUNCATE_PATIENCE", 600.0)
    limit = 100 * FRAME
    pool = make_pool(database={"checkpoint_frames": 20, "wal_limit_bytes": limit})
    with file_handle(pool.acquire(path)) as handle:
        with opened_elsewhere(path, SNAPSHOT):
            fill(handle, 100)
            until_idle(pool)
            began = monotonic()
            for _ in range(5):
                file_of(handle).checkpoint()
            assert monotonic() - began < SOON
            runs = file_of(handle).checkpointer.runs
            fill(handle, 3, "more")
            until_idle(pool)
            # Only when as many frames have come as before.
            assert file_of(handle).checkpointer.runs == runs
            assert wal_of(path).stat().st_size > 2 * limit
            assert status_of(handle, "checkpoints") is HealthStatus.DEGRADED
        file_of(handle).checkpoint()
        handle.transact(adding("last"))
        assert wal_of(path).stat().st_size <= limit
        assert status_of(handle, "checkpoints") is HealthStatus.OK


def test_a_writer_waits_only_once_for_a_reader_that_prevents_the_truncation_of_the_wal(
    make_pool: MakePool, path: Path
) -> None:
    """It has seen all that there is, so it holds no frame back, and yet the log cannot be cut."""
    pool = make_pool(database={"wal_limit_bytes": 100 * FRAME})
    with file_handle(pool.acquire(path)) as handle:
        fill(handle, 60)
        with opened_elsewhere(path, SNAPSHOT):
            file_of(handle).checkpoint()
            fill(handle, 3, "more")
            until_idle(pool)
            assert file_of(handle).checkpointer.runs == 1
            assert status_of(handle, "checkpoints") is HealthStatus.OK


def test_a_wal_that_begins_anew_is_truncated(make_pool: MakePool, path: Path) -> None:
    """Where it could not be truncated, because others read or write all the time."""
    limit = 100 * FRAME
    pool = make_pool(database={"checkpoint_frames": 20, "wal_limit_bytes": limit})
    with file_handle(pool.acquire(path)) as handle:
        with opened_elsewhere(path, SNAPSHOT):
            fill(handle, 60)
            until_idle(pool)
        assert wal_of(path).stat().st_size > limit
        with opened_elsewhere(path) as other:
            other.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        handle.transact(adding("last"))
        assert wal_of(path).stat().st_size <= limit


READER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM meta").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def reading_elsewhere(path: Path, end: str) -> Iterator[None]:
    """Have another process read for a block, and end with it in a way of its own."""
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        yield
        if end == "is killed":
            reader.kill()


@contextlib.contextmanager
def reading_here(handle: FileHandle) -> Iterator[None]:
    """Have a thread of this process read for a block."""
    is_reading, may_go = threading.Event(), threading.Event()

    def read() -> None:
        with handle.read() as tx:
            tx.rows(KEYS)
            is_reading.set()
            until_set(may_go)

    reader = Task(read)
    until_set(is_reading)
    try:
        yield
    finally:
        may_go.set()
        reader.result()


@pytest.mark.parametrize("end", ["ends", "is killed", "is a thread", "has seen all there is"])
def test_a_long_wal_is_truncated_soon_after_its_reader_ends_though_no_write_follows(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The reader keeps the checkpoints from copying, or from cutting what they have copied."""
    limit = 100 * FRAME
    # So that a thread need not read for so long that a checkpoint gives up.
    monkeypatch.setattr(database_file, "_CHECKPOINT_BUDGET", 0.01)
    pool = make_pool(database={"checkpoint_frames": 20, "wal_limit_bytes": limit})
    with file_handle(pool.acquire(path)) as handle:
        if end == "has seen all there is":
            with busy_thread(pool):
                fill(handle, 100)
                reader = reading_elsewhere(path, end)
                reader.__enter__()
        else:
            here = end == "is a thread"
            reader = reading_here(handle) if here else reading_elsewhere(path, end)
            reader.__enter__()
            fill(handle, 100)
        until_idle(pool)
        assert wal_of(path).stat().st_size > 2 * limit
        reader.__exit__(None, None, None)
        began = monotonic()
        until(lambda: wal_of(path).stat().st_size <= limit)
        assert monotonic() - began < SOON
        assert len(keys(handle)) == 100
        # And then the thread has nothing to do.
        until_idle(pool)
        assert not pool._files.maintenance._waiting


def test_a_long_wal_found_at_opening_is_truncated_though_nothing_is_written(
    make_pool: MakePool, path: Path
) -> None:
    limit = 100 * FRAME
    with opened_elsewhere(path) as other:
        other.pragma("wal_autocheckpoint", 0)
        for number in range(100):
            other.execute("INSERT INTO meta VALUES (?, ?)", (f"other {number}", "x" * 5000))
        assert wal_of(path).stat().st_size > 2 * limit
        with make_pool(database={"wal_limit_bytes": limit}).acquire(path):
            until(lambda: wal_of(path).stat().st_size <= limit)


def test_the_checks_of_a_long_wal_keep_no_writer_waiting(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of another process stays, and the look that would cut the log waits for no lock."""
    monkeypatch.setattr(checkpoint, "_TRUNCATE_PATIENCE", 600.0)
    pool = make_pool(database={"checkpoint_frames": 20, "wal_limit_bytes": 100 * FRAME})
    with file_handle(pool.acquire(path)) as handle, opened_elsewhere(path, SNAPSHOT):
        fill(handle, 100)
        until_idle(pool)
        runs = file_of(handle).checkpointer.runs
        began = monotonic()
        for _ in range(20):
            file_of(handle)._cut(0.0)
        assert monotonic() - began < SOON
        assert file_of(handle).checkpointer.runs == runs
        assert file_of(handle).checkpointer.failure is None


def test_the_last_checkpoint_of_a_wal_does_not_wait_for_itself(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the write lock, on the other connection; truncating would need it too."""
    monkeypatch.setattr(checkpoint, "_TRUNCATE_PATIENCE", 600.0)
    pool = make_pool(database={"checkpoint_frames": 20, "wal_limit_bytes": 10 * FRAME})
    with file_handle(pool.acquire(path)) as handle, busy_thread(pool):
        fill(handle, 10)
        file = file_of(handle)
        with (
            file.exclusive_auxiliary("test", Budget(PATIENCE)) as auxiliary,
            file.writer.alone(Budget(PATIENCE), "test"),
        ):
            began = monotonic()
            file.checkpointer.run(auxiliary, began + PATIENCE, finishes=True)
            assert monotonic() - began < SOON
        assert file.checkpointer.backlog == 0


@pytest.mark.parametrize(
    ("operation", "code"),
    [("write", apsw.SQLITE_IOERR_WRITE), ("write", apsw.SQLITE_FULL), ("sync", apsw.SQLITE_IOERR)],
)
def test_a_failing_checkpoint_is_a_fact_of_health_and_no_error_of_a_write(
    make_pool: MakePool, path: Path, vfs: FaultVFS, operation: str, code: int
) -> None:
    pool = make_pool(database={"checkpoint_frames": 20, "vfs": vfs.name})
    with file_handle(pool.acquire(path)) as handle:
        keys(handle)
        with vfs.failing("db", operation, code):
            fill(handle, 60)
            until(lambda: file_of(handle).checkpointer.runs)
            fill(handle, 5, "more")
            # While no thread writes: the file is synced only where everything was copied.
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


def test_an_auxiliary_connection_that_cannot_be_opened_only_puts_a_checkpoint_off(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is free for a moment; later there is a checkpoint all the same."""
    attempts: list[str] = []

    def failing(*args: Any, **options: Any) -> Any:
        if options.get("auxiliary"):
            attempts.append("auxiliary")
            raise DatabaseIOError(path=path, operation="open")
        return open_connection(*args, **options)

    with file_handle(make_pool(database={"checkpoint_frames": 20}).acquire(path)) as handle:
        monkeypatch.setattr(lifecycle, "open_connection", failing)
        fill(handle, 20)
        until(lambda: attempts)
        monkeypatch.setattr(lifecycle, "open_connection", open_connection)
        fill(handle, 60, "more")
        until(lambda: handle.stats().checkpoints)


def test_a_read_fault_in_a_checkpoint_does_not_end_checkpoints(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    pool = make_pool(database={"checkpoint_frames": 20, "vfs": vfs.name})
    with file_handle(pool.acquire(path)) as handle:
        keys(handle)
        before = handle.stats().checkpoints
        with vfs.failing("wal", "read", apsw.SQLITE_IOERR_READ):
            fill(handle, 20)
            until(lambda: handle.stats().checkpoints > before)
            until(lambda: file_of(handle).leased_connections()[1].queue.holder == 0)
        before = handle.stats().checkpoints
        fill(handle, 60, "more")
        until(lambda: handle.stats().checkpoints > before)


def test_a_closed_database_needs_no_wal(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool(database={"checkpoint_frames": 20}).acquire(path)) as handle:
        fill(handle, 50)
    assert not wal_of(path).exists()
    plain = apsw.Connection(str(path))
    assert plain.pragma("integrity_check") == "ok"
    assert plain.execute("SELECT count(*) FROM meta").fetchall() == [(55,)]
    plain.close()
