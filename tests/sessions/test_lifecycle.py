"""Opening, closing and deleting one database."""

import inspect
import threading
from typing import Any

import apsw
import pytest
import structlog
from kits.waiting import SOON
from sqlalchemy import text

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseFolderError,
    DatabaseMissingError,
    DatabaseOpenError,
    DatabaseOptions,
    Durability,
    MigrationError,
    NotADatabaseError,
    NotInitializedError,
    PoolOptions,
    SchemaTooNewError,
    SessionManager,
    schema,
)

HOLD = """
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1]) as sessions:
    send("open")
    receive()
from mandrake_sessions import default_pool
default_pool().close()
send("closed")
"""

METHODS = dict(inspect.getmembers(SessionManager, inspect.isfunction))
NEEDS_NONE = {"init", "close", "delete", "restore"}
NEEDS_DATABASE = [name for name in METHODS if not name.startswith("_") and name not in NEEDS_NONE]


def call(manager, name):
    """Call a method with an id, or whatever a text may stand for, for each required argument."""
    required = [
        parameter.name
        for parameter in inspect.signature(METHODS[name]).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "self"
    ]
    values = {"work": lambda tx: None}
    result = getattr(manager, name)(*(values.get(each, "some-id") for each in required))
    if name == "transaction":
        with result:
            pass
    elif inspect.isgenerator(result):
        list(result)


def test_nothing_is_opened_before_init(path, pool, statements):
    manager = SessionManager(path, pool=pool)

    assert not manager.is_initialized
    assert not path.exists()
    assert statements.connections == []
    assert pool.stats().opened == 0


@pytest.mark.parametrize("name", NEEDS_DATABASE)
def test_every_method_before_init_and_after_close_raises(path, pool, name):
    manager = SessionManager(path, pool=pool)
    with pytest.raises(NotInitializedError):
        call(manager, name)

    manager.init().close()

    with pytest.raises(NotInitializedError):
        call(manager, name)


@pytest.mark.parametrize("name", ["get_session", "create_round", "count_sessions", "transact"])
def test_a_method_has_its_own_signature(path, name):
    """As editors, ``help()`` and callers that bind arguments see it, with ``self`` bound."""
    bound = inspect.signature(getattr(SessionManager(path), name))

    assert list(inspect.signature(METHODS[name]).parameters) == ["self", *bound.parameters]
    first = {"get_session": "id", "create_round": "session_id", "transact": "work"}.get(name)
    assert next(iter(bound.parameters), None) == first
    assert "Unit" not in str(bound.return_annotation)


def test_the_handle_raises_before_init(path, pool):
    with pytest.raises(NotInitializedError):
        _ = SessionManager(path, pool=pool).handle


def test_init_makes_the_parent_folders_for_their_owner_only(tmp_path, pool):
    path = tmp_path / "a" / "b" / "db.sqlite"

    with SessionManager(path, pool=pool):
        modes = [each.stat().st_mode & 0o777 for each in (path.parent.parent, path.parent, path)]

    assert modes == [0o700, 0o700, 0o600]


@pytest.mark.parametrize(("durability", "synchronous"), [("durable", 2), ("fast", 1)])
def test_the_file_is_opened_in_wal_with_foreign_keys_on(path, pool, durability, synchronous):
    options = DatabaseOptions(durability=Durability(durability))
    # A migration switches foreign keys too, so it is the second opening that counts.
    SessionManager(path, pool=pool).init().close()
    with (
        SessionManager(path, pool=pool, options=options) as sessions,
        sessions.handle.sqlalchemy() as connection,
    ):
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "wal_autocheckpoint")
        }

    assert found == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": synchronous,
        "wal_autocheckpoint": 0,
    }


def test_wal_is_verified_where_the_file_system_has_none(path, pool):
    # This VFS locks with a file next to the database and has no shared memory, so no WAL.
    options = DatabaseOptions(vfs="unix-dotfile", busy_timeout=1.0)
    manager = SessionManager(path, pool=pool, options=options)

    with pytest.raises(DatabaseOpenError, match="WAL"):
        manager.init()

    assert pool.stats().databases == ()
    SessionManager(path, pool=pool).init().close()


def test_a_row_without_its_parent_is_refused(sessions):
    sessions.close()
    sessions.init()
    insert = text(
        'INSERT INTO rounds (id, session_id, "index", created_at, updated_at)'
        " VALUES ('r', 'missing', 0, 1, 1)"
    )

    with (
        pytest.raises(Exception, match="FOREIGN KEY"),
        sessions.handle.sqlalchemy() as connection,
    ):
        connection.execute(insert)


def test_opening_migrates_the_schema_to_head(path, sessions, dump):
    tables = dump(path)

    assert tables.keys() - {"sqlite_schema"} == {*schema.metadata.tables, "alembic_version"}
    assert tables["alembic_version"] == [(schema.HEAD,)]


def test_a_second_init_changes_nothing(path, pool, statements, dump):
    manager = SessionManager(path, pool=pool).init()
    handle, before = manager.handle, dump(path)
    statements.take()

    assert manager.init() is manager

    assert manager.handle is handle
    assert statements.take() == []
    assert pool.stats().handles == 1
    assert dump(path) == before
    manager.close()
    assert not manager.is_initialized


def test_wal_and_shm_exist_while_the_file_is_open(path, sessions):
    sessions.create_session()

    names = sorted(each.name for each in path.parent.iterdir())

    assert names == ["db.sqlite", "db.sqlite-shm", "db.sqlite-wal"]


# That closing ends trackers and watchers too comes with the issue that brings them (live/).
def test_close_is_idempotent_and_init_works_again(path, pool):
    manager = SessionManager(path, pool=pool)
    manager.close()
    session = manager.init().create_session("kept")
    manager.close()
    manager.close()

    assert not manager.is_initialized
    assert [each.name for each in path.parent.iterdir()] == ["db.sqlite"]
    with manager:
        assert manager.get_session(session.id) == session


def test_a_logger_of_the_host_that_raises_disturbs_no_call(path, pool):
    class Failing:
        def info(self, *_, **__):
            raise RuntimeError("the sink is gone")

    failing: Any = Failing()

    with structlog.testing.capture_logs() as logged:
        with SessionManager(path, pool=pool, logger=failing) as sessions:
            assert sessions.count_sessions() == 0
        assert not sessions.is_initialized

    assert [log["event"] for log in logged if log["log_level"] == "warning"] == [
        "logger_failed",
        "logger_failed",
    ]


def test_delete_removes_the_three_files_and_init_makes_a_new_database(path, pool):
    manager = SessionManager(path, pool=pool).init()
    manager.create_session()

    manager.delete()

    assert list(path.parent.iterdir()) == []
    with pytest.raises(NotInitializedError):
        manager.count_sessions()
    with manager:
        assert manager.count_sessions() == 0


def test_delete_of_a_missing_file_is_no_error(path, pool):
    SessionManager(path, pool=pool).delete()

    assert list(path.parent.iterdir()) == []


def test_delete_ends_the_idle_hold_of_its_own_process(path):
    options = DatabaseOptions(durability=Durability.FAST)
    with ConnectionPool(PoolOptions(linger=3600, database=options)) as pool:
        SessionManager(path, pool=pool).init().close()
        assert pool.stats().idle == 1

        SessionManager(path, pool=pool).delete(timeout=0)

        assert pool.stats().idle == 0
    assert not path.exists()


def test_delete_removes_nothing_while_another_manager_of_this_process_has_the_file(
    path, pool, sessions
):
    session = sessions.create_session("kept")

    with pytest.raises(DatabaseBusyError):
        SessionManager(path, pool=pool).delete(timeout=0)

    assert sessions.get_session(session.id) == session
    assert sessions.create_session("and goes on").title == "and goes on"


def test_delete_removes_nothing_while_another_process_has_the_file(
    path, pool, sessions, start_child, dump
):
    sessions.create_session("kept")
    child = start_child(HOLD, path)
    assert child.receive() == "open"
    before = dump(path)

    with pytest.raises(DatabaseBusyError) as caught:
        sessions.delete(timeout=0.2)

    assert caught.value.waited >= 0.2
    assert dump(path) == before
    assert sessions.init().count_sessions() == 1


def test_delete_waits_until_another_process_closes_the_file(
    path, pool, sessions, start_child, monkeypatch
):
    child = start_child(HOLD, path)
    assert child.receive() == "open"
    waits = waiting_event(monkeypatch)
    deletion = threading.Thread(target=sessions.delete)

    deletion.start()
    assert waits.wait(60)
    assert path.exists()
    child.send("let go")
    assert child.receive() == "closed"
    deletion.join()

    assert not path.exists()


def waiting_event(monkeypatch):
    """Return an event that is set when a thread waits for another process."""
    import time

    waits, sleep = threading.Event(), time.sleep

    def noting(seconds):
        waits.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noting)
    return waits


def test_a_manager_that_opens_a_deleted_file_finds_it_missing(path, pool, sessions):
    other = SessionManager(path, pool=pool, create=False).init()
    other.close()
    sessions.delete()

    with pytest.raises(DatabaseMissingError):
        other.init()

    assert not path.exists()


def test_a_folder_a_database_and_a_migration_fail_with_their_own_errors(tmp_path, pool):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DatabaseFolderError):
        SessionManager(tmp_path / "file" / "db.sqlite", pool=pool).init()

    (tmp_path / "garbage.sqlite").write_bytes(b"not a database, but longer than a header" * 30)
    with pytest.raises(NotADatabaseError):
        SessionManager(tmp_path / "garbage.sqlite", pool=pool).init()

    # The tables are there and the revision is not: the first step must fail.
    broken = change_revision(tmp_path / "broken.sqlite", pool, "DELETE FROM alembic_version")
    with pytest.raises(MigrationError) as caught:
        SessionManager(broken, pool=pool).init()
    assert caught.type is MigrationError


def test_a_database_of_a_newer_version_is_refused_unchanged(tmp_path, pool, dump):
    newer = change_revision(
        tmp_path / "db.sqlite", pool, "UPDATE alembic_version SET version_num = '9999'"
    )
    before = dump(newer)

    with pytest.raises(SchemaTooNewError):
        SessionManager(newer, pool=pool).init()

    assert dump(newer) == before


def change_revision(path, pool, statement):
    SessionManager(path, pool=pool).init().close()
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    connection.close()
    return path


def test_a_failed_opening_lets_the_next_one_succeed(path, pool):
    path.write_bytes(b"not a database, but longer than a header" * 30)
    manager = SessionManager(path, pool=pool)
    with pytest.raises(NotADatabaseError):
        manager.init()
    assert not manager.is_initialized

    path.unlink()

    assert manager.init().count_sessions() == 0
    manager.close()


def test_a_logger_of_the_host_receives_the_events_of_the_manager(path, pool):
    with structlog.testing.capture_logs() as logs:
        sessions = SessionManager(path, pool=pool, logger=structlog.get_logger("host"))
        sessions.init()
        sessions.init()
        sessions.close()
        sessions.close()
        sessions.delete()

    assert [log["event"] for log in logs] == [
        "sessions_opened",
        "sessions_closed",
        "sessions_deleted",
    ]
    assert all(log["path"] == str(path) for log in logs)


def test_delete_of_a_relative_path_removes_the_same_file_after_chdir(tmp_path, pool, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    SessionManager(there / "db.sqlite", pool=pool).init().close()
    monkeypatch.chdir(here)
    sessions = SessionManager("db.sqlite", pool=pool).init()
    monkeypatch.chdir(there)
    sessions.delete()

    assert not (here / "db.sqlite").exists()
    assert (there / "db.sqlite").exists()


def test_a_relative_path_is_the_same_wherever_the_process_goes(tmp_path, pool, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    sessions = SessionManager("db.sqlite", pool=pool)
    monkeypatch.chdir(there)

    assert sessions.path == here / "db.sqlite"
    with sessions:
        sessions.create_session("kept")
    with sessions:
        assert sessions.count_sessions() == 1
    copy = SessionManager(here / "db.sqlite", pool=pool)
    with copy:
        copy.backup("copy.sqlite")
    sessions.restore("copy.sqlite", overwrite=True)
    assert [each.name for each in there.iterdir()] == ["copy.sqlite"]
    sessions.delete()
    assert list(here.iterdir()) == []


def test_opening_a_relative_path_raises_when_the_working_directory_is_gone(
    tmp_path, pool, monkeypatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    sessions = SessionManager("db.sqlite", pool=pool)
    with pytest.raises(DatabaseOpenError):
        sessions.init()


def test_delete_and_restore_wait_as_long_as_the_options_of_their_manager_say(path, pool):
    assert pool.options.database.busy_timeout > SOON
    options = DatabaseOptions(busy_timeout=0.5)
    with SessionManager(path, pool=pool, options=options) as sessions:
        backup = sessions.backup(path.with_name("backup.sqlite"))
        other = SessionManager(path, pool=pool, options=options)
        for call in (other.delete, lambda: other.restore(backup, overwrite=True)):
            with pytest.raises(DatabaseBusyError) as caught:
                call()
            assert 0.5 <= caught.value.waited < SOON
