"""The shared COMMIT: a savepoint for each unit, none acknowledged before it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from database_kit import Held, Task, endless_insert, file_of, queue_of, queued, raw_of
from kits.entries import KEYS, add, adding, keys
from kits.waiting import until, until_set
from sqlalchemy import bindparam, insert

from mandrake_sessions import (
    CommitOutcomeUnknownError,
    ConnectionPool,
    ConstraintViolationError,
    DatabaseBusyError,
    DatabaseOptions,
    StorageFullError,
    TransactionLostError,
    schema,
)
from mandrake_sessions.database.connection.begin_commit import commit
from mandrake_sessions.database.leasing import writer
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.testing import FaultVFS, failure
from tools.generate.compiler import compiled

MakePool = Callable[..., ConnectionPool]
Unit = Callable[[WriteTransaction], Any]


class OddError(Exception):
    """A host's own."""


class Gathering:
    """Units in a queue behind one that is held, so that they will share its COMMIT in order."""

    def __init__(self, handle: FileHandle, first: Unit, *, timeout: float = 20.0) -> None:
        self.handle = handle
        self.timeout = timeout
        self.held = Held(handle, kind="unit", after=first)
        self.tasks: list[Task[Any]] = [self.held.task]

    def put(self, *units: Unit, delegable: bool = True, timeout: float | None = None) -> None:
        seconds = self.timeout if timeout is None else timeout
        for unit in units:
            self.tasks.append(
                Task(
                    lambda unit=unit: self.handle.transact(
                        unit, "unit", seconds, delegable=delegable
                    )
                )
            )
            queued(self.handle, len(self.tasks) - 1)

    def go(self) -> list[BaseException | None]:
        """Let all run; return what each raised."""
        self.held.let_go()
        for task in self.tasks:
            task.join()
        assert queue_of(self.handle).holder == 0
        assert raw_of(self.handle).txn_state() == apsw.SQLITE_TXN_NONE
        return [task.error for task in self.tasks]


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


@pytest.fixture
def commits(grouping: FileHandle) -> Iterator[list[str]]:
    """The statements from now on, without the rows."""
    said: list[str] = []

    def note(_cursor: object, sql: str, _bindings: object) -> bool:
        said.append(sql)
        return True

    raw_of(grouping).exec_trace = note
    yield said
    with contextlib.suppress(apsw.ConnectionClosedError):
        raw_of(grouping).exec_trace = None


def names(count: int) -> list[str]:
    return [f"unit {number}" for number in range(count)]


# -- one COMMIT for many --------------------------------------------------------------------


def test_units_that_wait_share_one_commit(grouping: FileHandle, commits: list[str]) -> None:
    units = [adding(name) for name in names(10)]
    gathering = Gathering(grouping, units[0])
    gathering.put(*units[1:])
    assert gathering.go() == [None] * 10
    assert [task.result() for task in gathering.tasks] == names(10)
    assert commits.count("BEGIN IMMEDIATE") == 1
    assert commits.count("COMMIT") == 1
    assert commits.count("SAVEPOINT unit") == commits.count("RELEASE unit") == 9
    stats = grouping.stats()
    assert (stats.units, stats.commits, stats.replays) == (10, 1, 0)
    assert keys(grouping) == set(names(10))


def test_host_code_runs_in_the_thread_of_its_caller(grouping: FileHandle) -> None:
    def unit(_tx: object) -> int:
        return threading.get_ident()

    gathering = Gathering(grouping, unit)
    gathering.put(unit, unit)
    gathering.put(unit, unit, delegable=False)
    assert gathering.go() == [None] * 5
    ran_in = [task.result() for task in gathering.tasks]
    assert ran_in[3:] == [task.thread.ident for task in gathering.tasks[3:]]


def test_a_unit_sees_the_context_of_its_caller_in_every_thread(
    grouping: FileHandle,
) -> None:
    """Loggers and tracers of hosts keep theirs in context variables."""

    def calling(name: str) -> Callable[[], str]:
        def call() -> str:
            caller.set(name)
            return grouping.transact(lambda tx: caller.get(), delegable=True)

        return call

    with Held(grouping, kind="unit"):
        tasks = []
        for number, name in enumerate(names(3)):
            tasks.append(Task(calling(name)))
            queued(grouping, number + 1)
    assert [task.result() for task in tasks] == names(3)


caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="unknown")


def test_ctrl_c_in_the_thread_that_commits_for_others_leaves_none_waiting(
    grouping: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs when a call returns: here, when a waiter's work was just taken."""
    queue = queue_of(grouping)
    really_take = queue.take_work

    def take(*args: Any) -> Any:
        taken = really_take(*args)
        if taken is not None and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return taken

    interrupted: list[bool] = []
    monkeypatch.setattr(queue, "take_work", take)
    gathering = Gathering(grouping, adding("first"))
    gathering.put(adding("second"), adding("third"))
    errors = gathering.go()
    assert isinstance(errors[0], KeyboardInterrupt)
    assert errors[1] is errors[2] is None
    assert keys(grouping) == {"second", "third"}


def test_ctrl_c_after_the_commit_does_not_undo_its_outcome(
    grouping: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader is interrupted before it gives the lease back: the others are committed."""
    leased = file_of(grouping).writer

    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(leased, "_on_commit", interrupted)
    gathering = Gathering(grouping, adding("first"))
    gathering.put(adding("second"), adding("third"))
    errors = gathering.go()
    assert isinstance(errors[0], KeyboardInterrupt)
    assert errors[1] is errors[2] is None
    assert keys(grouping) == {"first", "second", "third"}
    assert leased.replays == 0


def test_units_see_what_the_units_before_them_wrote(grouping: FileHandle) -> None:
    def unit(tx: WriteTransaction) -> int:
        count = len(tx.rows(KEYS))
        add(tx, f"key {count}")
        return count

    gathering = Gathering(grouping, unit)
    gathering.put(*[unit] * 5)
    assert gathering.go() == [None] * 6
    assert [task.result() for task in gathering.tasks] == [3, 4, 5, 6, 7, 8]


def test_no_unit_is_acknowledged_before_the_commit(
    grouping: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of COMMIT every caller of the group still waits."""
    returned: list[bool] = []

    def looking(*args: Any) -> None:
        returned.extend(task.is_over for task in gathering.tasks)
        commit(*args)

    gathering = Gathering(grouping, adding("a"))
    gathering.put(adding("b"), adding("c"))
    monkeypatch.setattr(writer, "commit", looking)
    assert gathering.go() == [None] * 3
    assert returned == [False] * 3


def test_one_unit_commits_alone_where_none_waits(grouping: FileHandle, commits: list[str]) -> None:
    for name in names(3):
        grouping.transact(adding(name), delegable=True)
    assert commits.count("COMMIT") == 3
    assert "SAVEPOINT unit" not in commits
    assert grouping.stats().commits == 3


def test_a_writer_gives_way_to_the_threads_of_the_last_commit(
    grouping: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each of them, and not by a thread that shares with no other."""
    given_way: list[float] = []
    monkeypatch.setattr(time, "sleep", given_way.append)
    grouping.transact(adding("alone"), delegable=True)
    assert given_way == []
    gathering = Gathering(grouping, adding("first"))
    gathering.put(adding("second"), adding("third"))
    assert gathering.go() == [None] * 3
    given_way.clear()
    grouping.transact(adding("after them"), delegable=True)
    assert given_way == [0, 0]
    given_way.clear()
    grouping.transact(adding("alone again"), delegable=True)
    assert given_way == []


def test_a_block_commits_alone(grouping: FileHandle, commits: list[str]) -> None:
    def block() -> None:
        with grouping.write() as tx:
            add(tx, "block")

    gathering = Gathering(grouping, adding("first"))
    blocked = Task(block)
    queued(grouping, 1)
    gathering.tasks.append(blocked)
    gathering.put(adding("last"))
    assert gathering.go() == [None] * 3
    assert commits.count("COMMIT") == 3
    assert commits.count("SAVEPOINT unit") == 0


def test_a_group_is_closed_by_its_count(path: Path, make_pool: MakePool) -> None:
    pool = make_pool(database={"group_max_seconds": 600.0, "group_max_units": 4})
    with file_handle(pool.acquire(path)) as handle:
        gathering = Gathering(handle, adding("first"))
        gathering.put(*[adding(name) for name in names(9)])
        assert gathering.go() == [None] * 10
        # 4, 4 and 2.
        assert handle.stats().commits == 3
        assert len(keys(handle)) == 10


def test_a_group_is_closed_by_time(path: Path, make_pool: MakePool) -> None:
    """A unit that takes longer than the group may is the last of it."""
    pool = make_pool(database={"group_max_seconds": 0.05})

    def slow(tx: WriteTransaction) -> None:
        add(tx, "slow")
        began = monotonic()
        until(lambda: monotonic() - began > 0.06)

    with file_handle(pool.acquire(path)) as handle:
        gathering = Gathering(handle, adding("first"))
        gathering.put(slow, adding("third"), adding("fourth"))
        assert gathering.go() == [None] * 4
        assert handle.stats().commits == 2


def test_groups_without_time_commit_one_by_one(path: Path, make_pool: MakePool) -> None:
    with file_handle(make_pool(database={"group_max_seconds": 0}).acquire(path)) as handle:
        gathering = Gathering(handle, adding("first"))
        gathering.put(adding("second"), adding("third"))
        assert gathering.go() == [None] * 3
        assert handle.stats().commits == 3


# -- a unit that fails ----------------------------------------------------------------------


def raising(key: str) -> Unit:
    def unit(tx: WriteTransaction) -> None:
        add(tx, key)
        raise OddError(key)

    return unit


@pytest.mark.parametrize("at", range(5))
def test_a_unit_that_raises_harms_no_other(
    grouping: FileHandle, commits: list[str], at: int
) -> None:
    units: list[Unit] = [adding(name) for name in names(5)]
    units[at] = raising(f"unit {at}")
    gathering = Gathering(grouping, units[0])
    gathering.put(*units[1:])
    errors = gathering.go()
    assert [type(error) for error in errors if error is not None] == [OddError]
    assert isinstance(errors[at], OddError)
    assert keys(grouping) == {name for name in names(5) if name != f"unit {at}"}
    assert grouping.stats().replays == 0
    # A first unit that fails ends its own transaction, there is no group yet.
    assert commits.count("COMMIT") == 1


def test_the_only_unit_that_does_not_raise_is_stored(grouping: FileHandle) -> None:
    gathering = Gathering(grouping, adding("kept"))
    gathering.put(*[raising(name) for name in names(6)])
    errors = gathering.go()
    assert [type(error) for error in errors] == [type(None), *[OddError] * 6]
    assert keys(grouping) == {"kept"}
    assert grouping.stats().commits == 1


def test_a_broken_constraint_in_a_joined_unit_harms_no_other(grouping: FileHandle) -> None:
    def twice(tx: WriteTransaction) -> None:
        add(tx, "more")
        add(tx, "first")

    gathering = Gathering(grouping, adding("first"))
    gathering.put(twice, adding("third"))
    errors = gathering.go()
    assert isinstance(errors[1], ConstraintViolationError)
    assert errors[0] is errors[2] is None
    assert keys(grouping) == {"first", "third"}


def test_ctrl_c_during_the_unit_of_another_thread_is_raised_in_the_holder(
    grouping: FileHandle,
) -> None:
    """Signals come in the main thread: it is undone, and what it ran for others runs again."""

    def interrupted(tx: WriteTransaction) -> None:
        add(tx, "second")
        if not times:
            times.append(1)
            raise KeyboardInterrupt

    times: list[int] = []
    gathering = Gathering(grouping, adding("first"))
    gathering.put(interrupted, adding("third"))
    errors = gathering.go()
    assert isinstance(errors[0], KeyboardInterrupt)
    assert errors[1] is errors[2] is None
    assert keys(grouping) == {"second", "third"}


def test_a_deferred_constraint_of_one_unit_harms_no_other(
    grouping: FileHandle,
) -> None:
    """A user's pragma puts the check off until COMMIT, which then fails for everybody."""

    def deferring(tx: Any) -> None:
        tx._connection.execute("PRAGMA defer_foreign_keys = ON")
        tx._connection.execute(
            'INSERT INTO rounds(id, session_id, "index", created_at, updated_at)'
            " VALUES ('r', 'unknown', 0, 0, 0)"
        )

    gathering = Gathering(grouping, adding("first"))
    gathering.put(deferring, adding("third"))
    errors = gathering.go()
    assert isinstance(errors[1], ConstraintViolationError)
    assert errors[0] is errors[2] is None
    assert keys(grouping) == {"first", "third"}


# -- deadlines inside a group ---------------------------------------------------------------


def test_a_unit_past_its_deadline_still_learns_its_outcome(
    grouping: FileHandle,
) -> None:
    """The first unit has run; the group is settled long after its deadline."""
    may_end = threading.Event()

    def long(tx: WriteTransaction) -> None:
        add(tx, "long")
        until_set(may_end)

    held = Held(grouping, adding("first"), kind="unit")
    # Its own budget: what Held took is the default one.
    deadline = monotonic() + 0.2
    file_of(grouping).writer.connection.deadline = deadline
    second = Task(lambda: grouping.transact(long, delegable=True))
    queued(grouping, 1)
    held.let_go()
    until(lambda: monotonic() > deadline + 0.1)
    assert not held.task.is_over
    may_end.set()
    held.task.result()
    second.result()
    assert grouping.stats().commits == 1


def test_the_short_budget_of_a_unit_does_not_end_its_wait_for_the_outcome(
    grouping: FileHandle,
) -> None:
    may_end = threading.Event()
    in_it = threading.Event()
    ran = threading.Event()

    def short(tx: WriteTransaction) -> str:
        add(tx, "short")
        ran.set()
        return "short"

    def long(tx: WriteTransaction) -> None:
        in_it.set()
        until_set(may_end)

    held = Held(grouping, adding("first"), kind="unit")
    began = monotonic()
    second = Task(lambda: grouping.transact(short, "short", 2.0, delegable=True))
    queued(grouping, 1)
    third = Task(lambda: grouping.transact(long, "long", delegable=True))
    queued(grouping, 2)
    held.let_go()
    until_set(in_it)
    assert ran.is_set()
    until(lambda: monotonic() - began > 2.1)
    assert not second.is_over
    may_end.set()
    assert second.result() == "short"
    third.result()
    held.task.result()
    assert keys(grouping) == {"first", "short"}


def test_a_joined_unit_is_not_interrupted_but_gets_the_error_at_its_next_statement(
    grouping: FileHandle,
) -> None:
    """An interrupted INSERT would undo the group; the deadline is seen between statements."""

    def slow(tx: Any) -> None:
        add(tx, "slow")
        deadline = tx._connection.deadline
        until(lambda: monotonic() > deadline)
        add(tx, "late")

    gathering = Gathering(grouping, adding("first"))
    gathering.put(slow, timeout=2.0)
    gathering.put(adding("third"))
    errors = gathering.go()
    assert isinstance(errors[1], DatabaseBusyError)
    assert errors[1].phase == "body"
    assert errors[0] is errors[2] is None
    assert keys(grouping) == {"first", "third"}
    assert grouping.stats().replays == 0


# -- a transaction that SQLite ended --------------------------------------------------------


def counting(unit: Unit, runs: list[int], number: int) -> Unit:
    def counted(tx: WriteTransaction) -> Any:
        runs[number] += 1
        return unit(tx)

    return counted


def losing(key: str, raw: apsw.Connection, times: int = 1) -> Unit:
    """Return a unit in which SQLite ends the transaction, so many times."""
    left = [times]

    def unit(tx: WriteTransaction) -> str:
        add(tx, key)
        if left[0]:
            left[0] -= 1
            raw.execute("ROLLBACK")
        return key

    return unit


@pytest.mark.parametrize("at", range(4))
def test_a_lost_transaction_acknowledges_no_unit_and_all_run_again(
    grouping: FileHandle, at: int
) -> None:
    """Those before the loss run again, so each row is stored exactly once."""
    units: list[Unit] = [adding(name) for name in names(4)]
    units[at] = losing(f"unit {at}", raw_of(grouping))
    runs = [0] * 4
    units = [counting(unit, runs, number) for number, unit in enumerate(units)]
    gathering = Gathering(grouping, units[0])
    gathering.put(*units[1:])
    assert gathering.go() == [None] * 4
    assert keys(grouping) == set(names(4))
    assert runs == [2] * (at + 1) + [1] * (3 - at)
    assert grouping.stats().replays == at + 1


def test_a_unit_that_always_loses_gets_the_error_and_harms_no_other(
    grouping: FileHandle,
) -> None:
    gathering = Gathering(grouping, adding("first"))
    gathering.put(losing("lost", raw_of(grouping), times=100), adding("third"))
    errors = gathering.go()
    assert isinstance(errors[1], TransactionLostError)
    assert errors[0] is errors[2] is None
    assert keys(grouping) == {"first", "third"}


def test_a_statement_after_the_loss_is_not_stored_by_itself(
    grouping: FileHandle,
) -> None:
    """The host goes on as if nothing had happened; without a transaction each would be stored."""
    or_rollback = compiled(
        insert(schema.meta).prefix_with("OR ROLLBACK").values(key="stamp", value=bindparam("value"))
    )

    def unit(tx: WriteTransaction) -> None:
        add(tx, "before")
        with contextlib.suppress(ConstraintViolationError):
            tx.run(or_rollback, {"value": ""})
        for way in (lambda: add(tx, "alone"), lambda: tx.rows(KEYS)):
            with contextlib.suppress(TransactionLostError):
                way()
        with contextlib.suppress(TransactionLostError), tx.savepoint():
            add(tx, "alone")

    gathering = Gathering(grouping, adding("first"))
    gathering.put(unit)
    errors = gathering.go()
    assert errors[0] is None
    assert isinstance(errors[1], TransactionLostError)
    assert keys(grouping) == {"first"}


def test_an_interrupted_insert_ends_the_group_and_nothing_is_lost(
    grouping: FileHandle,
) -> None:
    """SQLite itself ends the transaction: an interrupted INSERT inside a savepoint."""
    connection = file_of(grouping).writer.connection

    def interrupted(tx: WriteTransaction) -> None:
        add(tx, "interrupted")
        connection.interruptible = True
        connection.deadline = monotonic()
        with contextlib.suppress(apsw.InterruptError):
            connection.execute(endless_insert().sql, endless_insert().bind({}))
        assert not raw_of(grouping).in_transaction
        raise OddError

    runs = [0, 0, 0]
    gathering = Gathering(grouping, counting(adding("first"), runs, 0))
    gathering.put(counting(adding("second"), runs, 1), interrupted)
    gathering.put(counting(adding("last"), runs, 2))
    errors = gathering.go()
    assert isinstance(errors[2], OddError)
    assert errors[0] is errors[1] is errors[3] is None
    assert keys(grouping) == {"first", "second", "last"}
    assert runs == [2, 2, 1]


def test_a_full_disk_in_one_unit_acknowledges_no_unit_before_it(
    grouping: FileHandle,
) -> None:
    """A real SQLITE_FULL: the file may not have more pages. It ends the whole transaction."""
    raw = raw_of(grouping)

    def too_much(tx: WriteTransaction) -> None:
        raw.pragma("max_page_count", raw.pragma("page_count"))
        try:
            add(tx, "too much", "x" * 1_000_000)
        finally:
            raw.pragma("max_page_count", 1 << 30)

    runs = [0, 0]
    gathering = Gathering(grouping, counting(adding("first"), runs, 0))
    gathering.put(counting(adding("second"), runs, 1), too_much, adding("last"))
    errors = gathering.go()
    assert isinstance(errors[2], StorageFullError)
    assert errors[2].free_bytes
    assert errors[0] is errors[1] is errors[3] is None
    assert runs == [2, 2]
    assert keys(grouping) == {"first", "second", "last"}


# -- a COMMIT that fails --------------------------------------------------------------------


@pytest.fixture
def faulty(make_pool: MakePool, path: Path, vfs: FaultVFS) -> Iterator[FileHandle]:
    """A handle on a database whose disk can fail; groups are not closed by time."""
    pool = make_pool(database={"group_max_seconds": 600.0, "vfs": vfs.name})
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("before"))
        yield handle


@pytest.fixture
def durable(make_pool: MakePool, path: Path, vfs: FaultVFS) -> Iterator[FileHandle]:
    """The same at durability ``durable``, where COMMIT ends with a sync."""
    options = DatabaseOptions(group_max_seconds=600.0, vfs=vfs.name)
    with file_handle(make_pool().acquire(path, options=options)) as handle:
        handle.transact(adding("before"))
        yield handle


def look(handle: FileHandle, vfs: FaultVFS) -> set[str]:
    """What a later connection finds."""
    stored = keys(handle)
    plain = apsw.Connection(str(handle.path))
    try:
        assert plain.pragma("integrity_check") == "ok"
        found = {row[0] for row in plain.execute("SELECT key FROM meta")}
    finally:
        plain.close()
    assert found >= stored
    return stored


@pytest.mark.parametrize("fault", [("wal", "write"), ("wal", "sync")])
def test_a_failed_commit_has_an_unknown_outcome_for_every_member(
    durable: FileHandle, vfs: FaultVFS, fault: tuple[str, str]
) -> None:
    gathering = Gathering(durable, adding("first"))
    gathering.put(adding("second"), raising("third"), adding("fourth"))
    with vfs.failing(*fault):
        errors = gathering.go()
    assert isinstance(errors[2], OddError)
    members = [errors[0], errors[1], errors[3]]
    results = []
    for error in members:
        assert isinstance(error, CommitOutcomeUnknownError)
        assert error.path == durable.path
        results.append(error.result)
    assert results == ["first", "second", "fourth"]
    assert len({id(error) for error in members}) == 3
    durable.transact(adding("after"))
    assert look(durable, vfs) in (
        {"before", "after"},
        {"before", "first", "second", "fourth", "after"},
    )


def test_the_error_of_a_failed_commit_has_the_result_and_the_code(
    durable: FileHandle, vfs: FaultVFS
) -> None:
    with (
        vfs.failing("wal", "sync", apsw.SQLITE_IOERR_FSYNC),
        pytest.raises(CommitOutcomeUnknownError) as caught,
    ):
        durable.transact(adding("a"), "create_a")
    assert caught.value.result == "a"
    assert caught.value.operation == "create_a"
    assert caught.value.result_code == apsw.SQLITE_IOERR_FSYNC
    with (
        vfs.failing("wal", "sync"),
        pytest.raises(CommitOutcomeUnknownError) as caught,
        durable.write() as tx,
    ):
        add(tx, "b")
    assert caught.value.result is None


def test_a_commit_without_space_stores_nothing_and_says_so(
    faulty: FileHandle, vfs: FaultVFS
) -> None:
    gathering = Gathering(faulty, adding("first"))
    gathering.put(adding("second"), adding("third"))
    with vfs.failing("wal", "write", apsw.SQLITE_FULL):
        errors = gathering.go()
    for error in errors:
        assert isinstance(error, StorageFullError)
        assert error.free_bytes
        assert error.result_code == apsw.SQLITE_FULL
    # Earlier commits stand, reading and then writing go on.
    assert look(faulty, vfs) == {"before"}
    faulty.transact(adding("after"))
    assert look(faulty, vfs) == {"before", "after"}


def test_a_failed_commit_leaves_the_connection_clean_and_the_queue_going(
    faulty: FileHandle, vfs: FaultVFS
) -> None:
    def block() -> None:
        with faulty.write() as tx:
            add(tx, "block")

    once = [failure(apsw.SQLITE_IOERR_WRITE)]
    gathering = Gathering(faulty, adding("first"))
    waiting = Task(block)
    queued(faulty, 1)
    gathering.tasks.append(waiting)
    with vfs.watching("wal", "write", lambda: once.pop() if once else None):
        errors = gathering.go()
    assert isinstance(errors[0], CommitOutcomeUnknownError)
    assert errors[1] is None
    assert "block" in look(faulty, vfs)


def test_the_commit_may_fail_after_a_last_unit_that_failed(
    faulty: FileHandle, vfs: FaultVFS
) -> None:
    """The thread that commits for the others has its own error already, and keeps it."""
    gathering = Gathering(faulty, adding("first"))
    gathering.put(adding("second"), raising("third"))
    with vfs.failing("wal", "write"):
        errors = gathering.go()
    assert isinstance(errors[2], OddError)
    assert isinstance(errors[0], CommitOutcomeUnknownError)
    assert isinstance(errors[1], CommitOutcomeUnknownError)


def test_an_error_of_the_wal_counter_is_no_error_of_the_commit(
    grouping: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is stored, whatever happens to the one who asks for a checkpoint."""

    def cannot(_written: int) -> None:
        raise RuntimeError("can't ask now")

    monkeypatch.setattr(file_of(grouping).checkpointer, "note", cannot)
    grouping.transact(adding("a"))
    assert keys(grouping) == {"a"}


# -- host code never joins ------------------------------------------------------------------


def test_host_code_never_runs_in_a_transaction_that_others_wait_for(
    grouping: FileHandle, commits: list[str]
) -> None:
    gathering = Gathering(grouping, adding("first"))
    gathering.put(adding("host"), delegable=False)
    gathering.put(adding("joins the host's"))
    assert gathering.go() == [None] * 3
    assert commits.count("COMMIT") == 2


def test_units_that_wait_for_each_other_do_not_deadlock(grouping: FileHandle) -> None:
    """A caller holds a lock around its write; a host's unit wants that lock.

    ::

        caller   takes the lock ─ unit has run, waits for COMMIT ────► returns, lets the lock go
        host     queue ........................................... └─ fn wants the lock ─ has it

    Were fn to join the caller's transaction, each would wait for the other.
    """
    lock = threading.Lock()

    def caller() -> None:
        with lock:
            grouping.transact(adding("caller"), delegable=True)

    def fn(tx: WriteTransaction) -> None:
        assert lock.acquire(timeout=60), "deadlock"
        lock.release()
        add(tx, "host")

    with Held(grouping, kind="unit") as held:
        first = Task(caller)
        queued(grouping, 1)
        second = Task(lambda: grouping.transact(fn))
        queued(grouping, 2)
        third = Task(caller_without(grouping))
        queued(grouping, 3)
        held.let_go()
        for task in (first, second, third):
            task.result()
    assert keys(grouping) == {"caller", "host", "without"}


def caller_without(handle: FileHandle) -> Callable[[], str]:
    return lambda: handle.transact(adding("without"), delegable=True)
