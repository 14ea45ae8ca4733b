"""Scopes: one lease and one transaction, one budget, no hidden re-entrancy, a clean return."""

from __future__ import annotations

import contextlib
import errno
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
import sqlalchemy
from database_kit import (
    ENDLESS,
    Held,
    Task,
    endless_insert,
    ends_in_time,
    file_of,
    queue_of,
    queued,
    raw_of,
)
from kits.descriptors import open_connections
from kits.entries import ADD, KEYS, add, adding, keys
from kits.waiting import PATIENCE, until
from sqlalchemy import bindparam, select, text, union_all
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    ConstraintViolationError,
    DatabaseBusyError,
    DatabaseMovedError,
    HandleReleasedError,
    ReentrantScopeError,
    StatementError,
    TransactionLostError,
    schema,
)
from mandrake_sessions.database import retry
from mandrake_sessions.database.connection.wal_marking import WalMark
from mandrake_sessions.database.files import turnstile
from mandrake_sessions.database.files.wal_index import WalIndex
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.engine import budget
from tools.generate.compiler import compiled

MakePool = Callable[..., ConnectionPool]
DELETE = compiled(schema.meta.delete())


class OddError(Exception):
    """A host's own."""


# -- what a block stores --------------------------------------------------------------------


def test_a_block_commits_when_it_ends(handle: FileHandle) -> None:
    with handle.write() as tx:
        add(tx, "a")
        add(tx, "b")
        assert raw_of(handle).txn_state() == apsw.SQLITE_TXN_WRITE
    assert keys(handle) == {"a", "b"}
    assert handle.stats().commits == 1


def test_a_body_that_raises_rolls_back_and_is_not_hidden(handle: FileHandle) -> None:
    with pytest.raises(OddError) as caught, handle.write() as tx:
        add(tx, "a")
        raise OddError("mine")
    assert caught.value.args == ("mine",)
    assert caught.value.__cause__ is None
    assert keys(handle) == set()
    handle.transact(adding("b"))
    assert keys(handle) == {"b"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_base_exception_rolls_back_too(handle: FileHandle, error: type[BaseException]) -> None:
    def work(tx: Any) -> None:
        add(tx, "a")
        raise error

    with pytest.raises(error):
        handle.transact(work)
    with pytest.raises(error), handle.write() as tx:
        work(tx)
    assert keys(handle) == set()
    assert queue_of(handle).holder == 0


def test_a_rollback_never_hides_the_cause(handle: FileHandle) -> None:
    with pytest.raises(OddError), handle.write() as tx:
        add(tx, "a")
        raw_of(handle).execute("ROLLBACK")
        raise OddError
    assert keys(handle) == set()


def test_a_write_takes_the_write_lock_at_once(
    handle: FileHandle, statements: Any, path: Path, make_pool: MakePool
) -> None:
    with file_handle(make_pool().acquire(path.with_name("traced.sqlite"))) as traced:
        # The first transaction of a connection marks its log.
        traced.transact(lambda tx: None)
        statements.take()
        with traced.write():
            assert raw_of(traced).txn_state() == apsw.SQLITE_TXN_WRITE
        traced.transact(lambda tx: None)
        assert statements.take() == ["BEGIN IMMEDIATE", "COMMIT"] * 2


def test_a_constraint_is_named_without_the_value(handle: FileHandle) -> None:
    handle.transact(adding("secret"))
    with pytest.raises(ConstraintViolationError) as caught:
        handle.transact(adding("secret"))
    assert caught.value.columns == ("meta.key",)
    assert "secret" not in str(caught.value)
    assert caught.value.position is None


@pytest.mark.parametrize("at", range(3))
def test_of_several_statements_the_error_has_the_position_of_the_one_that_failed(
    handle: FileHandle, at: int
) -> None:
    handle.transact(adding("taken"))
    wanted = ["a", "b", "c"]
    wanted[at] = "taken"
    bound = [ADD.bound({"key": key, "value": ""}) for key in wanted]

    with pytest.raises(ConstraintViolationError) as caught:
        handle.transact(lambda tx: tx.run_all(bound))

    assert caught.value.position == at
    assert keys(handle) == {"taken"}


# -- savepoints -----------------------------------------------------------------------------


def test_a_savepoint_that_raises_undoes_only_its_own(handle: FileHandle) -> None:
    with handle.write() as tx:
        add(tx, "a")
        with pytest.raises(OddError), tx.savepoint():
            add(tx, "b")
            raise OddError
        add(tx, "c")
    assert keys(handle) == {"a", "c"}


def test_savepoints_nest(handle: FileHandle) -> None:
    with handle.write() as tx:
        with tx.savepoint():
            add(tx, "outer")
            with pytest.raises(OddError), tx.savepoint():
                add(tx, "inner")
                with tx.savepoint():
                    add(tx, "innermost")
                raise OddError
            with tx.savepoint():
                add(tx, "second")
        with pytest.raises(OddError), tx.savepoint():
            with tx.savepoint():
                add(tx, "released")
            raise OddError
    assert keys(handle) == {"outer", "second"}


def test_a_savepoint_whose_transaction_has_ended_does_not_hide_the_cause(
    handle: FileHandle,
) -> None:
    with pytest.raises(OddError), handle.write() as tx, tx.savepoint():
        raw_of(handle).execute("ROLLBACK")
        raise OddError


def test_a_savepoint_works_in_a_unit_that_joined(grouping: FileHandle) -> None:
    def unit(tx: Any) -> None:
        add(tx, "kept")
        with contextlib.suppress(OddError), tx.savepoint():
            add(tx, "undone")
            raise OddError

    with Held(grouping, adding("first"), kind="unit"):
        joiner = Task(lambda: grouping.transact(unit, delegable=True))
        queued(grouping, 1)
    joiner.result()
    assert keys(grouping) == {"first", "kept"}
    assert grouping.stats().commits == 1


# -- reading --------------------------------------------------------------------------------


def reading_ways(handle: FileHandle) -> dict[str, Callable[[Callable[[Any], Any]], Any]]:
    def block(work: Callable[[Any], Any]) -> Any:
        with handle.read() as tx:
            return work(tx)

    return {"fetch": handle.fetch, "query": handle.query, "block": block}


@pytest.mark.parametrize("way", ["fetch", "query", "block"])
def test_a_read_scope_cannot_write(handle: FileHandle, way: str) -> None:
    read = reading_ways(handle)[way]
    handle.transact(adding("a"))
    with pytest.raises(StatementError, match="does not write"):
        read(lambda tx: tx.rows(DELETE))
    with pytest.raises(AttributeError):
        read(lambda tx: tx.run(DELETE))
    assert keys(handle) == {"a"}


def test_the_snapshot_connection_itself_refuses_to_write(handle: FileHandle) -> None:
    def write_past_us(tx: Any) -> None:
        tx._connection.execute("DELETE FROM meta")

    with pytest.raises(apsw.ReadOnlyError):
        handle.query(write_past_us)
    with pytest.raises(apsw.ReadOnlyError), handle.read() as tx:
        write_past_us(tx)


def test_a_read_scope_takes_every_kind_of_select(handle: FileHandle) -> None:
    key = schema.meta.c.key
    both = compiled(
        union_all(
            select(key).where(key == bindparam("one")), select(key).where(key == bindparam("two"))
        )
    )
    handle.transact(adding("a"))
    assert handle.fetch(lambda tx: tx.rows(both, {"one": "a", "two": "a"})) == [("a",), ("a",)]


@pytest.mark.parametrize("way", ["fetch", "query", "block"])
def test_a_read_sees_nothing_that_is_not_committed(handle: FileHandle, way: str) -> None:
    handle.transact(adding("before"))
    read = reading_ways(handle)[way]
    with Held(handle, adding("not yet")):
        assert {row[0] for row in read(lambda tx: tx.rows(KEYS))} >= {"before"}
        assert "not yet" not in {row[0] for row in read(lambda tx: tx.rows(KEYS))}
    assert "not yet" in {row[0] for row in read(lambda tx: tx.rows(KEYS))}


def test_a_read_sees_nothing_of_an_open_group(grouping: FileHandle) -> None:
    """While the lease of a shared transaction passes from thread to thread."""
    with Held(grouping, adding("first"), kind="unit") as first:
        second = Held.__new__(Held)
        started = Task(lambda: Held.__init__(second, grouping, adding("second"), kind="unit"))
        queued(grouping, 1)
        first.let_go()
        # The second unit has joined: the first one's row is in the open transaction.
        started.result()
        assert grouping.fetch(lambda tx: len(tx.rows(KEYS))) == 3
        assert grouping.query(lambda tx: len(tx.rows(KEYS))) == 3
        assert not first.task.is_over
        second.let_go()
    second.task.result()
    assert keys(grouping) == {"first", "second"}


def test_a_statement_with_a_constant_list_is_compiled_whole(handle: FileHandle) -> None:
    handle.transact(adding("a"))
    listed = compiled(select(schema.meta.c.key).where(schema.meta.c.key.in_(["a", "b"])))
    assert handle.fetch(lambda tx: tx.rows(listed)) == [("a",)]


# -- use after the end ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["write", "transact", "read", "fetch", "query"])
def test_a_transaction_is_of_no_use_after_its_scope(handle: FileHandle, way: str) -> None:
    if way in ("write", "read"):
        with getattr(handle, way)() as tx:
            pass
    else:
        tx = getattr(handle, way)(lambda tx: tx)
    with pytest.raises(StatementError, match="scope has ended"):
        tx.rows(KEYS)
    if way in ("write", "transact"):
        with pytest.raises(StatementError, match="scope has ended"):
            tx.run(ADD, {"key": "late", "value": ""})
        with pytest.raises(StatementError, match="scope has ended"), tx.savepoint():
            pass
        # Nor inside the next one, which has the same connection.
        with handle.write(), pytest.raises(StatementError, match="scope has ended"):
            tx.run(ADD, {"key": "late", "value": ""})
    assert keys(handle) == set()


def test_a_lent_sqlalchemy_connection_is_of_no_use_after_its_scope(handle: FileHandle) -> None:
    with handle.sqlalchemy() as connection:
        connection.execute(text("SELECT 1"))
    with pytest.raises((sqlalchemy.exc.SQLAlchemyError, StatementError)):
        connection.execute(text("DELETE FROM meta"))


@pytest.mark.parametrize("way", ["write", "read"])
def test_a_scope_may_be_left_in_another_thread(handle: FileHandle, way: str) -> None:
    """Not a way to write code, but what a generator or an executor does to a block."""
    scope = getattr(handle, way)()
    tx = Task(scope.__enter__).result()
    if way == "write":
        Task(lambda: add(tx, "a")).result()
    Task(lambda: scope.__exit__(None, None, None)).result()
    assert [
        leased.queue.holder
        for leased in file_of(handle).leased_connections()
        if leased.queue.holder
    ] == []
    Task(lambda: handle.transact(adding("b"))).result()
    assert keys(handle) == ({"a", "b"} if way == "write" else {"b"})


@pytest.mark.parametrize("way", ["write", "read"])
def test_a_scope_left_by_an_error_in_another_thread_is_given_back(
    handle: FileHandle, way: str
) -> None:
    scope = getattr(handle, way)()
    tx = Task(scope.__enter__).result()
    if way == "write":
        Task(lambda: add(tx, "a")).result()
    error = OddError()
    leave = Task(lambda: scope.__exit__(OddError, error, None))
    leave.join()
    assert leave.error is None or leave.error is error
    assert [
        leased.queue.holder
        for leased in file_of(handle).leased_connections()
        if leased.queue.holder
    ] == []
    handle.transact(adding("b"), timeout=2.0)
    assert keys(handle) == {"b"}


# -- one scope in a thread --------------------------------------------------------------------


def inner_ways(handle: FileHandle) -> dict[str, Callable[[], object]]:
    def enter(scope: AbstractContextManager[object]) -> None:
        with scope:
            pass

    return {
        "write": lambda: enter(handle.write()),
        "read": lambda: enter(handle.read()),
        "transact": lambda: handle.transact(lambda tx: None),
        "joining": lambda: handle.transact(lambda tx: None, delegable=True),
        "fetch": lambda: handle.fetch(lambda tx: None),
        "query": lambda: handle.query(lambda tx: None),
        "sqlalchemy": lambda: enter(handle.sqlalchemy()),
        "backup": lambda: handle.backup("never.sqlite"),
    }


INNER = ["write", "read", "transact", "joining", "fetch", "query", "sqlalchemy", "backup"]
OUTER = ["write", "read", "transact", "fetch", "query", "sqlalchemy"]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_a_second_scope_in_the_same_thread_is_refused(
    handle: FileHandle, outer: str, inner: str
) -> None:
    attempt = inner_ways(handle)[inner]

    def body(_tx: object) -> None:
        with pytest.raises(ReentrantScopeError):
            attempt()

    if outer in ("write", "read", "sqlalchemy"):
        with getattr(handle, outer)() as tx:
            body(tx)
    else:
        getattr(handle, outer)(body)
    handle.transact(adding("a"))
    assert keys(handle) == {"a"}


@pytest.mark.parametrize("outer", OUTER)
def test_the_error_of_a_second_scope_names_both_places(handle: FileHandle, outer: str) -> None:
    if outer in ("write", "read", "sqlalchemy"):
        with getattr(handle, outer)():
            with pytest.raises(ReentrantScopeError) as caught:
                handle.fetch(lambda tx: None)
            second = f"{__file__}:{line_number(-1)}"
            first = f"{__file__}:{line_number(-4)}"
    else:
        places = []

        def body(_tx: object) -> pytest.ExceptionInfo[ReentrantScopeError]:
            with pytest.raises(ReentrantScopeError) as caught:
                handle.fetch(lambda tx: None)
            places.append(f"{__file__}:{line_number(-1)}")
            return caught

        caught = getattr(handle, outer)(body)
        first = f"{__file__}:{line_number(-1)}"
        (second,) = places
    message = str(caught.value)
    assert second in message
    assert first in message
    assert message.count(second) == 1


def line_number(relative: int) -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno + relative


def test_another_thread_and_another_database_are_free(
    handle: FileHandle, pool: ConnectionPool, path: Path
) -> None:
    with file_handle(pool.acquire(path.with_name("other.sqlite"))) as other, handle.write() as tx:
        with other.write() as other_tx:
            add(other_tx, "there")
        add(tx, "here")
        assert Task(lambda: keys(handle)).result() == set()
    assert keys(handle) == {"here"}


def test_two_handles_on_one_database_count_as_one(
    handle: FileHandle, pool: ConnectionPool, path: Path
) -> None:
    with (
        file_handle(pool.acquire(path)) as second,
        handle.write(),
        pytest.raises(ReentrantScopeError),
    ):
        second.transact(lambda tx: None)


def test_a_released_handle_does_nothing(handle: FileHandle, pool: ConnectionPool) -> None:
    second = file_handle(pool.acquire(handle.path))
    second.release()
    for attempt in inner_ways(second).values():
        with pytest.raises(HandleReleasedError):
            attempt()
    for name in ("health", "stats", "release"):
        with pytest.raises(HandleReleasedError):
            getattr(second, name)()


# -- a clean return ---------------------------------------------------------------------------


def leave_a_transaction(handle: FileHandle) -> None:
    def work(_tx: object) -> None:
        raw_of(handle).execute("BEGIN IMMEDIATE")
        raw_of(handle).execute("INSERT INTO meta VALUES ('forgotten', '')")

    handle.fetch(work)


def leave_a_select(handle: FileHandle) -> None:
    def work(tx: Any) -> None:
        cursor = raw_of(handle).cursor()
        cursor.execute("SELECT key FROM meta")
        next(cursor)
        kept.append(cursor)

    kept: list[Any] = []
    handle.transact(work)
    cursors.append(kept)


def leave_a_select_in_a_snapshot(handle: FileHandle) -> None:
    def work(tx: Any) -> None:
        cursor = tx._connection.raw.cursor()
        cursor.execute("SELECT key FROM meta")
        next(cursor)
        cursors.append(cursor)

    handle.query(work)


cursors: list[Any] = []


@pytest.mark.parametrize(
    ("leave", "operation"),
    [
        (leave_a_transaction, "fetch"),
        (leave_a_select, "transact"),
        (leave_a_select_in_a_snapshot, "query"),
    ],
)
def test_a_connection_that_is_given_back_unclean_is_retired(
    pool: ConnectionPool, path: Path, leave: Callable[[FileHandle], None], operation: str
) -> None:
    """Rolled back, logged with what left it so, never used again."""
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("before"))
        keys(handle)
        with capture_logs() as logs:
            leave(handle)
        with pytest.raises(DatabaseMovedError):
            handle.transact(adding("lost"))
        with pytest.raises(DatabaseMovedError):
            keys(handle)
        with file_handle(pool.acquire(path)) as anew:
            assert file_of(anew) is not file_of(handle)
            assert keys(anew) == {"before"}
            anew.transact(adding("after"))
    cursors.clear()
    assert open_connections(path) == 0
    with pool.acquire(path) as anew:
        assert keys(anew) == {"before", "after"}
    (event,) = [log for log in logs if log["event"] == "database_retired"]
    assert event["path"] == str(path)
    assert event["operation"] == operation


def test_the_error_of_an_unclean_retirement_does_not_say_moved(
    handle: FileHandle,
) -> None:
    leave_a_transaction(handle)
    with pytest.raises(DatabaseMovedError) as caught:
        handle.transact(adding("lost"))
    assert "moved, replaced or deleted" not in str(caught.value)


@pytest.mark.parametrize("way", ["fetch", "query", "transact"])
def test_every_scope_ends_with_no_transaction(handle: FileHandle, way: str) -> None:
    getattr(handle, way)(lambda tx: tx.rows(KEYS))
    with contextlib.suppress(OddError):
        getattr(handle, way)(raise_odd)
    for leased in file_of(handle).leased_connections():
        assert leased.connection.txn_state() == apsw.SQLITE_TXN_NONE


def raise_odd(_tx: object) -> None:
    raise OddError


# -- the budget -------------------------------------------------------------------------------


def test_the_error_names_the_queue_where_the_time_was_spent_there(handle: FileHandle) -> None:
    with Held(handle):
        errors = ends_in_time(lambda: handle.transact(adding("a"), "create", 0.2), 0.2)
    assert errors[-1].phase == "queue"
    assert set(errors[-1].phases) == {"queue"}
    assert errors[-1].operation == "create"
    assert errors[-1].path == handle.path
    assert handle.stats().timeouts == len(errors)


def test_the_error_names_begin_where_the_time_was_spent_there(
    handle: FileHandle, hold_write_lock: Callable[..., Any]
) -> None:
    """A foreign process holds the write lock: the error comes at the deadline."""
    hold_write_lock(handle.path)
    for attempt in (
        lambda: handle.transact(adding("a"), "create", 0.2),
        lambda: handle.write(0.2).__enter__(),
        lambda: handle.sqlalchemy(0.2).__enter__(),
    ):
        before = handle.stats().retries
        errors = ends_in_time(attempt, 0.2)
        assert errors[-1].phase == "begin"
        # Some of it may go into the queue where the machine is slow.
        assert errors[-1].phases["begin"] > 0.1
        assert errors[-1].result_code == apsw.SQLITE_BUSY
        assert max(error.attempts for error in errors) > 1
        assert handle.stats().retries > before


def test_the_error_names_the_body_where_the_time_was_spent_there(handle: FileHandle) -> None:
    error = ends_in_time(lambda: handle.transact(lambda tx: tx.rows(ENDLESS), "count", 0.2), 0.2)[
        -1
    ]
    assert error.phase == "body"
    assert error.operation == "count"
    assert error.phases["body"] > 0.15


def test_a_deadline_that_passes_inside_begin_counts_as_begin(
    handle: FileHandle,
) -> None:
    """SQLite interrupts the BEGIN itself then, as it would a long statement."""
    raw = raw_of(handle)
    raw.set_progress_handler(lambda: True, 1)
    with pytest.raises(DatabaseBusyError) as caught:
        handle.transact(lambda tx: None, "hurry", 0.0)
    assert caught.value.phase == "begin"
    raw.set_progress_handler(None)
    assert handle.transact(lambda tx: "again") == "again"


def test_the_phases_of_an_error_give_the_seconds_of_each(handle: FileHandle) -> None:
    """Some time in the queue, the rest in the body."""
    with Held(handle) as held:
        since = monotonic()
        task = Task(lambda: handle.transact(lambda tx: tx.rows(ENDLESS), "count", 1.0))
        queued(handle, 1)
        waits = monotonic()
        until(lambda: monotonic() - waits > 0.1)
        held.let_go()
        held.task.join()
        task.join()
    error = task.error
    assert isinstance(error, DatabaseBusyError)
    assert error.phase == "body"
    assert error.phases["queue"] >= 0.1
    assert error.phases["body"] > 0.0
    assert sum(error.phases.values()) == pytest.approx(error.waited, rel=0.05)
    assert 1.0 <= error.waited <= monotonic() - since


@pytest.mark.parametrize("method", ["sqlalchemy", "write"])
def test_one_budget_covers_the_queue_and_begin(handle: FileHandle, method: str) -> None:
    """What the queue took is not there for BEGIN, which has the deadline of the whole."""
    seconds = 1.0
    with Held(handle) as held, contextlib.closing(apsw.Connection(str(handle.path))) as other:
        began = monotonic()
        task = Task(lambda: getattr(handle, method)(seconds).__enter__())
        queued(handle, 1)
        waits = monotonic()
        until(lambda: monotonic() - waits > 0.4)
        # The write lock goes to another connection while the lease is still waited for.
        raw_of(handle).execute("ROLLBACK")
        other.execute("BEGIN IMMEDIATE")
        raw_of(handle).execute("BEGIN")
        held.let_go()
        task.join()
        took = monotonic() - began
    assert isinstance(task.error, DatabaseBusyError)
    assert seconds <= task.error.waited <= took
    assert task.error.phases["queue"] >= 0.4
    assert task.error.phase == "begin"
    # A budget of its own for BEGIN would end later, by what the queue took.
    assert began + seconds <= file_of(handle).writer.connection.deadline <= waits + seconds


@pytest.mark.parametrize("way", ["fetch", "query"])
def test_a_long_read_is_stopped_at_the_deadline(handle: FileHandle, way: str) -> None:
    read = getattr(handle, way)
    error = ends_in_time(lambda: read(lambda tx: tx.rows(ENDLESS), "count", 0.2), 0.2)[-1]
    assert error.phase == "body"
    assert keys(handle) == set()


def test_a_long_insert_is_stopped_and_leaves_nothing(handle: FileHandle) -> None:
    error = ends_in_time(
        lambda: handle.transact(lambda tx: tx.run(endless_insert()), "fill", 0.2), 0.2, slack=0.2
    )[-1]
    assert error.phase == "body"
    assert keys(handle) == set()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_long_statement_of_sqlalchemy_is_stopped(handle: FileHandle, read_only: bool) -> None:
    endless = text(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    )

    def run() -> None:
        with handle.sqlalchemy(0.2, read_only=read_only) as connection:
            connection.execute(endless)

    error = ends_in_time(run, 0.2, error=sqlalchemy.exc.OperationalError)[-1]
    assert error.orig is not None
    assert isinstance(error.orig.__cause__, DatabaseBusyError)
    assert keys(handle) == set()


def test_a_block_that_takes_too_long_gets_the_error_at_its_next_statement(
    handle: FileHandle,
) -> None:
    with pytest.raises(DatabaseBusyError) as caught, handle.write(0.05) as tx:
        add(tx, "a")
        until(lambda: monotonic() > file_of(handle).writer.connection.deadline)
        add(tx, "b")
    assert caught.value.phase == "body"
    assert keys(handle) == set()


def test_a_budget_of_zero_does_what_needs_no_waiting(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``Budget`` says of 0; the least time that a body gets is for a machine that is free."""
    monkeypatch.setattr(budget, "LEAST_BODY", PATIENCE)
    handle.transact(adding("a"), timeout=0)
    assert handle.fetch(lambda tx: len(tx.rows(KEYS)), timeout=0) == 4
    with Held(handle), pytest.raises(DatabaseBusyError):
        handle.transact(adding("b"), timeout=0)


def test_a_lost_transaction_lets_no_statement_through(handle: FileHandle) -> None:
    """Each would be stored by itself."""

    def work(tx: Any) -> None:
        with contextlib.suppress(DatabaseBusyError):
            tx.run(endless_insert())
        add(tx, "alone")

    with pytest.raises((TransactionLostError, DatabaseBusyError)):
        handle.transact(work, timeout=0.1)
    assert keys(handle) == set()


def test_a_block_that_swallows_the_loss_of_its_transaction_raises_at_its_end(
    handle: FileHandle,
) -> None:
    with pytest.raises(TransactionLostError), handle.write() as tx:
        add(tx, "a")
        raw_of(handle).execute("ROLLBACK")
    assert keys(handle) == set()


# -- other processes ------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.6, pytest.param(3.0, marks=pytest.mark.long)])
def test_a_write_waits_for_that_of_another_process_and_succeeds(
    handle: FileHandle, hold_write_lock: Callable[..., Any], seconds: float
) -> None:
    child = hold_write_lock(handle.path)
    began = monotonic()
    task = Task(lambda: handle.transact(adding("a")))
    until(lambda: monotonic() - began > seconds and handle.stats().retries > 2)
    assert not task.is_over
    child.send()
    assert child.receive() == "gone"
    task.result()
    assert keys(handle) == {"a"}


def test_reads_do_not_wait_for_a_writer_of_another_process(
    handle: FileHandle, hold_write_lock: Callable[..., Any]
) -> None:
    handle.transact(adding("a"))
    hold_write_lock(handle.path)
    assert keys(handle) == {"a"}
    # The lock is held until the end of the test.
    assert handle.fetch(lambda tx: len(tx.rows(KEYS))) == 4


def test_a_wait_polls_often_at_first_and_never_seldom(
    handle: FileHandle, hold_write_lock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 32nd of the wait: SQLite's own pauses grow to 100 ms, and starve who waits longest.

    So it is where the kernel cannot wait.
    """

    def refuse(_index: WalIndex) -> int:
        raise OSError(errno.ENOTSUP, "no such locks")

    pauses: list[tuple[float, float]] = []

    def pause(deadline: float, seconds: float) -> bool:
        pauses.append((monotonic() - began, seconds))
        return retry.pause(deadline, seconds)

    hold_write_lock(handle.path)
    monkeypatch.setattr(WalIndex, "wait_for_write_lock", refuse)
    monkeypatch.setattr(turnstile, "pause", pause)
    began = monotonic()
    with pytest.raises(DatabaseBusyError):
        handle.transact(adding("a"), timeout=1.0)
    assert len(pauses) > 1
    assert [each for each in pauses if each[1] > max(0.001, each[0] / 32)] == []


def test_a_check_of_the_wal_while_another_process_commits_ends_no_write(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite answers BUSY at once to a check while the header of the index is written."""
    with file_handle(make_pool().acquire(path)) as handle:
        handle.transact(adding("first"))
        mark = handle.file.writer.connection.wal_mark
        assert isinstance(mark, WalMark)
        real, answers = mark._backlog, [apsw.BusyError("busy"), apsw.BusyError("busy")]
        for answer in answers:
            vars(answer).update(result=apsw.SQLITE_BUSY, extendedresult=apsw.SQLITE_BUSY)

        def backlog() -> tuple[int, int]:
            if answers:
                raise answers.pop()
            return real()

        monkeypatch.setattr(mark, "_backlog", backlog)
        handle.transact(adding("second"))
        assert keys(handle) == {"first", "second"}
        assert not answers
