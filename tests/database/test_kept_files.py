"""A killed restore leaves the damaged file with a second name, which goes with the next use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseError,
    DatabaseNamesError,
    HealthStatus,
    SessionManager,
    diagnose,
)
from mandrake_sessions.database.kept import kept_files
from mandrake_sessions.database.placing import tidy

# It stops when the damaged file has its second name, and not yet lost its own.
RESTORES = """
from mandrake_sessions import SessionManager
from mandrake_sessions.database import restore
put_in_place = restore.put_in_place
def stop(*arguments, **options):
    tell("at it")
    hear()
    put_in_place(*arguments, **options)
restore.put_in_place = stop
SessionManager(sys.argv[1]).restore(sys.argv[2], overwrite=True)
tell("restored")
"""
SCHEMA_PAGE = slice(100, 4096)
LAST_PAGE = slice(-4096, None)


@pytest.fixture
def path(tmp_path: Path, pool: ConnectionPool) -> Path:
    path = tmp_path / "folder" / "db.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("first", description="x" * 10_000)
        sessions.backup(tmp_path / "copy.sqlite")
    let_go(path, pool)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.sqlite"


def let_go(path: Path, pool: ConnectionPool) -> None:
    from mandrake_sessions.database.waiting import Budget

    with pool._reserved(path, Budget(30.0), "delete"):
        pass


def damage(path: Path, where: slice = LAST_PAGE) -> bytes:
    """Damage a page; with the last one, which holds a description, the file still opens."""
    content = bytearray(path.read_bytes())
    content[where] = b"\xaa" * len(content[where])
    path.write_bytes(content)
    return bytes(content)


def count(path: Path, pool: ConnectionPool) -> int:
    with SessionManager(path, pool=pool, create=False) as sessions:
        return sessions.count_sessions()


def names(path: Path) -> list[str]:
    return sorted(each for each in os.listdir(path.parent) if "-turnstile" not in each)


def second_name(path: Path) -> Path:
    (kept,) = [each for each in names(path) if ".damaged-" in each]
    assert path.with_name(kept).samefile(path)
    return path.with_name(kept)


@pytest.fixture
def restoring(path: Path, copy: Path, start_child: Any) -> Callable[[], Any]:
    """Starts a restore in another process; it has given the damaged file its second name."""

    def start() -> Any:
        child = start_child(RESTORES, path, copy)
        assert child.hear() == "at it"
        return child

    return start


@pytest.fixture
def kill_a_restore(restoring: Callable[[], Any]) -> Callable[[], None]:
    def kill() -> None:
        child = restoring()
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()

    return kill


@pytest.mark.parametrize("even_named", [False, True])
def test_the_next_opening_removes_it_and_nothing_else(
    path: Path, pool: ConnectionPool, kill_a_restore: Callable[[], None], *, even_named: bool
) -> None:
    damage(path)
    kill_a_restore()
    second = second_name(path)
    # What somebody has called so is not ours to remove, and is another name.
    named = path.with_name(f"{path.name}.damaged-mine")
    if even_named:
        os.link(path, named)

    assert count(path, pool) == 1

    assert not second.exists()
    assert named.exists() is even_named


def test_an_opening_that_fails_removes_it_too(
    path: Path, pool: ConnectionPool, kill_a_restore: Callable[[], None]
) -> None:
    content = damage(path, SCHEMA_PAGE)
    kill_a_restore()
    second = second_name(path)

    with pytest.raises(DatabaseError):
        count(path, pool)

    assert not second.exists()
    assert path.read_bytes() == content


@pytest.mark.parametrize("where", [SCHEMA_PAGE, LAST_PAGE])
def test_the_next_restore_keeps_the_damaged_file_once(
    path: Path,
    pool: ConnectionPool,
    copy: Path,
    kill_a_restore: Callable[[], None],
    where: slice,
) -> None:
    content = damage(path, where)
    kill_a_restore()
    kill_a_restore()

    pool.restore(copy, path, overwrite=True)

    (kept,) = kept_files(path)
    assert kept.read_bytes()[4096:] == content[4096:]
    assert count(path, pool) == 1


def test_a_deletion_leaves_no_second_name(
    path: Path, pool: ConnectionPool, kill_a_restore: Callable[[], None]
) -> None:
    damage(path)
    kill_a_restore()
    second_name(path)

    SessionManager(path, pool=pool).delete()

    assert names(path) == []


def test_what_was_kept_on_purpose_stays(path: Path, pool: ConnectionPool, copy: Path) -> None:
    content = damage(path)
    pool.restore(copy, path, overwrite=True)
    (kept,) = kept_files(path)
    # Also one that a tool against duplicates has given another name elsewhere.
    os.link(kept, path.parent.parent / "elsewhere")

    assert count(path, pool) == 1
    pool.restore(copy, path, overwrite=True)
    diagnose(path)
    let_go(path, pool)
    tidy(path)
    SessionManager(path, pool=pool).delete()
    tidy(path)

    assert kept_files(path) == {kept}
    assert kept.read_bytes()[4096:] == content[4096:]


@pytest.mark.parametrize("where", [SCHEMA_PAGE, LAST_PAGE])
def test_a_restore_that_lives_keeps_its_damaged_file(
    path: Path, pool: ConnectionPool, restoring: Callable[[], Any], where: slice
) -> None:
    """Removed now, the damaged file would be gone when the restored one takes its name."""
    content = damage(path, where)
    child = restoring()
    second = second_name(path)

    tidy(path)
    assert second.exists()
    checks = {each.name: each for each in diagnose(path).checks}
    assert checks["partial_files"].status is HealthStatus.OK
    with pytest.raises(DatabaseBusyError):
        SessionManager(path, pool=pool).delete(timeout=0.2)
    assert second.exists()

    child.tell("go on")
    assert child.hear() == "restored"
    child.finish()
    tidy(path)
    assert kept_files(path) == {second}
    assert second.read_bytes()[4096:] == content[4096:]
    assert count(path, pool) == 1


def test_a_process_that_has_the_file_open_hinders_no_removal(
    path: Path, pool: ConnectionPool, start_child: Any
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        second = path.with_name(f"{path.name}.damaged-0198c0de-0000-7000-8000-000000000000")
        os.link(path, second)
        child = start_child(
            "from mandrake_sessions import SessionManager\n"
            "with SessionManager(sys.argv[1]) as sessions: tell(sessions.count_sessions())",
            path,
        )
        assert child.hear() == 1
        assert not second.exists()
        sessions.create_session("second")
    assert count(path, pool) == 2


def test_the_doctor_names_it_and_changes_nothing(
    path: Path, pool: ConnectionPool, kill_a_restore: Callable[[], None]
) -> None:
    damage(path)
    kill_a_restore()
    second = second_name(path)
    before = names(path)
    assert any(".partial-" in each for each in before)

    checks = {each.name: each for each in diagnose(path).checks}

    assert names(path) == before
    found = checks["partial_files"]
    assert found.status is HealthStatus.DEGRADED
    assert f"{second.name}, the database itself under a second name" in found.detail
    assert "Delete them, or open the database once" in found.advice
    assert checks["set_aside"].status is HealthStatus.OK
    assert checks["names"].status is HealthStatus.OK
    count(path, pool)
    let_go(path, pool)
    after = {each.name: each for each in diagnose(path).checks}
    assert after["partial_files"].status is HealthStatus.OK


def test_the_doctor_leaves_a_partial_name_too(path: Path) -> None:
    """A restore is killed between the link that gives a file its name and the end of the other."""
    partial = path.with_name(f"{path.name}.partial-0123456789abcdef")
    os.link(path, partial)

    checks = {each.name: each for each in diagnose(path).checks}

    assert partial.exists()
    assert partial.name in checks["partial_files"].detail
    assert checks["names"].status is HealthStatus.OK


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_second_name_that_has_the_log_stays_and_the_next_restore_keeps_both(
    path: Path,
    pool: ConnectionPool,
    copy: Path,
    kill_a_restore: Callable[[], None],
    suffix: str,
) -> None:
    content = damage(path, SCHEMA_PAGE)
    Path(f"{path}{suffix}").write_bytes(b"its log" * 100)
    kill_a_restore()
    second = second_name_with_log(path, suffix)

    for _ in range(2):
        with pytest.raises(DatabaseNamesError) as caught:
            count(path, pool)
        assert caught.value.kind == "interrupted restore"
        assert caught.value.others == (second,)
        assert f"mv {second.name}{suffix} {path.name}{suffix}" in caught.value.message
    done = subprocess.run(
        [sys.executable, "-m", "mandrake_sessions", "restore", copy, path, "--overwrite"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    log = Path(f"{second}{suffix}")
    assert kept_files(path) == {second, log}
    assert second.read_bytes() == content
    assert log.read_bytes() == b"its log" * 100
    assert f"{second.name}{suffix}" in "".join(done.stdout.split())
    assert count(path, pool) == 1


def second_name_with_log(path: Path, suffix: str) -> Path:
    second, log = sorted(path.with_name(each) for each in names(path) if ".damaged-" in each)
    assert second.samefile(path)
    assert log == Path(f"{second}{suffix}")
    return second
