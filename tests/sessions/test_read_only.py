"""A file that is only read: nothing of it changes, whatever it lies on and whatever is called."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabaseMissingError,
    DatabaseOptions,
    InvalidArgumentError,
    MigrationError,
    NewTurn,
    PoolOptions,
    ReadOnlyDatabaseError,
    SchemaTooNewError,
    SessionManager,
    TurnStatus,
)
from mandrake_sessions.aio import AsyncSessionManager

ROUNDS = 3

READER = """
import json, os, sys
from mandrake_sessions import *

def name_of(call):
    try:
        call()
    except MandrakeSessionsError as error:
        return type(error).__name__
    return "no error"

path = sys.argv[1]
before = sorted(os.listdir(os.path.dirname(path)))
with SessionManager(path, read_only=True) as sessions:
    (session,) = sessions.list_sessions()
    history = sessions.render_session_history(session.id)
    with sessions.watch_session(session.id) as watch:
        first = type(next(iter(watch))).__name__
    found = {
        "rounds": len(history.rounds),
        "paged": sum(1 for _ in sessions.iter_session_history(session.id)),
        "watched": first,
        "health": sessions.health(HealthLevel.THOROUGH).status.value,
        "create": name_of(sessions.create_session),
        "stream": name_of(lambda: sessions.stream_turn(history.rounds[0].response.id)),
    }
    if len(sys.argv) > 2:
        sessions.backup(sys.argv[2])
        found["backup"] = os.path.getsize(sys.argv[2]) > 0
found["new"] = sorted(set(os.listdir(os.path.dirname(path))) - set(before))
print(json.dumps(found))
"""

WRITER = """
import os, sys
from mandrake_sessions import *
sessions = SessionManager(sys.argv[1]).init()
session = sessions.create_session("kept")
for i in range(int(sys.argv[2])):
    sessions.record_round(session.id, f"question {i}", [NewTurn(content="answer " * 100)])
if sys.argv[3] == "killed":
    os._exit(9)
sessions.close()
default_pool().close()
"""

AS_IT_SHOULD_BE = {
    "rounds": ROUNDS,
    "paged": ROUNDS,
    "watched": "SessionUpdate",
    "create": "ReadOnlyDatabaseError",
    "stream": "ReadOnlyDatabaseError",
}

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="only root may mount on Linux"
)


def written(folder: Path, how: str = "closed") -> Path:
    """Return a database that a process has written, and closed or been killed with."""
    folder.mkdir(exist_ok=True)
    path = folder / "c.sqlite"
    subprocess.run([sys.executable, "-c", WRITER, path, str(ROUNDS), how], check=how == "closed")
    assert (folder / "c.sqlite-wal").exists() == (how == "killed")
    return path


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Return what each file of a folder holds; no process has one of them open."""
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def read_in_mount(tmp_path: Path, mount: str, *arguments: str) -> dict[str, Any]:
    """Run the reader where a shell's commands have mounted something, and return what it found."""
    reader = tmp_path / "reader.py"
    reader.write_text(READER)
    call = f'{mount} && exec "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", call, sys.executable, str(reader), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nothing_is_changed_by_opening_and_reading(tmp_path: Path) -> None:
    for how in ("closed", "killed"):
        path = written(tmp_path / how, how)
        (path.parent / "c.sqlite-shm").unlink(missing_ok=True)
        before = bytes_in(path.parent)
        with ConnectionPool() as pool, SessionManager(path, pool=pool, read_only=True) as sessions:
            (session,) = sessions.list_sessions()
            assert len(sessions.render_session_history(session.id).rounds) == ROUNDS
        after = bytes_in(path.parent)
        after.pop("c.sqlite-shm", None)
        assert after == before, how


def test_every_writing_call_is_refused_before_anything_happens(
    ready_path: Path, pool: ConnectionPool
) -> None:
    with SessionManager(ready_path, pool=pool) as writer:
        session = writer.create_session("kept")
        exchange = writer.record_round(session.id, "q", [NewTurn(content="a")])
    given: dict[str, object] = {
        "session_id": session.id,
        "round_id": exchange.id,
        "response_id": exchange.response.id,
        "request_id": exchange.request.id,
        "turn_id": exchange.turns[0].id,
        "content": "more",
        "work": lambda tx: tx.create_session(),
        "backup": ready_path.with_name("backup"),
    }
    reads = {
        *("get_session", "find_session", "list_sessions", "count_sessions", "get_round"),
        *("get_round_by_response", "get_current_round", "list_rounds", "get_request"),
        *("get_response", "get_turn", "get_latest_turn", "list_turns", "get_streaming_status"),
        *("render_session_history", "get_session_usage", "iter_session_history", "health"),
        *("stats", "backup", "init", "close", "transaction", "watch_response", "watch_session"),
        *("track_streaming_turns", "add_turn_update_listener"),
    }
    refused = []
    with SessionManager(ready_path, pool=pool, read_only=True) as sessions:
        before = sorted(os.listdir(ready_path.parent))
        for name, method in inspect.getmembers(sessions, callable):
            if name.startswith("_") or name in reads:
                continue
            wanted = [
                parameter.name
                for parameter in inspect.signature(method).parameters.values()
                if parameter.default is parameter.empty
            ]
            ids = {"id": given[f"{name.rpartition('_')[2]}_id"]} if "id" in wanted else {}
            with pytest.raises(ReadOnlyDatabaseError, match="read_only"):
                method(**{each: ids.get(each, given.get(each)) for each in wanted})
            refused.append(name)
        with pytest.raises(ReadOnlyDatabaseError), sessions.transaction():
            pass
        with pytest.raises(ReadOnlyDatabaseError), sessions.handle.sqlalchemy():
            pass
        assert sorted(os.listdir(ready_path.parent)) == before
    assert {"create_session", "stream_turn", "delete", "restore", "transact"} <= set(refused)
    assert len(refused) >= 14


def test_a_manager_that_reads_and_one_that_writes_share_a_process(
    ready_path: Path, pool: ConnectionPool
) -> None:
    with (
        SessionManager(ready_path, pool=pool, read_only=True) as reader,
        SessionManager(ready_path, pool=pool) as writer,
    ):
        session = writer.create_session("seen at once")
        assert reader.get_session(session.id).title == "seen at once"
        with reader.watch_session(session.id) as watch:
            updates = iter(watch)
            next(updates)
            writer.update_session(session.id, title="and live")
            assert any(
                getattr(getattr(update, "session", None), "title", "") == "and live"
                for update in updates
            )
        assert len(pool.stats().databases) == 2
        assert len(pool.health()) == 2
    with SessionManager(ready_path, pool=pool, read_only=True) as reader:
        assert reader.count_sessions() == 1


def test_the_asynchronous_manager_reads_only_as_well(
    ready_path: Path, pool: ConnectionPool
) -> None:
    async def use() -> None:
        async with AsyncSessionManager(ready_path, pool=pool, read_only=True) as sessions:
            assert await sessions.count_sessions() == 0
            with pytest.raises(ReadOnlyDatabaseError):
                await sessions.create_session()

    asyncio.run(use())


def test_turns_of_a_dead_host_are_left_for_those_that_write(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    code = """
import os, sys
from mandrake_sessions import *
sessions = SessionManager(sys.argv[1]).init()
turn = sessions.stream_turn(sessions.create_round(sessions.create_session().id, "q").response.id)
turn.write("some"); turn.flush()
sys.stdout.write(turn.id); sys.stdout.flush()
os._exit(9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    with ConnectionPool() as pool:
        with SessionManager(path, pool=pool, read_only=True) as sessions:
            assert sessions.get_turn(done.stdout).status is TurnStatus.STREAMING
            with pytest.raises(ReadOnlyDatabaseError):
                sessions.recover_interrupted()
        with SessionManager(path, pool=pool) as sessions:
            assert sessions.get_turn(done.stdout).status is TurnStatus.INTERRUPTED


def test_a_missing_or_older_or_newer_file_is_refused_and_not_made(
    tmp_path: Path, ready_path: Path, pool: ConnectionPool
) -> None:
    missing = tmp_path / "no" / "c.sqlite"
    with pytest.raises(DatabaseMissingError):
        SessionManager(missing, pool=pool, read_only=True).init()
    assert not missing.parent.exists()
    for revision, kind in (("0000", SchemaTooNewError), ("9999", SchemaTooNewError)):
        raw = apsw.Connection(str(ready_path))
        raw.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        raw.close()
        with pytest.raises(kind):
            SessionManager(ready_path, pool=pool, read_only=True).init()
    raw = apsw.Connection(str(ready_path))
    raw.execute("DELETE FROM alembic_version")
    raw.close()
    with pytest.raises(MigrationError, match="without read_only"):
        SessionManager(ready_path, pool=pool, read_only=True).init()


def test_a_backup_is_read_where_it_lies(ready_path: Path, pool: ConnectionPool) -> None:
    target = ready_path.with_name("backup.sqlite")
    with SessionManager(ready_path, pool=pool) as sessions:
        sessions.create_session("kept")
        sessions.backup(target)
    before = target.read_bytes()
    with SessionManager(target, pool=pool, read_only=True) as sessions:
        assert [each.title for each in sessions.list_sessions()] == ["kept"]
    assert target.read_bytes() == before
    assert not target.with_name("backup.sqlite-wal").exists()


def test_a_pool_may_be_made_to_read_only(ready_path: Path) -> None:
    options = PoolOptions(database=DatabaseOptions(read_only=True))
    with ConnectionPool(options) as pool, SessionManager(ready_path, pool=pool) as sessions:
        assert sessions.is_read_only
        with pytest.raises(ReadOnlyDatabaseError):
            sessions.create_session()


def test_a_parked_file_is_read_again(tmp_path: Path) -> None:
    paths = [written(tmp_path / str(number)) for number in range(3)]
    with ConnectionPool(PoolOptions(max_open=1)) as pool:
        managers = [SessionManager(path, pool=pool, read_only=True).init() for path in paths]
        for _ in range(2):
            assert [manager.count_sessions() for manager in managers] == [1, 1, 1]
        assert pool.stats().reopenings > 0
        for manager in managers:
            manager.close()


def test_the_flag_is_checked() -> None:
    with pytest.raises(InvalidArgumentError):
        SessionManager("c.sqlite", read_only=1)  # type: ignore[arg-type]


def test_nothing_keeps_a_writer_from_closing_and_deleting(ready_path: Path) -> None:
    with ConnectionPool(PoolOptions(linger=0.0)) as pool:
        reader = SessionManager(ready_path, pool=pool, read_only=True).init()
        with SessionManager(ready_path, pool=pool) as writer:
            writer.create_session()
        assert reader.count_sessions() == 1
        reader.close()
        SessionManager(ready_path, pool=pool).delete(timeout=5)
        assert not ready_path.exists()


# -- what cannot be written ---------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("how", ["closed", "killed"])
@pytest.mark.parametrize("index", ["with the index", "without"])
def test_a_read_only_medium_is_read(tmp_path: Path, how: str, index: str) -> None:
    path = written(tmp_path / "on", how)
    if index == "without":
        (path.parent / "c.sqlite-shm").unlink(missing_ok=True)
    before = bytes_in(path.parent)
    mount = "mount --bind on on && mount -o remount,ro,bind on"
    found = read_in_mount(tmp_path, mount, str(path), str(tmp_path / "backup"))
    assert found | AS_IT_SHOULD_BE == found
    assert (found["backup"], found["new"]) == (True, [])
    assert bytes_in(path.parent) == before


@needs_root
@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_full_disk_is_read(tmp_path: Path, how: str) -> None:
    written(tmp_path / "on", how)
    (tmp_path / "full").mkdir()
    mount = (
        "mount -t tmpfs -o size=2m tmpfs full && cp on/c.sqlite* full && rm -f full/*-shm && "
        "{ dd if=/dev/zero of=full/filler bs=4096 2>/dev/null; true; }"
    )
    found = read_in_mount(tmp_path, mount, str(tmp_path / "full" / "c.sqlite"))
    assert found | AS_IT_SHOULD_BE == found


@needs_root
def test_a_read_only_mount_follows_a_writer_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "on" / "c.sqlite"
    path.parent.mkdir()
    with ConnectionPool() as pool, SessionManager(path, pool=pool) as writer:
        session = writer.create_session("kept")
        for number in range(ROUNDS):
            writer.record_round(session.id, f"question {number}")
        (tmp_path / "seen").mkdir()
        mount = "mount --bind on seen && mount -o remount,ro,bind seen"
        found = read_in_mount(tmp_path, mount, str(tmp_path / "seen" / "c.sqlite"))
    assert found | AS_IT_SHOULD_BE == found


@needs_root
def test_a_writer_that_begins_under_an_unshared_reader_is_noticed(tmp_path: Path) -> None:
    """The reader has no lock that the writer sees::

    reader  opens unshared ─ reads ok ............ reads: refused ─ opens again ─ reads ok
    writer  .......................... writes a round
    """
    path = written(tmp_path / "on")
    code = """
import sys
from mandrake_sessions import *
sessions = SessionManager(sys.argv[1], read_only=True).init()
session = sessions.list_sessions()[0]
print(len(sessions.list_rounds(session.id)), flush=True)
sys.stdin.readline()
try:
    sessions.list_rounds(session.id)
except DatabaseMovedError:
    print("noticed", flush=True)
sessions.close()
sessions.init()
print(len(sessions.list_rounds(session.id)), flush=True)
"""
    (tmp_path / "seen").mkdir()
    mount = "mount --bind on seen && mount -o remount,ro,bind seen"
    reader = subprocess.Popen(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{mount} && exec "$0" "$@"',
            sys.executable,
            "-c",
            code,
            "seen/c.sqlite",
        ],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == f"{ROUNDS}\n"
    with ConnectionPool() as pool, SessionManager(path, pool=pool) as writer:
        writer.record_round(writer.list_sessions()[0].id, "one more")
        out, _ = reader.communicate("go\n", timeout=120)
    assert out.splitlines()[-2:] == ["noticed", f"{ROUNDS + 1}"]
