"""Health: its checks change nothing; busy is degraded, not broken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import apsw
import pytest
from database_kit import ENDLESS, Held, Task, file_of, raw_of
from kits.descriptors import descriptors, open_connections
from kits.entries import KEYS, add, adding, keys
from kits.waiting import SOON, until, until_set
from sqlalchemy import bindparam, delete
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseMovedError,
    HandleReleasedError,
    HealthCheck,
    HealthLevel,
    HealthReport,
    HealthStatus,
    InvalidArgumentError,
    MandrakeSessionsError,
    PoolClosedError,
    schema,
)
from mandrake_sessions.database.health import checks
from mandrake_sessions.database.health import levels as health
from mandrake_sessions.database.health.wording import readable_size
from mandrake_sessions.database.kernel_locks import lock_holders
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.tables import HEAD
from mandrake_sessions.testing import Fault, FaultVFS
from tools.generate.compiler import compiled

MakePool = Callable[..., ConnectionPool]

DROP = compiled(delete(schema.meta).where(schema.meta.c.key == bindparam("key")))
CHECKS = {
    "file",
    "log",
    "locks",
    "second_opener",
    "turnstile",
    "sqlite",
    "disk",
    "file_system",
    "checkpoints",
    "damage",
    "header",
    "size",
    "schema",
    "settings_auxiliary",
    "settings",
    "writing",
}
# In another process: closing a descriptor here would drop SQLite's locks.
OVERWRITE = """
import sys
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "r+b") as target:
    target.write(source.read())
    target.truncate()
"""
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], os.stat(sys.argv[1]).st_size // 2)"
GARBAGE = """
import os, sys
with open(sys.argv[1], "r+b") as target:
    target.write(os.urandom(os.stat(sys.argv[1]).st_size))
"""


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


def run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)


def digests(path: Path) -> str:
    script = "import sys; print([hash(open(name, 'rb').read()) for name in sys.argv[1:]])"
    command = [sys.executable, "-c", script, str(path), f"{path}-wal"]
    seeded = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, capture_output=True, check=True, text=True, env=seeded).stdout


def check(report: HealthReport, name: str) -> HealthCheck:
    return next(check for check in report.checks if check.name == name)


def bad(report: HealthReport) -> set[str]:
    return {check.name for check in report.checks if check.status is not HealthStatus.OK}


def settle(handle: FileHandle) -> None:
    """Bring everything from the WAL into the file."""
    keys(handle)

    def is_settled() -> bool:
        # The thread of the file may make a checkpoint at the same time.
        file_of(handle).checkpoint()
        return file_of(handle).checkpointer.backlog == 0

    until(is_settled)


def test_a_healthy_database_passes_every_check(handle: FileHandle) -> None:
    report = handle.health()
    assert report.status is HealthStatus.OK
    assert report.is_usable
    assert {check.name for check in report.checks} == CHECKS
    assert len(report.checks) == len(CHECKS)
    assert report.path == handle.path
    assert HEAD in check(report, "schema").detail


def test_a_check_of_health_takes_about_a_millisecond(handle: FileHandle) -> None:
    handle.health()
    times = []
    for _ in range(20):
        began = thread_time()
        handle.health()
        times.append(thread_time() - began)
    assert min(times) < 0.005


def test_a_check_of_health_changes_nothing(handle: FileHandle) -> None:
    handle.transact(adding("a"))
    keys(handle)
    before = digests(handle.path)
    changes = raw_of(handle).total_changes()
    handle.health()
    assert digests(handle.path) == before
    assert raw_of(handle).total_changes() == changes


def test_a_foreign_writer_makes_health_degraded(
    handle: FileHandle, hold_write_lock: Callable[..., Any]
) -> None:
    hold_write_lock(handle.path)
    # The lock is held until the end of the test.
    began = monotonic()
    report = handle.health()
    assert monotonic() - began < SOON
    assert report.status is HealthStatus.DEGRADED
    assert report.is_usable
    assert bad(report) == {"writing"}
    assert "holds the write lock" in check(report, "writing").detail


def test_a_busy_thread_of_this_process_makes_health_degraded(handle: FileHandle) -> None:
    with Held(handle):
        report = handle.health()
    assert report.status is HealthStatus.DEGRADED
    assert bad(report) == {"writing"}
    assert handle.health().status is HealthStatus.OK


def test_a_busy_reader_of_this_process_makes_health_degraded(handle: FileHandle) -> None:
    with handle.read():
        report = Task(handle.health).result()
    assert report.status is HealthStatus.DEGRADED
    assert bad(report) == {"reading"}


@pytest.mark.parametrize("first", ["health", "a write"])
def test_the_stamp_shows_another_database_that_was_copied_over_the_file(
    make_pool: MakePool, path: Path, first: str
) -> None:
    """The live connection shows the old pages from its cache."""
    other = path.with_name("other.sqlite")
    with file_handle(make_pool().acquire(other)) as handle:
        handle.transact(adding("other's"))
    pool = make_pool()
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("ours"))
        settle(handle)
        assert handle.health().status is HealthStatus.OK
        run(OVERWRITE, other, path)
        if first == "a write":
            with pytest.raises(DatabaseMovedError):
                handle.transact(adding("a commit"))
        report = handle.health()
        assert not report.is_usable
        assert "header" in bad(report)


def test_health_names_garbage_in_the_file(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        settle(handle)
        run(GARBAGE, path)
        report = handle.health()
        assert report.status is HealthStatus.FAILED
        assert bad(report) & {"reading", "header"}


def test_health_names_a_truncated_file(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        settle(handle)
        run(TRUNCATE, path)
        report = handle.health()
        assert check(report, "size").status is HealthStatus.FAILED


def test_health_names_a_moved_file(make_pool: MakePool, path: Path) -> None:
    with make_pool().acquire(path) as handle:
        keys(handle)
        path.unlink()
        report = handle.health()
        assert report.status is HealthStatus.FAILED
        assert {"reading", "writing"} <= bad(report)
        assert DatabaseMovedError.__name__ in check(report, "writing").detail


@pytest.mark.parametrize(
    ("pragma", "value"), [("synchronous", 0), ("foreign_keys", 0), ("wal_autocheckpoint", 1000)]
)
def test_health_names_a_lost_pragma(handle: FileHandle, pragma: str, value: int) -> None:
    raw_of(handle).pragma(pragma, value)
    report = handle.health()
    assert bad(report) == {"settings"}
    assert pragma in check(report, "settings").detail


def test_health_names_an_auxiliary_connection_that_may_write(handle: FileHandle) -> None:
    keys(handle)
    file_of(handle).leased_connections()[1].connection.raw.pragma("query_only", 0)
    assert bad(handle.health()) == {"settings_auxiliary"}


def test_health_names_a_second_sqlite(start_child: Callable[..., Any], path: Path) -> None:
    child = start_child(
        """
from mandrake_sessions import ConnectionPool
def statuses():
    return {check.name: (check.status, check.detail) for check in handle.health().checks}
with ConnectionPool() as pool, pool.acquire(sys.argv[1]) as handle:
    send(statuses()["sqlite"])
    __import__("sqlite{}".format(3))
    send(statuses()["sqlite"])
""",
        path,
    )
    assert child.receive() == ["ok", apsw.sqlite_lib_version()]
    status, detail = child.receive()
    assert status == "degraded"
    assert "sqlite3" in detail
    child.finish()


def test_a_nearly_full_disk_makes_health_degraded(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "free_bytes", lambda _path: 1_000_000)
    assert bad(handle.health()) == {"disk"}
    monkeypatch.setattr(checks, "free_bytes", lambda _path: None)
    assert bad(handle.health()) == {"disk"}


def test_health_names_a_schema_of_another_revision(handle: FileHandle) -> None:
    raw_of(handle).execute("UPDATE alembic_version SET version_num = '9999'")
    assert bad(handle.health()) == {"schema"}


def test_health_names_a_missing_table(handle: FileHandle) -> None:
    raw_of(handle).execute("DROP TABLE workspaces")
    (check,) = [each for each in handle.health().checks if each.name == "schema"]
    assert check.status is HealthStatus.FAILED
    assert check.detail.endswith("without workspaces")


# -- damage -----------------------------------------------------------------------------------


@pytest.fixture
def damaged(make_pool: MakePool, path: Path) -> Any:
    """A handle on a database whose ``meta`` table is torn; its schema is whole."""
    with file_handle(make_pool().acquire(path)) as handle:
        handle.transact(adding("a"))
        root = raw_of(handle).execute("SELECT rootpage FROM sqlite_schema WHERE name = 'meta'")
        page = root.fetchall()[0][0]
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with make_pool().acquire(path) as handle:
        yield handle


@pytest.mark.parametrize("way", ["transact", "write", "fetch", "query", "read"])
def test_corruption_is_a_latch(damaged: FileHandle, way: str) -> None:
    def work(tx: Any) -> None:
        tx.rows(KEYS)

    with capture_logs() as logs, pytest.raises(CorruptDatabaseError):
        if way in ("write", "read"):
            with getattr(damaged, way)() as tx:
                work(tx)
        else:
            getattr(damaged, way)(work)
    for attempt in (
        lambda: damaged.transact(lambda tx: None),
        lambda: damaged.write().__enter__(),
        lambda: damaged.sqlalchemy().__enter__(),
    ):
        with pytest.raises(CorruptDatabaseError) as caught:
            attempt()
        assert caught.value.path == damaged.path
    # Reading what is whole goes on.
    assert damaged.fetch(lambda tx: 1) == 1
    report = damaged.health()
    assert check(report, "damage").status is HealthStatus.FAILED
    assert not report.is_usable
    assert [log["event"] for log in logs] == ["database_corrupt"]


def test_health_is_always_a_report_or_a_typed_error(make_pool: MakePool, path: Path) -> None:
    with file_handle(make_pool().acquire(path)) as handle:
        settle(handle)
        run(GARBAGE, path)
        for number in range(3):
            with contextlib.suppress(MandrakeSessionsError):
                handle.transact(adding(f"{number}"))
            assert isinstance(handle.health(), HealthReport)


# -- levels ---------------------------------------------------------------------------------


def names(report: HealthReport) -> set[str]:
    return {check.name for check in report.checks}


def test_each_level_has_its_checks(handle: FileHandle) -> None:
    keys(handle)
    expected = {
        HealthLevel.LEASE: {"file", "lease"},
        HealthLevel.QUICK: CHECKS,
        HealthLevel.THOROUGH: CHECKS | {"pages", "references"},
        HealthLevel.FULL: CHECKS | {"integrity"},
    }
    for level, checks_of_it in expected.items():
        report = handle.health(level)
        assert report.level is level
        assert report.status is HealthStatus.OK
        assert names(report) == checks_of_it
        assert {check.advice for check in report.checks} == {""}
    assert handle.health("full").level is HealthLevel.FULL  # type: ignore[arg-type]
    for wrong in ("deep", None, 1):
        with pytest.raises(InvalidArgumentError):
            handle.health(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        handle.health(timeout=-1.0)


def test_each_problem_comes_with_advice(handle: FileHandle) -> None:
    raw_of(handle).pragma("synchronous", 0)
    assert "HealthMonitor" in check(handle.health(), "settings").advice
    assert set(checks._ADVICE) >= CHECKS | {"lease", "reading", "pages", "references", "integrity"}


def test_the_advice_is_that_for_the_cause(make_pool: MakePool, path: Path) -> None:
    with make_pool().acquire(path) as handle:
        keys(handle)
        path.rename(path.with_name("elsewhere"))
        lease = check(handle.health(HealthLevel.LEASE), "lease")
        assert "moved" in lease.advice
        report = handle.health()
        assert "moved" in check(report, "writing").advice
        # No process has opened and closed it here.
        assert "locks" not in bad(report)
    with make_pool().acquire(path) as handle:
        file_of(handle).refusal.note(CorruptDatabaseError(path=path))
        assert "salvage" in check(handle.health(), "writing").advice


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        *((0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1048575, "1.0 MiB")),
        *((79506104320, "74.0 GiB"), (1 << 52, "4096.0 TiB")),
    ],
)
def test_sizes_are_shown_as_people_read_them(count: int, shown: str) -> None:
    assert readable_size(count) == shown


def test_the_lease_level_touches_no_connection_that_a_thread_holds(
    handle: FileHandle,
) -> None:
    with Held(handle):
        report = handle.health(HealthLevel.LEASE)
    assert bad(report) == {"lease"}
    assert check(report, "lease").status is HealthStatus.DEGRADED
    assert handle.health(HealthLevel.LEASE).status is HealthStatus.OK


def test_the_lease_level_sees_a_moved_file(handle: FileHandle) -> None:
    handle.path.rename(handle.path.with_name("elsewhere"))
    assert bad(handle.health(HealthLevel.LEASE)) == {"file", "lease"}


@pytest.mark.parametrize("level", HealthLevel)
def test_a_file_that_is_gone_is_a_report_at_every_level(
    handle: FileHandle, level: HealthLevel
) -> None:
    keys(handle)
    handle.path.unlink()
    assert check(handle.health(level), "file").status is HealthStatus.FAILED
    with pytest.raises(DatabaseMovedError):
        handle.transact(adding("lost"))
    # Given up, it is closed behind the handle.
    until(lambda: file_of(handle).state is FileState.CLOSED)
    report = handle.health(level)
    assert check(report, "file").status is HealthStatus.FAILED
    assert not names(report) & {"log", "locks", "second_opener"}


def test_health_is_asked_of_open_files_only(
    make_pool: MakePool, path: Path, start_child: Callable[..., Any]
) -> None:
    pool = make_pool()
    handle = pool.acquire(path)
    other = pool.acquire(path.with_name("other.sqlite"))
    assert [report.path for report in pool.health()] == [path, other.path]
    assert {report.level for report in pool.health("lease")} == {HealthLevel.LEASE}  # type: ignore[arg-type]
    other.release()
    with pytest.raises(HandleReleasedError):
        other.health()
    pool.close()
    with pytest.raises(PoolClosedError):
        handle.health()
    child = start_child(
        """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from mandrake_sessions import ConnectionPool, ForkedPoolError
pool = ConnectionPool()
handle = pool.acquire(sys.argv[1])
if os.fork() == 0:
    try:
        handle.health()
    except ForkedPoolError:
        send("forked")
    os._exit(0)
os.wait()
handle.release()
pool.close()
""",
        path,
    )
    assert child.receive() == "forked"
    child.finish()


# -- thorough and full ----------------------------------------------------------------------


def test_no_thread_waits_for_a_thorough_check(handle: FileHandle) -> None:
    with file_of(handle).inspecting(Budget(20.0)) as connection:
        connection.execute("BEGIN; SELECT count(*) FROM meta").fetchall()
        handle.transact(adding("written"), timeout=1.0)
        assert keys(handle) == {"written"}
        file_of(handle).checkpoint()


def test_closing_interrupts_a_thorough_check(make_pool: MakePool, path: Path) -> None:
    pool = make_pool()
    handle = pool.acquire(path)
    inside = threading.Event()

    def look() -> None:
        with file_of(handle).inspecting(Budget(600.0)) as connection:
            inside.set()
            connection.execute(ENDLESS.sql, ENDLESS.bind({})).fetchall()

    task = Task(look)
    until_set(inside)
    pool.close()
    with pytest.raises(PoolClosedError):
        task.result()
    assert open_connections(path) == 0


def test_a_thorough_check_ends_at_its_deadline(handle: FileHandle) -> None:
    with (
        pytest.raises(DatabaseBusyError),
        file_of(handle).inspecting(Budget(0.05)) as connection,
    ):
        connection.execute(ENDLESS.sql, ENDLESS.bind({})).fetchall()
    assert handle.health(HealthLevel.THOROUGH).status is HealthStatus.OK


def test_a_check_without_time_makes_health_degraded(handle: FileHandle) -> None:
    """Not failed: nothing is known."""
    handle.transact(lambda tx: [add(tx, f"{n}", "x" * 3000) for n in range(3000)])
    report = handle.health(HealthLevel.FULL, timeout=0.0)
    assert check(report, "integrity").status is HealthStatus.DEGRADED
    report = handle.health(HealthLevel.THOROUGH, timeout=0.0)
    assert {check(report, name).status for name in ("pages", "references")} <= {
        HealthStatus.DEGRADED,
        HealthStatus.OK,
    }


def test_repeated_checks_leave_nothing_open(handle: FileHandle) -> None:
    for level in HealthLevel:
        handle.health(level)
    before, names_before = len(descriptors()), sorted(os.listdir(handle.path.parent))
    for _ in range(5):
        for level in HealthLevel:
            assert handle.health(level).status is HealthStatus.OK
    assert len(descriptors()) == before
    assert sorted(os.listdir(handle.path.parent)) == names_before


def test_broken_references_are_named(handle: FileHandle) -> None:
    raw = raw_of(handle)
    raw.pragma("foreign_keys", 0)
    raw.execute(
        'INSERT INTO rounds (id, session_id, "index", created_at, updated_at)'
        " VALUES ('r', 'unknown', 0, 0, 0)"
    )
    raw.pragma("foreign_keys", 1)
    report = handle.health(HealthLevel.THOROUGH)
    assert bad(report) == {"references"}
    assert "sessions" in check(report, "references").detail
    report = handle.health(HealthLevel.FULL)
    assert bad(report) == {"references"}
    assert report.is_usable


def test_a_full_check_needs_space_for_a_copy(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "free_bytes", lambda _path: 100_000)
    report = handle.health(HealthLevel.FULL)
    assert bad(report) == {"integrity"}
    assert report.is_usable


def test_a_check_of_every_page_finds_damage(damaged: FileHandle) -> None:
    assert damaged.health().is_usable
    assert "pages" in bad(damaged.health(HealthLevel.THOROUGH))
    assert "integrity" in bad(damaged.health(HealthLevel.FULL))
    assert [name for name in os.listdir(damaged.path.parent) if ".partial-" in name] == []


def test_a_half_finished_checkpoint_is_no_damage(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    """It writes the first page, which has the size, before the last ones; so does a kill."""
    pool = make_pool(database={"vfs": vfs.name})
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(lambda tx: [add(tx, f"{n}", "x" * 3000) for n in range(50)])
        with vfs.injecting(Fault("write", kind="db", nth=3, sticking=True)):
            file_of(handle).checkpoint()
        size = check(handle.health(), "size")
        assert size.status is HealthStatus.OK
        assert "the WAL has" in size.detail
        settle(handle)
        assert "the WAL has" not in check(handle.health(), "size").detail


@pytest.mark.parametrize("reader", [False, True], ids=["alone", "a reader holds frames back"])
def test_the_size_is_right_at_every_step_of_a_checkpoint(
    make_pool: MakePool, path: Path, vfs: FaultVFS, reader: bool
) -> None:
    """What the file lacks is in the log: pages of every kind, also those freed when hardly made."""

    def work(tx: Any) -> None:
        for n in range(8):
            add(tx, f"{place}-{n}", "x" * 9000)
        tx.run(DROP, {"key": f"{place}-7"})
        tx.run(DROP, {"key": f"{place - 3}-1"})

    pool = make_pool(database={"vfs": vfs.name})
    short = 0
    with file_handle(pool.acquire(path)) as handle:
        for place in range(1, 40):
            handle.transact(work)
            beside = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            if reader:
                beside.execute("BEGIN; SELECT count(*) FROM meta").fetchall()
                # A short row leaves the first page, which has the size, as it was.
                handle.transact(adding(f"behind {place}", "x" * (1 if place % 2 else 9000)))
            with vfs.injecting(Fault("write", kind="db", nth=place % 13 + 1, sticking=True)):
                file_of(handle).checkpoint()
            size = check(handle.health(), "size")
            assert size.status is HealthStatus.OK, size
            short += "the WAL has" in size.detail
            beside.close()
            if place % 5 == 0:
                settle(handle)
    assert short > 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/locks")
def test_a_lock_that_stays_is_reported_once_while_others_come_and_go(
    tmp_path: Path, start_child: Callable[..., Any]
) -> None:
    """The kernel gives its table page by page."""
    path = tmp_path / "locked"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
        child = start_child(
            "import fcntl\n"
            "files = [open(f'{sys.argv[1]}-{n}', 'w') for n in range(40)]\n"
            "send('locking')\n"
            "while True:\n"
            "    for file in files:\n"
            "        fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)\n"
            "    for file in reversed(files):\n"
            "        fcntl.lockf(file, fcntl.LOCK_UN, 10, 100)\n",
            path,
        )
        child.receive()
        for _ in range(100):
            assert len(lock_holders(path) or ()) == 1
