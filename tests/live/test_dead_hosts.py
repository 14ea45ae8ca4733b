"""A turn whose host has died ends soon in every process that has the file open."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from kits.locks import lock_held
from kits.waiting import SOON, until
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    PoolOptions,
    Response,
    SessionManager,
    TurnStatus,
)
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.live import patrol as patrol_module
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.patrol import INTERVAL, patrol


@pytest.fixture(autouse=True)
def brisk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process look often; other processes and long tests show it without that."""
    if request.node.get_closest_marker("long") is None:
        monkeypatch.setattr(patrol_module, "INTERVAL", 0.05)


HOST = """
from mandrake_sessions import SessionManager
sessions = SessionManager(sys.argv[1], create=False).init()
turn = sessions.stream_turn(sys.argv[2])
turn.write("kept")
turn.tool_call({"name": "ls"})
turn.flush()
send(turn.id)
receive()
"""

OBSERVERS = {
    "a manager": """
from mandrake_sessions import SessionManager
sessions = SessionManager(sys.argv[1], create=False).init()
send("open")
receive()
""",
    "a manager of its own pool": """
from mandrake_sessions import ConnectionPool, PoolOptions, SessionManager
pool = ConnectionPool(PoolOptions(linger=0))
sessions = SessionManager(sys.argv[1], pool=pool, create=False).init()
send("open")
receive()
""",
    "a manager for coroutines": """
import asyncio
from mandrake_sessions.aio import AsyncSessionManager
async def main():
    async with AsyncSessionManager(sys.argv[1], create=False):
        send("open")
        await asyncio.to_thread(receive)
asyncio.run(main())
""",
    "a host of workspaces": """
from pathlib import Path
from mandrake_sessions import MandrakeManager
with MandrakeManager(Path(sys.argv[1]).parent) as mandrake:
    send("open")
    receive()
""",
    "a forked child": """
import os
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1], create=False):
    if os.fork():
        os.wait()
        sys.exit(0)
sessions = SessionManager(sys.argv[1], create=False).init()
send("open")
receive()
""",
}


def host_of(start_child: Callable[..., Any], sessions_path: Path, response_id: str) -> Any:
    """Return a process that streams a turn, and the turn's id."""
    host = start_child(HOST, sessions_path, response_id)
    return host, host.receive()


def kill(host: Any) -> None:
    host.process.kill()
    host.process.wait()


def status_of(path: Path, turn_id: str) -> str:
    """Return the status of a turn as it is stored; nothing of the library looks."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    try:
        ((status,),) = connection.execute("SELECT status FROM turns WHERE id = ?", (turn_id,))
    finally:
        connection.close()
    return str(status)


# -- without anybody watching ------------------------------------------------------------------


@pytest.mark.parametrize(
    "observer",
    [
        # Each waits three seconds; the others are ways to the same thread.
        name if name == "a manager" else pytest.param(name, marks=pytest.mark.long)
        for name in OBSERVERS
    ],
)
def test_a_process_that_only_has_the_file_open_ends_the_turn_of_a_dead_host(
    observer: str,
    pool: ConnectionPool,
    ready_path: Path,
    start_child: Callable[..., Any],
) -> None:
    with SessionManager(ready_path, pool=pool) as sessions:
        response = sessions.create_round(sessions.create_session().id, "Hello?").response
    # Nothing but the observer has it open when the host dies.
    long_open = start_child(OBSERVERS[observer], ready_path)
    assert long_open.receive() == "open"
    host, turn_id = host_of(start_child, ready_path, response.id)
    # Not waiting for anything: in this time nothing must happen.
    time.sleep(2 * INTERVAL)
    assert status_of(ready_path, turn_id) == "streaming"

    kill(host)
    since = time.monotonic()
    until(lambda: status_of(ready_path, turn_id) == "interrupted")
    # Five seconds where a thread may run when it is due: two looks, and what they take.
    assert 2 * INTERVAL < 5
    assert time.monotonic() - since < SOON
    with SessionManager(ready_path, pool=pool) as sessions:
        turn = sessions.get_turn(turn_id)
    assert turn.content == "kept"
    assert [call.is_interrupted for call in turn.tool_calls] == [True]


def test_the_end_of_a_turn_is_logged_and_seen_by_watchers(
    sessions: SessionManager, response: Response, start_child: Callable[..., Any]
) -> None:
    host, turn_id = host_of(start_child, sessions.path, response.id)
    with capture_logs() as logs, sessions.watch_response(response.id) as watch:
        kill(host)
        *_, last = watch
        until(lambda: logs)
    assert (last.id, last.turn.status) == (turn_id, TurnStatus.INTERRUPTED)
    assert [(log["event"], log["turn_ids"]) for log in logs] == [("turns_interrupted", [turn_id])]
    assert not list(sessions.path.parent.glob("*-owner-*"))


def test_the_turns_of_dead_hosts_in_many_files_end(
    pool: ConnectionPool, tmp_path: Path, ready_database: Any, start_child: Callable[..., Any]
) -> None:
    many = """
from mandrake_sessions import SessionManager
number = 0
for path, response_id in receive():
    SessionManager(path, create=False).init().create_turn(response_id)
send("streaming")
receive()
"""
    managers = []
    asked = []
    for number in range(20):
        path = ready_database.lay(tmp_path / f"{number}" / "db.sqlite")
        managers.append(SessionManager(path, pool=pool).init())
        response = managers[-1].create_round(managers[-1].create_session().id, "?").response
        asked.append((str(path), response.id))
    host = start_child(many)
    host.send(asked)
    assert host.receive() == "streaming"
    kill(host)
    since = time.monotonic()
    for manager, (_, response_id) in zip(managers, asked, strict=True):

        def is_ended(manager: SessionManager = manager, id: str = response_id) -> bool:
            (turn,) = manager.list_turns(id)
            return turn.status is TurnStatus.INTERRUPTED

        until(is_ended)
    assert time.monotonic() - since < SOON
    for manager in managers:
        manager.close()


def test_a_turn_that_could_not_be_ended_in_a_busy_file_is_ended_when_it_can(
    sessions: SessionManager, response: Response, start_child: Callable[..., Any]
) -> None:
    host, turn_id = host_of(start_child, sessions.path, response.id)
    with capture_logs() as logs:
        with lock_held(start_child, sessions.path):
            kill(host)
            until(lambda: logs)
        until(lambda: sessions.get_turn(turn_id).status is TurnStatus.INTERRUPTED)
        until(lambda: len(logs) > 1)
    assert [log["event"] for log in logs] == ["recovery_postponed", "turns_interrupted"]


def test_a_parked_file_is_checked_when_it_is_open_again(
    ready_path: Path, tmp_path: Path, start_child: Callable[..., Any]
) -> None:
    with (
        ConnectionPool(PoolOptions(linger=0, max_open=1)) as pool,
        SessionManager(ready_path, pool=pool) as sessions,
    ):
        response = sessions.create_round(sessions.create_session().id, "Hello?").response
        with SessionManager(tmp_path / "other.sqlite", pool=pool) as other:
            assert pool.stats().parked == 1
            host, turn_id = host_of(start_child, ready_path, response.id)
            assert sessions.get_turn(turn_id).status is TurnStatus.STREAMING
            kill(host)
            until(lambda: status_of(ready_path, turn_id) == "interrupted")
            assert other.count_sessions() == 0


def test_a_living_host_keeps_its_turn(
    sessions: SessionManager, response: Response, start_child: Callable[..., Any]
) -> None:
    hosts = [host_of(start_child, sessions.path, response.id) for _ in range(2)]
    own = sessions.create_turn(response.id)
    (dead, dead_id), (_, living_id) = hosts
    kill(dead)
    until(lambda: sessions.get_turn(dead_id).status is TurnStatus.INTERRUPTED)
    assert sessions.get_turn(living_id).status is TurnStatus.STREAMING
    assert sessions.get_turn(own.id).status is TurnStatus.STREAMING


FORKING = """
import os
from mandrake_sessions import SessionManager
from mandrake_sessions.live import patrol
# It looks, and reads, without a pause.
patrol.INTERVAL = 0.0
patrol._SETTLING = 10**9
patrol._FORK_PATIENCE = 60.0
sessions = SessionManager(sys.argv[1], create=False).init()
found = set()
for _ in range(60):
    pid = os.fork()
    if not pid:
        try:
            other = SessionManager(sys.argv[1], create=False).init()
        except BaseException:
            os._exit(1)
        os._exit(0)
    found.add(os.waitpid(pid, 0)[1])
send(sorted(found))
"""


def test_a_fork_waits_for_the_check_of_a_file(
    ready_path: Path, start_child: Callable[..., Any]
) -> None:
    """A file that no caller uses at a fork can be opened in the child."""
    child = start_child(FORKING, ready_path)
    assert child.receive() == [0]
    child.finish()


# -- what looking costs ------------------------------------------------------------------------


def settled(sessions: SessionManager) -> Hub:
    """Return the hub of a file that was looked at often enough after the last write."""
    hub = Hub.of(file_handle(sessions.handle).file)
    # Only the test looks.
    patrol.remove(hub)
    for _ in range(20):
        hub.liveness.check()
    return hub


def test_a_quiet_file_is_not_read(statements: Any, sessions: SessionManager) -> None:
    hub = settled(sessions)
    statements.take()
    for _ in range(5):
        hub.liveness.check()
    assert statements.take() == []
    sessions.create_session("Not quiet")
    statements.take()
    hub.liveness.check()
    assert len(statements.take()) == 1


def test_a_check_is_no_use_of_a_file(sessions: SessionManager) -> None:
    hub, file = settled(sessions), file_handle(sessions.handle).file
    sessions.create_session("A use")
    used_at = file.used_at
    hub.liveness.check()
    assert file.used_at == used_at
    assert file.is_quiet


def test_a_check_does_not_notice_that_a_file_was_moved(
    ready_path: Path, pool: ConnectionPool
) -> None:
    """A file may be renamed away and back while no caller uses it."""
    with SessionManager(ready_path, pool=pool) as sessions:
        hub = Hub.of(file_handle(sessions.handle).file)
        away = ready_path.with_name("away.sqlite")
        ready_path.rename(away)
        os.utime(f"{ready_path}-wal")
        hub.liveness.check()
        away.rename(ready_path)
        hub.liveness.check()
        sessions.create_session("As ever")


def test_the_checking_thread_ends_with_the_last_file(
    ready_path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(
        """
import threading, time
from mandrake_sessions import ConnectionPool, PoolOptions, SessionManager

def is_there():
    return any(each.name == "mandrake-patrol" for each in threading.enumerate())

with ConnectionPool(PoolOptions(linger=0)) as pool:
    for _ in range(2):
        with SessionManager(sys.argv[1], pool=pool):
            found = [is_there()]
        while is_there():
            time.sleep(0.01)
        send(found)
""",
        ready_path,
    )
    assert [child.receive() for _ in range(2)] == [[True]] * 2
    child.finish()


@pytest.mark.long
def test_checking_fifty_quiet_files_costs_next_to_nothing(
    pool: ConnectionPool, tmp_path: Path, ready_database: Any
) -> None:
    managers = [
        SessionManager(ready_database.lay(tmp_path / f"{n}" / "db.sqlite"), pool=pool).init()
        for n in range(50)
    ]
    time.sleep(12.0)
    cpu, since = time.process_time(), time.monotonic()
    time.sleep(15.0)
    share = (time.process_time() - cpu) / (time.monotonic() - since)
    for manager in managers:
        manager.close()
    sys.stdout.write(f"\n50 open files: {share:.3%} of a core")
    assert share <= 0.002


# -- at each init ------------------------------------------------------------------------------


def test_every_init_finds_the_turns_of_dead_hosts_ended(
    sessions: SessionManager,
    response: Response,
    pool: ConnectionPool,
    start_child: Callable[..., Any],
) -> None:
    # Only the inits look here, one right after the other.
    patrol.remove(Hub.of(file_handle(sessions.handle).file))
    hosts = [host_of(start_child, sessions.path, response.id) for _ in range(4)]
    for host, turn_id in hosts:
        SessionManager(sessions.path, pool=pool).init().close()
        assert sessions.get_turn(turn_id).status is TurnStatus.STREAMING
        kill(host)
        with SessionManager(sessions.path, pool=pool) as other:
            assert other.get_turn(turn_id).status is TurnStatus.INTERRUPTED


def test_inits_at_once_all_find_the_turn_of_a_dead_host_ended(
    sessions: SessionManager,
    response: Response,
    pool: ConnectionPool,
    start_child: Callable[..., Any],
    in_threads: Callable[..., list[TurnStatus]],
) -> None:
    patrol.remove(Hub.of(file_handle(sessions.handle).file))
    host, turn_id = host_of(start_child, sessions.path, response.id)
    kill(host)

    def look(_number: int) -> TurnStatus:
        with SessionManager(sessions.path, pool=pool) as other:
            return other.get_turn(turn_id).status

    with capture_logs() as logs:
        assert set(in_threads(8, look)) == {TurnStatus.INTERRUPTED}
    assert [log["turn_ids"] for log in logs] == [[turn_id]]


def test_an_init_inside_a_transaction_of_the_same_file_opens_it(
    sessions: SessionManager, pool: ConnectionPool
) -> None:
    other = SessionManager(sessions.path, pool=pool)
    with sessions.transaction() as tx:
        other.init()
        session = tx.create_session("Inside")
    assert other.get_session(session.id).title == "Inside"
    other.close()


# -- of another user ---------------------------------------------------------------------------

HOST_OF_ANOTHER_USER = """
import os
from mandrake_sessions import SessionManager
path, uid, umask = sys.argv[1], int(sys.argv[2]), int(sys.argv[3], 8)
os.umask(umask)
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
sessions = SessionManager(path, create=False).init()
response = sessions.create_round(sessions.create_session().id, "?").response
turn = sessions.stream_turn(response.id)
turn.write("kept")
turn.flush()
send(turn.id)
receive()
"""

OBSERVER_OF_ANOTHER_USER = """
import os
from mandrake_sessions import SessionManager
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
with SessionManager(path, create=False) as sessions:
    send("open")
    while turn_id := receive():
        send([sessions.get_turn(turn_id).status, len(sessions.recover_interrupted())])
"""

ALICE, BOB = 54321, 54322


@pytest.fixture
def shared_path(ready_database: Any) -> Iterator[Path]:
    """A database in a folder where every user may write, and which every user may write."""
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("only root becomes other users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    path = ready_database.lay(folder / "db.sqlite")
    path.chmod(0o666)
    yield path
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("host_uid", "umask", "observer_uid"),
    [(ALICE, "022", BOB), (ALICE, "077", BOB), (0, "077", BOB), (ALICE, "077", 0)],
)
def test_the_turn_of_a_dead_host_of_another_user_ends(
    shared_path: Path,
    start_child: Callable[..., Any],
    host_uid: int,
    umask: str,
    observer_uid: int,
) -> None:
    observer = start_child(OBSERVER_OF_ANOTHER_USER, shared_path, observer_uid)
    # Between making its log and setting its mode, SQLite has no place for another user.
    assert observer.receive() == "open"
    host = start_child(HOST_OF_ANOTHER_USER, shared_path, host_uid, umask)
    turn_id = host.receive()
    observer.send(turn_id)
    assert observer.receive() == ["streaming", 0]
    kill(host)
    since = time.monotonic()
    until(lambda: status_of(shared_path, turn_id) == "interrupted")
    assert time.monotonic() - since < SOON
    observer.send("")
    observer.finish()


@pytest.mark.parametrize("mode", [0o600, 0o000])
def test_the_turn_of_a_dead_host_ends_though_its_file_cannot_be_opened(
    shared_path: Path,
    start_child: Callable[..., Any],
    mode: int,
) -> None:
    observer = start_child(OBSERVER_OF_ANOTHER_USER, shared_path, BOB)
    # Between making its log and setting its mode, SQLite has no place for another user.
    assert observer.receive() == "open"
    host = start_child(HOST_OF_ANOTHER_USER, shared_path, ALICE, "022")
    turn_id = host.receive()
    (claim,) = shared_path.parent.glob("*-owner-*")
    claim.chmod(mode)
    for _ in range(20):
        observer.send(turn_id)
        assert observer.receive() == ["streaming", 0]
    kill(host)
    since = time.monotonic()
    until(lambda: status_of(shared_path, turn_id) == "interrupted")
    assert time.monotonic() - since < SOON
    observer.send("")
    observer.finish()


KEEPS = """
import gc, threading, time, weakref
from kits.waiting import until
from mandrake_sessions.live import patrol
patrol.INTERVAL = 0.0

class Checked:
    def __init__(self):
        self.is_checked = threading.Event()

    @property
    def liveness(self):
        return self

    def check(self):
        # The thread waits so long after this check.
        patrol.INTERVAL = 3600.0
        self.is_checked.set()

checked = Checked()
patrol.patrol.add(checked)
checked.is_checked.wait()
patrol.patrol.remove(checked)
left = weakref.ref(checked)
del checked
until(lambda: left() is None)
send("collected")
"""


def test_the_patrol_keeps_no_file_that_was_closed(start_child: Any) -> None:
    child = start_child(KEEPS)
    assert child.receive() == "collected"
    child.finish()
