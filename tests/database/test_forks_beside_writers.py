"""Forks while other threads write: a child never waits for a lock that only its parent can free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kits.entries import keys

from mandrake_sessions import ConnectionPool

PRELUDE = """
import multiprocessing, os, signal, subprocess, threading, time
from mandrake_sessions import *
from mandrake_sessions.engine.statement import Statement
ADD = Statement("ADD", "INSERT INTO meta (key, value) VALUES (?, '')", ("key",))
path, count = sys.argv[1], int(sys.argv[2])
# Where the parent itself waits for a child that hangs.
watchdog = threading.Timer(240, os._exit, (1,))
watchdog.daemon = True
watchdog.start()
pool = ConnectionPool(PoolOptions(database=DatabaseOptions(durability=Durability.FAST)))
handle = pool.acquire(path)
stop, stored = threading.Event(), []
def write(number):
    while not stop.is_set():
        key = f"{number} {time.monotonic_ns()}"
        handle.transact(lambda tx: tx.run(ADD, {"key": key}), delegable=True)
        stored.append(key)
writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
for each in writers:
    each.start()
def add(name, key):
    with ConnectionPool(PoolOptions(linger=0)) as mine, mine.acquire(name) as new:
        new.transact(lambda tx: tx.run(ADD, {"key": key}), delegable=True)
def do_nothing():
    pass
def open_another():
    add(f"{path}-{os.getpid()}", "child")
def open_the_same():
    try:
        add(path, f"child {os.getpid()}")
    except ForkedPoolError:
        pass  # a thread was using it at the fork
def end_as_a_program():
    sys.exit(0)
def outcome(pid):
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"
def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return outcome(pid)
"""
END = """
stop.set()
for each in writers:
    each.join()
send(sorted(set(map(str, outcomes))))
send(len(stored))
handle.release()
pool.close()
"""
WAYS = {
    "a child that does nothing": "outcomes = [fork(do_nothing) for _ in range(count)]",
    "a child that opens another file": "outcomes = [fork(open_another) for _ in range(count)]",
    "a child that opens the same file": "outcomes = [fork(open_the_same) for _ in range(count)]",
    "a child that ends as a program does": (
        "outcomes = [fork(end_as_a_program) for _ in range(count)]"
    ),
    "a program that is started with preexec_fn": """
outcomes = [
    subprocess.run(["/bin/true"], preexec_fn=do_nothing, timeout=120).returncode
    for _ in range(count)
]
""",
    "multiprocessing": """
outcomes = []
for _ in range(count):
    process = multiprocessing.get_context("fork").Process(target=open_another)
    process.start()
    outcomes.append(outcome(process.pid))
""",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_no_child_hangs_that_is_forked_while_threads_write(
    campaign: Any,
    pool: ConnectionPool,
    ready_path: Path,
    start_child: Callable[..., Any],
    way: str,
) -> None:
    """SQLite's own locks of the whole process may be held by another thread at the fork."""
    child = start_child(PRELUDE + WAYS[way] + END, ready_path, campaign.pick(30, 300, 1500))
    assert child.receive() == ["0"]
    stored = child.receive()
    child.finish()
    with pool.acquire(ready_path) as handle:
        found = keys(handle)
    assert sum(not key.startswith("child") for key in found) == stored


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "way",
    [
        "a child that does nothing",
        "a child that ends as a program does",
        "a program that is started with preexec_fn",
    ],
)
def test_a_child_without_databases_does_not_hang_where_a_host_has_set_sqlite_up(
    campaign: Any, ready_path: Path, start_child: Callable[..., Any], way: str
) -> None:
    """SQLite goes on counting its memory then: a child waits for nothing that it does not use."""
    child = start_child(
        "import apsw\n" + PRELUDE + WAYS[way] + END,
        ready_path,
        campaign.pick(30, 300, 1500),
    )
    assert child.receive() == ["0"]
    assert child.receive()
    child.finish()


def test_what_was_inherited_is_closed_before_sqlite_is_used_again(
    ready_path: Path, start_child: Callable[..., Any]
) -> None:
    """Until then its descriptors stay open; afterwards the child has locks of its own."""
    child = start_child(
        """
import os
from pathlib import Path
from mandrake_sessions import *
def count():
    folder = Path("/proc/self/fd")
    return sum(os.path.realpath(each) == sys.argv[1] for each in folder.iterdir())
pool = ConnectionPool(PoolOptions(linger=0))
handle = pool.acquire(sys.argv[1])
send(count())
pid = os.fork()
if pid == 0:
    send(count())
    diagnose(sys.argv[1] + "-other")
    send(count())
    with pool.acquire(sys.argv[1]):
        send(count())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
handle.release()
pool.close()
""",
        ready_path,
    )
    assert [child.receive() for _ in range(4)] == [1, 1, 0, 1]
    child.finish()
