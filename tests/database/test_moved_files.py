"""Files that are renamed while several processes have them open, and new ones of their names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from database_kit import Task, file_of
from kits.entries import add, adding, keys
from kits.waiting import until

from mandrake_sessions import ConnectionPool, DatabaseMovedError
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.files import creation
from mandrake_sessions.database.migrations.head import bring_to_head
from mandrake_sessions.database.open_file import file
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.retry import pause
from mandrake_sessions.engine.budget import Budget

PAUSED_MAKER = """
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from mandrake_sessions import ConnectionPool
from mandrake_sessions.database.files import creation
clear = creation.clear_name
def pausing(path):
    send("looked")
    receive()
    clear(path)
creation.clear_name = pausing
pool = ConnectionPool()
handle = pool.acquire(sys.argv[1])
send("made")
receive()
"""
WRITER = """
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from mandrake_sessions import ConnectionPool
from mandrake_sessions.engine.statement import Statement
ADD = Statement("ADD", "INSERT INTO meta (key, value) VALUES (?, '')", ("key",))
pool = ConnectionPool()
handle = pool.acquire(sys.argv[1])
handle.transact(lambda tx: tx.run_all([(ADD, ("theirs",))]))
send("written")
receive()
with handle.write() as tx:
    tx.run_all([(ADD, ("begun before",))])
    send("begun")
    receive()
send("committed")
receive()
handle.release()
pool.close()
"""


def logs_beside(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir() if each.name.startswith(f"{path.name}-")}


def test_processes_that_make_one_file_do_not_take_its_wal_from_each_other(
    monkeypatch: pytest.MonkeyPatch,
    pool: ConnectionPool,
    path: Path,
    start_child: Callable[..., Any],
) -> None:
    """The sidecars of a name are removed before there is a file, by one process at a time."""
    monkeypatch.setattr(creation, "PATIENCE", 60.0)
    path.with_name("db.sqlite-wal").write_bytes(b"of a file that is gone")
    child = start_child(PAUSED_MAKER, path)
    assert child.receive() == "looked"
    met_lock = threading.Event()

    def pausing(until: float, seconds: float) -> bool:
        met_lock.set()
        return pause(until, seconds)

    monkeypatch.setattr(creation, "pause", pausing)
    task = Task(lambda: pool.acquire(path))
    assert met_lock.wait(60)
    assert not path.exists()
    child.send()
    assert child.receive() == "made"
    with task.result() as handle:
        handle.transact(adding("ours"))
        child.process.kill()
        child.process.wait()
        assert keys(handle) == {"ours"}
        assert not file_of(handle).logs.lost()


def test_a_stopped_maker_of_a_file_does_not_keep_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
    pool: ConnectionPool,
    path: Path,
    start_child: Callable[..., Any],
) -> None:
    monkeypatch.setattr(creation, "PATIENCE", 0.05)
    child = start_child(PAUSED_MAKER, path)
    assert child.receive() == "looked"
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("ours"))
        assert keys(handle) == {"ours"}


def test_a_file_that_is_renamed_while_it_is_made_leaves_the_new_one_its_wal(
    monkeypatch: pytest.MonkeyPatch,
    pool: ConnectionPool,
    path: Path,
    start_child: Callable[..., Any],
) -> None:
    children = []

    def renamed_after(connection: Connection, budget: Budget) -> None:
        bring_to_head(connection, budget)
        path.rename(path.with_name("moved.sqlite"))
        children.append(start_child(WRITER, path))
        assert children[0].receive() == "written"

    monkeypatch.setattr(file, "bring_to_head", renamed_after)
    with pytest.raises(DatabaseMovedError):
        pool.acquire(path)
    monkeypatch.undo()
    assert {"db.sqlite-wal", "db.sqlite-shm"} <= logs_beside(path)
    children[0].process.kill()
    children[0].process.wait()
    with pool.acquire(path) as handle:
        assert keys(handle) == {"theirs"}


@pytest.mark.parametrize("ends", ["commit", "kill"])
def test_work_that_another_process_has_begun_in_a_moved_file_is_not_lost(
    pool: ConnectionPool, path: Path, start_child: Callable[..., Any], ends: str
) -> None:
    with file_handle(pool.acquire(path)) as handle:
        child = start_child(WRITER, path)
        assert child.receive() == "written"
        child.send()
        assert child.receive() == "begun"
        moved = path.rename(path.with_name("moved.sqlite"))
        with pytest.raises(DatabaseMovedError):
            handle.query(lambda tx: None)
        # Ours ends meanwhile: it copies the log, and waits for theirs.
        main = file_of(handle).writer.connection
        until(lambda: main.busy_waits > 0)
        child.send()
        assert child.receive() == "committed"
        if ends == "commit":
            child.send()
        else:
            child.process.kill()
        child.process.wait()
    until(lambda: file_of(handle).state is FileState.CLOSED)
    with file_handle(pool.acquire(moved)) as handle:
        assert keys(handle) == {"theirs", "begun before"}
    assert not logs_beside(path)


@pytest.mark.parametrize("in_its_place", ["nothing", "an empty file", "a folder"])
def test_the_first_read_finds_out_that_the_file_was_moved(
    handle: FileHandle, ready_path: Path, pool: ConnectionPool, in_its_place: str
) -> None:
    handle.transact(adding("kept"))
    moved = ready_path.rename(ready_path.with_name("moved.sqlite"))
    if in_its_place == "an empty file":
        ready_path.touch()
    elif in_its_place == "a folder":
        ready_path.mkdir()
    # Its connection is opened now, by name.
    assert not file_of(handle).has_auxiliary
    with pytest.raises(DatabaseMovedError):
        handle.query(lambda tx: None)
    until(lambda: file_of(handle).state is FileState.CLOSED)
    with pool.acquire(moved) as found:
        assert keys(found) == {"kept"}


def test_files_that_have_swapped_their_names_open_at_once(
    pool: ConnectionPool, tmp_path: Path
) -> None:
    paths = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    handles = [file_handle(pool.acquire(each)) for each in paths]
    for handle, each in zip(handles, paths, strict=True):
        handle.transact(adding(f"made as {each.stem}"))
    between = paths[0].rename(tmp_path / "between")
    paths[1].rename(paths[0])
    between.rename(paths[1])
    with pytest.raises(DatabaseMovedError), handles[0].write() as tx:
        add(tx, "lost")
    # No check has noticed the other one, which has the name of this one's file.
    with file_handle(pool.acquire(paths[0])) as handle:
        assert keys(handle) == {"made as b"}
    with file_handle(pool.acquire(paths[1])) as handle:
        assert keys(handle) == {"made as a"}
    for handle in handles:
        handle.release()
