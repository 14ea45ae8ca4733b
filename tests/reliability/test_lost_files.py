"""What happens to a file under a live pool: named by a check, answered by an error, never harmed.

Everything is done to a file by another process: an open and a close of it in this one would drop
SQLite's locks, which is damage of another kind (``test_second_sqlite.py``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from kits.waiting import SOON
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseError,
    DatabaseMovedError,
    DatabaseOptions,
    Durability,
    HealthLevel,
    HealthMonitor,
    HealthReport,
    HealthStatus,
    MandrakeSessionsError,
    NotADatabaseError,
    PoolOptions,
    ReadOnlyDatabaseError,
    SessionManager,
    StorageFullError,
)
from mandrake_sessions.aio import AsyncSessionManager
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.testing import FaultVFS

OURS = 20
"""Sessions in the database when it is damaged, each with a page of text."""
LATE = 3
"""Those of them that are only in the log, where the others were checkpointed."""
FAST = PoolOptions(database=DatabaseOptions(durability=Durability.FAST), linger=0)
LONGEST = 30.0
"""Seconds that no call on a damaged database may take."""


@dataclass(frozen=True)
class Damage:
    """Something that is done to a file, and how it is met.

    Attributes:
        script: what the other process runs; ``path`` and ``other`` are given.
        check: the check that reports it.
        error: what the next write gets, once it was seen.
        reads: what the next read gets; None where reading may go on.
        again: what opening the path anew gives: an error, or whose sessions are there.
        level: how far a look must go to see it.
        is_foreign: whether other bytes have the name afterwards, which nothing may touch.
    """

    script: str
    check: str
    error: type[MandrakeSessionsError] = DatabaseMovedError
    reads: type[MandrakeSessionsError] | None = DatabaseMovedError
    again: type[MandrakeSessionsError] | set[str] = field(default_factory=set)
    level: HealthLevel = HealthLevel.QUICK
    is_foreign: bool = False


OVERWRITE = """
def overwrite(data):
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
"""
DAMAGES = {
    "unlinked": Damage("os.unlink(path)", "file"),
    "renamed": Damage("os.rename(path, path + '.elsewhere')", "file"),
    "replaced by another database": Damage(
        "os.replace(other, path)", "file", again={"other"}, is_foreign=True
    ),
    "replaced by a text": Damage(
        """
with open(path + ".text", "w") as file:
    file.write("no database " * 5000)
os.replace(path + ".text", path)
""",
        "file",
        again=NotADatabaseError,
        is_foreign=True,
    ),
    "another database copied over it": Damage(
        OVERWRITE + "overwrite(open(other, 'rb').read())",
        "header",
        again={"other"},
        is_foreign=True,
    ),
    "a text copied over it": Damage(
        OVERWRITE + "overwrite(b'no database ' * 5000)",
        "header",
        again=NotADatabaseError,
        is_foreign=True,
    ),
    "emptied": Damage("os.truncate(path, 0)", "header", is_foreign=True),
    "cut in half": Damage(
        "os.truncate(path, os.stat(path).st_size // 2)",
        "size",
        error=CorruptDatabaseError,
        reads=None,
        again=CorruptDatabaseError,
    ),
    "filled with garbage": Damage(
        OVERWRITE + "overwrite(os.urandom(os.stat(path).st_size))",
        "header",
        again=NotADatabaseError,
        is_foreign=True,
    ),
    "garbage in its header": Damage(
        OVERWRITE.replace("file.truncate()", "") + "overwrite(os.urandom(100))",
        "header",
        again=NotADatabaseError,
        is_foreign=True,
    ),
    "garbage in its pages": Damage(
        """
with open(path, "r+b") as file:
    file.seek(4096)
    file.write(b"\\xff" * (os.stat(path).st_size - 4096))
""",
        "pages",
        error=CorruptDatabaseError,
        reads=None,
        again=CorruptDatabaseError,
        level=HealthLevel.THOROUGH,
    ),
    "its log deleted": Damage(
        "os.unlink(path + '-wal'); os.unlink(path + '-shm')", "log", again={"ours", "late"}
    ),
    "its log replaced": Damage(
        """
open(path + "-wal.new", "wb").close()
os.replace(path + "-wal.new", path + "-wal")
""",
        "log",
        # Another WAL has begun: the former one is kept elsewhere, and not written into the file.
        again={"ours"},
    ),
}


def run(script: str, path: Path, other: Path) -> None:
    """Run a script in another process."""
    prelude = "import os, sys\npath, other = sys.argv[1:]\n"
    command = [sys.executable, "-IS", "-c", prelude + script, str(path), str(other)]
    subprocess.run(command, check=True, timeout=LONGEST)


def content(path: Path) -> str:
    """Return what a file has in it, as another process sees it."""
    script = "import hashlib; print(hashlib.sha256(open(path, 'rb').read()).hexdigest())"
    command = [sys.executable, "-IS", "-c", f"import sys; path = sys.argv[1]; {script}", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def bad(report: HealthReport) -> set[str]:
    return {check.name for check in report.checks if check.status is not HealthStatus.OK}


def timed(call: Callable[[], Any]) -> Any:
    """Call, and make sure that nothing hangs; return the result or the typed error."""
    began = monotonic()
    try:
        return call()
    except MandrakeSessionsError as error:
        return error
    finally:
        assert monotonic() - began < LONGEST


def titles(sessions: SessionManager) -> set[str]:
    return {str(session.title).split()[0] for session in sessions.list_sessions(limit=1000)}


@pytest.fixture
def other(tmp_path: Path, ready_database: Any) -> Path:
    """Another database of the library, complete in its file."""
    path: Path = ready_database.lay(tmp_path / "other.sqlite")
    with ConnectionPool(FAST) as pool, SessionManager(path, pool=pool) as sessions:
        sessions.create_session("other")
    return path


@pytest.fixture
def lost(ready_path: Path) -> Iterator[SessionManager]:
    """An open database with sessions in its file, and newer ones in its log."""
    with ConnectionPool(FAST) as pool:
        sessions = SessionManager(ready_path, pool=pool).init()
        fill(sessions)
        yield sessions
        sessions.close()


def fill(sessions: SessionManager) -> None:
    for _ in range(OURS - LATE):
        sessions.create_session("ours", description="x" * 4000)
    # Something reads as well, so that the auxiliary connection is open.
    assert titles(sessions) == {"ours"}
    file_handle(sessions.handle).file.checkpoint()
    assert file_handle(sessions.handle).file.checkpointer.backlog == 0
    for _ in range(LATE):
        sessions.create_session("late", description="x" * 4000)


def monitor_of(sessions: SessionManager) -> HealthMonitor:
    monitor = HealthMonitor(pool_of(sessions))
    (report,) = monitor.look()
    assert bad(report) <= {"disk"}, report
    return monitor


def pool_of(sessions: SessionManager) -> ConnectionPool:
    return sessions._pool  # type: ignore[return-value]


def use_anew(path: Path, pool: ConnectionPool) -> set[str]:
    """Open what is there now, and use it; return whose sessions are there."""
    with SessionManager(path, pool=pool) as sessions:
        found = titles(sessions)
        sessions.create_session("new")
        assert bad(sessions.health(HealthLevel.THOROUGH)) <= {"disk"}
        return found


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_answered_and_not_made_worse(
    lost: SessionManager, other: Path, name: str
) -> None:
    damage = DAMAGES[name]
    path, pool = lost.path, pool_of(lost)
    monitor = monitor_of(lost)
    run(damage.script, path, other)
    after = content(path) if damage.is_foreign else None

    report = timed(lambda: lost.health(damage.level))
    assert isinstance(report, HealthReport), report
    named = next(check for check in report.checks if check.name == damage.check)
    assert named.status is HealthStatus.FAILED
    assert named.advice
    assert not report.is_usable
    with capture_logs() as logs:
        timed(lambda: monitor.look(damage.level))
    changed = {log["check"] for log in logs if log["event"] == "health_changed"}
    # A lease may have found out before, and have closed it.
    assert damage.check in changed or damage.check in {"file", "header"}

    write = timed(lambda: lost.create_session("lost"))
    assert type(write) is damage.error, write
    assert isinstance(write, DatabaseError)
    assert write.path == path
    read = timed(lost.list_sessions)
    assert damage.reads is None or type(read) is damage.reads, read
    print(f"{name}: {sorted(bad(report))}, then {type(write).__name__}")
    lost.close()

    if after is not None:
        assert content(path) == after
    found = timed(lambda: use_anew(path, pool))
    assert (found if isinstance(damage.again, set) else type(found)) == damage.again, found
    with SessionManager(path.with_name("elsewhere.sqlite"), pool=pool) as elsewhere:
        elsewhere.create_session("new")


def test_a_cut_is_seen_though_the_wal_has_more_frames_than_pages_are_missing(
    lost: SessionManager, other: Path
) -> None:
    """The frames are of other pages: the pages that were cut off are in none of them."""
    monitor = monitor_of(lost)
    for _ in range(OURS):
        lost.create_session("small")
    frames, done = file_handle(lost.handle).file.writer.connection.wal_backlog()
    run("os.truncate(path, os.stat(path).st_size // 2)", lost.path, other)
    assert frames - done > lost.path.stat().st_size // 4096 > 10

    report = lost.health()

    size = next(check for check in report.checks if check.name == "size")
    assert (size.status, report.is_usable) == (HealthStatus.FAILED, False), size
    monitor.look()
    with pytest.raises(CorruptDatabaseError):
        lost.create_session("lost")


@pytest.mark.parametrize("name", [name for name, each in DAMAGES.items() if each.is_foreign])
def test_nothing_is_written_into_the_wrong_file_though_no_check_was_made(
    lost: SessionManager, other: Path, name: str
) -> None:
    """Commits go to the log; a checkpoint and a closing look first whose file it is."""
    path = lost.path
    run(DAMAGES[name].script, path, other)
    after = content(path)
    for _ in range(5):
        timed(lambda: lost.create_session("unseen"))
        timed(lost.list_sessions)
    file_handle(lost.handle).file.checkpoint()
    assert content(path) == after
    lost.close()
    pool_of(lost).close()
    assert content(path) == after


def test_an_older_copy_of_the_same_file_is_seen(lost: SessionManager, other: Path) -> None:
    """It carries the same stamp, but no checkpoint has written it."""
    copy = other.with_name("copy.sqlite")
    run("import shutil; shutil.copyfile(path, other)", lost.path, copy)
    for _ in range(OURS):
        lost.create_session("later", description="x" * 4000)
    file_handle(lost.handle).file.checkpoint()
    run(OVERWRITE + "overwrite(open(other, 'rb').read())", lost.path, copy)
    report = timed(lost.health)
    assert next(check for check in report.checks if check.name == "header").status == "failed"
    with pytest.raises(DatabaseMovedError):
        lost.create_session("lost")


@pytest.mark.parametrize(
    "name",
    ["unlinked", "another database copied over it", "cut in half", "its log deleted"],
)
def test_the_async_face_reports_the_same(tmp_path: Path, other: Path, name: str) -> None:
    damage = DAMAGES[name]
    path = tmp_path / "db.sqlite"

    async def story(pool: ConnectionPool) -> None:
        sessions = await AsyncSessionManager(path, pool=pool).init()
        fill(sessions.sync)
        monitor = monitor_of(sessions.sync)
        run(damage.script, path, other)
        after = content(path) if damage.is_foreign else None
        report = await sessions.health(damage.level)
        assert damage.check in bad(report)
        monitor.look(damage.level)
        async with asyncio.timeout(LONGEST):
            with pytest.raises(damage.error):
                await sessions.create_session("lost")
            await sessions.close()
        if after is not None:
            assert content(path) == after
        try:
            async with AsyncSessionManager(path, pool=pool) as again:
                found = await again.list_sessions(limit=1000)
            assert {session.title for session in found} == damage.again
        except CorruptDatabaseError:
            assert damage.again is CorruptDatabaseError

    with ConnectionPool(FAST) as pool:
        asyncio.run(story(pool))


# -- read-only ------------------------------------------------------------------------------


def test_a_file_that_is_made_immutable_takes_no_writes_until_it_may(
    lost: SessionManager,
) -> None:
    """The descriptor that is open could go on writing: the log is another file."""
    path, monitor = lost.path, monitor_of(lost)
    if os.geteuid() != 0 or subprocess.run(["chattr", "+i", path], check=False).returncode:
        pytest.skip("only root makes a file immutable, and not on every file system")
    try:
        report = lost.health()
        assert bad(report) - {"disk"} == {"writing"}
        with capture_logs() as logs:
            monitor.look()
        assert [log["event"] for log in logs] == ["health_changed", "writes_refused"]
        with pytest.raises(ReadOnlyDatabaseError):
            lost.create_session("lost")
        assert titles(lost) == {"ours", "late"}
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    with capture_logs() as logs:
        lost.create_session("new")
    assert [log["event"] for log in logs] == ["writes_resumed"]
    monitor.look()
    assert bad(lost.health()) <= {"disk"}


READ_ONLY = """
import os
from pathlib import Path
from structlog.testing import capture_logs
from mandrake_sessions import *
path = Path(sys.argv[1]) / "db.sqlite"
# All that is imported late is imported now: the user below may not read this installation.
with ConnectionPool() as pool, SessionManager(path, pool=pool) as sessions:
    sessions.list_sessions()
    sessions.health(HealthLevel.THOROUGH)
if os.geteuid() == 0:
    for each in (path.parent, *path.parent.iterdir()):
        os.chown(each, 65534, 65534)
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    except OSError as error:
        send(str(error))
        sys.exit()
send("ready")
seen = {}
with ConnectionPool() as pool, SessionManager(path, pool=pool) as sessions, capture_logs() as logs:
    monitor = HealthMonitor(pool)
    monitor.look()
    os.chmod(path, 0o400)
    seen["bad"] = [check.name for check in sessions.health().checks if check.status == "failed"]
    monitor.look()
    try:
        sessions.create_session("lost")
    except ReadOnlyDatabaseError as error:
        seen["error"] = type(error).__name__
    seen["reads"] = sessions.count_sessions()
    os.chmod(path, 0o600)
    sessions.create_session("second")
    seen["after"] = sessions.count_sessions()
    sessions.handle.file.checkpoint()
    seen["backlog"] = sessions.handle.file.checkpointer.backlog
    seen["status"] = sessions.health().status
    seen["events"] = [log["event"] for log in logs]
send(seen)
"""


def test_a_file_whose_mode_is_changed_takes_no_writes_until_it_may(
    start_child: Callable[..., Any],
) -> None:
    # Not in tmp_path, whose parents no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="mandrake-"))
    try:
        with (
            ConnectionPool(PoolOptions(linger=0)) as pool,
            SessionManager(folder / "db.sqlite", pool=pool) as sessions,
        ):
            sessions.create_session("first")
        child = start_child(READ_ONLY, folder)
        answer = child.receive()
        if answer != "ready":
            pytest.skip(f"root, and cannot become another user here: {answer}")
        seen = child.receive()
        child.finish()
    finally:
        shutil.rmtree(folder)
    assert seen["bad"] == ["writing"]
    assert seen["error"] == "ReadOnlyDatabaseError"
    assert (seen["reads"], seen["after"]) == (1, 2)
    assert (seen["backlog"], seen["status"]) == (0, "ok")
    assert seen["events"] == ["health_changed", "writes_refused", "writes_resumed"]


# -- the disk -------------------------------------------------------------------------------


def test_a_full_disk_takes_no_writes_until_it_has_space(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with (
        ConnectionPool(PoolOptions(linger=0)) as pool,
        SessionManager(small_disk / "db.sqlite", pool=pool) as sessions,
    ):
        monitor = monitor_of(sessions)
        sessions.create_session("first")
        free = shutil.disk_usage(small_disk).free
        # Another file, which SQLite never opens.
        ballast.write_bytes(b"x" * (free - 200_000))
        stored = 1
        with capture_logs() as logs, pytest.raises(StorageFullError) as caught:
            while True:
                sessions.create_session("more", description="x" * 50_000)
                stored += 1
        assert caught.value.free_bytes is not None
        assert stored < 20
        assert [log["event"] for log in logs] == ["writes_refused"]
        began = monotonic()
        with pytest.raises(StorageFullError):
            sessions.create_session("lost")
        assert monotonic() - began < SOON
        assert sessions.count_sessions() == stored
        report = sessions.health()
        assert bad(report) == {"disk", "writing"}
        assert "StorageFullError" in next(
            check.detail for check in report.checks if check.name == "writing"
        )
        monitor.look()
        ballast.unlink()
        with capture_logs() as logs:
            sessions.create_session("new")
        assert [log["event"] for log in logs] == ["writes_resumed"]
        assert sessions.count_sessions() == stored + 1
        assert bad(sessions.health(HealthLevel.THOROUGH)) == {"disk"}


def test_a_write_without_space_is_undone_and_the_next_one_is_tried(tmp_path: Path) -> None:
    """Where the file system has space after all, as with a quota, nothing is refused unseen."""
    vfs = FaultVFS()
    options = PoolOptions(database=DatabaseOptions(vfs=vfs.name), linger=0)
    with (
        ConnectionPool(options) as pool,
        SessionManager(tmp_path / "db.sqlite", pool=pool) as sessions,
    ):
        sessions.create_session("first")
        with vfs.failing("wal", "write", apsw.SQLITE_FULL), pytest.raises(StorageFullError):
            sessions.create_session("lost")
        assert titles(sessions) == {"first"}
        sessions.create_session("second")
        assert titles(sessions) == {"first", "second"}
    vfs.unregister()
