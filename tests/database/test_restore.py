"""Restoring: the backup or the former file, never a mix, and no work is lost unasked."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from database_kit import Task

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseError,
    DatabaseMissingError,
    DatabaseMovedError,
    DatabaseNamesError,
    HealthStatus,
    NewTurn,
    NotADatabaseError,
    PoolOptions,
    RestoreError,
    SchemaTooNewError,
    SessionManager,
    UnrecognizedDatabaseError,
    diagnose,
    salvage,
)
from mandrake_sessions.aio import AsyncSessionManager
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.files.kept import kept_files
from mandrake_sessions.models import TurnStatus

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def copy(ready_path: Path, pool: ConnectionPool) -> Path:
    """A backup with the session ``old``; the database has ``new`` besides."""
    with SessionManager(ready_path, pool=pool) as sessions:
        session = sessions.create_session("old")
        sessions.record_round(session.id, "Hello?", [NewTurn(content="Yes.")])
        copy = sessions.backup(ready_path.with_name("copy.sqlite"))
        sessions.create_session("new")
    return copy


def titles(path: Path, pool: ConnectionPool) -> list[str]:
    with SessionManager(path, pool=pool, create=False) as sessions:
        return sorted(session.title or "" for session in sessions.list_sessions())


def names(path: Path) -> list[str]:
    return sorted(each for each in os.listdir(path.parent) if "-turnstile" not in each)


def stamps(path: Path) -> tuple[object, object]:
    raw = apsw.Connection(str(path))
    try:
        (header,) = raw.execute("PRAGMA user_version").fetchall()[0]
        (stamp,) = raw.execute("SELECT value FROM meta WHERE key = 'stamp'").fetchall()[0]
        return header, stamp
    finally:
        raw.close()


# -- what comes back ------------------------------------------------------------------------------


def test_the_backup_comes_back(path: Path, pool: ConnectionPool, copy: Path) -> None:
    before = copy.read_bytes()

    assert pool.restore(copy, path, overwrite=True) == path

    assert titles(path, pool) == ["old"]
    assert copy.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verify(path) == []
    assert names(path) == ["copy.sqlite", "db.sqlite"]


def test_the_restored_file_is_another_one_than_any_before(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    before = stamps(path)

    pool.restore(copy, path, overwrite=True)

    header, stamp = stamps(path)
    assert stamps(copy) == before
    assert header != before[0]
    assert int(str(stamp), 16) & 0x7FFFFFFF == header


def test_a_lost_database_comes_back_with_its_folder(
    tmp_path: Path, pool: ConnectionPool, copy: Path
) -> None:
    target = tmp_path / "gone" / "far" / "db.sqlite"

    pool.restore(copy, target)

    assert titles(target, pool) == ["old"]
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700


def test_the_log_of_a_database_that_is_gone_is_not_replayed(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    path.unlink()
    Path(f"{path}-wal").write_bytes(b"somebody's" * 100)
    Path(f"{path}-shm").write_bytes(b"")

    pool.restore(copy, path)

    assert titles(path, pool) == ["old"]
    (aside,) = [name for name in names(path) if ".of-moved-file-" in name]
    assert path.with_name(aside).read_bytes() == b"somebody's" * 100


def test_a_log_that_a_crash_has_left_is_not_replayed(
    path: Path, pool: ConnectionPool, copy: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(
        "import os\n"
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "sessions.create_session('in the log')\n"
        "send('done')\nreceive()\nos._exit(0)",
        path,
    )
    child.receive()
    child.process.kill()
    child.process.wait()
    assert Path(f"{path}-wal").stat().st_size > 0

    pool.restore(copy, path, overwrite=True)

    assert titles(path, pool) == ["old"]


def test_a_damaged_database_is_replaced_and_kept(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    path.write_bytes(b"no database" * 1000)
    Path(f"{path}-wal").write_bytes(b"its log" * 100)

    pool.restore(copy, path, overwrite=True)

    assert titles(path, pool) == ["old"]
    aside, log = sorted(name for name in names(path) if ".damaged-" in name)
    assert path.with_name(aside).read_bytes() == b"no database" * 1000
    assert log == f"{aside}-wal"


def test_a_database_with_one_damaged_page_is_kept_too(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    """It can be opened, and most of it read: all the more it must not be thrown away."""
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 4] = os.urandom(4096)
    path.write_bytes(data)

    pool.restore(copy, path, overwrite=True)

    assert titles(path, pool) == ["old"]
    (aside,) = [name for name in names(path) if ".damaged-" in name]
    assert path.with_name(aside).read_bytes()[4096:] == data[4096:]
    assert kept_files(path) == {path.with_name(aside)}


def test_a_damaged_log_is_kept_with_its_database(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    """SQLite forgets what stands behind a damaged frame; salvage does not."""
    path.unlink()
    leave_a_log(path)
    log = Path(f"{path}-wal")
    data = bytearray(log.read_bytes())
    data[32 + 24 + 100] ^= 0xFF
    log.write_bytes(data)

    pool.restore(copy, path, overwrite=True)

    assert titles(path, pool) == ["old"]
    aside, kept_log = sorted(kept_files(path))
    assert kept_log == Path(f"{aside}-wal")
    assert kept_log.read_bytes() == data


def test_a_sound_database_is_not_kept(path: Path, pool: ConnectionPool, copy: Path) -> None:
    pool.restore(copy, path, overwrite=True)

    assert kept_files(path) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA application_id = 7",
        "UPDATE alembic_version SET version_num = '9999'",
        "DROP TABLE alembic_version",
    ],
)
def test_a_file_of_another_program_is_kept_too(
    path: Path, pool: ConnectionPool, copy: Path, statement: str
) -> None:
    """Another program's database, or a newer version's: SQLite finds no fault in it."""
    with contextlib.closing(apsw.Connection(str(path))) as raw:
        raw.execute(statement)

    pool.restore(copy, path, overwrite=True)

    assert len(kept_files(path)) == 1


def test_a_log_whose_head_is_damaged_is_kept_with_its_database(
    path: Path, pool: ConnectionPool, copy: Path, start_child: Callable[..., Any]
) -> None:
    """SQLite takes such a WAL for an empty one; acknowledged rows are in it all the same."""
    child = start_child(
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "sessions.create_session('in the log', id='in the log')\n"
        "send('done')\nreceive()",
        path,
    )
    child.receive()
    child.process.kill()
    child.process.wait()
    log = Path(f"{path}-wal")
    log.write_bytes(os.urandom(32) + log.read_bytes()[32:])

    checks = {check.name: check for check in diagnose(path).checks}
    assert checks["log"].status is HealthStatus.DEGRADED
    salvage(path, path.with_name("rescued.sqlite"))
    with SessionManager(path.with_name("rescued.sqlite"), pool=pool) as rescued:
        assert rescued.get_session("in the log").id == "in the log"
    pool.restore(copy, path, overwrite=True)
    assert any(
        str(name).endswith("-wal")
        for name in kept_files(path) | set(path.parent.iterdir())
        if ".damaged-" in str(name)
    )


def test_a_backup_that_has_a_log_of_its_own_is_read_with_it(
    path: Path, pool: ConnectionPool, start_child: Callable[..., Any]
) -> None:
    """As a user's copy of the files of a program that does not run."""
    source = path.with_name("theirs.sqlite")
    child = start_child(
        "import os\n"
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "sessions.create_session('in the log')\n"
        "send('done')\nreceive()",
        source,
    )
    child.receive()
    child.process.kill()
    child.process.wait()
    files = {suffix: Path(f"{source}{suffix}").read_bytes() for suffix in ("", "-wal", "-shm")}

    pool.restore(source, path)

    assert titles(path, pool) == ["in the log"]
    assert {each: Path(f"{source}{each}").read_bytes() for each in files} == files


def test_a_turn_that_was_streaming_is_interrupted_by_the_next_opening(
    path: Path, pool: ConnectionPool
) -> None:
    copy = path.with_name("copy.sqlite")
    with SessionManager(path, pool=pool) as sessions:
        response = sessions.create_round(sessions.create_session("A").id, "Hello?").response
        with sessions.stream_turn(response.id) as turn:
            turn.write("So far.")
            turn.flush()
            sessions.backup(copy)
        turn_id = turn.id
    pool.restore(copy, path, overwrite=True)

    with SessionManager(path, pool=pool) as sessions:
        restored = sessions.get_turn(turn_id)

    assert (restored.status, restored.content) == (TurnStatus.INTERRUPTED, "So far.")


async def restore_in_a_loop(path: Path, pool: ConnectionPool, copy: Path) -> Path:
    return await AsyncSessionManager(path, pool=pool).restore(copy, overwrite=True)


def test_the_async_restore_restores(path: Path, pool: ConnectionPool, copy: Path) -> None:
    import asyncio

    assert asyncio.run(restore_in_a_loop(path, pool, copy)) == path

    assert titles(path, pool) == ["old"]


# -- what is refused ------------------------------------------------------------------------------


def test_a_restore_replaces_nothing_unless_asked(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    with pytest.raises(RestoreError, match="already"):
        pool.restore(copy, path)

    assert titles(path, pool) == ["new", "old"]


def test_handles_of_this_process_are_named(path: Path, pool: ConnectionPool, copy: Path) -> None:
    with (
        SessionManager(path, pool=pool) as sessions,
        pool.acquire(path),
        pytest.raises(DatabaseBusyError, match="not released: 2"),
    ):
        SessionManager(path, pool=pool).restore(copy, overwrite=True, timeout=0)

    assert not sessions.is_initialized
    assert titles(path, pool) == ["new", "old"]


def test_an_open_manager_refuses_at_once(path: Path, pool: ConnectionPool, copy: Path) -> None:
    with SessionManager(path, pool=pool) as sessions, pytest.raises(DatabaseBusyError):
        sessions.restore(copy, overwrite=True, timeout=60)


def test_a_restore_waits_for_handles_to_be_released(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    handle = pool.acquire(path)
    restoring = Task(lambda: pool.restore(copy, path, overwrite=True, timeout=60))
    threading.Timer(0.05, handle.release).start()

    restoring.result()

    assert titles(path, pool) == ["old"]


def test_another_process_that_has_it_open_is_not_disturbed(
    path: Path, pool: ConnectionPool, copy: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "send('open')\nreceive()\n"
        "sessions.create_session('theirs')\nsessions.close()\nsend('closed')",
        path,
    )
    child.receive()

    with pytest.raises(DatabaseBusyError):
        pool.restore(copy, path, overwrite=True, timeout=0.05)

    assert names(path) == sorted([path.name, f"{path.name}-shm", f"{path.name}-wal", copy.name])
    child.send()
    child.receive()
    child.finish()
    assert titles(path, pool) == ["new", "old", "theirs"]


def test_another_pool_of_this_process_prevents_a_restore_too(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    with (
        ConnectionPool(PoolOptions(linger=0)) as other,
        other.acquire(path),
        pytest.raises(DatabaseBusyError),
    ):
        pool.restore(copy, path, overwrite=True, timeout=0.05)
    assert titles(path, pool) == ["new", "old"]


def test_a_damaged_database_that_is_in_use_is_not_replaced(
    path: Path, pool: ConnectionPool, copy: Path, start_child: Callable[..., Any]
) -> None:
    """SQLite cannot open it any more, but the locks of the process that has it open are there."""
    child = start_child(
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "send('open')\nreceive()\nimport os\nos._exit(0)",
        path,
    )
    child.receive()
    with path.open("r+b") as file:
        file.write(b"no database" * 10)

    with pytest.raises(DatabaseBusyError):
        pool.restore(copy, path, overwrite=True, timeout=0.05)

    assert path.read_bytes().startswith(b"no database")
    child.send()
    child.finish()
    pool.restore(copy, path, overwrite=True, timeout=0.05)
    assert titles(path, pool) == ["old"]


def damaged(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[4096 * 3 : 4096 * 4] = os.urandom(4096)
    copy.write_bytes(data)


def orphaned(copy: Path) -> None:
    run(copy, "INSERT INTO turn_chunks VALUES ('unknown', 1, '', '')")


def newer(copy: Path) -> None:
    run(copy, "UPDATE alembic_version SET version_num = '9999'")


def foreign(copy: Path) -> None:
    run(copy, "PRAGMA application_id = 7")


def run(copy: Path, sql: str) -> None:
    raw = apsw.Connection(str(copy))
    raw.execute(sql)
    raw.close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (damaged, RestoreError),
        (orphaned, RestoreError),
        (newer, SchemaTooNewError),
        (foreign, UnrecognizedDatabaseError),
        (lambda copy: copy.write_bytes(b"no database" * 1000), NotADatabaseError),
        (lambda copy: copy.write_bytes(b""), NotADatabaseError),
        (lambda copy: copy.unlink(), DatabaseMissingError),
    ],
    ids=["damaged", "orphans", "newer", "foreign", "text", "empty", "missing"],
)
def test_a_backup_that_is_not_sound_changes_nothing(
    path: Path,
    pool: ConnectionPool,
    copy: Path,
    spoil: Callable[[Path], object],
    error: type[Exception],
) -> None:
    spoil(copy)

    with pytest.raises(error) as caught:
        pool.restore(copy, path, overwrite=True)

    assert getattr(caught.value, "path", None) == copy
    assert titles(path, pool) == ["new", "old"]
    assert not [name for name in names(path) if "partial" in name]


def test_the_database_itself_is_no_backup(path: Path, pool: ConnectionPool, copy: Path) -> None:
    link = path.with_name("link")
    os.link(path, link)

    for same in (path, link):
        with pytest.raises(RestoreError, match="itself"):
            pool.restore(same, path, overwrite=True)


def test_a_thread_that_waits_to_open_the_file_finds_the_restored_one(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    """Another process meanwhile opens the one or the other, whole, or gets a busy error.

    ::

        restore   lock ─ merge ─ rename ─ unlock
        opener          open: waits ............. moved? again ─ the new file
    """
    stop = threading.Event()
    seen: list[list[str]] = []

    def look() -> None:
        while not stop.is_set():
            with ConnectionPool(PoolOptions(linger=0)) as other:
                try:
                    seen.append(titles(path, other))
                except DatabaseMovedError:
                    continue

    looker = Task(look)
    for _ in range(10):
        pool.restore(copy, path, overwrite=True, timeout=60)
    stop.set()
    looker.result()

    assert {tuple(each) for each in seen} <= {("new", "old"), ("old",)}
    assert titles(path, pool) == ["old"]


# -- a disk that gets full ------------------------------------------------------------------------

LIMITED = """
import resource, sys
from mandrake_sessions import ConnectionPool, DatabaseError, PoolOptions
backup, path, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
# No file gets larger: as on a full disk, writes fail.
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
with ConnectionPool(PoolOptions(linger=0)) as pool:
    try:
        pool.restore(backup, path, overwrite=True)
    except DatabaseError as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such limit")
def test_a_wal_that_does_not_fit_the_new_file_stops_the_restore(
    path: Path, pool: ConnectionPool, copy: Path
) -> None:
    """A backup with a log, as a crash has left it; closing a file keeps silent about what fails."""
    raw = apsw.Connection(str(copy))
    raw.execute("PRAGMA journal_mode = WAL")
    raw.wal_autocheckpoint(0)
    more = "INSERT INTO meta VALUES (?, hex(zeroblob(150000)))"
    raw.execute(more, ("a",))
    raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
    raw.execute(more, ("b",))
    for suffix in ("", "-wal"):
        Path(f"{copy}.hot{suffix}").write_bytes(Path(f"{copy}{suffix}").read_bytes())
    raw.close()

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, f"{copy}.hot", str(path), "600000"],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout == "DatabaseIOError\n"
    assert titles(path, pool) == ["new", "old"]
    assert not [name for name in names(path) if "partial" in name]


# -- a kill at every step -------------------------------------------------------------------------

LIVES = """
import os, signal
import apsw
from mandrake_sessions import ConnectionPool, PoolOptions
CALLS = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate", "open"}

def restore(backup, path, last):
    steps = 0

    def step(*_):
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def look(event, arguments):
        if event in CALLS and "db.sqlite" in str(arguments[0]):
            step()

    def attach(connection):
        connection.exec_trace = step

    with ConnectionPool(PoolOptions(linger=0)) as pool:
        apsw.connection_hooks.append(attach)
        sys.addaudithook(look)
        pool.restore(backup, path, overwrite=True)
        send(steps)
        last = 0

# Nothing is open here, so each life is as one of a new interpreter, which would take far longer.
while True:
    order = receive()
    pid = os.fork()
    if not pid:
        restore(*order)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL:
        send(0)
"""


@pytest.fixture(scope="module")
def restore_and_die(start_child_of_module: Callable[..., Any]) -> Callable[[Path, Path, int], int]:
    """Restores in a process that is killed at a step; returns how many it made, 0 if killed."""
    server = start_child_of_module(LIVES)

    def restore(copy: Path, path: Path, step: int) -> int:
        server.send([str(copy), str(path), step])
        steps = server.receive()
        assert isinstance(steps, int)
        return steps

    return restore


def test_a_kill_at_any_step_leaves_the_old_or_the_new(
    pool: ConnectionPool,
    copy: Path,
    tmp_path: Path,
    campaign: Any,
    restore_and_die: Callable[..., int],
) -> None:
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    leave_a_log(crashed / "db.sqlite")
    place = tmp_path / "place"
    found = []
    step = 1
    # The last step is met anyway: then nothing is killed any more.
    stride = campaign.pick(6, 1, 1)
    while True:
        if place.exists():
            for each in place.iterdir():
                each.unlink()
        else:
            place.mkdir()
        for each in crashed.iterdir():
            (place / each.name).write_bytes(each.read_bytes())
        was_whole = restore_and_die(copy, place / "db.sqlite", step)
        found.append(titles(place / "db.sqlite", pool))
        assert verify(place / "db.sqlite") == []
        if was_whole:
            break
        # The next one removes the leftovers.
        pool.restore(copy, place / "db.sqlite", overwrite=True)
        assert not [name for name in os.listdir(place) if "partial" in name]
        step += stride
    print(f"{step} steps, {sum(each == ['old'] for each in found)} with the new one")  # noqa: T201  # a result

    assert {tuple(each) for each in found} == {("in the file", "in the log"), ("old",)}
    assert found == sorted(found), "the new one, and then the old one again"
    assert step > 20


def test_a_kill_during_the_restore_over_a_damaged_wal_hides_nothing(
    pool: ConnectionPool, copy: Path, tmp_path: Path, restore_and_die: Callable[..., int]
) -> None:
    """Between the renaming of the log and that of the file, the file by itself is an older one."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    leave_a_log(crashed / "db.sqlite", "in the log", "behind it", "damaged")
    log = crashed / "db.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[-100:] = b"\xaa" * 100
    log.write_bytes(content)
    place = tmp_path / "place"
    path = place / "db.sqlite"
    found = []
    kinds = set()
    step = 1
    was_whole = 0
    while not was_whole:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(crashed, place)
        was_whole = restore_and_die(copy, path, step)
        try:
            found.append(titles(path, pool))
        except DatabaseNamesError as error:
            kinds.add(error.kind)
            (kept,) = error.others
            Path(f"{kept}-wal").rename(f"{path}-wal")
            found.append(titles(path, pool))
        step += 1

    assert kinds == {"interrupted restore"}
    assert {tuple(each) for each in found} == {("behind it", "in the file", "in the log"), ("old",)}


@pytest.mark.parametrize("where", [slice(0, 100), slice(4096, None), slice(100, 200)])
def test_a_kill_during_the_restore_over_a_damaged_file_leaves_it_as_it_was(
    pool: ConnectionPool,
    copy: Path,
    tmp_path: Path,
    campaign: Any,
    restore_and_die: Callable[..., int],
    *,
    where: slice,
) -> None:
    """The second name that keeps it is no reason to say anything else of it than before."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    leave_a_log(crashed / "db.sqlite")
    content = bytearray((crashed / "db.sqlite").read_bytes())
    content[where] = b"\xaa" * len(content[where])
    (crashed / "db.sqlite").write_bytes(content)
    place = tmp_path / "place"
    path = place / "db.sqlite"
    found = []
    step = 1
    stride = campaign.pick(7, 1, 1)
    was_whole = 0
    while not was_whole:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(crashed, place)
        was_whole = restore_and_die(copy, path, step)
        if not path.exists():
            found.append("nothing")
        else:
            try:
                found.append(str(titles(path, pool)))
            except DatabaseError as error:
                found.append(type(error).__name__)
        pool.restore(copy, path, overwrite=True)
        assert titles(path, pool) == ["old"]
        # Whatever the killed one has left: the damaged file is kept, and once.
        logs = ("-wal", "-journal")
        assert len([kept for kept in kept_files(path) if not kept.name.endswith(logs)]) == 1
        step += stride

    assert "DatabaseNamesError" not in found
    assert found[-1] == "['old']"
    assert len(set(found[:-1])) <= 2, found


def leave_a_log(path: Path, *titles: str) -> None:
    """Make a database of which a part is in a log."""
    code = (
        "import os, sys\n"
        "from mandrake_sessions import SessionManager\n"
        "with SessionManager(sys.argv[1]) as sessions:\n"
        "    sessions.create_session('in the file')\n"
        "    from mandrake_sessions import default_pool\n"
        "default_pool().close()\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "for title in sys.argv[2:] or ['in the log']: sessions.create_session(title)\n"
        "os._exit(0)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path), *titles],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=True,
        timeout=120,
    )
    assert Path(f"{path}-wal").stat().st_size > 0
