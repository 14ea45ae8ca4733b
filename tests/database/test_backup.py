"""Backups: a copy that stands by itself, or none, and the target as it was."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from database_kit import Task
from kits.entries import add, keys
from kits.waiting import until_set

from mandrake_sessions.database.connection import backup as module
from mandrake_sessions.database.connection.backup import backup
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import real_path
from mandrake_sessions.database.migrations import head
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    BackupError,
    DatabaseBusyError,
    DatabaseMissingError,
    PoolClosedError,
    StorageFullError,
)
from mandrake_sessions.options import DatabaseOptions

Open = Callable[..., Connection]
NOTE = "INSERT INTO notes (text) VALUES (?)"


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Open]:
    """Opens a connection to ``tmp_path/name`` and closes it in the end."""
    opened = []

    def open_it(name: str = "db.sqlite", *, auxiliary: bool = False) -> Connection:
        path = real_path(tmp_path / name)
        connection = open_connection(
            path, make_file(path), DatabaseOptions(), Budget(10), auxiliary=auxiliary
        )
        opened.append(connection)
        return connection

    yield open_it
    for connection in opened:
        connection.close()


@pytest.fixture
def writer(ready_path: Path, open_file: Open) -> Connection:
    """The read-write connection of a database with 40 rows of 4 kB."""
    connection = open_file(ready_path.name)
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    for _ in range(40):
        connection.execute(NOTE, ("x" * 4000,))
    return connection


@pytest.fixture
def source(writer: Connection, open_file: Open) -> Connection:
    """The auxiliary connection of that database."""
    return open_file(auxiliary=True)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "copy.sqlite"


def rows(path: Path) -> int:
    raw = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return len(raw.execute("SELECT id FROM notes").fetchall())
    finally:
        raw.close()


def names(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


# -- the copy -----------------------------------------------------------------------------------


def test_a_copy_needs_no_other_file(source: Connection, target: Path) -> None:
    assert backup(source, target, Budget(10)) == target

    assert names(target) == [target.name]
    assert rows(target) == 40
    assert verify(target) == []
    # Nor does reading it leave another file.
    assert names(target) == [target.name]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not source.in_transaction()


def test_the_copy_is_not_in_wal_mode(source: Connection, target: Path) -> None:
    backup(source, target, Budget(10))

    raw = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READONLY)
    assert raw.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
    raw.close()


def test_the_copy_can_be_opened_as_a_database(
    source: Connection, open_file: Open, target: Path
) -> None:
    backup(source, target, Budget(10))

    copy = open_file("copies/copy.sqlite")
    assert head.is_at_head(copy)
    stamp = "SELECT value FROM meta WHERE key = 'stamp'"
    assert copy.value(stamp) == source.value(stamp)


def test_a_backup_copies_what_is_in_the_wal(
    writer: Connection, source: Connection, target: Path
) -> None:
    assert source.wal_backlog()[0] > 0

    backup(source, target, Budget(10))

    assert rows(target) == 40


def test_writers_go_on_and_the_copy_has_the_state_of_its_beginning(
    writer: Connection, source: Connection, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit after every step: unguarded, SQLite began again 300 times and never ended."""
    monkeypatch.setattr(module, "_PAGES_PER_STEP", 5)
    calls: list[tuple[int, int]] = []

    def commit_meanwhile(done: int, total: int) -> None:
        calls.append((done, total))
        writer.execute(NOTE, ("meanwhile",))

    backup(source, target, Budget(10), progress=commit_meanwhile)

    totals = {total for _, total in calls}
    assert len(totals) == 1
    assert [done for done, _ in calls[:-1]] == list(range(5, totals.pop(), 5))[: len(calls) - 1]
    assert calls[-1][0] == calls[-1][1]
    assert len(calls) > 5
    assert rows(target) == 40
    assert writer.value("SELECT count(*) FROM notes") == 40 + len(calls)


def test_a_backup_ends_though_another_process_writes_all_the_time(
    writer: Connection, source: Connection, target: Path
) -> None:
    code = f"""
import sys, apsw
raw = apsw.Connection({str(writer.path)!r})
raw.set_busy_timeout(10_000)
print("ready", flush=True)
while True:
    raw.execute("INSERT INTO notes (text) VALUES (randomblob(2000))")
    print("one", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.stdout.readline() == b"one\n"

        def wait_for_a_commit(done: int, total: int) -> None:
            assert process.stdout is not None
            assert process.stdout.readline() == b"one\n"

        try:
            backup(source, target, Budget(20), progress=wait_for_a_commit)
        finally:
            process.kill()

    assert verify(target) == []
    assert rows(target) >= 41


# -- the target ---------------------------------------------------------------------------------


def test_an_existing_target_is_refused(source: Connection, target: Path) -> None:
    target.write_bytes(b"somebody's")

    with pytest.raises(BackupError, match="exists"):
        backup(source, target, Budget(10))

    assert target.read_bytes() == b"somebody's"
    assert names(target) == [target.name]


def test_an_existing_target_is_replaced_on_request(source: Connection, target: Path) -> None:
    target.write_bytes(b"somebody's")

    backup(source, target, Budget(10), overwrite=True)

    assert rows(target) == 40
    assert names(target) == [target.name]


def test_a_target_that_appears_meanwhile_is_not_replaced(source: Connection, target: Path) -> None:
    with pytest.raises(BackupError, match="exists"):
        backup(source, target, Budget(10), progress=lambda *_: target.touch())

    assert target.read_bytes() == b""
    assert names(target) == [target.name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_database_itself_is_refused(
    writer: Connection, source: Connection, tmp_path: Path, overwrite: bool
) -> None:
    symlink, hard_link = tmp_path / "symlink", tmp_path / "hard-link"
    symlink.symlink_to(writer.path)
    os.link(writer.path, hard_link)

    for same in (writer.path, symlink, hard_link, tmp_path / "x" / ".." / "db.sqlite"):
        with pytest.raises(BackupError, match="itself"):
            backup(source, same, Budget(10), overwrite=overwrite)

    assert writer.value("SELECT count(*) FROM notes") == 40


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_target_that_has_a_wal_is_refused(source: Connection, target: Path, suffix: str) -> None:
    """SQLite would replay what another database left there into the copy."""
    target.write_bytes(b"")
    log = Path(f"{target}{suffix}")
    log.write_bytes(b"")

    with pytest.raises(BackupError, match=suffix):
        backup(source, target, Budget(10), overwrite=True)

    assert names(target) == sorted([target.name, log.name])


@pytest.mark.parametrize("path", ["", ":memory:", "file:x.sqlite", "."])
def test_a_target_that_names_no_file_is_refused(source: Connection, path: str) -> None:
    with pytest.raises(BackupError):
        backup(source, path, Budget(10))


def test_a_missing_folder_is_refused(source: Connection, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "copy.sqlite"
    with pytest.raises(BackupError, match="The target's folder") as caught:
        backup(source, missing, Budget(10))

    assert caught.value.path == missing
    assert not (tmp_path / "nowhere").exists()


KILLED = """
import os, signal, sys
from mandrake_sessions import SessionManager
from mandrake_sessions.database.connection import backup
backup.verify = lambda *_: print("copied", flush=True) or sys.stdin.read()
with SessionManager(sys.argv[1]) as sessions:
    sessions.backup(sys.argv[2])
"""


def test_the_next_backup_removes_what_a_killed_one_has_left(
    source: Connection, target: Path
) -> None:
    """And what another one is making at the moment stays."""

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", KILLED, str(target.with_name("db.sqlite")), str(target)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with start() as killed, start() as living:
        for process in (killed, living):
            assert process.stdout is not None
            assert process.stdout.readline() == b"copied\n"
        killed.kill()
        killed.wait()
        before = set(names(target))

        backup(source, target, Budget(10))

        after = set(names(target))
        living.kill()
    gone = {each for each in before - after if ".partial-" in each}
    left = {each for each in after if ".partial-" in each}
    assert len(gone) == 2
    assert len(left) == 2
    assert rows(target) == 40


# -- failures -----------------------------------------------------------------------------------


def test_a_backup_without_time_left_leaves_nothing(source: Connection, target: Path) -> None:
    target.write_bytes(b"as it was")

    with pytest.raises(BackupError) as caught:
        backup(source, target, Budget(0), overwrite=True)

    assert isinstance(caught.value.__cause__, DatabaseBusyError)
    assert target.read_bytes() == b"as it was"
    assert names(target) == [target.name]
    assert not source.in_transaction()


def test_an_error_of_the_callback_stops_a_backup(source: Connection, target: Path) -> None:
    def stop(done: int, total: int) -> None:
        # The copy, and the claim of its maker.
        copy, claim = names(target)
        assert claim.startswith(f"{copy}-owner-")
        assert stat.S_IMODE((target.parent / copy).stat().st_mode) == 0o600
        raise KeyError("enough")

    with pytest.raises(KeyError):
        backup(source, target, Budget(10), progress=stop)

    assert names(target) == []
    assert not source.in_transaction()


def test_a_connection_that_is_closed_meanwhile_stops_its_backup(
    source: Connection, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGES_PER_STEP", 1)

    with pytest.raises(PoolClosedError):
        backup(source, target, Budget(10), progress=lambda *_: source.cancel())

    assert names(target) == []


def test_a_damaged_database_gives_no_copy(
    writer: Connection, source: Connection, target: Path
) -> None:
    writer.execute("PRAGMA writable_schema = on")
    writer.execute("CREATE INDEX by_text ON notes (text)")
    # An index that does not have what the table has.
    writer.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, '(text)', '(id)') WHERE name = 'by_text'"
    )

    with pytest.raises(BackupError, match="damaged"):
        backup(source, target, Budget(10))

    assert names(target) == []


def test_a_copy_with_orphans_is_refused(
    writer: Connection, source: Connection, target: Path
) -> None:
    writer.raw.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0)
    writer.execute("INSERT INTO turn_chunks VALUES ('unknown', 1, '', '')")

    with pytest.raises(BackupError, match="turn_chunks"):
        backup(source, target, Budget(10))

    assert names(target) == []


def handle_of(path: Path, pool: ConnectionPool) -> FileHandle:
    handle = file_handle(pool.acquire(path))
    with handle.write() as tx:
        add(tx, "a key")
    return handle


def test_readers_do_not_wait_for_the_checks(
    tmp_path: Path, make_pool: Callable[..., ConnectionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the auxiliary connection is given back when the copying ends.

    ::

        backup   lease ─ copy ─ give back ─ checks ............... rename
        reader                              long read ─ done
    """
    checking, may_end = threading.Event(), threading.Event()

    def slow(*given: Any) -> list[str]:
        checking.set()
        until_set(may_end)
        return verify(*given)

    monkeypatch.setattr(module, "verify", slow)
    with handle_of(tmp_path / "db.sqlite", make_pool()) as handle:
        copying = Task(lambda: handle.backup(tmp_path / "copy.sqlite"))
        until_set(checking)

        assert keys(handle) == {"a key"}

        may_end.set()
        assert copying.result() == tmp_path / "copy.sqlite"


@pytest.mark.parametrize("ends", ["closing", "timeout"])
def test_a_timeout_or_a_closing_ends_the_checks_of_a_copy(
    tmp_path: Path,
    make_pool: Callable[..., ConnectionPool],
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:
    checking = threading.Event()

    def endless(_path: Path, stop: Callable[[], bool], *_: object) -> list[str]:
        raw = apsw.Connection(":memory:")
        raw.set_progress_handler(stop, 1000)
        checking.set()
        raw.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        ).fetchall()
        return []

    monkeypatch.setattr(module, "verify", endless)
    pool = make_pool()
    handle = handle_of(tmp_path / "db.sqlite", pool)
    timeout = 0.2 if ends == "timeout" else None
    copying = Task(lambda: handle.backup(tmp_path / "copy.sqlite", timeout=timeout))
    until_set(checking)
    if ends == "closing":
        pool.close(timeout=5)
    with pytest.raises(PoolClosedError if ends == "closing" else BackupError):
        copying.result()

    assert not [each for each in os.listdir(tmp_path) if "copy" in each]
    handle.release()


class FullDisk(apsw.VFS):
    """A file system on which a copy finds no space."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return FullDiskFile("", name, flags)


class FullDiskFile(apsw.VFSFile):
    def __init__(self, vfs: str, name: apsw.URIFilename | str | None, flags: list[int]) -> None:
        path = name if isinstance(name, str) or name is None else name.filename()
        self.is_copy = ".partial-" in (path or "")
        super().__init__(vfs, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self.is_copy:
            raise apsw.exception_for(apsw.SQLITE_FULL)
        super().xWrite(data, offset)


def test_a_full_disk_leaves_nothing_behind(writer: Connection, target: Path) -> None:
    vfs = FullDisk("full-disk")
    source = open_connection(
        writer.path, writer.identity, DatabaseOptions(vfs="full-disk"), Budget(10), auxiliary=True
    )

    with pytest.raises(BackupError) as caught:
        backup(source, target, Budget(10))

    source.close()
    vfs.unregister()
    assert isinstance(caught.value.__cause__, StorageFullError)
    assert caught.value.result_code == apsw.SQLITE_FULL
    assert names(target) == []


def test_a_source_in_a_transaction_is_refused(source: Connection, target: Path) -> None:
    source.deadline = monotonic() + 10
    source.execute("BEGIN")

    with pytest.raises(BackupError):
        backup(source, target, Budget(10))

    # It was not ours to end.
    assert source.raw.in_transaction
    assert names(target) == []
    source.execute("ROLLBACK")


# -- verify -------------------------------------------------------------------------------------


def test_verify_finds_a_damaged_page(source: Connection, target: Path) -> None:
    backup(source, target, Budget(10))
    data = bytearray(target.read_bytes())
    data[4096 * 3 : 4096 * 4] = os.urandom(4096)
    target.write_bytes(data)

    assert verify(target)
    assert bytearray(target.read_bytes()) == data


def test_verify_refuses_a_file_that_is_no_database(target: Path) -> None:
    target.write_bytes(b"certainly not a database" * 1000)

    assert verify(target)


def test_verify_names_a_row_without_an_id(target: Path) -> None:
    with contextlib.closing(apsw.Connection(str(target))) as raw:
        raw.execute("CREATE TABLE parents (id TEXT PRIMARY KEY) WITHOUT ROWID")
        raw.execute(
            "CREATE TABLE children (id TEXT PRIMARY KEY, parent TEXT REFERENCES parents)"
            " WITHOUT ROWID"
        )
        raw.execute("INSERT INTO children VALUES ('a', 'gone')")

    assert verify(target) == ["a row of children refers to a missing row of parents"]


def test_verify_wants_a_file(target: Path) -> None:
    with pytest.raises(DatabaseMissingError):
        verify(target)

    assert names(target) == []


def test_verify_reads_the_log_a_crash_has_left(
    writer: Connection, source: Connection, target: Path
) -> None:
    """All of it is in the -wal yet: without that the file would be empty, or damaged."""
    source.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
    writer.raw.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0)
    writer.execute("INSERT INTO turn_chunks VALUES ('unknown', 1, '', '')")
    path = writer.path
    writer.close(abandon=True)
    source.close(abandon=True)

    assert [problem for problem in verify(path) if "turn_chunks" in problem]
    assert Path(f"{path}-wal").stat().st_size > 0
