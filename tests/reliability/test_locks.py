"""No public call drops the locks that SQLite holds on an open database.

Closing any descriptor of a file frees every POSIX lock that the process has on it, so one plain
``open()`` of the database, anywhere, would leave it to other processes as if we had closed it.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernel_locks
import pytest
import sqlalchemy
from kernel_locks import own_lock_lines

import mandrake_sessions
from mandrake_sessions import (
    ConnectionPool,
    HealthLevel,
    MandrakeSessionsError,
    Response,
    Round,
    Session,
    SessionManager,
    SessionTransaction,
    Turn,
    TurnStatus,
    TurnWriter,
)
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.handle import DatabaseHandle


def public(kind: type) -> list[str]:
    """Return the names of a class's methods and properties that a host may use."""
    return [name for name in dir(kind) if not name.startswith("_")]


def functions() -> list[str]:
    """Return the names of the package's functions."""
    names = mandrake_sessions.__all__
    return [name for name in names if inspect.isfunction(getattr(mandrake_sessions, name))]


class World:
    """An open database with a bit of everything, and another one that no manager has."""

    def __init__(self, sessions: SessionManager, pool: ConnectionPool, folder: Path) -> None:
        self.sessions = sessions
        self.folder = folder
        self.pool = pool
        self.handle: FileHandle = file_handle(sessions.handle)
        self.session: Session = sessions.create_session("A talk", metadata={"a": 1})
        self.round: Round = sessions.create_round(self.session.id, "Hello?")
        self.response: Response = self.round.response
        self.turn: Turn = sessions.create_turn(
            self.response.id, content="Hello.", status=TurnStatus.COMPLETED
        )
        self.second: Round = sessions.create_round(self.session.id, "And now?")
        self.other = folder / "other.sqlite"
        self.copy = sessions.backup(folder / "copy.sqlite")

    def manager(self, path: Path | None = None) -> SessionManager:
        """Return one more open manager, of this database or of another one."""
        return SessionManager(path or self.sessions.path, pool=self.pool).init()

    def writer(self) -> TurnWriter:
        """Return the writer of a new stream."""
        return self.sessions.stream_turn(self.second.response.id)


def locks(path: Path) -> list[str]:
    """Return the locks of this process on a database and on its log's index."""
    lines = own_lock_lines([path, Path(f"{path}-shm")])
    return [line for line in lines if line.startswith("POSIX")]


@pytest.fixture
def world(sessions: SessionManager, pool: ConnectionPool, tmp_path: Path) -> World:
    """An open database of which both connections are open, and its threads run."""
    world = World(sessions, pool, tmp_path)
    sessions.list_rounds(world.session.id)
    return world


@pytest.fixture
def unchanged(world: World) -> Iterator[None]:
    """Compares the locks of an idle database before and after."""
    before = locks(world.sessions.path)
    assert len(before) >= 2, "SQLite holds one on the file and one on the index"
    yield
    # A lock that a thread holds shortly, while it still reads, is none of these.
    patience = threading.Event()
    for _ in range(2000):
        if (after := locks(world.sessions.path)) == before:
            return
        patience.wait(0.001)
    assert after == before


def drain(iterator: Any) -> None:
    with iterator:
        next(iter(iterator))


def listened(world: World, start: Callable[[Any], Any]) -> None:
    """Have a listener called for one change."""
    called = threading.Event()
    with world.writer() as writer:
        writer.write("text")
        subscription = start(writer)(lambda _: called.set())
        writer.write(" and more")
        assert called.wait(60)
        subscription.close()


def in_scope(scope: Any, work: Callable[[Any], Any] = lambda _: None) -> None:
    with scope as inside:
        work(inside)


def select_one(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("SELECT 1").all()


def in_turn(*calls: Callable[[], Any]) -> None:
    for call in calls:
        call()


def allowed(work: Callable[[], Any]) -> None:
    """Do what may be refused while the file is open: a refusal drops no lock either."""
    with contextlib.suppress(MandrakeSessionsError):
        work()


MANAGER: dict[str, Callable[[World], Any]] = {
    "add_turn_update_listener": lambda w: listened(
        w, lambda writer: lambda listener: w.sessions.add_turn_update_listener(writer.id, listener)
    ),
    "backup": lambda w: w.sessions.backup(w.folder / "again.sqlite"),
    "close": lambda w: w.manager().close(),
    "count_sessions": lambda w: w.sessions.count_sessions(),
    "create_round": lambda w: w.sessions.create_round(w.session.id, "More"),
    "create_session": lambda w: w.sessions.create_session("Another"),
    "create_turn": lambda w: w.sessions.create_turn(w.response.id, status=TurnStatus.COMPLETED),
    "delete": lambda w: w.manager(w.other).delete(),
    "delete_round": lambda w: w.sessions.delete_round(w.round.id),
    "delete_session": lambda w: w.sessions.delete_session(w.session.id),
    "delete_turn": lambda w: w.sessions.delete_turn(w.turn.id),
    "find_session": lambda w: w.sessions.find_session(w.session.id),
    "get_current_round": lambda w: w.sessions.get_current_round(w.session.id),
    "get_latest_turn": lambda w: w.sessions.get_latest_turn(w.response.id),
    "get_request": lambda w: w.sessions.get_request(w.round.request.id),
    "get_response": lambda w: w.sessions.get_response(w.response.id),
    "get_round": lambda w: w.sessions.get_round(w.round.id),
    "get_round_by_response": lambda w: w.sessions.get_round_by_response(w.response.id),
    "get_session": lambda w: w.sessions.get_session(w.session.id),
    "get_session_usage": lambda w: w.sessions.get_session_usage(w.session.id),
    "get_streaming_status": lambda w: w.sessions.get_streaming_status(w.response.id),
    "get_turn": lambda w: w.sessions.get_turn(w.turn.id),
    "handle": lambda w: w.sessions.handle,
    "health": lambda w: [w.sessions.health(level) for level in HealthLevel],
    "init": lambda w: w.manager().close(),
    "is_initialized": lambda w: w.sessions.is_initialized,
    "is_read_only": lambda w: w.sessions.is_read_only,
    "iter_session_history": lambda w: list(w.sessions.iter_session_history(w.session.id)),
    "list_rounds": lambda w: w.sessions.list_rounds(w.session.id),
    "list_sessions": lambda w: w.sessions.list_sessions(),
    "list_turns": lambda w: w.sessions.list_turns(w.response.id),
    "path": lambda w: w.sessions.path,
    "record_round": lambda w: w.sessions.record_round(w.session.id, "More"),
    "recover_interrupted": lambda w: w.sessions.recover_interrupted(),
    "render_session_history": lambda w: w.sessions.render_session_history(w.session.id),
    # The open one is refused; the other one is restored.
    "restore": lambda w: in_turn(
        lambda: allowed(
            lambda: SessionManager(w.sessions.path, pool=w.pool).restore(
                w.copy, overwrite=True, timeout=0.05
            )
        ),
        lambda: SessionManager(w.other, pool=w.pool).restore(w.copy),
    ),
    "stats": lambda w: w.sessions.stats(),
    "stream_turn": lambda w: in_scope(w.writer(), lambda writer: writer.write("text")),
    "subscriptions": lambda w: w.sessions.subscriptions,
    "track_streaming_turns": lambda w: listened(
        w,
        lambda _: lambda listener: w.sessions.track_streaming_turns(w.second.response.id, listener),
    ),
    "transact": lambda w: w.sessions.transact(lambda tx: tx.create_round(w.session.id, "More")),
    "transaction": lambda w: in_scope(
        w.sessions.transaction(), lambda tx: tx.create_round(w.session.id, "More")
    ),
    "update_request": lambda w: w.sessions.update_request(w.round.request.id, content="New"),
    "update_session": lambda w: w.sessions.update_session(w.session.id, title="New"),
    "update_turn": lambda w: w.sessions.update_turn(w.turn.id, content="New"),
    "watch_response": lambda w: drain(w.sessions.watch_response(w.response.id)),
    "watch_session": lambda w: drain(w.sessions.watch_session(w.session.id)),
}
HANDLE: dict[str, Callable[[World], Any]] = {
    "backup": lambda w: w.handle.backup(w.folder / "again.sqlite"),
    "budget": lambda w: w.handle.budget(None),
    "claim": lambda w: w.handle.claim(),
    "attachment": lambda w: w.handle.attachment,
    "fetch": lambda w: w.handle.fetch(lambda _: None),
    "file": lambda w: w.handle.file,
    "give_up": lambda w: w.handle.give_up(threading.get_ident()),
    "health": lambda w: [w.handle.health(level) for level in HealthLevel],
    "options": lambda w: w.handle.options,
    "owner": lambda w: w.handle.owner,
    "path": lambda w: w.handle.path,
    "pin_now": lambda w: contextlib.suppress(MandrakeSessionsError),
    "pinned": lambda w: in_scope(w.handle.pinned()),
    "query": lambda w: w.handle.query(lambda _: None),
    "read": lambda w: in_scope(w.handle.read()),
    "release": lambda w: w.pool.acquire(w.sessions.path).release(),
    "sqlalchemy": lambda w: in_turn(
        lambda: in_scope(w.handle.sqlalchemy(), select_one),
        lambda: in_scope(w.handle.sqlalchemy(read_only=True), select_one),
    ),
    "require_writable": lambda w: w.handle.require_writable(),
    "stats": lambda w: w.handle.stats(),
    "transact": lambda w: w.handle.transact(lambda _: None),
    "write": lambda w: in_scope(w.handle.write()),
}
POOL: dict[str, Callable[[World], Any]] = {
    "acquire": lambda w: w.pool.acquire(w.sessions.path).release(),
    "close": lambda w: second_pool(w),  # noqa: PLW0108  # it is defined below
    "health": lambda w: [w.pool.health(level) for level in HealthLevel],
    "is_closed": lambda w: w.pool.is_closed,
    "refuse_new_work": lambda w: ConnectionPool().refuse_new_work(),
    "remove": lambda w: in_turn(
        lambda: allowed(lambda: w.pool.remove(w.sessions.path, timeout=0.05)),
        lambda: w.pool.acquire(w.other).release(),
        lambda: w.pool.remove(w.other),
    ),
    "restore": lambda w: in_turn(
        lambda: allowed(
            lambda: w.pool.restore(w.copy, w.sessions.path, overwrite=True, timeout=0.05)
        ),
        lambda: w.pool.restore(w.copy, w.other),
    ),
    "stats": lambda w: w.pool.stats(),
}
FUNCTIONS: dict[str, Callable[[World], Any]] = {
    "default_pool": lambda _: mandrake_sessions.default_pool(),
    "storable": lambda w: mandrake_sessions.storable({1}),
    "diagnose": lambda w: [mandrake_sessions.diagnose(each) for each in (w.sessions.path, w.copy)],
    "install_shutdown_hook": lambda _: mandrake_sessions.install_shutdown_hook().uninstall(),
    "salvage": lambda w: in_turn(
        lambda: allowed(lambda: mandrake_sessions.salvage(w.sessions.path, w.folder / "saved")),
        lambda: allowed(lambda: mandrake_sessions.salvage(w.copy, w.folder / "saved.copy")),
    ),
}


def second_pool(world: World) -> None:
    """Open and close the same file through another pool of this process."""
    with ConnectionPool() as pool:
        allowed(lambda: pool.acquire(world.sessions.path).release())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", public(SessionManager))
def test_a_managers_call_drops_no_lock(world: World, name: str) -> None:
    MANAGER[name](world)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", public(DatabaseHandle))
def test_a_handles_call_drops_no_lock(world: World, name: str) -> None:
    HANDLE[name](world)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", public(ConnectionPool))
def test_a_pools_call_drops_no_lock(world: World, name: str) -> None:
    POOL[name](world)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", functions())
def test_a_function_drops_no_lock(world: World, name: str) -> None:
    FUNCTIONS[name](world)


@pytest.mark.usefixtures("unchanged")
def test_the_calls_of_a_transaction_and_of_a_stream_drop_no_lock(world: World) -> None:
    # A transaction has the manager's own methods, and runs them on the lease it has.
    assert set(public(SessionTransaction)) - set(MANAGER) == {"savepoint"}
    with world.sessions.transaction() as tx, tx.savepoint():
        tx.update_session(world.session.id, title="New")
    for end in ("complete", "interrupt", "fail"):
        writer = world.writer()
        writer.write("text")
        writer.write_raw("{}")
        writer.set_usage(input_tokens=1)
        writer.flush()
        writer.fail("no") if end == "fail" else getattr(writer, end)()


OPEN_IT = """
import os
from pathlib import Path
from mandrake_sessions import ConnectionPool
sys.path.append(sys.argv[2])
from kernel_locks import own_lock_lines

def mine(path):
    return len(own_lock_lines([Path(path)]))

pool = ConnectionPool()
handle = pool.acquire(sys.argv[1])
before = mine(sys.argv[1])
open(sys.argv[1], "rb").close()
send([before, mine(sys.argv[1])])
os._exit(0)
"""


def test_this_test_can_see_a_dropped_lock(world: World, start_child: Callable[..., Any]) -> None:
    before, after = start_child(OPEN_IT, world.copy, Path(kernel_locks.__file__).parent).receive()
    assert before > after
