"""Processes write in turn, and none waits for one that does not move."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import median
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from database_kit import Task, file_of, queue_of
from kernel_locks import lock_lines
from kits.descriptors import descriptors
from kits.entries import KEYS, add, adding, keys
from kits.waiting import SOON, until

from mandrake_sessions import ConnectionPool, DatabaseBusyError, PoolClosedError
from mandrake_sessions.database.files import turnstile
from mandrake_sessions.database.files.turnstile import (
    _SIGN_OF_LIFE,
    PATIENCE,
    Turnstile,
    turnstile_path,
)
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle

PRELUDE = """
import time
from mandrake_sessions import ConnectionPool, DatabaseOptions, Durability, PoolOptions
from mandrake_sessions.database.files import turnstile
from mandrake_sessions.engine.statement import Statement
options = DatabaseOptions(durability=Durability.FAST, busy_timeout=60)
pool = ConnectionPool(PoolOptions(database=options, linger=0))
handle = pool.acquire(sys.argv[1])
ADD = Statement("ADD", "INSERT INTO meta (key, value) VALUES (?, '')", ("key",))
"""
WRITE_ONCE = """
turnstile.PATIENCE = 60
def unit(tx):
    tx.run_all([(ADD, (sys.argv[2],))])
    return time.monotonic()
send("ready")
receive()
send(handle.transact(unit, "write"))
receive()
handle.release()
pool.close()
"""
WRITE_ON = """
import select
def unit(tx, key):
    tx.run_all([(ADD, (key,))])
    time.sleep(0.002)
    return time.monotonic()
send("ready")
receive()
times = []
while len(times) < 2000 and not select.select([sys.stdin], [], [], 0)[0]:
    times.append(handle.transact(lambda tx: unit(tx, f"child {len(times)}"), "write"))
receive()
send(times)
handle.release()
pool.close()
"""
HOLD = """
import fcntl, os
descriptor = os.open(sys.argv[1] + "-turnstile", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
send("held")
receive()
"""
FORK = """
import fcntl, os
sidecar = sys.argv[1] + "-turnstile"
def descriptors():
    return [each for each in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{each}")
            and os.path.realpath(f"/proc/self/fd/{each}") == sidecar]
def is_locked():
    other = os.open(sidecar, os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(other)
    return False
os.close(os.open(sidecar, os.O_RDWR | os.O_CREAT, 0o600))
with handle.write() as tx:
    assert is_locked() and len(descriptors()) == 1
    child = os.fork()
    if not child:
        os._exit(len(descriptors()))
    send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    send(is_locked())
send(is_locked())
"""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no thread of this process pass by a turnstile that does not move."""
    monkeypatch.setattr(turnstile, "PATIENCE", 60.0)


@pytest.fixture
def hold_turnstile(start_child: Callable[..., Any]) -> Callable[[Path], Any]:
    """Has another process hold the turnstile until it receives a line."""

    def hold(path: Path) -> Any:
        child = start_child(HOLD, path)
        assert child.receive() == "held"
        return child

    return hold


def turnstile_of(handle: FileHandle) -> Turnstile:
    return file_of(handle).writer.turnstile


def in_line(path: Path) -> tuple[int, int]:
    """Return how many hold the turnstile, and how many the kernel lets wait for it."""
    mine = [line for line in lock_lines([turnstile_path(path)]) if "FLOCK" in line]
    waiting = sum(line.startswith("->") for line in mine)
    return len(mine) - waiting, waiting


def waiting_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "mandrake-turnstile"]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- taking turns -------------------------------------------------------------------------------


def test_a_process_without_rivals_has_no_turnstile(handle: FileHandle, path: Path) -> None:
    for number in range(50):
        handle.transact(adding(f"{number}"), "add")
    assert not turnstile_path(path).exists()
    assert not waiting_threads()
    assert turnstile_of(handle).failure is None


@pytest.mark.usefixtures("patient")
def test_a_process_with_a_rival_makes_a_turnstile_and_removes_it(
    make_pool: Callable[..., ConnectionPool], path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        other = hold_write_lock(path)
        task = Task(lambda: handle.transact(adding("late"), "add"))
        until(lambda: in_line(path) == (1, 0))
        assert stat.S_IMODE(turnstile_path(path).stat().st_mode) == 0o600
        other.send()
        task.result()
        until(lambda: in_line(path) == (0, 0))
        assert not turnstile_of(handle).is_entered
        assert keys(handle) == {"late"}
    until(lambda: not turnstile_path(path).exists())
    assert not descriptors(path)
    assert not waiting_threads()


@pytest.mark.usefixtures("patient")
def test_the_turnstile_is_held_until_the_transaction_ends(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    hold_write_lock(path, 0.05)
    with handle.write():
        assert in_line(path) == (1, 0)
    assert in_line(path) == (0, 0)
    hold_write_lock(path, 0.05)
    with pytest.raises(ZeroDivisionError), handle.write():
        assert in_line(path) == (1, 0)
        raise ZeroDivisionError
    assert in_line(path) == (0, 0)


@pytest.fixture
def kept(
    patient: None,
    monkeypatch: pytest.MonkeyPatch,
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
) -> Turnstile:
    """The turnstile of a process that writes on, and whose turn goes on without an end."""
    monkeypatch.setattr(turnstile, "HOLD", 60.0)
    monkeypatch.setattr(turnstile, "_UNUSED", 60.0)
    other = hold_write_lock(path)
    task = Task(lambda: handle.transact(adding("first"), "add"))
    until(lambda: in_line(path) == (1, 0))
    other.send()
    task.result()
    # No thread has written just before: one that ends its hold may have to wait for this one.
    assert in_line(path) == (0, 0)
    turnstile_of(handle).checks_at = 0.0
    handle.transact(adding("second"), "add")
    assert in_line(path) == (1, 0)
    return turnstile_of(handle)


def test_a_process_that_writes_on_keeps_its_hold(
    handle: FileHandle, path: Path, kept: Turnstile, start_child: Callable[..., Any]
) -> None:
    child = start_child(PRELUDE + WRITE_ONCE, path, "child")
    assert child.receive() == "ready"
    child.send()
    until(lambda: in_line(path) == (1, 1))
    for number in range(3):
        handle.transact(adding(f"{number}"), "add", 0.5)
    assert in_line(path) == (1, 1)
    kept._hold_ends = 0.0
    handle.transact(adding("last"), "add", 0.5)
    assert child.receive()
    child.send()
    child.finish()
    assert "child" in keys(handle)


def test_a_hold_in_which_no_thread_writes_ends(
    monkeypatch: pytest.MonkeyPatch, handle: FileHandle, path: Path, kept: Turnstile
) -> None:
    monkeypatch.setattr(turnstile, "_UNUSED", 0.0005)
    with kept._changed:
        kept._changed.notify()
    until(lambda: in_line(path) == (0, 0))
    assert not kept.is_held


def test_a_process_that_writes_now_and_then_keeps_no_hold(
    monkeypatch: pytest.MonkeyPatch, handle: FileHandle, path: Path, kept: Turnstile
) -> None:
    kept._hold_ends = 0.0
    handle.transact(adding("the last of its turn"), "add")
    monkeypatch.setattr(turnstile, "_UNUSED", 0.0)
    kept.checks_at = 0.0
    handle.transact(adding("later"), "add")
    assert in_line(path) == (0, 0)


def test_a_signal_while_a_hold_ends_does_not_keep_it(
    handle: FileHandle, path: Path, kept: Turnstile
) -> None:
    def interrupt(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is Turnstile.leave.__code__:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            handle.transact(adding("committed"), "add")
    finally:
        sys.settrace(before)
    assert not kept.is_entered
    assert "committed" in keys(handle)
    kept._hold_ends = 0.0
    handle.transact(adding("next"), "add")
    assert in_line(path) == (0, 0)


def test_closing_does_not_wait_for_a_transaction_of_its_hold(
    handle: FileHandle, kept: Turnstile
) -> None:
    with handle.write() as tx:
        add(tx, "open")
        assert kept.is_entered
        began = monotonic()
        kept.close()
        assert monotonic() - began < SOON
        assert kept.is_held
    assert not kept.is_held
    assert "open" in keys(handle)


def test_closing_ends_a_hold(handle: FileHandle, path: Path, kept: Turnstile) -> None:
    handle.release()
    until(lambda: not turnstile_path(path).exists())
    assert not descriptors(path)
    until(lambda: not waiting_threads())


def test_processes_are_served_in_their_order_of_arrival(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    start_child: Callable[..., Any],
) -> None:
    """The kernel's queue decides, and not who happens to look first::

    other    holds the write lock ........................ lets go
    first    BUSY ─ turnstile ─ looks ─ looks ─ looks ─ looks ─ BEGIN
    second           BUSY ─ waits ................................... BEGIN
    third                    BUSY ─ waits .................................. BEGIN
    """
    names = ["first", "second", "third", "fourth"]
    children = [start_child(PRELUDE + WRITE_ONCE, path, name) for name in names]
    for child in children:
        assert child.receive() == "ready"
    other = hold_write_lock(path)
    for place, child in enumerate(children):
        child.send()
        until(lambda place=place: in_line(path) == (1, place))
    other.send()
    times = [child.receive() for child in children]
    assert times == sorted(times)
    for child in children:
        child.send()
        child.finish()
    assert keys(handle) == set(names)


def test_a_process_that_writes_without_a_pause_lets_others_in(
    handle: FileHandle, path: Path, start_child: Callable[..., Any]
) -> None:
    """Both write until each had thirty turns, or the child has written 2000 times."""

    def unit(tx: Any, key: str) -> tuple[float, int]:
        adding(key)(tx)
        threading.Event().wait(0.002)
        return monotonic(), sum(row[0].startswith("child") for row in tx.rows(KEYS))

    child = start_child(PRELUDE + WRITE_ON, path)
    assert child.receive() == "ready"
    child.send()
    mine: list[float] = []
    seen = {0}
    while len(seen) <= 30 and max(seen) < 2000:
        moment, written = handle.transact(lambda tx: unit(tx, f"{len(mine)}"), "write", 50)
        mine.append(moment)
        seen.add(written)
    child.send()
    theirs = child.receive()
    child.finish()
    first, last = max(mine[0], theirs[0]), min(mine[-1], theirs[-1])
    order = sorted([(each, "mine") for each in mine] + [(each, "theirs") for each in theirs])
    together = [who for when, who in order if first <= when <= last]
    turns = [len(list(turn)) for _, turn in groupby(together)]
    # In turns of about 7 ms; without the turnstile one writes on for dozens of units.
    assert len(turns) >= 30
    # Some are longer: a process that is not run for a moment does not come to the turnstile.
    assert median(turns) * 0.002 < 2 * turnstile.HOLD


def test_a_process_that_waits_at_the_front_is_not_taken_for_a_stopped_one(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    start_child: Callable[..., Any],
) -> None:
    """Otherwise the others would pass it by, in no order: the one in front shows that it lives."""
    child = start_child(PRELUDE + WRITE_ONCE, path, "front")
    assert child.receive() == "ready"
    other = hold_write_lock(path)
    child.send()
    until(lambda: in_line(path) == (1, 0))
    task = Task(lambda: handle.transact(adding("behind"), "add"))
    until(lambda: in_line(path) == (1, 1))
    mine = turnstile_of(handle)
    shown: set[bytes] = set()

    def is_shown_often() -> bool:
        shown.add(mine._passes())
        return len(shown) > 3 * PATIENCE / _SIGN_OF_LIFE

    until(is_shown_often)
    assert mine.stalls == 0
    assert in_line(path) == (1, 1)
    other.send()
    assert child.receive()
    task.result()
    assert mine.stalls == 0
    child.send()
    child.finish()
    assert keys(handle) == {"front", "behind"}


# -- one that does not move ---------------------------------------------------------------------


def test_a_stopped_process_at_the_turnstile_is_passed_by(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    start_child: Callable[..., Any],
) -> None:
    """Once for each process, and until it moves again::

    stopped   BUSY ─ turnstile ─ SIGSTOP ........................... SIGCONT ─ BEGIN
    we                             waits ─ patience ends ─ BEGIN ─ BEGIN ─ BEGIN
    """
    child = start_child(PRELUDE + WRITE_ONCE, path, "stopped")
    assert child.receive() == "ready"
    other = hold_write_lock(path)
    child.send()
    until(lambda: in_line(path) == (1, 0))
    child.process.send_signal(signal.SIGSTOP)
    until(lambda: state_of(child.process.pid) == "T")
    other.send()
    assert other.receive() == "gone"
    ours = turnstile_of(handle)
    for number in range(10):
        handle.transact(adding(f"{number}"), "add", 10.0)
        assert not ours.is_held
    assert ours.stalls == 1
    (check,) = [each for each in handle.health().checks if each.name == "turnstile"]
    assert (check.status, check.detail) == ("ok", "passed, as it did not move: 1")
    child.process.send_signal(signal.SIGCONT)
    child.receive()
    child.send()
    child.finish()
    until(lambda: in_line(path) == (0, 0))
    with handle.write():
        assert turnstile_path(path).exists() == ours.is_held
    assert len(keys(handle)) == 11


@pytest.mark.usefixtures("patient")
def test_a_killed_process_lets_the_next_one_in(
    handle: FileHandle, path: Path, hold_turnstile: Callable[[Path], Any]
) -> None:
    other = hold_turnstile(path)
    task = Task(lambda: handle.transact(adding("next"), "add"))
    until(lambda: in_line(path) == (1, 1))
    other.process.kill()
    task.result()
    assert turnstile_of(handle).stalls == 0


@pytest.mark.usefixtures("patient")
def test_a_killed_process_leaves_the_line(
    handle: FileHandle,
    path: Path,
    hold_turnstile: Callable[[Path], Any],
    start_child: Callable[..., Any],
) -> None:
    child = start_child(PRELUDE + WRITE_ONCE, path, "killed")
    assert child.receive() == "ready"
    other = hold_turnstile(path)
    child.send()
    until(lambda: in_line(path) == (1, 1))
    task = Task(lambda: handle.transact(adding("next"), "add"))
    until(lambda: in_line(path) == (1, 2))
    child.process.kill()
    until(lambda: in_line(path) == (1, 1))
    other.send()
    task.result()
    assert keys(handle) == {"next"}


# -- an end of waiting --------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_the_deadline_holds_at_the_turnstile(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    hold_turnstile: Callable[[Path], Any],
) -> None:
    hold_write_lock(path)
    gate = hold_turnstile(path)
    for seconds in (0.0, 0.15):
        since = monotonic()
        with pytest.raises(DatabaseBusyError) as caught:
            handle.transact(adding("never"), "add", seconds)
        # The turnstile is waited for without an end, by a thread.
        assert seconds <= monotonic() - since < SOON
        assert caught.value.phase == "begin"
    assert queue_of(handle).holder == 0
    # The thread still waits in our place: what it is given by then, it lets go.
    assert in_line(path) == (1, 1)
    gate.send()
    until(lambda: in_line(path) == (0, 0))


@pytest.mark.usefixtures("patient")
def test_a_call_takes_over_the_place_of_one_whose_deadline_passed(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    hold_turnstile: Callable[[Path], Any],
) -> None:
    other = hold_write_lock(path)
    gate = hold_turnstile(path)
    with pytest.raises(DatabaseBusyError):
        handle.transact(adding("never"), "add", 0.05)
    assert in_line(path) == (1, 1)
    task = Task(lambda: handle.transact(adding("late"), "add"))
    until(lambda: queue_of(handle).holder)
    gate.send()
    until(lambda: turnstile_of(handle).is_held)
    other.send()
    task.result()
    until(lambda: in_line(path) == (0, 0))
    assert keys(handle) == {"late"}


@pytest.mark.usefixtures("patient")
def test_a_thread_at_the_turnstile_can_be_stopped(
    handle: FileHandle,
    path: Path,
    hold_write_lock: Callable[..., Any],
    hold_turnstile: Callable[[Path], Any],
) -> None:
    hold_write_lock(path)
    hold_turnstile(path)
    task = Task(lambda: handle.transact(adding("never"), "add", 60.0))
    until(lambda: in_line(path) == (1, 1))
    assert task.thread.ident is not None
    file_of(handle).writer.give_up(task.thread.ident)
    with pytest.raises(DatabaseBusyError):
        task.result()


@pytest.mark.usefixtures("patient")
def test_closing_ends_the_waiting_and_leaves_nothing(
    make_pool: Callable[..., ConnectionPool],
    path: Path,
    hold_write_lock: Callable[..., Any],
    hold_turnstile: Callable[[Path], Any],
) -> None:
    pool = make_pool(close_timeout=1.0)
    handle = file_handle(pool.acquire(path))
    other = hold_write_lock(path)
    gate = hold_turnstile(path)
    task = Task(lambda: handle.transact(adding("never"), "add", 60.0))
    until(lambda: in_line(path) == (1, 1))
    pool.close()
    with pytest.raises(PoolClosedError):
        task.result()
    # The kernel's wait cannot be ended from outside; it ends with the one it waits for.
    gate.send()
    until(lambda: not waiting_threads())
    assert not descriptors(path)
    other.send()


def test_the_thread_of_a_turnstile_ends_after_an_idle_time(
    handle: FileHandle,
    path: Path,
    hold_turnstile: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turnstile, "_IDLE", 0.01)
    for _ in range(3):
        gate = hold_turnstile(path)
        task = Task(lambda: handle.transact(adding(os.urandom(4).hex()), "add"))
        until(lambda: in_line(path) == (1, 1))
        gate.send()
        task.result()
        until(lambda: not waiting_threads())
    assert len(keys(handle)) == 3


def test_a_forked_child_has_no_turnstile_and_frees_none(
    handle: FileHandle, path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(PRELUDE + FORK, path)
    assert child.receive() == 0, "the child has the parent's file open"
    assert child.receive(), "the child freed its parent's turnstile"
    assert not child.receive()
    child.finish()
    assert handle.path == path


# -- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("obstacle", ["folder", "link", "pipe"])
def test_without_a_turnstile_everything_works(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any], obstacle: str
) -> None:
    beside = turnstile_path(path)
    if obstacle == "folder":
        beside.mkdir()
    elif obstacle == "link":
        beside.symlink_to(path)
    else:
        os.mkfifo(beside)
    hold_write_lock(path, 0.05)
    handle.transact(adding("late"), "add")
    assert keys(handle) == {"late"}
    assert isinstance(turnstile_of(handle).failure, OSError)
    assert not waiting_threads()


@pytest.mark.usefixtures("patient")
def test_a_turnstile_that_was_removed_is_made_anew(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    hold_write_lock(path, 0.02)
    handle.transact(adding("1"), "add")
    turnstile_path(path).unlink()
    hold_write_lock(path, 0.02)
    with handle.write():
        assert in_line(path) == (1, 0)


@pytest.mark.usefixtures("patient")
def test_a_process_that_waits_at_a_removed_turnstile_goes_to_the_new_one(
    handle: FileHandle, path: Path, hold_turnstile: Callable[[Path], Any]
) -> None:
    old = hold_turnstile(path)
    task = Task(lambda: handle.transact(adding("late"), "add"))
    until(lambda: in_line(path) == (1, 1))
    turnstile_path(path).unlink()
    new = hold_turnstile(path)
    old.send()
    until(lambda: in_line(path) == (1, 1))
    new.send()
    task.result()
    assert keys(handle) == {"late"}


@pytest.mark.parametrize("is_folder", [False, True])
def test_removing_a_database_removes_what_a_killed_process_left(
    make_pool: Callable[..., ConnectionPool], path: Path, is_folder: bool
) -> None:
    pool = make_pool()
    pool.acquire(path).release()
    if is_folder:
        turnstile_path(path).mkdir()
    else:
        turnstile_path(path).touch()
    pool.remove(path)
    assert [each.name for each in path.parent.iterdir() if each.is_file()] == []


def test_a_file_that_is_opened_again_leaves_one_thread_behind_a_stopped_process(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    """Its thread waits on when the file closes: the next one must not leave another."""
    pool = make_pool()
    turnstile = turnstile_path(path)
    holder = os.open(turnstile, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def waiting() -> int:
        return sum(each.name == "mandrake-turnstile" for each in threading.enumerate())

    before = waiting()
    for number in range(3):
        with file_handle(pool.acquire(path)) as handle:
            handle.transact(adding(f"{number}"))
            assert file_of(handle).writer.turnstile.stalls == (not number)
        assert (waiting() - before, len(descriptors(turnstile))) == (1, 2)
    os.close(holder)
    until(lambda: waiting() == before)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("last"))
        assert file_of(handle).writer.turnstile.stalls == 0
        assert keys(handle) == {"0", "1", "2", "last"}
