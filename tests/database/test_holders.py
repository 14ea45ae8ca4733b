"""What a call that waits for another process costs, and what it says of that process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import apsw
import pytest
from kits.entries import adding
from kits.waiting import SOON, until

from mandrake_sessions import ConnectionPool, DatabaseBusyError, diagnose
from mandrake_sessions.database.pool.file_handle import FileHandle

EXCLUSIVE = """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=DELETE")
connection.execute("BEGIN EXCLUSIVE")
send("held")
receive()
"""


@contextlib.contextmanager
def stopped(child: Any) -> Iterator[int]:
    """Stop a child for a block, and yield its process id."""
    pid = child.process.pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def busy_error(handle: FileHandle, seconds: float = 0.05) -> DatabaseBusyError:
    with pytest.raises(DatabaseBusyError) as caught:
        handle.transact(adding("never"), "add", seconds)
    return caught.value


def writing_check(handle: FileHandle) -> Any:
    return next(each for each in handle.health().checks if each.name == "writing")


def locks_check(path: Path) -> Any:
    return next(each for each in diagnose(path).checks if each.name == "locks")


# -- what is said of the holder -----------------------------------------------------------------


def test_a_busy_error_names_the_process_that_holds_the_write_lock(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    pid = hold_write_lock(path).process.pid
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    error = busy_error(handle)
    assert (error.phase, error.holder_pid) == ("begin", pid)
    assert f"process {pid} ({name}) holds the write lock." in error.message
    assert "stopped" not in error.message
    for check in (writing_check(handle), locks_check(path)):
        assert check.status == "degraded"
        assert f"process {pid} ({name}) holds the write lock" in check.detail
        assert check.advice == "Wait; if it stays so, check that process."


def test_each_of_several_threads_that_wait_is_given_the_name_of_the_process(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    with stopped(hold_write_lock(path)) as pid, ThreadPoolExecutor(3) as threads:
        errors = list(threads.map(lambda _: busy_error(handle, 0.5), range(3)))
    assert {error.phase for error in errors} == {"begin", "queue"}
    assert [error.holder_pid for error in errors] == [pid] * 3
    assert all("is stopped" in error.message for error in errors)


def test_a_stopped_holder_is_called_so_by_the_error_health_and_doctor(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    child = hold_write_lock(path)
    with stopped(child) as pid:
        error = busy_error(handle)
        assert error.holder_pid == pid
        assert f"process {pid} (" in error.message
        assert "holds the write lock, and is stopped" in error.message
        assert f"kill -CONT {pid}" in error.message
        for check in (writing_check(handle), locks_check(path)):
            assert "holds the write lock, and is stopped" in check.detail
            assert check.advice == f"Continue it: kill -CONT {pid}"
    child.send()
    assert child.receive() == "gone"
    handle.transact(adding("afterwards"))
    assert writing_check(handle).status == "ok"


def test_a_holder_that_is_another_connection_of_this_process_is_called_so(
    handle: FileHandle, path: Path
) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as own:
        own.execute("BEGIN IMMEDIATE")
        error = busy_error(handle)
        own.execute("ROLLBACK")
    assert error.holder_pid == os.getpid()
    assert "another connection of this process" in error.message


def test_a_file_that_cannot_be_opened_names_the_process_that_has_it(
    make_pool: Callable[..., ConnectionPool],
    ready_path: Path,
    start_child: Callable[..., Any],
) -> None:
    child = start_child(EXCLUSIVE, ready_path)
    assert child.receive() == "held"
    pool = make_pool(database={"busy_timeout": 0.05})
    with pytest.raises(DatabaseBusyError) as caught:
        pool.acquire(ready_path)
    assert (caught.value.phase, caught.value.holder_pid) == ("open", child.process.pid)
    child.send()
    child.finish()


def test_a_file_that_is_open_elsewhere_is_not_removed_and_its_user_is_named(
    make_pool: Callable[..., ConnectionPool],
    ready_path: Path,
    start_child: Callable[..., Any],
) -> None:
    child = start_child(
        "from mandrake_sessions import ConnectionPool\n"
        "handle = ConnectionPool().acquire(sys.argv[1])\n"
        "send('open')\nreceive()\nhandle.release()",
        ready_path,
    )
    assert child.receive() == "open"
    with pytest.raises(DatabaseBusyError) as caught:
        make_pool().remove(ready_path, timeout=0.05)
    assert caught.value.holder_pid == child.process.pid
    assert "has the database open" in caught.value.message
    child.send()
    child.finish()


def test_a_wait_for_a_thread_of_the_same_process_names_no_other_process(
    handle: FileHandle, hold_write_lock: Callable[..., Any]
) -> None:
    """The write lock is this process's own then."""
    with handle.write(), pytest.raises(DatabaseBusyError) as caught:
        _in_thread(lambda: handle.transact(adding("never"), "add", 0.05))
    assert (caught.value.phase, caught.value.holder_pid) == ("queue", None)


def _in_thread(work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()


# -- what a wait costs --------------------------------------------------------------------------


def test_waiting_for_a_stopped_process_takes_less_than_a_hundredth_of_a_core(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    child = hold_write_lock(path)
    with stopped(child):
        since, taken = monotonic(), thread_time()
        error = busy_error(handle, 3.0)
        share = (thread_time() - taken) / (monotonic() - since)
    assert share < 0.01
    assert error.attempts < 60
    child.send()
    assert child.receive() == "gone"


def test_a_wait_ends_soon_after_the_holder_has_ended(
    handle: FileHandle, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    child = hold_write_lock(path, 1.0)
    since = monotonic()
    handle.transact(adding("late"))
    assert child.receive() == "gone"
    assert monotonic() - since < SOON
    until(lambda: writing_check(handle).status == "ok")
