"""Leftovers of killed processes, and the calls that remove them."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import (
    ConnectionPool,
    HealthLevel,
    HealthStatus,
    SessionManager,
    diagnose,
)
from mandrake_sessions.database import owner

# Each stops when the whole copy is there, and not yet under its name.
AT_IT = """
from mandrake_sessions import *
from mandrake_sessions.database import backup, restore
from mandrake_sessions.database.salvage import salvaging
def stop(*_, **__):
    tell("at it")
    hear()
backup._require_whole = restore._check_and_stamp = salvaging.verify = stop
path, other = sys.argv[1], sys.argv[2]
"""
HEALTH = AT_IT + "SessionManager(path).init().handle.health(HealthLevel.FULL)"
BACKUP = AT_IT + "SessionManager(path).init().handle.backup(other)"
COPY_BEFORE_MIGRATION = AT_IT + "SessionManager(path).init().handle.backup(path + '.before-0000')"
RESTORE = AT_IT + "SessionManager(path).restore(other, overwrite=True)"
SALVAGE = AT_IT + "salvage(path, other)"

Leave = Callable[[], Path]


@pytest.fixture
def database(tmp_path: Path, pool: ConnectionPool) -> Path:
    folder = tmp_path / "folder"
    with SessionManager(folder / "db.sqlite", pool=pool) as sessions:
        sessions.create_session("kept", description="x" * 100_000)
        sessions.handle.backup(tmp_path / "backup.sqlite")
    with pool._reserved(folder / "db.sqlite", _budget(), "delete"):
        pass
    return folder / "db.sqlite"


def _budget() -> Any:
    from mandrake_sessions.database.waiting import Budget

    return Budget(30.0)


def names(database: Path) -> set[str]:
    return set(os.listdir(database.parent))


def partials(database: Path) -> set[str]:
    return {name for name in names(database) if ".partial-" in name or "-owner-" in name}


def kill_at_it(start_child: Any, script: str, database: Path, other: Path) -> None:
    child = start_child(script, database, other)
    assert child.hear() == "at it"
    assert partials(database)
    child.process.send_signal(signal.SIGKILL)
    child.process.wait()


def open_it(database: Path, pool: ConnectionPool) -> None:
    with SessionManager(database, pool=pool) as sessions:
        assert [each.title for each in sessions.list_sessions()] == ["kept"]


def acquire_it(database: Path, pool: ConnectionPool) -> None:
    pool.acquire(database).release()


def back_it_up(database: Path, pool: ConnectionPool) -> None:
    with SessionManager(database, pool=pool) as sessions:
        kill_leftovers_again(database)
        sessions.handle.backup(database.parent.parent / "another.sqlite")


def check_it(database: Path, pool: ConnectionPool) -> None:
    with SessionManager(database, pool=pool) as sessions:
        kill_leftovers_again(database)
        assert sessions.handle.health(HealthLevel.FULL).status is HealthStatus.OK


def delete_it(database: Path, pool: ConnectionPool) -> None:
    SessionManager(database, pool=pool).delete()
    assert names(database) == set()


def kill_leftovers_again(database: Path) -> None:
    """As a process leaves it that is killed while this one has the file open."""
    partial = database.with_name("db.sqlite.partial-0123456789abcdef")
    partial.write_bytes(b"half")
    partial.with_name(f"{partial.name}-owner-01234567-89ab-cdef-0123-456789abcdef").touch()


@pytest.mark.parametrize("remove", [open_it, acquire_it, back_it_up, check_it, delete_it])
@pytest.mark.parametrize("script", [HEALTH, BACKUP, COPY_BEFORE_MIGRATION, RESTORE, SALVAGE])
def test_what_a_killed_process_has_left_is_removed_by_the_next_use(
    database: Path,
    pool: ConnectionPool,
    start_child: Any,
    script: str,
    remove: Callable[[Path, ConnectionPool], None],
) -> None:
    other = database.with_name("other.sqlite")
    if script is RESTORE:
        other = database.parent.parent / "backup.sqlite"
    before = names(database)
    kill_at_it(start_child, script, database, other)
    # A file that happens to be called so, and was never claimed, is another program's.
    foreign = database.with_name("notes.partial-0123456789abcdef")
    foreign.touch()

    if remove is delete_it:
        foreign.unlink()
        remove(database, pool)
        return
    remove(database, pool)

    assert partials(database) - {foreign.name} == set()
    assert foreign.exists()
    with pool._reserved(database, _budget(), "delete"):
        pass
    assert names(database) - {foreign.name} == before


@pytest.mark.parametrize("script", [HEALTH, BACKUP, RESTORE])
def test_what_a_living_process_makes_stays(
    database: Path, pool: ConnectionPool, start_child: Any, script: str
) -> None:
    other = database.with_name("other.sqlite")
    if script is RESTORE:
        other = database.parent.parent / "backup.sqlite"
    child = start_child(script, database, other)
    assert child.hear() == "at it"
    made = partials(database)
    assert made

    open_it(database, pool)
    with SessionManager(database, pool=pool) as sessions:
        sessions.handle.backup(database.with_name("another.sqlite"))
        sessions.handle.health(HealthLevel.FULL)
    assert made <= partials(database)
    assert [
        check.detail for check in diagnose(database).checks if check.name == "partial_files"
    ] == [""]

    # Its death changes nothing in the folder.
    child.process.send_signal(signal.SIGKILL)
    child.process.wait()
    open_it(database, pool)
    assert partials(database) == set()


def test_five_kills_at_any_moment_of_a_full_check_leave_nothing(
    database: Path, pool: ConnectionPool, start_child: Any
) -> None:
    with SessionManager(database, pool=pool) as sessions:
        for number in range(20):
            sessions.create_session(str(number), description="x" * 200_000)
    moments = random.Random(20)
    script = """
from mandrake_sessions import *
with SessionManager(sys.argv[1]) as sessions:
    tell("open")
    while True:
        sessions.handle.health(HealthLevel.FULL)
"""
    left: list[int] = []
    for _ in range(5):
        child = start_child(script, database)
        assert child.hear() == "open"
        while not partials(database):
            pass
        threading.Event().wait(moments.uniform(0, 0.02))
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
        left.append(len(partials(database)))
    assert sum(left) > 0

    SessionManager(database, pool=pool).delete()

    assert names(database) == set()


def test_the_doctor_names_what_is_left_with_its_size(
    database: Path, pool: ConnectionPool, start_child: Any
) -> None:
    kill_at_it(start_child, HEALTH, database, database.with_name("other.sqlite"))
    kill_at_it(start_child, BACKUP, database, database.with_name("other.sqlite"))
    before = partials(database)

    (check,) = [each for each in diagnose(database).checks if each.name == "partial_files"]

    assert check.status is HealthStatus.DEGRADED
    copies = {name for name in before if "-owner-" not in name}
    # The second child has removed what the first one had left when it opened the file.
    assert len(copies) == 1
    assert all(name in check.detail for name in copies)
    assert "KiB" in check.detail
    assert partials(database) == before


def test_a_backup_removes_what_an_earlier_one_of_another_name_has_left(
    database: Path, pool: ConnectionPool, start_child: Any, tmp_path: Path
) -> None:
    (tmp_path / "backups").mkdir()
    child = start_child(BACKUP, database, tmp_path / "backups" / "monday.sqlite")
    assert child.hear() == "at it"
    child.process.send_signal(signal.SIGKILL)
    child.process.wait()
    assert len(os.listdir(tmp_path / "backups")) == 2

    with SessionManager(database, pool=pool) as sessions:
        sessions.handle.backup(tmp_path / "backups" / "tuesday.sqlite")

    assert os.listdir(tmp_path / "backups") == ["tuesday.sqlite"]


def test_a_full_check_leaves_no_file_that_is_not_known_as_unfinished(
    database: Path, pool: ConnectionPool, start_child: Any
) -> None:
    before = names(database)
    kill_at_it(start_child, HEALTH, database, database)

    left = names(database) - before - {"db.sqlite-wal", "db.sqlite-shm"}
    assert all(name.startswith("db.sqlite.partial-") for name in left), left


def test_a_large_folder_is_not_listed_by_every_acquire(
    database: Path, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3000):
        database.with_name(f"other-{number}").touch()
    looks: list[Path] = []
    listdir = os.listdir

    def counting(folder: Any) -> list[str]:
        looks.append(folder)
        return listdir(folder)

    with SessionManager(database, pool=pool):
        monkeypatch.setattr(os, "listdir", counting)
        for _ in range(20):
            acquire_it(database, pool)
    assert len(looks) <= 2


def test_owners_that_died_while_they_streamed_nothing_are_forgotten(
    database: Path, pool: ConnectionPool
) -> None:
    dead = database.with_name("db.sqlite-owner-01234567-89ab-cdef-0123-456789abcdef")
    dead.touch()
    claim = owner.claim(database)
    try:
        acquire_it(database, pool)
        assert not dead.exists()
        assert claim.path.exists()
    finally:
        claim.release()
