"""Health: looks without changing anything; busy is degraded, not broken (RULES 27 and 28)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from database_kit import KEYS, Held, Task, adding, file_of, keys, raw_of
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseMovedError,
    HealthCheck,
    HealthReport,
    HealthStatus,
    MandrakeSessionsError,
)
from mandrake_sessions.database import health
from mandrake_sessions.database.handle import DatabaseHandle

MakePool = Callable[..., ConnectionPool]

CHECKS = {
    "sqlite",
    "disk",
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


def settle(handle: DatabaseHandle) -> None:
    """Bring everything from the WAL into the file."""
    keys(handle)
    file_of(handle).checkpoint()
    assert file_of(handle).checkpointer.backlog == 0


def test_rule_27_a_healthy_database(handle: DatabaseHandle) -> None:
    report = handle.health()
    assert report.status is HealthStatus.OK
    assert report.is_usable
    assert {check.name for check in report.checks} == CHECKS
    assert len(report.checks) == len(CHECKS)
    assert report.path == handle.path
    assert "0001" in check(report, "schema").detail


def test_rule_27_looking_takes_about_a_millisecond(handle: DatabaseHandle) -> None:
    handle.health()
    times = []
    for _ in range(20):
        began = monotonic()
        handle.health()
        times.append(monotonic() - began)
    assert min(times) < 0.005


def test_rule_28_looking_changes_nothing(handle: DatabaseHandle) -> None:
    handle.transact(adding("a"))
    keys(handle)
    before = digests(handle.path)
    changes = raw_of(handle).total_changes()
    handle.health()
    assert digests(handle.path) == before
    assert raw_of(handle).total_changes() == changes


def test_rule_28_a_foreign_writer_is_degraded(
    handle: DatabaseHandle, hold_write_lock: Callable[..., Any]
) -> None:
    hold_write_lock(handle.path)
    began = monotonic()
    report = handle.health()
    assert monotonic() - began < 0.5
    assert report.status is HealthStatus.DEGRADED
    assert report.is_usable
    assert bad(report) == {"writing"}
    assert "another process" in check(report, "writing").detail


def test_rule_28_a_busy_thread_of_ours_is_degraded(handle: DatabaseHandle) -> None:
    with Held(handle):
        report = handle.health()
    assert report.status is HealthStatus.DEGRADED
    assert bad(report) == {"writing"}
    assert handle.health().status is HealthStatus.OK


def test_rule_28_a_busy_reader_of_ours_is_degraded(handle: DatabaseHandle) -> None:
    with handle.read():
        report = Task(handle.health).result()
    assert report.status is HealthStatus.DEGRADED
    assert bad(report) == {"reading"}


@pytest.mark.parametrize("cache", ["as it was", "read anew"])
def test_rule_19_another_database_copied_over_the_file_is_seen_by_its_stamp(
    make_pool: MakePool, path: Path, cache: str
) -> None:
    """The live connection shows the old pages from its cache; or, after a commit, the new ones."""
    other = path.with_name("other.sqlite")
    with make_pool().acquire(other) as handle:
        handle.transact(adding("other's"))
    pool = make_pool()
    with pool.acquire(path) as handle:
        handle.transact(adding("ours"))
        settle(handle)
        assert handle.health().status is HealthStatus.OK
        run(OVERWRITE, other, path)
        if cache == "read anew":
            handle.transact(adding("a commit"))
            with contextlib.suppress(MandrakeSessionsError):
                keys(handle)
        report = handle.health()
        assert not report.is_usable
        # Or it cannot be read at all: old and new pages do not fit each other.
        assert bad(report) & ({"header"} if cache == "as it was" else {"header", "reading"})


def test_rule_19_garbage_in_the_file_is_seen(make_pool: MakePool, path: Path) -> None:
    with make_pool().acquire(path) as handle:
        settle(handle)
        run(GARBAGE, path)
        report = handle.health()
        assert report.status is HealthStatus.FAILED
        assert bad(report) & {"reading", "header"}


def test_rule_19_a_truncated_file_is_seen(make_pool: MakePool, path: Path) -> None:
    with make_pool().acquire(path) as handle:
        settle(handle)
        run(TRUNCATE, path)
        report = handle.health()
        assert check(report, "size").status is HealthStatus.FAILED


def test_rule_19_a_moved_file_is_seen(make_pool: MakePool, path: Path) -> None:
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
def test_rule_27_a_lost_pragma_is_named(handle: DatabaseHandle, pragma: str, value: int) -> None:
    raw_of(handle).pragma(pragma, value)
    report = handle.health()
    assert bad(report) == {"settings"}
    assert pragma in check(report, "settings").detail


def test_rule_12_the_auxiliary_connection_that_may_write_is_seen(handle: DatabaseHandle) -> None:
    keys(handle)
    file_of(handle).lanes()[1].connection.raw.pragma("query_only", 0)
    assert bad(handle.health()) == {"settings_auxiliary"}


def test_rule_01_a_second_sqlite_is_seen(start_child: Callable[..., Any], path: Path) -> None:
    child = start_child(
        """
from mandrake_sessions import ConnectionPool
def statuses():
    return {check.name: (check.status, check.detail) for check in handle.health().checks}
with ConnectionPool() as pool, pool.acquire(sys.argv[1]) as handle:
    tell(statuses()["sqlite"])
    __import__("sqlite{}".format(3))
    tell(statuses()["sqlite"])
""",
        path,
    )
    assert child.hear() == ["ok", apsw.sqlite_lib_version()]
    status, detail = child.hear()
    assert status == "degraded"
    assert "sqlite3" in detail
    child.finish()


def test_a_disk_that_is_nearly_full_is_degraded(
    handle: DatabaseHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "free_bytes", lambda _path: 1_000_000)
    assert bad(handle.health()) == {"disk"}
    monkeypatch.setattr(health, "free_bytes", lambda _path: None)
    assert bad(handle.health()) == {"disk"}


def test_a_schema_of_another_revision_is_seen(handle: DatabaseHandle) -> None:
    raw_of(handle).execute("UPDATE alembic_version SET version_num = '9999'")
    assert bad(handle.health()) == {"schema"}


# -- RULES 25: damage -----------------------------------------------------------------------


@pytest.fixture
def damaged(make_pool: MakePool, path: Path) -> Any:
    """A handle on a database whose ``meta`` table is torn; its schema is whole."""
    with make_pool().acquire(path) as handle:
        handle.transact(adding("a"))
        root = raw_of(handle).execute("SELECT rootpage FROM sqlite_schema WHERE name = 'meta'")
        page = root.fetchall()[0][0]
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with make_pool().acquire(path) as handle:
        yield handle


@pytest.mark.parametrize("way", ["transact", "write", "fetch", "query", "read"])
def test_rule_25_corruption_is_a_latch(damaged: DatabaseHandle, way: str) -> None:
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
    with make_pool().acquire(path) as handle:
        settle(handle)
        run(GARBAGE, path)
        for number in range(3):
            with contextlib.suppress(MandrakeSessionsError):
                handle.transact(adding(f"{number}"))
            assert isinstance(handle.health(), HealthReport)
