"""A live connection does not notice a dead file: the lease does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_kit import Held, Task, file_of, queued, raw_of
from kernel_locks import own_lock_lines
from kits.descriptors import descriptors, open_connections
from kits.entries import add, adding, keys
from kits.waiting import PATIENCE, SOON, until
from structlog.testing import capture_logs

from mandrake_sessions import ConnectionPool, DatabaseMovedError, PoolClosedError
from mandrake_sessions.concurrency.callers import caller_outside
from mandrake_sessions.database import sqlite_library
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle

MakePool = Callable[..., ConnectionPool]


def unlink(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed.sqlite"))


def replace(path: Path) -> None:
    other = path.with_name("other.sqlite")
    with ConnectionPool() as pool, file_handle(pool.acquire(other)) as handle:
        handle.transact(adding("other's"))
    os.replace(other, path)


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("renamed"))


WAYS = [unlink, rename, replace, move_the_folder]


@pytest.fixture
def path(tmp_path: Path, ready_database: Any) -> Path:
    path: Path = ready_database.lay(tmp_path / "folder" / "db.sqlite")
    return path


def calls(handle: FileHandle) -> dict[str, Callable[[], object]]:
    def write() -> None:
        with handle.write() as tx:
            add(tx, "lost")

    def lent(read_only: bool) -> None:
        with handle.sqlalchemy(read_only=read_only):
            pass

    return {
        "transact": lambda: handle.transact(adding("lost")),
        "write": write,
        "fetch": lambda: handle.fetch(lambda tx: None),
        "query": lambda: keys(handle),
        "sqlalchemy": lambda: lent(False),
        "sqlalchemy read": lambda: lent(True),
    }


@pytest.mark.parametrize("call", ["transact", "write", "fetch", "query", "sqlalchemy"])
@pytest.mark.parametrize("move", WAYS)
def test_the_next_lease_notices_a_moved_file(
    make_pool: MakePool, path: Path, move: Callable[[Path], None], call: str
) -> None:
    pool = make_pool()
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("ours"))
        keys(handle)
        move(path)
        with pytest.raises(DatabaseMovedError) as caught:
            calls(handle)[call]()
        assert caught.value.path == path
        # The generation is retired, for every way to use it.
        for each in calls(handle).values():
            with pytest.raises(DatabaseMovedError):
                each()


@pytest.mark.parametrize("move", WAYS)
def test_the_next_acquire_opens_the_file_that_is_there_then(
    make_pool: MakePool, path: Path, tmp_path: Path, move: Callable[[Path], None]
) -> None:
    """Nothing of the old file is written into the new one, nor is its -wal removed."""
    pool = make_pool()
    old = file_handle(pool.acquire(path))
    old.transact(adding("ours"))
    keys(old)
    move(path)
    with pytest.raises(DatabaseMovedError):
        old.transact(adding("lost"))
    with file_handle(pool.acquire(path)) as new:
        assert file_of(new) is not file_of(old)
        found = keys(new)
        assert found == ({"other's"} if move is replace else found & {"ours"})
        new.transact(adding("new"))
        wal = path.with_name("db.sqlite-wal")
        assert wal.exists()
        size = wal.stat()
        # Closes the old generation.
        old.release()
        assert (wal.stat().st_ino, wal.stat().st_size) == (size.st_ino, size.st_size)
        new.transact(adding("newer"))
        assert keys(new) == found | {"new", "newer"}
        assert open_connections(path) == 2
    with make_pool().acquire(path) as again:
        assert keys(again) == found | {"new", "newer"}
        assert raw_of(again).pragma("integrity_check") == "ok"
    assert [each for each in descriptors() if str(tmp_path) in each] == []


@pytest.mark.parametrize("move", WAYS)
def test_an_acquire_alone_notices_a_moved_file(
    make_pool: MakePool, path: Path, move: Callable[[Path], None]
) -> None:
    pool = make_pool()
    with file_handle(pool.acquire(path)) as old:
        move(path)
        with file_handle(pool.acquire(path)) as new:
            assert file_of(new) is not file_of(old)
            new.transact(adding("new"))
        # Closed by now, or about to be.
        with pytest.raises((DatabaseMovedError, PoolClosedError)):
            old.transact(adding("lost"))


def test_a_lingering_file_that_was_moved_is_not_handed_out(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(linger=3600.0)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("ours"))
    replace(path)
    with pool.acquire(path) as handle:
        assert keys(handle) == {"other's"}


def test_a_thread_that_waits_when_a_move_is_noticed_gets_the_error_too(
    make_pool: MakePool, path: Path
) -> None:
    with file_handle(make_pool().acquire(path)) as handle, Held(handle) as held:
        tasks = [Task(lambda: handle.transact(adding("lost"))) for _ in range(3)]
        queued(handle, 3)
        path.unlink()
        held.let_go()
        for task in tasks:
            with pytest.raises(DatabaseMovedError):
                task.result()


def test_a_checkpoint_that_finds_an_idle_file_moved_closes_it_at_once(
    make_pool: MakePool, path: Path
) -> None:
    """The lease that notices it is held by the very thread that would close the file."""
    pool = make_pool(linger=3600.0, close_timeout=4 * PATIENCE)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
        keys(handle)
        file = file_of(handle)
    path.unlink()
    began = monotonic()
    file.checkpoint()
    assert monotonic() - began < SOON
    began = monotonic()
    pool.close()
    assert monotonic() - began < SOON
    assert [each for each in descriptors() if str(path) in each] == []


def test_a_retirement_is_one_event(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        path.unlink()
        with capture_logs() as logs:
            for each in calls(handle).values():
                with pytest.raises(DatabaseMovedError):
                    each()
    (event,) = logs
    assert event["event"] == "database_retired"
    assert event["path"] == str(path)
    assert event["log_level"] == "warning"


def test_a_moved_file_has_what_was_committed_before(make_pool: MakePool, path: Path) -> None:
    """A user who knows that they belong together has moved it with its -wal."""
    pool = make_pool()
    old = file_handle(pool.acquire(path))
    old.transact(adding("ours"))
    for name in ("db.sqlite", "db.sqlite-wal"):
        path.with_name(name).rename(path.with_name(name.replace("db", "moved")))
    with pytest.raises(DatabaseMovedError):
        old.transact(adding("lost"))
    old.release()
    until(lambda: pool.stats().closed == 1)
    with pool.acquire(path.with_name("moved.sqlite")) as handle:
        assert keys(handle) == {"ours"}


def test_a_file_that_was_renamed_has_what_was_acknowledged(make_pool: MakePool, path: Path) -> None:
    """Its -wal stayed behind under the old name; our connection still has both."""
    pool = make_pool()
    old = file_handle(pool.acquire(path))
    old.transact(adding("ours"))
    rename(path)
    with pytest.raises(DatabaseMovedError):
        old.transact(adding("lost"))
    pool.acquire(path).release()
    old.release()
    with pool.acquire(path.with_name("renamed.sqlite")) as handle:
        assert keys(handle) == {"ours"}


def test_a_second_sqlite_library_is_found(start_child: Callable[..., Any]) -> None:
    child = start_child(
        """
from mandrake_sessions.database.sqlite_library import second_sqlite
send(second_sqlite())
__import__("sqlite{}".format(3))
send(second_sqlite())
"""
    )
    assert child.receive() is None
    assert "sqlite3" in child.receive()
    child.finish()


def test_without_a_list_of_mapped_files_the_standard_module_counts_as_a_second_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_maps(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(sqlite_library, "open", no_maps, raising=False)
    monkeypatch.delitem(sys.modules, "_sqlite3", raising=False)
    assert sqlite_library.second_sqlite() is None
    monkeypatch.setitem(sys.modules, "_sqlite3", os)
    assert sqlite_library.second_sqlite() == os.__file__


def test_importing_the_library_loads_no_second_sqlite() -> None:
    script = "import sys, mandrake_sessions; print([m for m in sys.modules if 'sqlite3' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_the_place_of_a_call_is_a_line_of_the_host() -> None:
    assert f"{__file__}:" in caller_outside()


def test_every_public_call_leaves_the_locks_unchanged(make_pool: MakePool, path: Path) -> None:
    """``/proc/locks``: closing any descriptor of the file would drop all of them."""
    pool = make_pool(linger=3600.0)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
        keys(handle)
        before = locks(path)
        assert before
        for each in calls(handle).values():
            try:
                each()
            except Exception as error:  # noqa: BLE001
                assert "UNIQUE" in str(error)  # noqa: PT017
            assert locks(path) == before
        handle.health()
        assert locks(path) == before
        handle.stats()
        handle.backup(path.with_name("copy.sqlite"))
        assert locks(path) == before
        pool.acquire(path).release()
        assert locks(path) == before


def locks(path: Path) -> list[str]:
    return own_lock_lines([path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")])
