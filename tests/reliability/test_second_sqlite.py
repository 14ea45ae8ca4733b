"""A second SQLite library in the process: it is reported, and the library survives its harm.

The standard library's ``sqlite3`` has a lock table of its own. Closing a file that APSW has open,
it drops APSW's locks, because the kernel gives them to a process; taking itself for the last one,
it deletes the WAL underneath, and later commits go to a file without a name.

Each test is a child process: what it shows would harm this one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import ConnectionPool, PoolOptions, SessionManager

Start = Callable[..., Any]

PRELUDE = """
import os
from pathlib import Path
import structlog
from structlog.testing import capture_logs
from mandrake_sessions import *
from mandrake_sessions.database.open_file import witness
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
path = Path(sys.argv[1])
# A change after a pause has every page doubted, and a doubted file gets no log: here the machine
# alone makes pauses.
witness._SMALL = -1

def second():
    return __import__("sqlite{}".format(3))

def open_and_close():
    connection = second().connect(path)
    connection.execute("SELECT count(*) FROM sessions").fetchall()
    connection.close()

def bad(sessions):
    return {each.name: str(each.status) for each in sessions.health().checks if each.status != "ok"}

def attempt(sessions, title):
    try:
        sessions.create_session(title)
    except MandrakeSessionsError as error:
        return type(error).__name__
    return "stored"

def events(logs):
    return [log["event"] for log in logs]
"""
ALSO = """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("SELECT count(*) FROM sessions").fetchall()
send("open")
receive()
connection.close()
"""


@pytest.fixture
def path(ready_path: Path, ready_database: Any) -> Path:
    """A database that is there, with another one in its folder."""
    ready_database.lay(ready_path.with_name("other.sqlite"))
    return ready_path


def titles(path: Path) -> set[str | None]:
    with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool) as sessions:
        return {session.title for session in sessions.list_sessions()}


def test_a_second_sqlite_does_real_harm_without_the_library(
    start_child: Start, path: Path, dump: Any
) -> None:
    """On bare APSW: a commit that was acknowledged is not there after the process has died."""
    child = start_child(
        PRELUDE
        + """
import apsw
connection = apsw.Connection(str(path))
add = "INSERT INTO meta (key, value) VALUES (?, '')"
connection.execute(add, ["before"])
open_and_close()
connection.execute(add, ["after"])
send(sorted(os.listdir(path.parent)))
os._exit(0)
""",
        path,
    )
    assert child.receive() == [path.name, "other.sqlite"]
    child.finish()
    found = {key for key, _ in dump(path)["meta"]}
    assert "before" in found
    assert "after" not in found


@pytest.mark.parametrize("looks", [True, False], ids=["with a monitor", "without"])
def test_a_file_that_a_second_sqlite_opened_and_closed_loses_nothing(
    start_child: Start, path: Path, looks: bool
) -> None:
    """The next lease finds the log gone, before anything is written to it."""
    child = start_child(
        PRELUDE
        + f"""
pool = ConnectionPool(PoolOptions(linger=0))
sessions = SessionManager(path, pool=pool).init()
monitor = HealthMonitor(pool)
monitor.look()
sessions.create_session("before")
open_and_close()
with capture_logs() as logs:
    if {looks}:
        monitor.look()
    send(attempt(sessions, "refused"))
    sessions.close()
    sessions = SessionManager(path, pool=pool).init()
    send(attempt(sessions, "after"))
send(events(logs))
os._exit(0)
""",
        path,
    )
    assert child.receive() == "DatabaseMovedError"
    assert child.receive() == "stored"
    events = child.receive()
    child.finish()
    assert {"database_retired", "second_sqlite"} <= set(events)
    assert "database_log_set_aside" not in events
    # As after a crash: nothing was closed.
    assert titles(path) == {"before", "after"}


def test_commits_in_a_wal_without_a_name_are_brought_into_the_file(
    start_child: Start, path: Path
) -> None:
    """A commit between its close and the next lease: the lease was had before::

    ours      lease ─ looks ─ INSERT ──────────────── COMMIT ─ the next lease looks: retired
    sqlite3                          closes, deletes
    """
    child = start_child(
        PRELUDE
        + """
with ConnectionPool(PoolOptions(linger=0)) as pool:
    sessions = SessionManager(path, pool=pool).init()
    sessions.create_session("before")
    with sessions.transaction() as tx:
        tx.create_session("between")
        open_and_close()
    send((path.parent / "db.sqlite-wal").exists())
    send(attempt(sessions, "refused"))
    sessions.close()
""",
        path,
    )
    assert child.receive() is False
    assert child.receive() == "DatabaseMovedError"
    child.finish()
    assert titles(path) == {"before", "between"}


def test_a_second_sqlite_is_reported_as_it_comes_and_goes(start_child: Start, path: Path) -> None:
    child = start_child(
        PRELUDE
        + """
with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool) as sessions:
    sessions.create_session("before")
    send(bad(sessions))
    second()
    send(bad(sessions))
    connection = second().connect(path)
    connection.execute("SELECT count(*) FROM sessions").fetchall()
    send(bad(sessions))
    connection.close()
    send(bad(sessions))
""",
        path,
    )
    assert child.receive() == {}
    assert child.receive() == {"sqlite": "degraded"}
    assert child.receive() == {"sqlite": "degraded", "second_opener": "failed"}
    closed = child.receive()
    assert (closed["log"], closed["locks"]) == ("failed", "failed")
    child.finish()


@pytest.mark.parametrize("way", ["open_and_close()", "open(path).close()"], ids=["it", "open()"])
def test_dropped_locks_are_seen_and_taken_again(start_child: Start, path: Path, way: str) -> None:
    """Another process has the file open too, so the log is not deleted."""
    also = start_child(ALSO, path)
    assert also.receive() == "open"
    child = start_child(
        PRELUDE
        + f"""
with ConnectionPool(PoolOptions(linger=0)) as pool:
    sessions = SessionManager(path, pool=pool).init()
    monitor = HealthMonitor(pool)
    monitor.look()
    sessions.create_session("before")
    {way}
    send(bad(sessions))
    with capture_logs() as logs:
        monitor.look()
    send(events(logs))
    send(attempt(sessions, "refused"))
    sessions.close()
    with SessionManager(path, pool=pool) as sessions:
        send(attempt(sessions, "after"))
        send(sorted(bad(sessions)))
""",
        path,
    )
    found = child.receive()
    assert found.pop("sqlite", "degraded") == "degraded"
    assert found == {"locks": "failed"}
    assert "database_retired" in child.receive()
    assert child.receive() == "DatabaseMovedError"
    assert child.receive() == "stored"
    assert set(child.receive()) <= {"sqlite"}
    child.finish()
    also.send()
    also.finish()
    assert titles(path) == {"before", "after"}


def test_a_second_sqlite_is_logged_once_when_a_file_is_opened(
    start_child: Start, path: Path
) -> None:
    """Not refused: much that does no harm loads it."""
    child = start_child(
        PRELUDE
        + """
second()
with capture_logs() as logs, ConnectionPool(PoolOptions(linger=0)) as pool:
    for name in ("db.sqlite", "other.sqlite"):
        with SessionManager(path.with_name(name), pool=pool) as sessions:
            send(attempt(sessions, "stored"))
send([[log["event"], log["log_level"], "sqlite" in log["library"]] for log in logs])
""",
        path,
    )
    assert child.receive() == child.receive() == "stored"
    assert child.receive() == [["second_sqlite", "warning", True]]
    child.finish()
