"""Opening: settings are read back, every failure has its own error and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from database_kit import Task, ends_in_time, file_of, raw_of
from kits.descriptors import descriptors, open_connections
from kits.entries import adding, keys
from kits.waiting import until, until_set
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseFolderError,
    DatabaseIOError,
    DatabaseMissingError,
    DatabaseMovedError,
    DatabaseOpenError,
    DatabaseOptions,
    DatabasePathError,
    Durability,
    HealthLevel,
    InvalidArgumentError,
    MandrakeSessionsError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    SessionManager,
    StorageFullError,
    UnrecognizedDatabaseError,
    UnsupportedSQLiteError,
)
from mandrake_sessions.database import sqlite_library
from mandrake_sessions.database.connection import settings as settings_module
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.settings import lost_settings
from mandrake_sessions.database.files.paths import real_path, set_aside
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.testing import FaultVFS, failure

ROOT = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere"
)
MakePool = Callable[..., ConnectionPool]


def both_connections(handle: FileHandle) -> list[tuple[str, apsw.Connection]]:
    keys(handle)  # opens the auxiliary one
    main, auxiliary = file_of(handle).leased_connections()
    return [("main", main.connection.raw), ("auxiliary", auxiliary.connection.raw)]


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("foreign_keys", 1),
        ("wal_autocheckpoint", 0),
        ("journal_size_limit", 64 * 1024 * 1024),
        ("trusted_schema", 0),
        ("cache_size", -8 * 1024),
    ],
)
def test_both_connections_have_the_pragma(handle: FileHandle, pragma: str, value: object) -> None:
    for name, raw in both_connections(handle):
        assert raw.pragma(pragma) == value, name


def test_nothing_is_mapped_into_memory(handle: FileHandle) -> None:
    for name, raw in both_connections(handle):
        assert raw.pragma("mmap_size") in (0, None), name


@pytest.mark.parametrize(("durability", "value"), [(Durability.FAST, 1), (Durability.DURABLE, 2)])
def test_synchronous_is_what_the_durability_names(
    make_pool: MakePool, path: Path, durability: Durability, value: int
) -> None:
    pool = make_pool(database={"durability": durability})
    with file_handle(pool.acquire(path)) as handle:
        for name, raw in both_connections(handle):
            assert raw.pragma("synchronous") == value, name


def test_durable_is_the_default() -> None:
    assert DatabaseOptions().durability is Durability.DURABLE


def test_double_quoted_strings_are_off(handle: FileHandle) -> None:
    for _, raw in both_connections(handle):
        with pytest.raises(apsw.SQLError):
            raw.execute('SELECT "a text"')
        assert raw.config(apsw.SQLITE_DBCONFIG_DQS_DML, -1) == 0
        assert raw.config(apsw.SQLITE_DBCONFIG_DQS_DDL, -1) == 0


def test_only_the_auxiliary_connection_cannot_write(handle: FileHandle) -> None:
    (_, main), (_, auxiliary) = both_connections(handle)
    assert main.pragma("query_only") == 0
    assert auxiliary.pragma("query_only") == 1
    with pytest.raises(apsw.ReadOnlyError):
        auxiliary.execute("DELETE FROM meta")


def test_the_busy_handler_of_the_library_waits_on_both_connections(handle: FileHandle) -> None:
    keys(handle)
    for leased in file_of(handle).leased_connections():
        leased.connection.deadline = 0.0
        assert not leased.connection.on_busy(0)


@pytest.mark.parametrize("pragma", ["synchronous", "wal_autocheckpoint", "mmap_size"])
def test_a_setting_that_is_not_accepted_fails_the_opening(
    pool: ConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch, pragma: str
) -> None:
    really_set, setting = settings_module._set_pragma, settings_module._setting

    def deaf(connection: Connection, name: str, wanted: int) -> int:
        return 17 if name == pragma else really_set(connection, name, wanted)

    def deaf_setting(name: str, wanted: int) -> str:
        return "SELECT 17;" if name == pragma else setting(name, wanted)

    monkeypatch.setattr(settings_module, "_set_pragma", deaf)
    monkeypatch.setattr(settings_module, "_setting", deaf_setting)
    uncached = settings_module._all_settings.__wrapped__
    monkeypatch.setattr(settings_module, "_all_settings", uncached)
    with pytest.raises(DatabaseOpenError, match=pragma):
        pool.acquire(path)
    assert open_connections(path) == 0


def test_a_lost_setting_is_named(handle: FileHandle) -> None:
    connection = file_of(handle).writer.connection
    options = file_of(handle).options
    assert lost_settings(connection, options, auxiliary=False) == []
    connection.raw.pragma("synchronous", 0)
    connection.raw.pragma("foreign_keys", 0)
    assert lost_settings(connection, options, auxiliary=False) == ["synchronous", "foreign_keys"]


@pytest.mark.parametrize(
    "spelling",
    [
        "folder/db.sqlite",
        "folder/.hidden/db.sqlite",
        "folder/none/db.sqlite",
        "folder/file/db.sqlite",
        "folder//db.sqlite",
        "folder/./db.sqlite",
        "folder/../db.sqlite",
        "folder/..",
        "folder/",
        "link/db.sqlite",
        "link/../db.sqlite",
        "folder/none/../db.sqlite",
        "folder/link.sqlite",
        "link/none/db.sqlite",
    ],
)
def test_a_path_has_the_real_path_that_the_system_gives_it(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "folder" / ".hidden").mkdir(parents=True)
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "inner")
    (tmp_path / "folder" / "link.sqlite").symlink_to(tmp_path / "elsewhere" / "none.sqlite")
    for begins in (f"{tmp_path}/", f"/{tmp_path}/"):
        assert real_path(begins + spelling) == Path(os.path.realpath(begins + spelling))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_new_files_and_folders_are_private(
    pool: ConnectionPool, tmp_path: Path, umask: int
) -> None:
    path = tmp_path / "one" / "two" / "db.sqlite"
    before = os.umask(umask)
    try:
        with file_handle(pool.acquire(path)) as handle:
            handle.transact(adding("a"))
            keys(handle)
            files = sorted(each.name for each in path.parent.iterdir())
            assert files == ["db.sqlite", "db.sqlite-shm", "db.sqlite-wal"]
            modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path.parents[1])} == {0o700}


def test_an_existing_file_keeps_its_mode(pool: ConnectionPool, path: Path) -> None:
    path.touch(0o640)
    path.chmod(0o640)
    pool.acquire(path).release()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_closed_database_is_one_file(pool: ConnectionPool, path: Path) -> None:
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
        keys(handle)
    assert [each.name for each in path.parent.iterdir()] == ["db.sqlite"]


# -- the SQLite itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("3.6.23", True),
        ("3.7.0", False),
        ("3.44.5", False),
        ("3.44.6", True),
        ("3.44.9", True),
        ("3.45.6", False),
        ("3.46.1", False),
        ("3.49.2", False),
        ("3.50.6", False),
        ("3.50.7", True),
        ("3.50.12", True),
        ("3.51.0", False),
        ("3.51.2", False),
        ("3.51.3", True),
        ("3.52.0", True),
        ("3.54.1", True),
        ("4.0.0", True),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(version: str, safe: bool) -> None:
    assert sqlite_library.is_safe_sqlite(version) is safe


def test_an_unsafe_sqlite_opens_nothing(
    pool: ConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.acquire(path).release()
    before = path.read_bytes()
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(UnsupportedSQLiteError, match=r"3\.51\.2"):
        pool.acquire(path)
    assert path.read_bytes() == before


# -- one name ---------------------------------------------------------------------------------


@pytest.fixture
def spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    (home / "name").symlink_to(home / "db.sqlite")
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    return {
        "absolute": str(home / "db.sqlite"),
        "relative": "db.sqlite",
        "dot": "./db.sqlite",
        "dot-dot": "folder/../db.sqlite",
        "slashes": f"{home}//db.sqlite",
        "link to the folder": str(tmp_path / "link" / "db.sqlite"),
        "link to the file": str(home / "name"),
        "home": "~/db.sqlite",
    }


def test_every_spelling_of_a_path_is_the_same_database(
    pool: ConnectionPool, spellings: dict[str, str]
) -> None:
    handles = [pool.acquire(spelling) for spelling in spellings.values()]
    assert len({id(file_of(handle)) for handle in handles}) == 1
    assert len({handle.path for handle in handles}) == 1
    assert open_connections(handles[0].path) == 1
    for handle in handles:
        handle.release()


def test_a_link_to_nothing_names_the_file_it_points_at(
    pool: ConnectionPool, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pool.acquire(tmp_path / "link") as handle:
        assert handle.path == tmp_path / "target"
    assert (tmp_path / "link").is_symlink()


def test_dot_dot_behind_a_link_means_what_the_system_means(tmp_path: Path) -> None:
    """``link/..`` is the folder above the link's target, for every program but a naive one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "deep")
    (tmp_path / "there" / "db.sqlite").touch()
    spelled = f"{tmp_path}/here/link/../db.sqlite"
    assert os.stat(spelled).st_ino == (tmp_path / "there" / "db.sqlite").stat().st_ino
    assert real_path(spelled) == tmp_path / "there" / "db.sqlite"


def test_a_hard_link_to_an_open_file_is_refused(
    pool: ConnectionPool, path: Path, tmp_path: Path
) -> None:
    with file_handle(pool.acquire(path)) as handle:
        os.link(path, tmp_path / "other.sqlite")
        with pytest.raises(DatabasePathError, match="another name"):
            pool.acquire(tmp_path / "other.sqlite")
        handle.transact(adding("a"))
    assert not list(tmp_path.glob("other.sqlite-*"))


@pytest.mark.parametrize(
    "path", ["", ":memory:", "file:db.sqlite", "file::memory:?cache=shared", "a\0b"]
)
def test_a_path_that_names_no_file_is_refused(pool: ConnectionPool, path: Any) -> None:
    with pytest.raises(DatabasePathError):
        pool.acquire(path)


@pytest.mark.parametrize("path", [b"db.sqlite", 17, None])
def test_a_path_of_another_type_is_a_bad_argument(pool: ConnectionPool, path: Any) -> None:
    with pytest.raises((InvalidArgumentError, DatabasePathError)):
        pool.acquire(path)


def test_a_loop_of_links_is_no_path(pool: ConnectionPool, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DatabasePathError):
        pool.acquire(tmp_path / "a")


def test_a_name_that_is_too_long_is_no_path(pool: ConnectionPool, tmp_path: Path) -> None:
    with pytest.raises(DatabasePathError):
        pool.acquire(tmp_path / ("x" * 300))


# -- classified before anything is done -------------------------------------------------------


def is_folder(path: Path) -> None:
    path.mkdir()


def is_text(path: Path) -> None:
    path.write_bytes(b"This is a text and not a database. " * 100)


def is_of_another_program(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs(x); PRAGMA application_id = 77")
    connection.close()


def is_torn(path: Path) -> None:
    with ConnectionPool() as pool:
        pool.acquire(path).release()
    whole = path.read_bytes()
    # Page 1 says where the schema goes on; what it says there is garbage.
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))


def has_a_fifo(path: Path) -> None:
    os.mkfifo(path)


BAD_FILES = [
    (is_folder, DatabasePathError),
    (has_a_fifo, DatabasePathError),
    (is_text, NotADatabaseError),
    (is_of_another_program, UnrecognizedDatabaseError),
    (is_torn, CorruptDatabaseError),
]


OPENS = """
import sys
from mandrake_sessions import ConnectionPool, DatabasePathError, SessionManager
path, backup, call = sys.argv[1:]
with ConnectionPool() as pool:
    manager = SessionManager(path, pool=pool, read_only=call == "read")
    try:
        manager.restore(backup, overwrite=True) if call == "restore" else manager.init()
    except DatabasePathError as error:
        print(error.message)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
@pytest.mark.parametrize("call", ["init", "read", "restore"])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_pipe_in_the_place_of_a_sidecar_is_not_opened(
    path: Path, tmp_path: Path, call: str, suffix: str
) -> None:
    with ConnectionPool() as pool, SessionManager(path, pool=pool) as sessions:
        backup = sessions.backup(tmp_path / "backup.sqlite")
    os.mkfifo(f"{path}{suffix}")

    # By itself: SQLite would wait for the pipe's other end, and nothing could interrupt it.
    ended = subprocess.run(
        [sys.executable, "-c", OPENS, path, backup, call],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )

    assert ended.stdout == f"{path.name}{suffix} is no file: remove it.\n"


@pytest.mark.parametrize(("make", "error"), BAD_FILES)
def test_each_kind_of_bad_file_has_its_own_error_and_stays_as_it_is(
    make_pool: MakePool,
    path: Path,
    make: Callable[[Path], None],
    error: type[MandrakeSessionsError],
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    opened = descriptors()
    with pytest.raises(error) as caught:
        make_pool().acquire(path)
    assert type(caught.value) is error
    assert caught.value.path == path  # type: ignore[attr-defined]
    assert (path.read_bytes() if path.is_file() else None) == before
    assert descriptors() == opened
    assert [each.name for each in path.parent.iterdir()] == ["db.sqlite"]


def test_a_file_that_may_not_be_made_is_missing(pool: ConnectionPool, path: Path) -> None:
    with pytest.raises(DatabaseMissingError):
        pool.acquire(path, create=False)
    assert not path.exists()


def test_a_folder_that_is_a_file_has_its_own_error(pool: ConnectionPool, path: Path) -> None:
    path.write_text("")
    with pytest.raises(DatabaseFolderError):
        pool.acquire(path / "db.sqlite")


@ROOT
def test_a_folder_that_cannot_be_written_has_its_own_error(
    pool: ConnectionPool, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir(0o500)
    with pytest.raises(DatabaseFolderError):
        pool.acquire(tmp_path / "closed" / "db.sqlite")


@ROOT
def test_a_file_that_cannot_be_written_has_its_own_error(pool: ConnectionPool, path: Path) -> None:
    pool.acquire(path).release()
    path.chmod(0o400)
    with pytest.raises(ReadOnlyDatabaseError):
        pool.acquire(path)


def test_a_connection_that_turns_out_read_only_is_refused(
    pool: ConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every file can be written: the flags of the opening stand for its mode."""
    pool.acquire(path).release()
    monkeypatch.setattr(apsw, "SQLITE_OPEN_READWRITE", apsw.SQLITE_OPEN_READONLY)
    with pytest.raises(ReadOnlyDatabaseError):
        pool.acquire(path)
    assert open_connections(path) == 0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (apsw.SQLITE_IOERR_READ, DatabaseIOError),
        (apsw.SQLITE_CORRUPT, CorruptDatabaseError),
        (apsw.SQLITE_PERM, ReadOnlyDatabaseError),
    ],
)
def test_an_error_of_the_disk_while_opening_is_a_typed_error(
    pool: ConnectionPool,
    path: Path,
    vfs: FaultVFS,
    code: int,
    error: type[MandrakeSessionsError],
) -> None:
    pool.acquire(path).release()
    before = path.read_bytes()
    with vfs.failing("db", "read", code), pytest.raises(error):
        pool.acquire(path, options=DatabaseOptions(vfs=vfs.name))
    assert open_connections(path) == 0
    assert path.read_bytes() == before
    with pool.acquire(path, options=DatabaseOptions(vfs=vfs.name)) as handle:
        assert keys(handle) == set()


def test_a_disk_that_is_full_while_a_new_file_is_made_has_its_own_error(
    pool: ConnectionPool, path: Path, vfs: FaultVFS
) -> None:
    options = DatabaseOptions(vfs=vfs.name)
    with vfs.failing("wal", "write", apsw.SQLITE_FULL), pytest.raises(StorageFullError) as caught:
        pool.acquire(path, options=options)
    assert caught.value.free_bytes
    assert open_connections(path) == 0
    with pool.acquire(path, options=options) as handle:
        assert keys(handle) == set()


def test_a_vfs_that_does_not_exist_is_an_error_of_opening(pool: ConnectionPool, path: Path) -> None:
    with pytest.raises(DatabaseOpenError):
        pool.acquire(path, options=DatabaseOptions(vfs="no such vfs"))


def test_a_locked_file_is_busy_at_the_deadline(
    make_pool: MakePool, path: Path, start_child: Callable[..., Any]
) -> None:
    make_pool().acquire(path).release()
    child = start_child(
        """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").fetchall()
send("held")
receive()
""",
        path,
    )
    assert child.receive() == "held"
    pool = make_pool(database={"busy_timeout": 0.2})
    error = ends_in_time(lambda: pool.acquire(path), 0.2)[-1]
    assert error.phase == "open"
    assert error.attempts > 1 or error.result_code is not None
    assert open_connections(path) == 0
    patient = make_pool()
    waiting = Task(lambda: patient.acquire(path).release())
    child.send()
    waiting.result()


# -- a failed opening -----------------------------------------------------------------------


@pytest.fixture
def slow_opening(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[Any]]]:
    """Has openings wait for the event, and then do what the list says: raise it, or open."""
    may_go = threading.Event()
    outcomes: list[Any] = []
    really_open = DatabaseFile.open

    def slow(*args: Any) -> DatabaseFile:
        until_set(may_go)
        if outcomes and (error := outcomes.pop(0)) is not None:
            raise error
        return really_open(*args)

    monkeypatch.setattr(DatabaseFile, "open", slow)
    yield may_go, outcomes
    may_go.set()


def slot_of(pool: ConnectionPool, path: Path) -> Any:
    return pool._slots.get(path)


class Waiters:
    """Counts who waits for a slot to change."""

    def __init__(self, pool: ConnectionPool, path: Path) -> None:
        until(lambda: slot_of(pool, path) is not None)
        self._changed = slot_of(pool, path).changed

    @property
    def count(self) -> int:
        return len(self._changed._sleepers)


def test_a_failed_opening_gives_every_waiter_the_same_error(
    pool: ConnectionPool, path: Path, slow_opening: tuple[threading.Event, list[Any]]
) -> None:
    may_go, outcomes = slow_opening
    outcomes.append(StorageFullError(path=path, operation="open", result_code=13))
    tasks = [Task(lambda: pool.acquire(path))]
    waiters = Waiters(pool, path)
    tasks += [Task(lambda: pool.acquire(path)) for _ in range(5)]
    until(lambda: waiters.count == 5)
    may_go.set()
    errors = set()
    for task in tasks:
        with pytest.raises(StorageFullError) as caught:
            task.result()
        assert (caught.value.path, caught.value.result_code) == (path, 13)
        errors.add(id(caught.value))
    assert len(errors) == 6
    pool.acquire(path).release()


def test_a_waiter_makes_the_opening_that_ctrl_c_has_ended(
    pool: ConnectionPool, path: Path, slow_opening: tuple[threading.Event, list[Any]]
) -> None:
    """The interruption is the main thread's: a worker that waited must not die of it."""
    may_go, outcomes = slow_opening
    outcomes.append(KeyboardInterrupt())
    first = Task(lambda: pool.acquire(path))
    waiters = Waiters(pool, path)
    second = Task(lambda: pool.acquire(path))
    until(lambda: waiters.count == 1)
    may_go.set()
    with pytest.raises(KeyboardInterrupt):
        first.result()
    second.result().release()


def test_a_failed_opening_leaves_no_descriptor_and_no_connection(
    pool: ConnectionPool, path: Path, vfs: FaultVFS
) -> None:
    """Fails at the 1st, 6th, 11th … write until opening succeeds."""
    before = descriptors()
    options = DatabaseOptions(vfs=vfs.name, busy_timeout=1.0)
    failures = 0
    fail_at = 1
    while fail_at < 500:
        met = 0

        def nth() -> apsw.Error | None:
            nonlocal met
            met += 1
            # Called in this turn of the loop only.
            return failure(apsw.SQLITE_IOERR_WRITE) if met == fail_at else None  # noqa: B023

        with vfs.watching("wal", "write", nth):
            try:
                handle = pool.acquire(path, options=options)
            except MandrakeSessionsError:
                failures += 1
                fail_at += 5
                gc.collect()
                assert descriptors() == before
                continue
        break
    else:
        pytest.fail("a failed opening leaves the file so that it never opens again")
    assert failures > 5
    handle.release()
    assert descriptors() == before
    with pool.acquire(path) as handle:
        assert keys(handle) == set()
        assert raw_of(handle).pragma("integrity_check") == "ok"


def leave_a_log(path: Path, start_child: Callable[..., Any]) -> bytes:
    """Make a database of which a crash has left the log; return that."""
    child = start_child(
        "import os\n"
        "from mandrake_sessions import SessionManager\n"
        "SessionManager(sys.argv[1]).init().create_session('in the log')\n"
        "send('done')\nreceive()",
        path,
    )
    child.receive()
    child.process.kill()
    child.process.wait()
    return path.with_name(f"{path.name}-wal").read_bytes()


def test_an_emptied_file_with_a_wal_is_not_made_a_new_one(
    pool: ConnectionPool, path: Path, start_child: Callable[..., Any]
) -> None:
    """SQLite takes it for a new database, and deletes the log, with all that is in it."""
    log = leave_a_log(path, start_child)
    os.truncate(path, 0)

    for _ in range(2):
        with pytest.raises(CorruptDatabaseError, match=r"is empty, but db\.sqlite-wal"):
            pool.acquire(path)

    assert path.stat().st_size == 0
    assert path.with_name("db.sqlite-wal").read_bytes() == log


def test_a_file_that_vanishes_while_it_is_opened_leaves_nothing(
    pool: ConnectionPool, path: Path
) -> None:
    pool.acquire(path).release()

    def unlink(_connection: object) -> None:
        path.unlink(missing_ok=True)

    apsw.connection_hooks.append(unlink)
    try:
        with pytest.raises(DatabaseMovedError):
            pool.acquire(path)
    finally:
        apsw.connection_hooks.remove(unlink)
    assert list(path.parent.iterdir()) == []


def test_the_wal_of_a_file_that_vanished_is_kept(
    pool: ConnectionPool, path: Path, start_child: Callable[..., Any]
) -> None:
    log = leave_a_log(path, start_child)
    path.unlink()

    with capture_logs() as logs, pool.acquire(path) as handle:
        assert keys(handle) == set()

    (event,) = [each for each in logs if each["event"] == "database_log_set_aside"]
    assert Path(event["log"]).read_bytes() == log
    assert event["path"] == str(path)


def test_a_new_file_is_whole_while_a_process_has_the_moved_one_open(
    pool: ConnectionPool, path: Path, start_child: Callable[..., Any]
) -> None:
    """The index of the moved one has the new one's name: read as its own, it says "damaged"."""
    child = start_child(
        "from mandrake_sessions import SessionManager\n"
        "manager = SessionManager(sys.argv[1]).init()\n"
        "manager.create_session('of the moved one')\n"
        "send('open')\nreceive()\n"
        "manager.close()\nsend('closed')",
        path,
    )
    child.receive()
    moved = path.rename(path.with_name("moved.sqlite"))

    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("new"))
        child.send("close")
        child.receive()
        handle.transact(adding("later"))
        assert keys(handle) == {"new", "later"}
        assert handle.health(HealthLevel.THOROUGH).is_usable
    with SessionManager(moved, pool=pool) as manager:
        assert [each.title for each in manager.list_sessions()] == ["of the moved one"]


def test_a_wal_that_another_process_takes_first_belongs_to_it(path: Path) -> None:
    log = path.with_name("db.sqlite-wal")
    assert not set_aside(log, path)
    log.write_bytes(b"")
    assert not set_aside(log, path)
    assert not log.exists()
    log.write_bytes(b"frames")
    assert set_aside(log, path)
    assert path.read_bytes() == b"frames"


@pytest.mark.skipif(sys.platform == "win32", reason="this system cannot sync a folder")
def test_the_names_of_new_folders_are_synced(
    tmp_path: Path, start_child: Callable[..., Any]
) -> None:
    """SQLite syncs the folder of its files; a power cut could take that folder from its own."""
    child = start_child(
        """
opened = []
sys.addaudithook(
    lambda event, given: opened.append(str(given[0])) if event == "open" else None
)
from pathlib import Path
from mandrake_sessions.database.files.creation import make_file
make_file(Path(sys.argv[1], "a", "b", "db.sqlite"))
mine = (sys.argv[1], "db")
send([each.removeprefix(sys.argv[1]) for each in opened if each.startswith(mine)])
""",
        tmp_path,
    )
    # The last folder is opened for its lock; what SQLite syncs is its own.
    assert child.receive() == ["/a/b", "db.sqlite", "", "/a"]
    child.finish()
