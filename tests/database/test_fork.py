"""fork: the child drops everything without closing it, the parent notices nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel_locks
import pytest
from kits.entries import keys

from mandrake_sessions import ConnectionPool

PRELUDE = f"sys.path.append({str(Path(kernel_locks.__file__).parent)!r})"
PRELUDE += """
import os, threading
from pathlib import Path
from kernel_locks import own_lock_lines
from mandrake_sessions import *
from mandrake_sessions.engine.statement import Statement
ADD = Statement("ADD", "INSERT INTO meta (key, value) VALUES (?, '')", ("key",))
KEYS = Statement("KEYS", "SELECT key FROM meta WHERE value = ''", is_read=True)
path = Path(sys.argv[1])
def add(handle, key):
    handle.transact(lambda tx: tx.run(ADD, {"key": key}), delegable=True)
def keys(handle):
    return sorted(row[0] for row in handle.query(lambda tx: tx.rows(KEYS)))
def locks():
    return own_lock_lines(path.parent.iterdir())
def error_of(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__
pool = ConnectionPool()
handle = pool.acquire(path)
add(handle, "before")
keys(handle)
before = locks()
assert before
"""

IN_CHILD = """
child = os.fork()
if child == 0:
    {child}
    {end}
assert os.waitpid(child, 0)[1] == 0
send(locks() == before)
add(handle, "parent after")
send(keys(handle))
handle.release()
pool.close()
send(sorted(each.name for each in path.parent.iterdir()))
"""

ENDS = {"at once": "os._exit(0)", "through the interpreter": "sys.exit(0)"}


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


def run(start_child: Callable[..., Any], path: Path, child: str, end: str) -> Any:
    body = "\n    ".join(child.strip().splitlines())
    return start_child(PRELUDE + IN_CHILD.format(child=body, end=ENDS[end]), path)


@pytest.mark.parametrize("end", ENDS)
def test_the_child_refuses_the_handles_of_its_parent(
    start_child: Callable[..., Any], path: Path, end: str
) -> None:
    child = run(
        start_child,
        path,
        """
calls = [
    lambda: add(handle, "child"),
    lambda: keys(handle),
    lambda: handle.fetch(lambda tx: None),
    lambda: handle.write().__enter__(),
    lambda: handle.read().__enter__(),
    lambda: handle.sqlalchemy().__enter__(),
    lambda: handle.backup("never.sqlite"),
]
send([error_of(call) for call in calls])
send(error_of(handle.release))
send(error_of(handle.release))
""",
        end,
    )
    assert child.receive() == ["ForkedPoolError"] * 7
    assert child.receive() is None
    assert child.receive() == "HandleReleasedError"
    assert child.receive() is True
    assert child.receive() == ["before", "parent after"]
    assert child.receive() == ["db.sqlite"]
    child.finish()


@pytest.mark.parametrize("end", ENDS)
def test_the_child_may_open_the_file_anew(
    start_child: Callable[..., Any], path: Path, end: str
) -> None:
    child = run(
        start_child,
        path,
        """
with pool.acquire(path) as mine:
    add(mine, "child")
    send(keys(mine))
pool.close()
send(handle.path == path)
del handle
""",
        end,
    )
    assert child.receive() == ["before", "child"]
    assert child.receive() is True
    assert child.receive() is True
    assert child.receive() == ["before", "child", "parent after"]
    assert child.receive() == ["db.sqlite"]
    child.finish()


def test_the_child_refuses_health_and_stats_of_an_old_handle_too(
    start_child: Callable[..., Any], path: Path
) -> None:
    child = run(
        start_child,
        path,
        "send([error_of(handle.health), error_of(handle.stats)])",
        "at once",
    )
    assert child.receive() == ["ForkedPoolError"] * 2
    for _ in range(3):
        child.receive()
    child.finish()


def test_the_child_takes_its_own_locks(start_child: Callable[..., Any], path: Path) -> None:
    """SQLite's list of open files is inherited: a file in it is not locked once more."""
    child = run(
        start_child,
        path,
        """
with pool.acquire(path) as mine:
    send(keys(mine))
    send(locks() == sorted(line.replace(str(os.getppid()), str(os.getpid())) for line in before))
pool.close()
""",
        "at once",
    )
    assert child.receive() == ["before"]
    assert child.receive() is True
    for _ in range(3):
        child.receive()
    child.finish()


def test_a_parent_that_closes_first_takes_nothing_from_the_child(
    start_child: Callable[..., Any], path: Path, pool: ConnectionPool
) -> None:
    """Were the child without a lock, the parent would take the -wal away from under it.

    ::

        parent   fork ............ close: not the last one
        child    └─ open ─ write ........................ write: acknowledged ─ end
    """
    child = start_child(
        PRELUDE
        + """
(first, one), (second, two) = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    mine = pool.acquire(path)
    add(mine, "child 1")
    os.write(one, b"x")
    os.read(second, 1)
    add(mine, "child 2")
    os._exit(0)
os.read(first, 1)
handle.release()
pool.close()
os.write(two, b"x")
assert os.waitpid(pid, 0)[1] == 0
send("over")
""",
        path,
    )
    assert child.receive() == "over"
    child.finish()
    with pool.acquire(path) as handle:
        assert keys(handle) == {"before", "child 1", "child 2"}


@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_child_works_that_is_forked_while_another_thread_is_at_work(
    start_child: Callable[..., Any], path: Path, kind: str
) -> None:
    """The locks of the other thread stay held in the child; it waits for none of them."""
    child = start_child(
        PRELUDE
        + """
has_it, may_go = threading.Event(), threading.Event()
def work():
    with getattr(handle, sys.argv[2])() as tx:
        tx.rows(KEYS)
        has_it.set()
        may_go.wait()
thread = threading.Thread(target=work)
thread.start()
has_it.wait()
first, one = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(one, b"x")
    try:
        with pool.acquire(path, options=DatabaseOptions(busy_timeout=3.0)) as mine:
            add(mine, "child")
    except ForkedPoolError:
        send("refused")
    else:
        send("written")
    os._exit(0)
os.read(first, 1)
may_go.set()
thread.join()
assert os.waitpid(pid, 0)[1] == 0
send(keys(handle))
handle.release()
pool.close()
""",
        path,
        kind,
    )
    outcome = child.receive()
    assert child.receive() == (["before", "child"] if outcome == "written" else ["before"])
    child.finish()


def test_a_child_works_that_is_forked_while_every_lock_of_the_library_is_held(
    start_child: Callable[..., Any], path: Path
) -> None:
    """Locks in Python, not in SQLite: the child opens another file at once."""
    child = start_child(
        PRELUDE
        + """
from mandrake_sessions.database.pool import pool as pool_module
file = handle._file
held = [pool._mutex, pool_module._default_mutex]
held += [leased.queue._mutex for leased in file.leased_connections()]
has_them, may_go = threading.Event(), threading.Event()
def hold():
    for lock in held:
        lock.acquire()
    has_them.set()
    may_go.wait()
    for lock in held:
        lock.release()
thread = threading.Thread(target=hold)
thread.start()
has_them.wait()
pid = os.fork()
if pid == 0:
    send(error_of(lambda: add(handle, "child")))
    other = path.with_name("other.sqlite")
    for each in (pool, default_pool()):
        with each.acquire(other) as mine:
            send(keys(mine))
        each.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
may_go.set()
thread.join()
handle.release()
pool.close()
""",
        path,
    )
    assert child.receive() == "ForkedPoolError"
    assert child.receive() == []
    assert child.receive() == []
    child.finish()


def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(
    start_child: Callable[..., Any], path: Path, pool: ConnectionPool
) -> None:
    child = start_child(
        PRELUDE
        + """
with handle.write() as tx:
    tx.run(ADD, {"key": "in the block"})
    pid = os.fork()
    if pid == 0:
        send(error_of(lambda: add(handle, "child")))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
send(keys(handle))
handle.release()
pool.close()
""",
        path,
    )
    assert child.receive() == "ForkedPoolError"
    assert child.receive() == ["before", "in the block"]
    child.finish()
    with pool.acquire(path) as handle:
        assert keys(handle) == {"before", "in the block"}


def test_a_block_that_ends_in_the_child_harms_neither_process(
    start_child: Callable[..., Any], path: Path
) -> None:
    """fork inside ``with handle.write()``: the child leaves the block too, by the code's order."""
    child = start_child(
        PRELUDE
        + """
pid = 0
try:
    with handle.write() as tx:
        tx.run(ADD, {"key": "in the block"})
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
except ForkedPoolError:
    assert pid == 0
if pid == 0:
    os._exit(0)
send(locks() == before)
send(keys(handle))
handle.release()
pool.close()
""",
        path,
    )
    assert child.receive() is True
    assert child.receive() == ["before", "in the block"]
    child.finish()


def test_a_child_works_that_is_forked_while_the_auxiliary_connection_opens(
    start_child: Callable[..., Any], path: Path
) -> None:
    """Another thread is just opening it: the child must not open the file without locks."""
    child = start_child(
        PRELUDE
        + """
file = handle._file
with file._auxiliary_mutex.held(1.0):
    pid = os.fork()
if pid == 0:
    try:
        pool.acquire(path)
    except ForkedPoolError:
        os._exit(0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
send(keys(handle))
handle.release()
pool.close()
""",
        path,
    )
    assert child.receive() == ["before"]
    child.finish()
