"""Ctrl-C at any moment of a block, while something keeps the traceback, leaves nothing held."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any

import apsw
import pytest
from interleaving_kit import Thread, interrupted_at
from kits.pools import quick_pool
from kits.waiting import PATIENCE, until
from sqlalchemy import text

from mandrake_sessions import (
    HealthLevel,
    HealthMonitor,
    MandrakeManager,
    SessionManager,
)
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.live.hub import Hub

pytestmark = pytest.mark.usefixtures("no_finalizers")


def monitors() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "mandrake-health"]


class Stand:
    """An open database, and the calls that are made on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool = quick_pool(linger=1.0, close_timeout=5.0)
        self.sessions = SessionManager(path, pool=self.pool).init()
        self.session = self.sessions.create_session("first")
        self.response = self.sessions.create_round(self.session.id, "text").response
        self.others: list[SessionManager] = []
        self.numbers = itertools.count()

    def write(self) -> None:
        with self.sessions.transaction() as tx:
            tx.create_round(self.session.id, "text")

    def write_below(self) -> None:
        with file_handle(self.sessions.handle).write() as tx:
            assert tx.operation

    def read_below(self) -> None:
        with file_handle(self.sessions.handle).read() as tx:
            assert tx.operation

    def list(self) -> None:
        self.sessions.list_rounds(self.session.id)

    def lend(self) -> None:
        with self.sessions.handle.sqlalchemy() as connection:
            connection.execute(text("SELECT count(*) FROM sessions")).scalar()

    def lend_for_reading(self) -> None:
        with self.sessions.handle.sqlalchemy(read_only=True) as connection:
            connection.execute(text("SELECT count(*) FROM sessions")).scalar()

    def new_folder(self) -> Path:
        """A folder for one try: an opening calls for every name that it finds in one."""
        folder = self.path.parent / "tries" / str(next(self.numbers))
        folder.mkdir(parents=True)
        return folder

    def copy(self) -> None:
        self.sessions.backup(self.new_folder() / "copy.sqlite")

    def look(self) -> None:
        self.sessions.health(HealthLevel.THOROUGH)

    def require_free(self, why: object) -> None:
        """Make sure that this thread, another one and another program can write at once."""
        connections = file_handle(self.sessions.handle).file.leased_connections()
        self.sessions.create_session()
        self.sessions.count_sessions()
        Thread(self.sessions.create_session).result()
        # A checkpoint of the pool's thread may have one.
        assert get_ident() not in [leased.queue.holder for leased in connections], why
        assert not any(leased.queue._pins for leased in connections), why
        assert file_handle(self.sessions.handle).file.state is FileState.OPEN, why
        raw = apsw.Connection(str(self.path))
        raw.set_busy_timeout(int(PATIENCE * 1000))
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
        raw.close()


DOING: dict[str, Callable[[Stand], Any]] = {
    "a transaction": Stand.write,
    "a write scope": Stand.write_below,
    "a read scope": Stand.read_below,
    "a long read": Stand.list,
    "a lent connection": Stand.lend,
    "a lent connection that only reads": Stand.lend_for_reading,
    "a backup": Stand.copy,
    "a look at the health": Stand.look,
}


@pytest.mark.parametrize("doing", DOING)
@pytest.mark.timeout(900)
def test_ctrl_c_at_any_call_of_a_block_leaves_nothing_held(
    doing: str, tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """
    ::

        interrupted   lease ─ BEGIN ─ the block ─ COMMIT ─ lease back
                      Ctrl-C at each call of it, and the traceback is kept
        the same thread, another one, another program              write at once
    """
    stand = Stand(ready_database.lay(tmp_path / "db.sqlite"))
    work = partial(DOING[doing], stand)
    work()
    kept = []
    step = campaign.pick(7, 2, 1)
    with stand.pool:
        for number in itertools.count(0, step):
            error = interrupted_at(number, work, keeps=True)
            stand.require_free(error)
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
            kept.append(error)
        stand.sessions.close()
    print(f"\n{doing}: every {step} of {number} places")  # a result
    assert len(kept) >= 2
    # A copy is there as a whole or not at all.
    assert {each.name for each in tmp_path.glob("tries/*/*")} <= {"copy.sqlite"}


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_a_savepoint_undoes_it_alone(
    tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """
    ::

        the transaction   writes ─ savepoint: two writes ─ Ctrl-C, caught ─ writes ─ COMMIT
    """
    stand = Stand(ready_database.lay(tmp_path / "db.sqlite"))
    kept = []
    with stand.pool:
        for number in itertools.count(0, campaign.pick(3, 1, 1)):
            with stand.sessions.transaction() as tx:

                def nested(tx: Any = tx, number: int = number) -> None:
                    with tx.savepoint():
                        tx.create_session(f"nested {number}")
                        tx.create_session(f"nested {number}")

                error = interrupted_at(number, nested, keeps=True)
                tx.create_session(f"after {number}")
            titles = [each.title for each in stand.sessions.list_sessions(limit=10)]
            assert titles.count(f"after {number}") == 1, error
            assert titles.count(f"nested {number}") in ((2,) if error is None else (0, 2)), error
            if error is None:
                break
            kept.append(error)
        stand.sessions.close()
    assert len(kept) > 20


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_the_first_long_read_leaves_the_next_one_free(
    tmp_path: Path, ready_database: Any
) -> None:
    """
    ::

        interrupted   waits for the connection that only reads ─ opens it ─ reads
        the same thread, another one                               read at once
    """
    for number in itertools.count():
        folder = tmp_path / str(number)
        folder.mkdir()
        stand = Stand(ready_database.lay(folder / "db.sqlite"))
        with stand.pool:
            error = interrupted_at(number, stand.list, keeps=True)
            mutex = file_handle(stand.sessions.handle).file._auxiliary_mutex
            # A thread of the library may hold it at the moment.
            until(partial(getattr, mutex, "is_free"))
            stand.list()
            Thread(stand.list).result()
            stand.sessions.close()
        if error is None:
            break
    assert number > 20


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_an_opening_lets_the_next_one_query_at_once(
    tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """The file is open already: each opening queries the owners of its streaming turns."""
    stand = Stand(ready_database.lay(tmp_path / "db.sqlite"))
    with stand.pool:
        for number in itertools.count(0, campaign.pick(2, 1, 1)):
            with SessionManager(stand.path, pool=stand.pool) as other:
                other.close()
                error = interrupted_at(number, other.init, keeps=True)
            assert Hub.of(file_handle(stand.sessions.handle).file)._querying.is_free, error
            if error is None:
                break
        stand.sessions.close()
    assert number > 50


STORM = """
import random, signal, time
from mandrake_sessions import (
    ConnectionPool, DatabaseOptions, Durability, PoolOptions, SessionManager)
path, most, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
database = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
sessions = SessionManager(path, pool=ConnectionPool(PoolOptions(database=database))).init()
session = sessions.create_session()
is_armed = False
def interrupt(*_):
    global is_armed
    if is_armed:
        is_armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
def write():
    with sessions.transaction() as tx:
        tx.create_round(session.id, "text")
hits = written = 0
until = time.monotonic() + seconds
while hits < most and time.monotonic() < until:
    try:
        try:
            is_armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(.00002, .0006))
            write()
            written += 1
        finally:
            is_armed = False
    except KeyboardInterrupt as error:
        hits += 1
        sys.last_value = error
signal.setitimer(signal.ITIMER_REAL, 0)
stored = sum(1 for _ in sessions.iter_session_history(session.id))
with sessions.transaction() as tx:
    tx.create_session()
send([hits, written, stored])
receive()
"""


@pytest.mark.timeout(900)
def test_signals_at_random_moments_of_blocks_leave_the_lease_free(
    tmp_path: Path, ready_database: Any, start_child: Callable[..., Any], campaign: Any
) -> None:
    """Acknowledged rows are stored; each interrupt may have stored one without an answer."""
    path = ready_database.lay(tmp_path / "db.sqlite")
    most = campaign.pick(200, 2_000, 10_000)
    child = start_child(STORM, path, most, campaign.pick(30, 120, 600))
    hits, written, stored = child.receive()
    print(f"\n{hits} interrupts of {hits + written} blocks", file=sys.stderr)  # a result
    assert hits == most
    assert written <= stored <= written + hits
    raw = apsw.Connection(str(path))
    raw.set_busy_timeout(5000)
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("ROLLBACK")
    raw.close()
    child.send()
    child.finish()


# -- streams, watches, openings and closings --------------------------------------------------


def stream(stand: Stand) -> None:
    with stand.sessions.stream_turn(stand.response.id) as turn:
        turn.write("text")
        turn.flush()
        turn.tool_call("call").set_result("result")
        turn.set_usage(output_tokens=1)
        turn.write("more")


def watch(stand: Stand) -> None:
    with stand.sessions.watch_session(stand.session.id) as updates:
        assert next(updates) is not None


def listen(stand: Stand) -> None:
    turn = stand.sessions.create_turn(stand.response.id, content="text")
    with stand.sessions.add_turn_update_listener(turn.id, lambda _: None):
        pass


def open_and_close(stand: Stand) -> None:
    other = SessionManager(stand.new_folder() / "db.sqlite", pool=stand.pool)
    stand.others.append(other)
    other.init()
    other.close()


def open_for_a_block(stand: Stand) -> None:
    with SessionManager(stand.new_folder() / "db.sqlite", pool=stand.pool) as other:
        other.create_session()


def hold(stand: Stand) -> None:
    with stand.pool.acquire(stand.path) as handle:
        handle.stats()


def open_a_root(stand: Stand) -> None:
    with (
        MandrakeManager(stand.new_folder(), pool=stand.pool) as root,
        root.create_workspace("first") as workspace,
    ):
        workspace.sessions.create_session()


def monitor(stand: Stand) -> None:
    with HealthMonitor(stand.pool, interval=600) as present:
        assert present.is_running


LIVE: dict[str, Callable[[Stand], Any]] = {
    "a stream": stream,
    "a watch": watch,
    "a listener": listen,
    "an opening and a closing": open_and_close,
    "an opening for a block": open_for_a_block,
    "a handle": hold,
    "a root": open_a_root,
    "a monitor": monitor,
}
OPENING = {"an opening for a block", "a root"}


@pytest.mark.parametrize("doing", LIVE)
@pytest.mark.timeout(900)
def test_ctrl_c_at_any_call_of_a_living_object_leaves_every_later_call_free(
    doing: str, tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """
    ::

        interrupted   begins ─ waits for the library's threads ─ ends
                      Ctrl-C at each call of it, and the traceback is kept
        the same thread, another one                             do the same, to the end
    """
    stand = Stand(ready_database.lay(tmp_path / "db.sqlite"))
    work = partial(LIVE[doing], stand)
    work()
    kept, lost = [], 0
    # Opening a file makes thousands of calls.
    step = campaign.pick(13, 3, 1) * (37 if doing in OPENING else 1)
    with stand.pool:
        for number in itertools.count(0, step):
            error = interrupted_at(number, work, keeps=True)
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
            kept.append(error)
            Thread(work).result()
            work()
            for other in stand.others:
                other.close()
            stand.others.clear()
            flusher = Hub.of(file_handle(stand.sessions.handle).file).flusher
            until(lambda: not flusher.writers, error)  # noqa: B023
            until(lambda: stand.pool.stats().handles == 1, error)
            # A listener that comes to no variable goes on, as one whose subscription is not kept.
            is_begun = any(place in str(error) for place in ("Statement", "__enter__", "__get__"))
            lost += doing == "a listener" and is_begun
            until(lambda: stand.sessions.subscriptions <= lost, error)  # noqa: B023
            until(lambda: not monitors(), error)
        stand.require_free(None)
        stand.sessions.close()
    print(f"\n{doing}: every {step} of {number} places")  # a result
    assert len(kept) >= 2


def test_a_question_whether_a_block_can_be_left_does_not_end_it(
    tmp_path: Path, ready_database: Any
) -> None:
    stand = Stand(ready_database.lay(tmp_path / "db.sqlite"))
    with stand.pool, contextlib.ExitStack() as kept:
        transaction = stand.sessions.transaction()
        tx = kept.enter_context(transaction)
        assert hasattr(transaction, "__exit__")
        tx.create_session("stored")
        kept.close()
        stand.sessions.create_session("next")
        turn = kept.enter_context(stand.sessions.stream_turn(stand.response.id))
        assert hasattr(turn, "__exit__")
        turn.write("text")
        kept.close()
        assert turn.turn.content == "text"
        with stand.sessions.stream_turn(stand.response.id) as turn:
            assert hasattr(turn, "__exit__")
            turn.write("text")
        assert turn.turn.content == "text"
        titles = {each.title for each in stand.sessions.list_sessions()}
        assert titles >= {"stored", "next"}
        stand.sessions.close()


@pytest.mark.parametrize("doing", ["a stream", "a listener"])
@pytest.mark.timeout(900)
def test_ctrl_c_while_the_first_use_starts_a_thread_leaves_the_next_one_free(
    doing: str, tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """The threads of a file that was just opened are not there yet: each try opens one."""
    step = campaign.pick(7, 2, 1)
    for number in itertools.count(0, step):
        folder = tmp_path / str(number)
        folder.mkdir()
        stand = Stand(ready_database.lay(folder / "db.sqlite"))
        work = partial(LIVE[doing], stand)
        with stand.pool:
            error = interrupted_at(number, work, keeps=True)
            assert error is None or isinstance(error, KeyboardInterrupt)
            Thread(work).result()
            stand.sessions.close()
        if error is None:
            break
    assert number > 20
