"""Promises that a SessionManager keeps through its pool.

The pool's own races, leases and faults are tested in ``tests/database``.
"""

import os
import re
import threading
import time

import apsw
import pytest
from kits.waiting import SOON
from sqlalchemy import text

from mandrake_sessions import (
    BackupError,
    ConnectionPool,
    ConstraintViolationError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseMovedError,
    DatabaseOptions,
    DatabasePathError,
    Durability,
    HandleReleasedError,
    HealthStatus,
    MandrakeSessionsError,
    OptionsConflictError,
    PoolClosedError,
    ReentrantScopeError,
    SessionManager,
    SessionNotFoundError,
    StatementError,
    default_pool,
)

HOLD_THE_WRITE_LOCK = """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
send("locked")
receive()
connection.execute("COMMIT")
"""


class StopError(Exception):
    """What a block of the caller's raises."""


def test_managers_share_one_pool_unless_another_is_given(tmp_path, pool):
    assert default_pool() is default_pool()
    shared = SessionManager(tmp_path / "shared.sqlite")
    own = SessionManager(tmp_path / "own.sqlite", pool=pool)
    with shared, own:
        # Files of other tests may linger in the pool of all.
        assert shared.path in [each.path for each in default_pool().stats().databases]
        assert [each.path for each in pool.stats().databases] == [own.path]
        assert own.path not in [each.path for each in default_pool().stats().databases]

    former = default_pool()
    former.close()
    assert default_pool() is not former


def test_all_managers_of_a_file_share_one_connection(tmp_path, pool, statements, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "other.sqlite").symlink_to(folder / "db.sqlite")
    monkeypatch.chdir(folder)
    spellings = [
        folder / "db.sqlite",
        "db.sqlite",
        f"{folder}/../folder//./db.sqlite",
        tmp_path / "link" / "db.sqlite",
        tmp_path / "other.sqlite",
    ]
    managers = [SessionManager(each, pool=pool).init() for each in spellings]

    assert len(statements.connections) == 1
    assert {manager.path for manager in managers} == {folder / "db.sqlite"}
    assert pool.stats().handles == len(spellings)
    session = managers[0].create_session()
    assert all(manager.get_session(session.id) == session for manager in managers)
    for manager in managers:
        manager.close()


def test_threads_that_open_a_file_at_once_share_one_connection(path, pool, statements, in_threads):
    managers = in_threads(8, lambda _: SessionManager(path, pool=pool).init())

    assert len(statements.connections) == 1
    assert pool.stats().opened == 1
    for manager in managers:
        manager.close()


def test_a_hard_link_is_refused(path, tmp_path, pool, sessions):
    session = sessions.create_session()
    os.link(path, tmp_path / "hard.sqlite")

    with pytest.raises(DatabasePathError):
        SessionManager(tmp_path / "hard.sqlite", pool=pool).init()

    assert sessions.get_session(session.id) == session


def test_different_options_for_an_open_file_are_refused(path, pool, sessions):
    with pytest.raises(OptionsConflictError):
        SessionManager(path, pool=pool, options=DatabaseOptions(busy_timeout=1.5)).init()

    assert sessions.count_sessions() == 0


def test_the_file_stays_open_until_the_last_manager_closes(path, pool):
    first, second = (SessionManager(path, pool=pool).init() for _ in range(2))
    session = first.create_session()
    assert pool.stats().handles == 2

    first.close()
    assert second.get_session(session.id) == session
    assert (pool.stats().handles, len(pool.stats().databases)) == (1, 1)

    second.close()
    stats = pool.stats()
    assert (stats.handles, stats.databases, stats.opened, stats.closed) == (0, (), 1, 1)


def test_a_handle_released_twice_raises(path, pool):
    handle = pool.acquire(path)
    kept = pool.acquire(path)
    handle.release()

    with pytest.raises(HandleReleasedError):
        handle.release()
    with pytest.raises(HandleReleasedError):
        handle.stats()

    # The other one's claim was not taken by it.
    assert pool.stats().handles == 1
    kept.release()


def test_closing_the_pool_closes_every_file(tmp_path, statements):
    pool = ConnectionPool()
    managers = [SessionManager(tmp_path / f"{n}.sqlite", pool=pool).init() for n in range(3)]
    made = [manager.create_session() for manager in managers]

    pool.close()
    pool.close()

    assert pool.is_closed
    for connection in statements.connections:
        with pytest.raises(apsw.ConnectionClosedError):
            connection.execute("SELECT 1")
    refused = [
        outcome(manager.get_session, each.id) for manager, each in zip(managers, made, strict=True)
    ]
    refused += [outcome(SessionManager(each.path, pool=pool).init) for each in managers]
    for manager in managers:
        manager.close()
    assert refused == [PoolClosedError] * 6
    for manager, session in zip(managers, made, strict=True):
        with SessionManager(manager.path) as again:
            assert again.get_session(session.id) == session
    default_pool().close()


def outcome(call, *arguments):
    """Return the class of the error that a call raises, or None."""
    try:
        call(*arguments)
    except MandrakeSessionsError as error:
        return type(error)
    return None


def test_a_transaction_stores_all_or_nothing(path, sessions, dump):
    with sessions.transaction() as tx:
        session = tx.create_session("kept")
        round_ = tx.create_round(session.id, "kept")
        assert tx.get_session(session.id).next_round_index == 1
    before = dump(path)

    with pytest.raises(StopError), sessions.transaction() as tx:
        tx.update_session(session.id, title="lost")
        tx.create_turn(round_.response.id)
        raise StopError

    assert dump(path) == before
    assert sessions.get_session(session.id).title == "kept"


def test_a_transaction_commits_once(path, pool, statements):
    with SessionManager(path, pool=pool) as sessions:
        # The first write of all puts a new file into use, by a COMMIT of its own.
        sessions.create_session()
        statements.take()
        with sessions.transaction() as tx:
            session = tx.create_session()
            tx.create_round(session.id, "x")
        issued = statements.take()

    assert [sql for sql in issued if sql.startswith(("BEGIN", "COMMIT"))] == [
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


def test_a_savepoint_undoes_its_block_only(sessions):
    with sessions.transaction() as tx:
        session = tx.create_session("outer")
        with pytest.raises(StopError), tx.savepoint():
            tx.create_round(session.id, "lost")
            with tx.savepoint():
                tx.create_round(session.id, "lost too")
            raise StopError
        with tx.savepoint():
            kept = tx.create_round(session.id, "kept")

    assert kept.index == 0
    assert sessions.list_rounds(session.id) == [kept]


def test_a_call_that_raises_inside_a_transaction_leaves_nothing(path, sessions, dump):
    session = sessions.create_session()
    taken = sessions.create_round(session.id, "x")
    before = dump(path)

    with sessions.transaction() as tx:
        with pytest.raises(DatabaseError, match=r"."), tx.savepoint():
            tx._database.run(
                statement(
                    'INSERT INTO rounds (id, session_id, "index", created_at, updated_at)'
                    " VALUES ('r', 'missing', 1, 1, 1)"
                )
            )
        with pytest.raises(SessionNotFoundError):
            tx.create_round("missing", "x")
        with pytest.raises(Exception, match="already"):
            tx.create_round(session.id, "x", id=taken.id)

    assert dump(path) == before


def statement(sql):
    from tools.generate.compiler import compiled

    return compiled(text(sql))


def test_transact_returns_what_its_work_returns(path, sessions, dump):
    def work(tx):
        session = tx.create_session("kept")
        return session, tx.create_round(session.id, "x")

    session, round_ = sessions.transact(work)
    assert sessions.get_current_round(session.id) == round_
    before = dump(path)

    def failing(tx):
        tx.create_session("lost")
        raise StopError

    with pytest.raises(StopError):
        sessions.transact(failing)
    assert dump(path) == before


@pytest.mark.parametrize("inner", ["create_session", "count_sessions", "transaction", "transact"])
def test_the_manager_inside_its_own_transaction_raises_and_names_both_places(sessions, inner):
    calls = {
        "create_session": sessions.create_session,
        "count_sessions": sessions.count_sessions,
        "transaction": lambda: sessions.transaction().__enter__(),
        "transact": lambda: sessions.transact(lambda tx: None),
    }
    with sessions.transaction() as tx:
        with pytest.raises(ReentrantScopeError) as caught:
            calls[inner]()
        tx.create_session("goes on")

    places = set(re.findall(rf"{re.escape(__file__)}:\d+", str(caught.value)))
    assert len(places) == 2
    assert [each.title for each in sessions.list_sessions()] == ["goes on"]


def test_a_transaction_ends_with_its_block(sessions):
    with sessions.transaction() as tx:
        session = tx.create_session()
    with pytest.raises(StatementError):
        tx.create_round(session.id, "too late")
    with pytest.raises(StatementError):
        tx.get_session(session.id)

    assert sessions.list_rounds(session.id) == []


def test_uncommitted_rows_are_invisible_to_every_other_thread(sessions, in_threads):
    session = sessions.create_session("before")
    with sessions.transaction() as tx:
        tx.update_session(session.id, title="after")
        seen = in_threads(2, lambda _: sessions.get_session(session.id).title)
        listed = in_threads(2, lambda _: sessions.list_sessions()[0].title)

    assert (seen, listed) == (["before"] * 2, ["before"] * 2)
    assert sessions.get_session(session.id).title == "after"


def test_a_write_waits_for_another_process(path, sessions, start_child, monkeypatch):
    child = start_child(HOLD_THE_WRITE_LOCK, path)
    assert child.receive() == "locked"
    waits, sleep = threading.Event(), time.sleep

    def noting(seconds):
        waits.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noting)
    made = []
    writer = threading.Thread(target=lambda: made.append(sessions.create_session("waited")))
    writer.start()
    assert waits.wait(60)
    assert made == []

    child.send("let go")
    writer.join()
    child.finish()

    assert sessions.list_sessions() == made
    assert sessions.stats().retries > 0


def test_a_write_raises_at_its_deadline_and_names_the_phase_of_its_wait(
    path, pool, start_child, dump
):
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=0.5)
    with SessionManager(path, pool=pool, options=options) as sessions:
        child = start_child(HOLD_THE_WRITE_LOCK, path)
        assert child.receive() == "locked"
        before = dump(path)
        started = time.monotonic()

        with pytest.raises(DatabaseBusyError) as caught:
            sessions.create_session()

        assert 0.5 <= time.monotonic() - started < SOON
        error = caught.value
        assert (error.phase, error.operation, error.path) == ("begin", "create_session", path)
        assert error.phases["begin"] > 0.1
        assert error.attempts > 1
        # A reader of WAL does not wait for a writer.
        assert sessions.count_sessions() == 0
        child.send("let go")
        child.finish()
        assert dump(path) == before
        assert sessions.create_session("now").title == "now"


def test_a_write_behind_a_thread_that_keeps_its_lease_raises_in_the_queue(sessions):
    with sessions.transaction():
        caught = []

        def write():
            try:
                with sessions.transaction(timeout=0.05):
                    pass
            except DatabaseBusyError as error:
                caught.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    assert [error.phase for error in caught] == ["queue"]
    assert caught[0].waited >= 0.05


def test_errors_carry_their_context(path, sessions):
    with pytest.raises(ConstraintViolationError) as caught, sessions.transaction() as tx:
        tx._database.run(
            statement(
                'INSERT INTO rounds (id, session_id, "index", created_at, updated_at)'
                " VALUES ('r', 'missing', 1, 1, 1)"
            )
        )

    error = caught.value
    assert error.path == path
    assert error.operation is not None
    assert __file__ in error.operation
    assert error.result_code == apsw.SQLITE_CONSTRAINT_FOREIGNKEY
    assert error.attempts == 1
    assert str(path) in str(error)


# The check on demand; the monitor, which checks by itself, has tests of its own.
def test_health_and_stats_describe_an_open_database(path, sessions):
    for number in range(3):
        sessions.create_session(str(number))

    report = sessions.health()

    bad = [check for check in report.checks if check.status is not HealthStatus.OK]
    # Another test of this process may have loaded a second SQLite; disks differ.
    assert [check.name for check in bad if check.name not in {"sqlite", "disk"}] == []
    assert report.path == path
    stats = sessions.stats()
    assert (stats.path, stats.units) == (path, 3)
    assert 1 <= stats.commits <= 3


def test_a_health_check_changes_nothing(path, sessions, dump):
    sessions.create_session()
    before = dump(path)

    sessions.health()

    assert dump(path) == before


def test_a_backup_is_a_database_with_all_committed_rows(path, tmp_path, pool, sessions):
    session = sessions.create_session("kept")
    target = tmp_path / "copy.sqlite"

    assert sessions.backup(target) == target

    sessions.create_session("after it")
    with pytest.raises(BackupError):
        sessions.backup(target)
    with SessionManager(target, pool=pool) as copy:
        assert copy.list_sessions() == [session]


def test_a_moved_file_is_noticed_and_init_opens_a_new_one(path, pool):
    manager = SessionManager(path, pool=pool).init()
    manager.create_session("in the old file")
    old = path.rename(path.with_name("old.sqlite"))
    for suffix in ("-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").rename(f"{old}{suffix}")

    with pytest.raises(DatabaseMovedError):
        manager.create_session("lost")
    manager.close()

    assert manager.init().count_sessions() == 0
    manager.close()
    with SessionManager(old, pool=pool) as sessions:
        assert [each.title for each in sessions.list_sessions()] == ["in the old file"]


# The shutdown hook has tests of its own.
def test_a_shutdown_waits_for_running_work_and_refuses_new_work(path):
    pool = ConnectionPool()
    manager = SessionManager(path, pool=pool).init()
    working, go_on = threading.Event(), threading.Event()

    def work():
        with manager.transaction() as tx:
            tx.create_session("acknowledged")
            working.set()
            go_on.wait()

    worker = threading.Thread(target=work)
    worker.start()
    working.wait()
    pool.refuse_new_work()
    with pytest.raises(PoolClosedError):
        manager.create_session()
    with pytest.raises(PoolClosedError):
        manager.count_sessions()
    with pytest.raises(PoolClosedError):
        SessionManager(path, pool=pool).init()
    go_on.set()
    worker.join()
    pool.close()
    manager.close()

    with ConnectionPool() as own, SessionManager(path, pool=own) as again:
        assert [each.title for each in again.list_sessions()] == ["acknowledged"]
