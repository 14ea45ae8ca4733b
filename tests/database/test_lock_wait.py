"""A call that waits for another process waits in the kernel, and holds nothing afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from time import monotonic, process_time
from typing import Any

import apsw
import pytest
from database_kit import Task, file_of
from kernel_locks import lock_lines
from kits.entries import KEYS, add, adding, keys
from kits.waiting import SOON, until

from mandrake_sessions import ConnectionPool, DatabaseBusyError
from mandrake_sessions.database.files import lock_wait
from mandrake_sessions.database.files.lock_wait import LockWait
from mandrake_sessions.database.files.wal_index import WalIndex
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.engine.transaction import WriteTransaction

RESTLESS = """
import apsw, os, time
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(60_000)
connection.execute("PRAGMA synchronous=1; PRAGMA wal_autocheckpoint=0")
send("ready")
while os.getppid() != 1:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO meta (key, value) VALUES (hex(randomblob(8)), '')")
    time.sleep(float(sys.argv[2]))
    connection.execute("COMMIT")
"""
"""A program without this library, which leaves ten microseconds between two transactions."""

WITH_LIBRARY = """
import time
from mandrake_sessions import ConnectionPool, DatabaseOptions, PoolOptions
from mandrake_sessions.engine.statement import Statement
pool = ConnectionPool(PoolOptions(database=DatabaseOptions(busy_timeout=60), linger=0))
handle = pool.acquire(sys.argv[1])
ADD = Statement("ADD", "INSERT INTO meta (key, value) VALUES (?, '')", ("key",))
def write(key, timeout=None):
    handle.transact(lambda tx: tx.run_all([(ADD, (key,))]), "write", timeout)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such locks")


def waiting_in_kernel(path: Path) -> int:
    """Return how many threads of all processes the kernel lets wait for the write lock."""
    return sum(line.startswith("-> OFDLCK") for line in lock_lines([Path(f"{path}-shm")]))


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "mandrake-lock-wait"]


def written(handle: FileHandle) -> int:
    return len(handle.query(lambda tx: tx.rows(KEYS)))


def is_free(path: Path) -> bool:
    """Return whether another program would have the write lock at once."""
    with contextlib.closing(apsw.Connection(str(path))) as other:
        try:
            other.execute("BEGIN IMMEDIATE; ROLLBACK")
        except apsw.BusyError:
            return False
    return True


# -- against a program that never rests ---------------------------------------------------------


def count_with(key: str, tx: WriteTransaction) -> int:
    """Store a row; return how many there are now."""
    add(tx, key)
    return len(tx.rows(KEYS))


@pytest.mark.parametrize("seconds", [0.002, 0.05])
def test_a_restless_program_writes_a_few_times_before_a_waiting_call(
    handle: FileHandle, path: Path, start_child: Callable[..., Any], seconds: float
) -> None:
    assert start_child(RESTLESS, path, seconds).receive() == "ready"
    waits = []
    for number in range(20):
        before = written(handle)
        # Not while it pauses because it met this process.
        until(lambda before=before: written(handle) > before)
        before = written(handle)
        waits.append(handle.transact(partial(count_with, f"{number}"), "add") - before - 1)
    sys.stdout.write(f"\ntransactions of another program before each of this process: {waits}")
    # With pauses alone it was 40 of those of 50 ms, and many thousand of the short ones.
    assert mean(waits) < 10


@pytest.mark.long
def test_a_wait_for_a_restless_program_takes_less_than_a_hundredth_of_a_core(
    handle: FileHandle, path: Path, start_child: Callable[..., Any]
) -> None:
    assert start_child(RESTLESS, path, 0.3).receive() == "ready"
    handle.transact(adding("before"))
    waited = taken = 0.0
    for number in range(8):
        before = written(handle)
        until(lambda before=before: written(handle) > before)
        since, used = monotonic(), process_time()
        handle.transact(adding(f"{number}"), "add")
        waited += monotonic() - since
        taken += process_time() - used
    sys.stdout.write(f"\nof a core: {taken / waited:.2%} of {waited:.1f} s")
    assert taken < 0.01 * waited


# -- what is held, and for whom -----------------------------------------------------------------


def test_a_lock_that_a_call_waited_for_is_freed_after_the_call_has_given_up(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    """
    ::

        other    holds the write lock ..................... lets go
        thread         waits ................................. has it ─ frees it
        call           waits ─ deadline
    """
    other = hold_write_lock(path)
    with pytest.raises(DatabaseBusyError):
        handle.transact(adding("never"), "add", 0.2)
    assert waiting_in_kernel(path) == lock_wait._THREADS
    other.send()
    assert other.receive() == "gone"
    until(lambda: is_free(path))
    assert not waiting_in_kernel(path)


def test_the_next_call_takes_over_the_place_of_one_that_gave_up(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    other = hold_write_lock(path)
    for _ in range(2):
        with pytest.raises(DatabaseBusyError):
            handle.transact(adding("never"), "add", 0.1)
    task = Task(lambda: handle.transact(adding("late"), "add"))
    until(lambda: waiting_in_kernel(path) == lock_wait._THREADS)
    assert len(threads()) == lock_wait._THREADS
    other.send()
    task.result()
    assert keys(handle) == {"late"}
    until(lambda: is_free(path))


def test_a_file_that_is_opened_again_leaves_its_threads_once_behind_a_stopped_process(
    make_pool: Callable[..., ConnectionPool], path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    pool = make_pool()
    with pool.acquire(path):
        other = hold_write_lock(path)
    for _ in range(3):
        with file_handle(pool.acquire(path)) as handle, pytest.raises(DatabaseBusyError):
            handle.transact(adding("never"), "add", 0.2)
        assert len(threads()) == lock_wait._THREADS
    with file_handle(pool.acquire(path)) as handle:
        other.send()
        handle.transact(adding("late"), "add")
        until(lambda: not threads())
        assert keys(handle) == {"late"}
    assert is_free(path)


def test_closing_ends_threads_that_wait_for_nothing(
    make_pool: Callable[..., ConnectionPool], path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        other = hold_write_lock(path)
        task = Task(lambda: handle.transact(adding("late"), "add"))
        until(lambda: waiting_in_kernel(path))
        other.send()
        task.result()
    until(lambda: not threads())


def test_a_stopped_process_that_waits_is_given_nothing(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    start_child: Callable[..., Any],
) -> None:
    """
    ::

        other    holds the write lock .............. lets go
        stopped        waits ─ SIGSTOP .......................... SIGCONT ─ BEGIN
        this one                                           BEGIN
    """
    child = start_child(
        WITH_LIBRARY + "send('ready')\nreceive()\nwrite('stopped')\nsend('written')", path
    )
    assert child.receive() == "ready"
    other = hold_write_lock(path)
    child.send()
    until(lambda: waiting_in_kernel(path))
    pid = child.process.pid
    child.process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    until(lambda: {_state(each) for each in tasks.iterdir()} == {"T"})
    other.send()
    assert other.receive() == "gone"
    assert is_free(path)
    handle.transact(adding("ours"), "add", SOON)
    child.process.send_signal(signal.SIGCONT)
    assert child.receive() == "written"
    assert keys(handle) == {"ours", "stopped"}


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def test_a_forked_child_keeps_no_lock_that_its_parent_was_given(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    start_child: Callable[..., Any],
) -> None:
    """The parent's thread gets the lock when the parent has closed the file; the child lives on."""
    child = start_child(
        WITH_LIBRARY
        + """
import os
from mandrake_sessions import DatabaseBusyError
write("first")
ours, theirs = os.pipe()
forked = os.fork()
if not forked:
    os.close(theirs)
    os.read(ours, 1)
    os._exit(0)
os.close(ours)
send("forked")
receive()
try:
    write("never", 0.2)
except DatabaseBusyError:
    send("gave up")
handle.release()
pool.close()
send("closed")
receive()
os.close(theirs)
send(os.waitpid(forked, 0)[1])
""",
        path,
    )
    assert child.receive() == "forked"
    other = hold_write_lock(path)
    child.send()
    assert child.receive() == "gave up"
    assert child.receive() == "closed"
    assert waiting_in_kernel(path) == lock_wait._THREADS
    other.send()
    assert other.receive() == "gone"
    until(lambda: not waiting_in_kernel(path))
    until(lambda: is_free(path))
    handle.transact(adding("ours"), "add", SOON)
    child.send()
    assert child.receive() == 0
    child.finish()


# -- where the kernel cannot wait ---------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []

    def refuse(index: WalIndex) -> int:
        asked.append(1)
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(WalIndex, "wait_for_write_lock", refuse)
    return asked


def test_where_the_kernel_cannot_wait_there_are_pauses(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any], refused: list[int]
) -> None:
    hold_write_lock(path, 0.5)
    handle.transact(adding("late"), "add")
    assert keys(handle) == {"late"}
    # Once by each thread, and not again at each look.
    assert 1 <= len(refused) <= lock_wait._THREADS


def test_a_pause_follows_a_wait_in_vain(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite waits for something else then: without pauses a core would be busy."""
    monkeypatch.setattr(lock_wait, "PACE", 60.0)
    file = file_of(handle)
    connection = file.writer.connection
    connection.deadline = monotonic() + 60
    waits = LockWait(handle.path, file.witness.index)
    assert waits.wait(connection, lambda: None)
    assert not waits.wait(connection, lambda: None)
    waits.close()
