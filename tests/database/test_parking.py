"""Parking: above ``max_open`` quiet files are closed, and opened again by their handles, unseen."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from database_kit import Held, Task, file_of, queued
from kits.descriptors import descriptors, open_connections
from kits.entries import KEYS, adding, keys
from kits.waiting import until, until_set
from sqlalchemy import text
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseMovedError,
    DatabaseOptions,
    DatabasePathError,
    Durability,
    HandleReleasedError,
    InvalidArgumentError,
    NotADatabaseError,
    NotInitializedError,
    OptionsConflictError,
    PoolClosedError,
    PoolOptions,
    ReentrantScopeError,
    SessionManager,
    StorageFullError,
    TurnStatus,
)
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.database.files.turnstile import turnstile_path
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.parking import most_open

MakePool = Callable[..., ConnectionPool]
Crowd = Callable[..., list[FileHandle]]


@pytest.fixture
def pool(make_pool: MakePool) -> ConnectionPool:
    """A pool in which two files may be open."""
    return make_pool(max_open=2)


@pytest.fixture
def crowd(pool: ConnectionPool, tmp_path: Path, ready_database: Any) -> Iterator[Crowd]:
    """Acquires new databases, one after the other; their handles are released in the end."""
    handles: list[FileHandle] = []

    def make(*names: str) -> list[FileHandle]:
        paths = [ready_database.lay(tmp_path / f"{name}.sqlite") for name in names]
        made = [file_handle(pool.acquire(path)) for path in paths]
        handles.extend(made)
        return made

    yield make
    for handle in handles:
        if not handle._is_released:
            handle.release()


def is_parked(handle: FileHandle) -> bool:
    """Return whether nothing of the database is open, though it has a handle."""
    return file_of(handle).is_parked and open_connections(handle.path) == 0


def figures(pool: ConnectionPool) -> tuple[int, int, int]:
    """Return the files parked now, and how often files were parked and opened again."""
    stats = pool.stats()
    return stats.parked, stats.parkings, stats.reopenings


@pytest.fixture
def parked(crowd: Crowd) -> FileHandle:
    """A handle on a parked database that has a row."""
    (handle,) = crowd("parked")
    handle.transact(adding("before"))
    crowd("second", "third")
    assert is_parked(handle)
    return handle


# -- which file ----------------------------------------------------------------------------


def test_the_least_recently_used_file_gives_way(pool: ConnectionPool, crowd: Crowd) -> None:
    a, b = crowd("a", "b")
    assert figures(pool) == (0, 0, 0)
    a.transact(adding("a"))
    (c,) = crowd("c")
    assert [is_parked(each) for each in (a, b, c)] == [False, True, False]
    b.fetch(lambda tx: tx.rows(KEYS))
    assert [is_parked(each) for each in (a, b, c)] == [True, False, False]
    assert keys(a) == {"a"}
    assert [is_parked(each) for each in (a, b, c)] == [False, False, True]
    assert figures(pool) == (1, 3, 2)
    stats = pool.stats()
    assert (stats.opened, stats.closed, stats.handles) == (5, 3, 3)
    assert {each.path for each in stats.databases} == {a.path, b.path}


USES: dict[str, Callable[[FileHandle], Any]] = {
    "fetch": lambda handle: handle.fetch(lambda tx: tx.rows(KEYS)),
    "query": lambda handle: handle.query(lambda tx: tx.rows(KEYS)),
    "transact": lambda handle: handle.transact(adding("after")),
    "health": lambda handle: handle.health(),
    "file": lambda handle: handle.file.fetch(lambda tx: tx.rows(KEYS), "test"),
    "claim": lambda handle: handle.claim(),
    "backup": lambda handle: handle.backup(handle.path.with_name("copy.sqlite")),
}


def _in_read(handle: FileHandle) -> Any:
    with handle.read() as tx:
        return tx.rows(KEYS)


def _in_write(handle: FileHandle) -> Any:
    with handle.write() as tx:
        return adding("after")(tx)


def _in_sqlalchemy(handle: FileHandle) -> Any:
    with handle.sqlalchemy() as connection:
        return connection.execute(text("SELECT count(*) FROM meta")).scalar_one()


@pytest.mark.parametrize(
    "use", [*USES.values(), _in_read, _in_write, _in_sqlalchemy], ids=[*USES, "read", "write", "sa"]
)
def test_every_use_of_a_parked_file_opens_it(
    pool: ConnectionPool, parked: FileHandle, use: Callable[[FileHandle], Any]
) -> None:
    use(parked)
    assert not is_parked(parked)
    assert "before" in keys(parked)
    assert figures(pool)[2] == 1
    assert file_of(parked).is_quiet


@pytest.mark.parametrize("scope", ["read", "write"])
def test_a_block_on_a_parked_file_is_the_only_one_of_its_thread(
    parked: FileHandle, scope: str
) -> None:
    with getattr(parked, scope)(), pytest.raises(ReentrantScopeError, match=r"test_parking\.py"):
        parked.transact(adding("inner"))
    assert file_of(parked).is_quiet


def test_figures_and_options_of_a_parked_file_do_not_open_it(parked: FileHandle) -> None:
    assert parked.stats().commits == 1
    assert parked.options.busy_timeout == 60.0
    assert parked.attachment is None
    assert is_parked(parked)


def test_files_without_a_handle_are_closed_first(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(max_open=3, linger=3600.0)
    old, idle, idler = (
        file_handle(pool.acquire(tmp_path / name)) for name in ("old", "idle", "idler")
    )
    idler.release()
    idle.release()
    new = file_handle(pool.acquire(tmp_path / "new"))
    assert [open_connections(tmp_path / each) for each in ("old", "idle", "idler", "new")] == [
        *(1, 1, 0, 1)
    ]
    more = [file_handle(pool.acquire(tmp_path / name)) for name in ("more", "still more")]
    assert [is_parked(each) for each in (old, new, *more)] == [True, False, False, False]
    for handle in (old, new, *more):
        handle.release()


# -- what is busy --------------------------------------------------------------------------


def test_a_file_whose_lease_is_held_or_waited_for_stays(crowd: Crowd) -> None:
    a, b = crowd("a", "b")
    with Held(a, adding("held")) as held:
        waiting = Task(lambda: a.transact(adding("waiting")))
        queued(a, 1)
        file = file_of(a)
        b.transact(adding("newer than a"))
        (c,) = crowd("c")
        assert [is_parked(each) for each in (a, b, c)] == [False, True, False]
        held.let_go()
        waiting.join()
    assert file_of(a) is file
    assert keys(a) == {"held", "waiting"}


@pytest.mark.parametrize("scope", ["read", "write", "sqlalchemy", "pinned"])
def test_a_file_in_a_block_stays(crowd: Crowd, scope: str) -> None:
    a, b = crowd("a", "b")
    with getattr(a, scope)():
        b.fetch(lambda tx: tx.rows(KEYS))
        c, d = crowd("c", "d")
        assert [is_parked(each) for each in (a, b, c, d)] == [False, True, True, False]
    c.fetch(lambda tx: tx.rows(KEYS))
    assert is_parked(a)


@pytest.mark.parametrize("scope", ["read", "write", "pinned"])
def test_a_file_that_became_busy_after_it_was_chosen_stays(crowd: Crowd, scope: str) -> None:
    (a,) = crowd("a")
    file = file_of(a)
    with getattr(a, scope)():
        assert not file.park(1.0)
    assert a.transact(adding("goes on")) == "goes on"
    with Held(a):
        assert not file.park(1.0)
    assert file.park(1.0)
    assert file.state is FileState.CLOSED


def test_more_files_stay_open_for_a_while_when_all_are_busy(
    pool: ConnectionPool, crowd: Crowd
) -> None:
    """No thread waits; the next check after a file has become quiet finds it."""
    handles = crowd("a", "b")
    helds = [Held(each) for each in handles]
    handles += crowd("c", "d", "e")
    helds += [Held(each) for each in handles[2:]]
    assert len(pool.stats().databases) == 5
    for held in helds:
        held.let_go()
        held.task.join()
    until(lambda: len(pool.stats().databases) == 2)
    assert [is_parked(each) for each in handles] == [True, True, True, False, False]


def test_a_file_whose_auxiliary_connection_is_being_opened_stays(crowd: Crowd) -> None:
    a, b = crowd("a", "b")
    file = file_of(a)
    with file._auxiliary_mutex.held(1.0):
        reading = Task(lambda: a.query(lambda tx: tx.rows(KEYS)))
        b.fetch(lambda tx: tx.rows(KEYS))
        crowd("c")
        assert not is_parked(a)
    reading.join()
    assert file_of(a) is file


@pytest.fixture
def managers(pool: ConnectionPool, tmp_path: Path) -> Iterator[Callable[[str], SessionManager]]:
    """Opens SessionManagers in the small pool."""
    made: list[SessionManager] = []

    def make(name: str) -> SessionManager:
        made.append(SessionManager(tmp_path / f"{name}.sqlite", pool=pool).init())
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def response_of(manager: SessionManager) -> str:
    """Return the id of a new response."""
    return manager.create_round(manager.create_session("A talk").id, "Hello?").response.id


def test_a_file_that_is_streamed_into_stays_until_the_turn_has_ended(
    managers: Callable[[str], SessionManager], crowd: Crowd
) -> None:
    manager = managers("streaming")
    with manager.stream_turn(response_of(manager)) as turn:
        turn.write("one ")
        turn.flush()
        crowd("a", "b", "c")
        turn.write("two")
        assert open_connections(manager.path) > 0
    crowd("d", "e", "f")
    assert open_connections(manager.path) == 0
    assert descriptors(manager.path) == []
    assert manager.get_turn(turn.id).content == "one two"


def test_a_file_takes_three_descriptors_and_at_most_seven_while_it_streams(
    pool: ConnectionPool, path: Path
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.create_session()
        response = sessions.create_round(session.id, "Why?").response
        assert len(descriptors(path)) == 3  # itself, its log, the log's index
        sessions.render_session_history(session.id)
        assert len(descriptors(path)) <= 6  # the reading connection
        with sessions.watch_response(response.id), sessions.stream_turn(response.id) as turn:
            turn.write("Because.")
            turn.flush()
            sessions.render_session_history(session.id)
            assert len(descriptors(path)) <= 7  # the claim; a watch takes none of its own


COUNTS = """
import os
from contextlib import ExitStack
from mandrake_sessions import *

def open_now():
    found = set()
    for each in os.listdir("/proc/self/fd"):
        try:
            found.add((each, os.readlink(f"/proc/self/fd/{each}")))
        except OSError:
            pass  # the one that lists them
    return found

before = open_now()
counts = {}

def count(state):
    counts[state] = len(open_now() - before) / len(paths)

paths = sys.argv[1:]
with ConnectionPool(PoolOptions(linger=0)) as pool, ExitStack() as stack:
    enter = stack.enter_context
    managers = [enter(SessionManager(path, pool=pool)) for path in paths]
    rounds = [each.create_round(each.create_session().id, "Why?") for each in managers]
    count("open")
    for each, round in zip(managers, rounds):
        each.render_session_history(round.session_id)
    count("read at length")
    turns = [enter(each.stream_turn(round.response.id)) for each, round in zip(managers, rounds)]
    for turn in turns:
        turn.write("Because.")
        turn.flush()
    count("streaming")
    send("ready")
    receive()
    for each in managers:
        each.create_session()
    count("met others")
    for each, round in zip(managers, rounds):
        enter(each.watch_response(round.response.id))
    counts["all watches"] = len(open_now() - before) - counts["met others"] * len(paths)
    for each in managers:
        each.health()
    count("after health")
counts["closed"] = len(open_now() - before)
with ConnectionPool(PoolOptions(linger=0)) as pool:
    with ExitStack() as stack:
        managers = [
            stack.enter_context(SessionManager(path, pool=pool, read_only=True)) for path in paths
        ]
        count("read only")
        for each, round in zip(managers, rounds):
            each.render_session_history(round.session_id)
        count("read only, read at length")
send(counts)
"""

HOLDS = """
import apsw
held = [apsw.Connection(path) for path in sys.argv[1:]]
for connection in held:
    connection.execute("BEGIN IMMEDIATE")
send("held")
for connection in held:
    receive()
    connection.execute("ROLLBACK")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists the descriptors of a process")
def test_each_state_takes_as_many_descriptors_as_the_pages_say(
    tmp_path: Path, start_child: Any
) -> None:
    """Of two files each; a watch takes one for the whole process."""
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    host = start_child(COUNTS, *paths)
    assert host.receive() == "ready"
    holder = start_child(HOLDS, *paths)
    assert holder.receive() == "held"
    host.send("write")
    for path in paths:
        until(turnstile_path(path).exists)
        holder.send("let go")

    assert host.receive() == {
        "open": 3,  # itself, its log, the log's index
        "read at length": 5,  # the file and its log once more
        "streaming": 6,  # the claim
        "met others": 7,  # the turnstile
        "all watches": 1,
        "after health": 7.5,
        "closed": 0,
        "read only": 3,
        "read only, read at length": 5,
    }


def test_a_watched_file_stays_until_its_last_watcher_ends(
    managers: Callable[[str], SessionManager], crowd: Crowd
) -> None:
    manager = managers("watched")
    response = response_of(manager)
    updates: list[Any] = []
    watch = manager.watch_response(response, follow=True)
    subscription = manager.track_streaming_turns(response, updates.append, follow=True)
    crowd("a", "b", "c")
    assert open_connections(manager.path) > 0
    manager.create_turn(response, content="Done", status=TurnStatus.COMPLETED)
    update = watch.receive(10.0)
    assert update is not None
    assert update.turn is not None
    until(lambda: updates)
    watch.close()
    subscription.close()
    hub = file_handle(manager.handle).attachment
    assert hub is not None
    until(lambda: hub.is_quiet)
    crowd("d", "e", "f")
    assert open_connections(manager.path) == 0
    assert manager.subscriptions == 0
    with manager.watch_response(response) as watch:
        assert watch.receive(10.0) is not None


def test_a_file_with_a_streaming_turn_of_this_process_stays(
    managers: Callable[[str], SessionManager], crowd: Crowd, pool: ConnectionPool
) -> None:
    """A host that streams by ``update_turn`` has no writer; its claim keeps others off the turn."""
    manager = managers("ours")
    turn = manager.create_turn(response_of(manager), status=TurnStatus.STREAMING)
    crowd("a", "b", "c")
    assert open_connections(manager.path) > 0
    assert manager.recover_interrupted() == []
    manager.update_turn(turn.id, status=TurnStatus.COMPLETED)
    assert list(manager.path.parent.glob("ours.sqlite-owner-*"))
    crowd("d", "e", "f")
    assert open_connections(manager.path) == 0
    # Its claim went with it, and comes again with the next turn.
    assert not list(manager.path.parent.glob("ours.sqlite-owner-*"))
    later = manager.create_turn(turn.response_id, status=TurnStatus.STREAMING)
    crowd("g", "h", "i")
    assert open_connections(manager.path) > 0
    assert manager.recover_interrupted() == []
    manager.update_turn(later.id, status=TurnStatus.COMPLETED)
    crowd("j", "k", "l")
    assert descriptors(manager.path) == []


def test_a_claim_is_kept_where_the_file_stays_for_another_reason(
    managers: Callable[[str], SessionManager], crowd: Crowd
) -> None:
    """A full disk passes, and then a turn may stream under the claim until the host is gone."""
    manager = managers("full")
    response = response_of(manager)
    first = manager.create_turn(response, status=TurnStatus.STREAMING)
    manager.update_turn(first.id, status=TurnStatus.COMPLETED)
    refusal = file_of(manager.handle).refusal
    refusal.obstacle = StorageFullError(path=manager.path)
    crowd("a", "b", "c")
    assert open_connections(manager.path) > 0
    refusal.obstacle = None
    manager.create_turn(response, status=TurnStatus.STREAMING)
    manager.close()
    assert open_connections(manager.path) == 0
    assert list(manager.path.parent.glob("full.sqlite-owner-*"))


def test_a_claim_that_is_made_while_its_file_is_parked_holds_for_the_turn(
    managers: Callable[[str], SessionManager], crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file gives way between the claim and the lease::

    create_turn    claim ..............  lease: parked ─ open again ─ claim ─ INSERT
    others             └► park ─ claim given back ┘
    """
    manager = managers("claiming")
    response = response_of(manager)
    really_transact = DatabaseFile.transact
    parked_once: list[bool] = []

    def transact(self: DatabaseFile, *args: Any, **kwargs: Any) -> Any:
        if self.path == manager.path and not parked_once:
            parked_once.append(True)
            crowd("a", "b", "c")
            assert self.is_parked
        return really_transact(self, *args, **kwargs)

    monkeypatch.setattr(DatabaseFile, "transact", transact)
    turn = manager.create_turn(response, status=TurnStatus.STREAMING)
    assert parked_once
    assert manager.recover_interrupted() == []
    assert manager.get_turn(turn.id).status is TurnStatus.STREAMING
    manager.update_turn(turn.id, status=TurnStatus.COMPLETED)


# -- opening again -------------------------------------------------------------------------


def test_parked_files_are_not_looked_at_when_another_file_is_opened(
    pool: ConnectionPool, crowd: Crowd
) -> None:
    handles = crowd(*"abcdefgh")
    slots = pool._slots
    for number, handle in enumerate([*handles, *handles]):
        handle.transact(adding(f"{number}"))
        assert slots[handle.path] in slots.awake()
        assert len(slots.awake()) == 2
        assert len(slots) == 8
    for handle in handles:
        handle.release()
    assert (slots, slots.awake(), slots._identified, slots._awake) == ({}, [], {}, {})


def test_threads_that_want_a_parked_file_at_once_open_it_once(
    pool: ConnectionPool,
    parked: FileHandle,
    statements: Any,
    in_threads: Callable[[int, Callable[[int], str]], list[str]],
) -> None:
    before = len(statements.connections)
    in_threads(16, lambda number: parked.transact(adding(str(number))))
    assert len(statements.connections) == before + 1
    assert figures(pool)[2] == 1
    assert keys(parked) == {"before", *map(str, range(16))}


def test_handles_of_one_parked_file_share_what_is_opened_again(
    pool: ConnectionPool, crowd: Crowd
) -> None:
    (first,) = crowd("a")
    second = pool.acquire(first.path)
    crowd("b", "c")
    assert is_parked(first)
    first.transact(adding("by the first"))
    assert file_of(second) is file_of(first)
    assert keys(second) == {"by the first"}
    second.release()


def test_an_acquire_of_a_parked_file_opens_it_with_the_same_options(
    pool: ConnectionPool, parked: FileHandle
) -> None:
    with pytest.raises(OptionsConflictError):
        pool.acquire(parked.path, options=DatabaseOptions(durability=Durability.DURABLE))
    assert is_parked(parked)
    with pool.acquire(parked.path) as handle:
        assert keys(handle) == {"before"}
        assert file_of(handle) is file_of(parked)
        assert pool.stats().handles == 4


def test_all_waiters_get_the_error_of_an_opening_and_the_next_call_tries_again(
    pool: ConnectionPool, parked: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_go = threading.Event(), threading.Event()
    really_open = DatabaseFile.open

    def fail(*_: Any, **_options: Any) -> DatabaseFile:
        opening.set()
        until_set(may_go)
        raise NotADatabaseError(path=parked.path, operation="open")

    monkeypatch.setattr(DatabaseFile, "open", fail)
    tasks = [Task(lambda: keys(parked))]
    until_set(opening)
    slot = parked._slot
    tasks += [Task(lambda: keys(parked)), Task(lambda: pool.acquire(parked.path))]
    until(lambda: len(slot.changed._sleepers) == 2)
    may_go.set()
    for task in tasks:
        task.join()
        assert isinstance(task.error, NotADatabaseError)
    assert pool.stats().handles == 3
    monkeypatch.setattr(DatabaseFile, "open", really_open)
    assert keys(parked) == {"before"}


def test_a_waiter_tries_again_after_an_opening_that_had_too_little_time(
    parked: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    ::

        impatient   parked ─ opening ......... out of time ─ DatabaseBusyError
        patient        parked ─ waits ─────────────┴─ opening ─ reads
    """
    opening, may_fail = threading.Event(), threading.Event()
    really_open = DatabaseFile.open
    budgets: list[float] = []

    def open_(*args: Any, **options: Any) -> DatabaseFile:
        budgets.append(options["budget"].left())
        if len(budgets) == 1:
            opening.set()
            until_set(may_fail)
            raise options["budget"].exceeded("open", parked.path, "open")
        return really_open(*args, **options)

    monkeypatch.setattr(DatabaseFile, "open", open_)
    impatient = Task(lambda: parked.fetch(lambda tx: tx.rows(KEYS), timeout=5.0))
    until_set(opening)
    slot = parked._slot
    patient = Task(lambda: keys(parked))
    until(lambda: len(slot.changed._sleepers) == 1)
    may_fail.set()
    impatient.join()
    assert isinstance(impatient.error, DatabaseBusyError)
    assert patient.result() == {"before"}
    assert budgets[0] <= 5.0 < budgets[1]


def test_a_wrong_timeout_is_refused_though_the_file_is_parked(parked: FileHandle) -> None:
    with pytest.raises(InvalidArgumentError):
        parked.fetch(lambda tx: tx.rows(KEYS), timeout=-1)
    with pytest.raises(InvalidArgumentError):
        parked.read(timeout=float("nan")).__enter__()
    assert is_parked(parked)


def test_an_error_shows_the_caller_nothing_of_parking(parked: FileHandle) -> None:
    def fail(_: Any) -> None:
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="own") as caught:
        parked.transact(fail)
    assert caught.value.__context__ is None


def test_a_unit_may_use_another_database_that_was_parked(crowd: Crowd) -> None:
    a, b, _ = crowd("a", "b", "c")
    assert is_parked(a)
    assert b.transact(lambda tx: (adding("outer")(tx), a.transact(adding("inner")))) == (
        "outer",
        "inner",
    )
    assert (keys(a), keys(b)) == ({"inner"}, {"outer"})


def test_a_damaged_file_stays_open_with_its_latch(crowd: Crowd) -> None:
    (a,) = crowd("a")
    file_of(a).refusal.note(CorruptDatabaseError(path=a.path, operation="test"))
    crowd("b", "c", "d")
    assert not is_parked(a)
    assert keys(a) == set()
    with pytest.raises(CorruptDatabaseError):
        a.transact(adding("never"))


# -- the file there is another one ---------------------------------------------------------


def put_another(handle: FileHandle) -> None:
    """Put a database of other contents in the place of a parked one."""
    other = handle.path.with_name("other.sqlite")
    with ConnectionPool(PoolOptions(linger=0)) as pool, file_handle(pool.acquire(other)) as made:
        made.transact(adding("of another one"))
    other.replace(handle.path)


def copy_another(handle: FileHandle) -> None:
    """Write another database over a parked one: the same inode, another stamp."""
    other = handle.path.with_name("other.sqlite")
    with ConnectionPool(PoolOptions(linger=0)) as pool, file_handle(pool.acquire(other)) as made:
        made.transact(adding("of another one"))
    shutil.copyfile(other, handle.path)


@pytest.mark.parametrize("replace", [put_another, copy_another])
def test_the_old_handle_does_not_open_a_file_that_was_replaced(
    pool: ConnectionPool, parked: FileHandle, replace: Callable[[FileHandle], None]
) -> None:
    replace(parked)
    before = parked.path.read_bytes()
    for _ in range(2):
        with pytest.raises(DatabaseMovedError):
            parked.transact(adding("for the old one"))
    assert parked.path.read_bytes() == before
    with pool.acquire(parked.path) as handle:
        assert keys(handle) == {"of another one"}
        with pytest.raises(DatabaseMovedError):
            parked.transact(adding("for the old one"))
    parked.release()
    assert pool.stats().handles == 2


def test_the_old_handle_does_not_make_a_deleted_file_again(
    pool: ConnectionPool, parked: FileHandle
) -> None:
    parked.path.unlink()
    with pytest.raises(DatabaseMovedError):
        keys(parked)
    assert not parked.path.exists()
    with pool.acquire(parked.path) as handle:
        assert keys(handle) == set()


def test_a_file_that_was_emptied_stays_empty(parked: FileHandle) -> None:
    os.truncate(parked.path, 0)
    with pytest.raises(DatabaseMovedError):
        keys(parked)
    assert parked.path.stat().st_size == 0


def test_an_acquire_opens_the_file_that_took_the_place_of_a_parked_one(
    pool: ConnectionPool, parked: FileHandle
) -> None:
    put_another(parked)
    with pool.acquire(parked.path) as handle:
        assert keys(handle) == {"of another one"}
    with pytest.raises(DatabaseMovedError):
        keys(parked)


def test_an_acquire_finds_that_another_one_was_copied_over_a_parked_file(
    pool: ConnectionPool, parked: FileHandle
) -> None:
    copy_another(parked)
    with pool.acquire(parked.path) as handle:
        assert keys(handle) == {"of another one"}
    with pytest.raises(DatabaseMovedError):
        keys(parked)


def test_the_number_of_a_deleted_parked_file_may_be_another_ones(
    pool: ConnectionPool, parked: FileHandle, tmp_path: Path
) -> None:
    """File systems give the number of a deleted file to the next one that is made."""
    parked._slot.identity = None
    new = tmp_path / "new.sqlite"
    new.touch(0o600)
    found = new.stat()
    parked._slot.identity = (found.st_dev, found.st_ino)
    parked.path.unlink()
    with file_handle(pool.acquire(new)) as handle:
        handle.transact(adding("new"))
        assert keys(handle) == {"new"}
    with pytest.raises(DatabaseMovedError):
        keys(parked)


def test_another_name_of_a_parked_file_is_refused(
    pool: ConnectionPool, parked: FileHandle, tmp_path: Path
) -> None:
    os.link(parked.path, tmp_path / "second name.sqlite")
    with pytest.raises(DatabasePathError):
        pool.acquire(tmp_path / "second name.sqlite")
    assert keys(parked) == {"before"}


def test_garbage_is_an_error_and_a_file_that_was_put_back_is_opened(parked: FileHandle) -> None:
    whole = parked.path.read_bytes()
    parked.path.write_bytes(b"garbage" * 1000)
    with pytest.raises(NotADatabaseError):
        keys(parked)
    parked.path.write_bytes(whole)
    assert keys(parked) == {"before"}


def test_a_file_that_was_moved_is_retired_and_not_parked(crowd: Crowd) -> None:
    """Its log must not be left to the file that took its place."""
    (a,) = crowd("a")
    a.transact(adding("kept"))
    elsewhere = a.path.with_name("elsewhere.sqlite")
    a.path.rename(elsewhere)
    crowd("b", "c", "d")
    until(lambda: file_of(a).state is FileState.CLOSED)
    with pytest.raises((DatabaseMovedError, PoolClosedError)):
        keys(a)
    assert not a.path.exists()
    with ConnectionPool(PoolOptions(linger=0)) as pool, pool.acquire(elsewhere) as handle:
        assert keys(handle) == {"kept"}


# -- the end -------------------------------------------------------------------------------


def test_releasing_the_last_handle_of_a_parked_file_forgets_it(
    pool: ConnectionPool, parked: FileHandle
) -> None:
    parked.release()
    assert figures(pool) == (0, 1, 0)
    with pytest.raises(HandleReleasedError):
        keys(parked)
    with pool.acquire(parked.path) as handle:
        assert keys(handle) == {"before"}


def test_a_forgotten_handle_of_a_parked_file_warns_and_is_reaped(
    pool: ConnectionPool, crowd: Crowd, tmp_path: Path
) -> None:
    def forget() -> None:
        handle = file_handle(pool.acquire(tmp_path / "forgotten.sqlite"))
        crowd("a", "b")
        assert is_parked(handle)
        del handle
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"test_parking\.py"):
        forget()
    until(lambda: figures(pool)[0] == 0)


def test_a_handle_released_while_its_file_is_opened_again_leaves_nothing_open(
    parked: FileHandle, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_go = threading.Event(), threading.Event()
    really_open = DatabaseFile.open

    def slow(*args: Any, **options: Any) -> DatabaseFile:
        opening.set()
        until_set(may_go)
        return really_open(*args, **options)

    monkeypatch.setattr(DatabaseFile, "open", slow)
    reader = Task(lambda: keys(parked))
    until_set(opening)
    parked.release()
    may_go.set()
    assert reader.result() == {"before"}
    until(lambda: open_connections(parked.path) == 0)
    assert pool.stats().handles == 2


def test_a_waiter_learns_of_a_change_before_the_next_one_begins(
    pool: ConnectionPool, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits for the next opening would look again and again until it is over.

    ::

        parking   parked ................................ wakes
        reader             opening: no one is woken yet ──┘ └─ woken, though it is still opening
    """
    (a,) = crowd("a")
    were_locked: list[bool] = []
    event = type(a._slot.changed)
    really_set = event.set

    def telling(self: Gate) -> None:
        if self is a._slot.changed:
            were_locked.append(pool._mutex.locked())
        really_set(self)

    monkeypatch.setattr(event, "set", telling)
    crowd("b", "c")
    a.transact(adding("a"))
    # Parked and open again, and each time twice, for a signal amidst.
    assert len(were_locked) >= 2
    assert all(were_locked)


def test_closing_the_pool_ends_parked_files_too(pool: ConnectionPool, parked: FileHandle) -> None:
    pool.close()
    with pytest.raises(PoolClosedError):
        keys(parked)
    with pytest.raises(PoolClosedError):
        parked.write().__enter__()
    assert figures(pool)[0] == 0
    parked.release()


def test_a_pool_that_is_closed_while_a_file_is_opened_again_leaves_nothing_open(
    pool: ConnectionPool, parked: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    ::

        reader   keys ─ parked ─ opening .............. open ─ too late: closed ─ PoolClosedError
        close                       close() waits ......┘                            └─ done
    """
    opening, may_go = threading.Event(), threading.Event()
    really_open = DatabaseFile.open

    def slow(*args: Any, **options: Any) -> DatabaseFile:
        opening.set()
        until_set(may_go)
        return really_open(*args, **options)

    monkeypatch.setattr(DatabaseFile, "open", slow)
    reader = Task(lambda: keys(parked))
    until_set(opening)
    closer = Task(pool.close)
    until(lambda: pool.is_closed)
    may_go.set()
    closer.result()
    reader.join()
    assert isinstance(reader.error, PoolClosedError)
    assert open_connections(parked.path) == 0


def test_a_pool_that_is_closed_while_a_file_is_being_parked_leaves_nothing_open(
    pool: ConnectionPool, crowd: Crowd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = crowd("a")
    crowd("b")
    parking, may_go = threading.Event(), threading.Event()
    really_park = DatabaseFile.park

    def slow(self: DatabaseFile, timeout: float) -> bool:
        parking.set()
        until_set(may_go)
        return really_park(self, timeout)

    monkeypatch.setattr(DatabaseFile, "park", slow)
    opener = Task(lambda: crowd("c"))
    until_set(parking)
    closer = Task(pool.close)
    until(lambda: pool.is_closed)
    may_go.set()
    closer.result()
    opener.join()
    assert isinstance(opener.error, PoolClosedError)
    assert open_connections(a.path) == 0
    with pytest.raises(PoolClosedError):
        keys(a)


def test_a_call_that_meets_a_file_being_parked_waits_and_opens_it_again(
    pool: ConnectionPool, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = crowd("a", "b")
    b.fetch(lambda tx: tx.rows(KEYS))
    closing, may_go = threading.Event(), threading.Event()
    really_close = DatabaseFile.close

    def slow(self: DatabaseFile, *args: Any) -> None:
        if self.path == a.path and not closing.is_set():
            closing.set()
            until_set(may_go)
        really_close(self, *args)

    monkeypatch.setattr(DatabaseFile, "close", slow)
    opener = Task(lambda: crowd("c"))
    until_set(closing)
    writer = Task(lambda: a.transact(adding("late")))
    assert not writer.is_over
    may_go.set()
    writer.result()
    opener.result()
    assert keys(a) == {"late"}
    assert figures(pool)[2] == 1


def test_a_parked_file_whose_closing_fails_is_logged_and_opened_again(
    pool: ConnectionPool, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    import apsw

    from mandrake_sessions.database.connection.connection import Connection

    (a,) = crowd("a")
    a.transact(adding("a"))
    really_close = Connection.close

    def close(self: Connection, *, abandon: bool = False) -> None:
        really_close(self, abandon=abandon)
        if self.path == a.path:
            raise apsw.IOError("injected")

    monkeypatch.setattr(Connection, "close", close)
    with capture_logs() as logs:
        crowd("b", "c")
    assert [(each["event"], each["path"]) for each in logs] == [
        ("database_not_closed", str(a.path))
    ]
    monkeypatch.setattr(Connection, "close", really_close)
    assert keys(a) == {"a"}


def test_a_child_opens_a_file_that_was_parked_at_the_fork(
    pool: ConnectionPool, parked: FileHandle
) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        answer = "nothing"
        try:
            from mandrake_sessions import ForkedPoolError

            try:
                keys(parked)
            except ForkedPoolError:
                with (
                    ConnectionPool(PoolOptions(linger=0)) as mine,
                    mine.acquire(parked.path) as handle,
                ):
                    answer = ",".join(sorted(keys(handle)))
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as heard:
        assert heard.read() == "before"
    os.waitpid(child, 0)
    assert keys(parked) == {"before"}


# -- descriptors ---------------------------------------------------------------------------


def test_the_limit_follows_what_the_process_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    def limited(limit: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        return most_open(PoolOptions())

    assert [limited(limit) for limit in (16, 256, 512, 1024, 4096, resource.RLIM_INFINITY)] == [
        *(1, 27, 54, 109, 256, 256)
    ]
    monkeypatch.undo()
    assert most_open(PoolOptions(max_open=3)) == 3
    with pytest.raises(InvalidArgumentError):
        PoolOptions(max_open=0)


EMFILE = """
import os, resource
from pathlib import Path
from mandrake_sessions import ConnectionPool, PoolOptions, SessionManager
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
folder = Path(sys.argv[1])
with ConnectionPool(PoolOptions(linger=0, max_open=8)) as pool:
    paths = [folder / f"{number}.sqlite" for number in range(6)]
    managers = [SessionManager(path, pool=pool).init() for path in paths]
    ids = [manager.create_session(str(number)).id for number, manager in enumerate(managers)]
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    # Fewer than a file needs.
    os.close(taken.pop())
    os.close(taken.pop())
    parked = []
    new = SessionManager(folder / "new.sqlite", pool=pool).init()
    parked.append(pool.stats().parkings)
    for manager, id in zip(managers, ids):
        manager.get_session(id)
        manager.create_session("More")
    parked.append(pool.stats().parkings)
    for descriptor in taken:
        os.close(descriptor)
    new.close()
    for manager in managers:
        manager.close()
send(parked)
"""


def test_another_file_gives_way_where_descriptors_run_out(
    start_child: Callable[..., Any], tmp_path: Path
) -> None:
    child = start_child(EMFILE, tmp_path)
    first, all_ = child.receive()
    child.finish()
    assert 1 <= first <= all_


# -- many threads --------------------------------------------------------------------------


def test_a_handle_that_two_threads_release_at_once_is_counted_once(
    pool: ConnectionPool, tmp_path: Path, in_threads: Callable[..., list[Any]]
) -> None:
    path = tmp_path / "both.sqlite"
    keeper = pool.acquire(path)
    for _ in range(50):
        handle = file_handle(pool.acquire(path))

        def release(_: int, handle: FileHandle = handle) -> bool:
            try:
                handle.release()
            except HandleReleasedError:
                return False
            return True

        assert sorted(in_threads(4, release)) == [False, False, False, True]
        assert pool.stats().handles == 1
    keeper.release()


def test_a_manager_that_another_thread_closes_is_not_initialized(
    managers: Callable[[str], SessionManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed between the look at the manager and the use of its handle."""
    manager = managers("a")
    session = manager.create_session("A talk").id
    really_open_file = DatabaseHandle._open_file

    def close_before(self: FileHandle) -> DatabaseFile:
        monkeypatch.setattr(DatabaseHandle, "_open_file", really_open_file)
        manager.close()
        return really_open_file(self)

    uses: list[Callable[[], Any]] = [
        lambda: manager.create_session("Late"),
        lambda: manager.get_session(session),
        manager.list_sessions,
        lambda: manager.transact(lambda tx: tx.create_session("Late")),
        lambda: manager.transaction().__enter__(),
        lambda: manager.watch_session(session),
        lambda: next(manager.iter_session_history(session)),
    ]
    for use in uses:
        manager.init()
        monkeypatch.setattr(DatabaseHandle, "_open_file", close_before)
        with pytest.raises(NotInitializedError):
            use()


def test_a_release_does_not_raise_the_error_of_closing_another_file(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(linger=3600.0, max_idle=1)
    bad, good = (pool.acquire(tmp_path / f"{name}.sqlite") for name in ("bad", "good"))
    really_close = DatabaseFile.close

    def close(self: DatabaseFile, *args: Any) -> None:
        really_close(self, *args)
        if self.path.name == "bad.sqlite":
            raise NotADatabaseError(path=self.path, operation="close")

    monkeypatch.setattr(DatabaseFile, "close", close)
    bad.release()
    with capture_logs() as logs:
        good.release()
    assert [each["event"] for each in logs] == ["database_not_closed"]
    assert pool.stats().idle == 1


@pytest.mark.parametrize("seed", range(2))
def test_threads_use_many_files_at_random(
    make_pool: MakePool, tmp_path: Path, in_threads: Callable[..., list[Any]], seed: int
) -> None:
    """More threads than may be open, so that files are closed under the thread that comes next."""
    pool = make_pool(max_open=3)
    handles = [file_handle(pool.acquire(tmp_path / f"{number}.sqlite")) for number in range(8)]
    counts = [0] * len(handles)

    def use(number: int) -> list[int]:
        chosen = random.Random(seed * 100 + number).choices(range(len(handles)), k=25)
        for turn, place in enumerate(chosen):
            if turn % 3:
                handles[place].transact(adding(f"{number}-{turn}"))
            else:
                with handles[place].write() as tx:
                    adding(f"{number}-{turn}")(tx)
            handles[place].query(lambda tx: tx.rows(KEYS))
        return chosen

    for chosen in in_threads(6, use):
        for place in chosen:
            counts[place] += 1
    assert [len(keys(handle)) for handle in handles] == counts
    assert figures(pool)[1] >= 5
    until(lambda: len(pool.stats().databases) <= 3)
    for handle in handles:
        handle.release()
    assert descriptors(tmp_path) == []
