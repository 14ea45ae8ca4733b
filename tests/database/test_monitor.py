"""The monitor checks at intervals, reports each change, and heals what can be healed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import apsw
import pytest
from database_kit import file_of, raw_of
from kits.entries import add, adding, keys
from kits.waiting import PATIENCE, until, until_set
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseMovedError,
    HealthLevel,
    HealthMonitor,
    HealthReport,
    HealthStatus,
    InvalidArgumentError,
    NotADatabaseError,
    PoolClosedError,
)
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.testing import FaultVFS

MakePool = Callable[..., ConnectionPool]
Log = MutableMapping[str, Any]


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


@pytest.fixture
def monitor(pool: ConnectionPool, handle: FileHandle) -> HealthMonitor:
    """A monitor of a healthy database that checks when a test asks."""
    monitor = HealthMonitor(pool)
    (report,) = monitor.look()
    assert report.status is HealthStatus.OK
    return monitor


def test_an_unknown_level_is_refused(monitor: HealthMonitor) -> None:
    with pytest.raises(InvalidArgumentError):
        monitor.look("nonsense")  # type: ignore[arg-type]


@pytest.fixture
def vfs_pool(make_pool: MakePool, vfs: FaultVFS) -> ConnectionPool:
    """A pool whose disk can be made to fail."""
    return make_pool(database={"vfs": vfs.name})


@pytest.fixture
def logs() -> Iterator[list[Log]]:
    with capture_logs() as logs:
        yield logs


def events(logs: list[Log]) -> list[str]:
    return [log["event"] for log in logs]


def threads() -> int:
    return sum(thread.name == "mandrake-health" for thread in threading.enumerate())


# -- the thread -----------------------------------------------------------------------------


def test_a_monitor_checks_at_once_and_then_again(pool: ConnectionPool, handle: FileHandle) -> None:
    reports: list[HealthReport] = []
    third = threading.Event()

    def note(report: HealthReport) -> None:
        reports.append(report)
        if len(reports) == 3:
            third.set()

    with HealthMonitor(pool, interval=0.001, on_report=note) as monitor:
        until_set(third)
        assert monitor.is_running
    assert not monitor.is_running
    assert threads() == 0
    assert {report.path for report in reports} == {handle.path}
    assert {report.level for report in reports} == {HealthLevel.QUICK}


def test_thorough_rounds_come_at_their_own_interval(
    pool: ConnectionPool, handle: FileHandle
) -> None:
    levels: set[HealthLevel] = set()
    with HealthMonitor(
        pool,
        interval=0.001,
        thorough_interval=0.01,
        on_report=lambda report: levels.add(report.level),
    ):
        until(lambda: len(levels) == 2)
    assert levels == {HealthLevel.QUICK, HealthLevel.THOROUGH}


def test_a_second_start_and_a_second_stop_change_nothing(pool: ConnectionPool) -> None:
    monitor = HealthMonitor(pool, interval=3600.0)
    monitor.start()
    monitor.start()
    assert threads() == 1
    monitor.stop()
    monitor.stop()
    assert threads() == 0
    monitor.start()
    assert threads() == 1
    monitor.stop()


def test_a_monitor_ends_with_its_pool_though_its_interval_is_long(make_pool: MakePool) -> None:
    pool = make_pool()
    monitor = HealthMonitor(pool, interval=3600.0).start()
    pool.close()
    until(lambda: not monitor.is_running)
    for call in (monitor.start, monitor.look, pool.health):
        with pytest.raises(PoolClosedError):
            call()
    monitor.stop()


def test_a_monitor_may_be_stopped_from_its_own_callback(
    pool: ConnectionPool, handle: FileHandle
) -> None:
    def stop(_: HealthReport) -> None:
        its_own.stop()

    its_own = HealthMonitor(pool, interval=0.001, on_report=stop)
    its_own.start()
    until(lambda: threads() == 0)


def test_a_callback_may_use_the_database(pool: ConnectionPool, handle: FileHandle) -> None:
    HealthMonitor(pool, on_report=lambda _: handle.transact(adding("reported"))).look()
    assert keys(handle) == {"reported"}


def test_a_callback_that_raises_is_logged_and_called_again(
    pool: ConnectionPool, handle: FileHandle, logs: list[Log]
) -> None:
    calls: list[HealthReport] = []

    def fail(report: HealthReport) -> None:
        calls.append(report)
        raise ValueError

    with HealthMonitor(pool, interval=0.001, on_report=fail):
        until(lambda: len(calls) >= 2)
    assert set(events(logs)) == {"health_report_failed"}


def test_a_check_that_fails_does_not_end_the_others(
    make_pool: MakePool, path: Path, logs: list[Log]
) -> None:
    """Inside a block no check of that database is possible: it would wait for itself."""
    pool = make_pool()
    monitor = HealthMonitor(pool)
    with (
        file_handle(pool.acquire(path)) as one,
        pool.acquire(path.with_name("other.sqlite")) as other,
    ):
        with one.write():
            (report,) = monitor.look()
        assert report.path == other.path
        assert len(monitor.look()) == 2
    assert [log for log in logs if log["event"] == "health_monitor_failed"]


def test_a_forked_child_has_no_monitor_and_may_start_one(
    start_child: Callable[..., Any], path: Path
) -> None:
    child = start_child(
        """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from mandrake_sessions import ConnectionPool, HealthMonitor
pool = ConnectionPool()
monitor = HealthMonitor(pool, interval=3600.0).start()
if os.fork() == 0:
    send(monitor.is_running)
    with ConnectionPool() as own, own.acquire(sys.argv[1]) as handle:
        handle.transact(lambda tx: None)
        reported = threading.Event()
        with HealthMonitor(own, on_report=lambda report: reported.set()):
            send(reported.wait(60))
    monitor.start()
    send(monitor.is_running)
    monitor.stop()
    os._exit(0)
os.wait()
send(monitor.is_running)
monitor.stop()
pool.close()
""",
        path,
    )
    assert [child.receive() for _ in range(4)] == [False, True, True, True]
    child.finish()


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": 0.0},
        {"interval": -1.0},
        {"interval": "often"},
        {"thorough_interval": 0.0},
        {"on_report": 1},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(pool: ConnectionPool, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        HealthMonitor(pool, **wrong)
    with pytest.raises(InvalidArgumentError):
        HealthMonitor(None)  # type: ignore[arg-type]


def test_the_monitor_forgets_a_file_that_is_not_open_any_more(
    make_pool: MakePool, path: Path, logs: list[Log]
) -> None:
    pool = make_pool()
    monitor = HealthMonitor(pool)
    with pool.acquire(path):
        assert len(monitor.look()) == 1
    assert monitor.look() == ()
    assert pool.health() == ()


# -- what it reports --------------------------------------------------------------------------


def test_a_change_is_reported_once_in_each_direction(
    handle: FileHandle,
    monitor: HealthMonitor,
    hold_write_lock: Callable[..., Any],
    logs: list[Log],
) -> None:
    foreign = hold_write_lock(handle.path)
    for _ in range(2):
        monitor.look()
    foreign.send()
    assert foreign.receive() == "gone"
    for _ in range(2):
        monitor.look()
    changes = [log for log in logs if log["event"] == "health_changed"]
    assert [(log["check"], log["before"], log["after"]) for log in changes] == [
        ("writing", "ok", "degraded"),
        ("writing", "degraded", "ok"),
    ]
    assert [log["log_level"] for log in changes] == ["warning", "info"]
    assert changes[0]["path"] == str(handle.path)
    assert changes[0]["detail"]


# -- what it heals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pragma", "value"), [("synchronous", 0), ("foreign_keys", 0), ("wal_autocheckpoint", 1000)]
)
def test_a_lost_setting_is_set_again(
    handle: FileHandle, monitor: HealthMonitor, logs: list[Log], pragma: str, value: int
) -> None:
    raw_of(handle).pragma(pragma, value)
    monitor.look()
    assert events(logs) == ["health_changed", "settings_restored"]
    assert logs[1]["settings"] == [pragma]
    assert handle.health().status is HealthStatus.OK


def test_a_lost_setting_of_the_auxiliary_connection_is_set_again(
    handle: FileHandle, monitor: HealthMonitor, logs: list[Log]
) -> None:
    keys(handle)
    file_of(handle).leased_connections()[1].connection.raw.pragma("query_only", 0)
    monitor.look()
    assert events(logs) == ["health_changed", "settings_restored"]
    assert handle.health().status is HealthStatus.OK


def test_a_backlog_is_checkpointed_when_its_reader_has_ended(
    make_pool: MakePool, path: Path, logs: list[Log]
) -> None:
    pool = make_pool(database={"checkpoint_frames": 2})
    monitor = HealthMonitor(pool)
    with file_handle(pool.acquire(path)) as handle:
        file_of(handle).checkpoint()
        reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        reader.execute("BEGIN; SELECT count(*) FROM meta").fetchall()
        for number in range(30):
            handle.transact(adding(f"{number}", "x" * 4000))
        # The checkpoints that the commits have asked for are over.
        idle = threading.Event()
        pool._files.maintenance.call_later("idle", 0.0, idle.set)
        until_set(idle)
        file_of(handle).checkpoint()
        (report,) = monitor.look()
        assert report.status is HealthStatus.DEGRADED
        assert "backlog_checkpointed" not in events(logs)
        reader.close()
        monitor.look()
        assert events(logs)[-1] == "backlog_checkpointed"
        assert logs[-1]["before"] > logs[-1]["after"] == 0
        (report,) = monitor.look()
        assert report.status is HealthStatus.OK


def test_a_checkpoint_that_failed_is_made_again(
    make_pool: MakePool, path: Path, vfs: FaultVFS
) -> None:
    pool = make_pool(database={"vfs": vfs.name})
    monitor = HealthMonitor(pool)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
        with vfs.failing("db", "write"):
            file_of(handle).checkpoint()
        (report,) = monitor.look()
        assert report.status is HealthStatus.DEGRADED
        (report,) = monitor.look()
        assert report.status is HealthStatus.OK


def test_a_moved_file_is_retired(
    pool: ConnectionPool, handle: FileHandle, monitor: HealthMonitor, logs: list[Log]
) -> None:
    handle.path.rename(handle.path.with_name("elsewhere"))
    monitor.look()
    assert "database_retired" in events(logs)
    with pytest.raises(DatabaseMovedError):
        handle.transact(adding("lost"))
    with pool.acquire(handle.path) as again:
        assert keys(again) == set()
        assert {report.path for report in monitor.look()} == {handle.path}


@pytest.mark.parametrize("error", [CorruptDatabaseError, NotADatabaseError])
@pytest.mark.parametrize("way", ["fetch", "query", "transact"])
def test_each_check_that_finds_damage_sets_the_latch(
    handle: FileHandle, logs: list[Log], way: str, error: type[CorruptDatabaseError]
) -> None:
    def work(_: Any) -> None:
        raise error(path=handle.path, result_code=11)

    for _ in range(2):
        with pytest.raises(error):
            getattr(handle, way)(work)
    with pytest.raises(error):
        handle.transact(adding("lost"))
    assert events(logs) == ["database_corrupt"]
    assert keys(handle) == set()


def test_damage_in_another_file_does_not_set_the_latch_of_this_one(handle: FileHandle) -> None:
    def work(_: Any) -> None:
        raise CorruptDatabaseError(path=handle.path.with_name("other"))

    with pytest.raises(CorruptDatabaseError):
        handle.transact(work)
    handle.transact(adding("stored"))
    assert keys(handle) == {"stored"}


@pytest.mark.parametrize(
    ("level", "fault"),
    [
        # The error of a process without descriptors.
        (HealthLevel.THOROUGH, ("open", apsw.SQLITE_CANTOPEN)),
        (HealthLevel.FULL, ("open", apsw.SQLITE_CANTOPEN)),
        (HealthLevel.THOROUGH, ("read", apsw.SQLITE_IOERR_READ)),
        (HealthLevel.FULL, ("read", apsw.SQLITE_IOERR_READ)),
        (HealthLevel.THOROUGH, ("read", apsw.SQLITE_NOMEM)),
        (HealthLevel.QUICK, ("read", apsw.SQLITE_IOERR_READ)),
    ],
    ids=str,
)
def test_a_check_that_cannot_be_made_finds_no_damage(
    vfs_pool: ConnectionPool,
    path: Path,
    vfs: FaultVFS,
    level: HealthLevel,
    fault: tuple[str, int],
) -> None:
    with file_handle(vfs_pool.acquire(path)) as handle, capture_logs() as logs:
        handle.transact(adding("before"))
        file_of(handle).checkpoint()
        monitor = HealthMonitor(vfs_pool)
        with vfs.failing("db", *fault):
            (report,) = monitor.look(level)
        assert report.status is not HealthStatus.OK
        assert not {"pages", "size", "integrity"} & {
            each.name for each in report.checks if each.status is HealthStatus.FAILED
        }
        assert "database_corrupt" not in events(logs)
        handle.transact(adding("after"))
        assert handle.health(level).status is HealthStatus.OK


def test_a_row_without_its_parent_is_no_damage(
    handle: FileHandle, monitor: HealthMonitor, logs: list[Log]
) -> None:
    raw = raw_of(handle)
    raw.pragma("foreign_keys", 0)
    raw.execute(
        "INSERT INTO requests (id, round_id, content, created_at, updated_at)"
        " VALUES ('r', 'unknown', '', 0, 0)"
    )
    raw.pragma("foreign_keys", 1)
    (report,) = monitor.look(HealthLevel.FULL)
    assert report.is_usable
    assert "database_corrupt" not in events(logs)
    handle.transact(adding("stored"))


def test_stopping_interrupts_a_check_of_every_page(
    vfs_pool: ConnectionPool, path: Path, vfs: FaultVFS
) -> None:
    """It may take ten minutes; here it is held until the monitor has been stopped."""
    inside, may_end = threading.Event(), threading.Event()
    reports: list[HealthReport] = []

    def hold() -> None:
        if threading.current_thread().name == "mandrake-health" and began.is_set():
            inside.set()
            may_end.wait(PATIENCE)

    began = threading.Event()
    with file_handle(vfs_pool.acquire(path)) as handle, capture_logs() as logs:
        handle.transact(lambda tx: [add(tx, f"{n}", "x" * 300) for n in range(30_000)])
        file_of(handle).checkpoint()
        monitor = HealthMonitor(
            vfs_pool, interval=3600.0, thorough_interval=0.01, on_report=reports.append
        ).start()
        # The first look of every page goes to its end; the next one is held.
        until(lambda: any(report.level is HealthLevel.THOROUGH for report in reports))
        with vfs.watching("db", "read", hold):
            began.set()
            until_set(inside)
            count = len(reports)
            stopper = threading.Thread(target=monitor.stop)
            stopper.start()
            until(monitor._stop.is_set)
            may_end.set()
            stopper.join(PATIENCE)
        assert threads() == 0
        assert len(reports) == count
        assert "health_changed" not in events(logs)


def test_stopping_waits_for_the_check_under_way(pool: ConnectionPool, handle: FileHandle) -> None:
    inside, may_end = threading.Event(), threading.Event()

    def hold(_: HealthReport) -> None:
        inside.set()
        may_end.wait(PATIENCE)

    monitor = HealthMonitor(pool, interval=3600.0, on_report=hold).start()
    until_set(inside)
    stopper = threading.Thread(target=monitor.stop)
    stopper.start()
    assert stopper.is_alive()
    may_end.set()
    stopper.join(PATIENCE)
    assert not stopper.is_alive()
    assert threads() == 0


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux acts as another user"
)
def test_permission_to_write_is_checked_for_the_effective_user(
    start_child: Callable[..., Any], path: Path
) -> None:
    """A program with its owner's rights: the user who starts it may not write the file."""
    child = start_child(
        """
import os
from mandrake_sessions import ConnectionPool, HealthMonitor
with ConnectionPool() as pool, pool.acquire(sys.argv[1]) as handle:
    monitor = HealthMonitor(pool)
    monitor.look()
    os.setresuid(65534, 0, 0)
    send(monitor.look()[0].status)
    handle.transact(lambda tx: None)
    send("written")
""",
        path,
    )
    assert [child.receive(), child.receive()] == ["ok", "written"]
    child.finish()
