"""What lies in the place of a sidecar file: a deletion removes it itself, and never follows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabasePathError,
    NotADatabaseError,
    SessionManager,
)
from mandrake_sessions.database.offline import removal
from mandrake_sessions.database.offline.exclusive import alone

DELETES = """
import sys
from mandrake_sessions import SessionManager
SessionManager(sys.argv[1]).delete()
"""
HOLDS = """
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1]) as sessions:
    sessions.create_session("kept")
    send("open")
    receive()
    assert [each.title for each in sessions.list_sessions()] == ["kept"]
send("closed")
"""
SUFFIXES = pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of another folder, to which a link could lead."""
    path = tmp_path / "elsewhere" / "precious"
    path.parent.mkdir()
    path.write_bytes(b"precious" * 1000)
    return path


@pytest.fixture
def path(tmp_path: Path, pool: ConnectionPool) -> Path:
    """A database that was made and closed, in a folder of its own."""
    path = tmp_path / "folder" / "db.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("kept")
    let_go(path, pool)
    assert os.listdir(path.parent) == [path.name]
    return path


def let_go(path: Path, pool: ConnectionPool) -> None:
    from mandrake_sessions.engine.budget import Budget

    with pool._reserved(path, Budget(30.0), "delete"):
        pass


def titles(path: Path, pool: ConnectionPool) -> list[str | None]:
    with SessionManager(path, pool=pool, create=False) as sessions:
        return [each.title for each in sessions.list_sessions()]


def link(place: Path, precious: Path) -> None:
    place.symlink_to(precious)


def dangling(place: Path, precious: Path) -> None:
    place.symlink_to(precious.with_name("new"))


def link_to_a_folder(place: Path, precious: Path) -> None:
    place.symlink_to(precious.parent)


def second_name(place: Path, precious: Path) -> None:
    os.link(precious, place)


@SUFFIXES
@pytest.mark.parametrize(
    "way",
    [
        (put, mode)
        for put in (link, dangling, link_to_a_folder, second_name)
        for mode in (0o700, 0o777)
    ],
)
def test_a_link_in_the_place_of_a_sidecar_file_goes_with_the_database(
    path: Path,
    pool: ConnectionPool,
    precious: Path,
    suffix: str,
    way: tuple[Callable[[Path, Path], None], int],
) -> None:
    put, mode = way
    path.parent.chmod(mode)
    put(Path(f"{path}{suffix}"), precious)

    SessionManager(path, pool=pool).delete()

    assert os.listdir(path.parent) == []
    assert precious.read_bytes() == b"precious" * 1000
    assert os.listdir(precious.parent) == [precious.name]


@SUFFIXES
@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
def test_a_pipe_in_the_place_of_a_sidecar_file_is_not_waited_for(path: Path, suffix: str) -> None:
    os.mkfifo(f"{path}{suffix}")

    # By itself: SQLite would wait for the pipe's other end, and nothing could interrupt it.
    subprocess.run([sys.executable, "-c", DELETES, str(path)], check=True, timeout=60)

    assert os.listdir(path.parent) == []


@SUFFIXES
def test_a_link_that_comes_after_the_look_is_not_followed(
    path: Path,
    pool: ConnectionPool,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:

    def planting(*arguments: Any) -> Any:
        link(Path(f"{path}{suffix}"), precious)
        return alone(*arguments)

    monkeypatch.setattr(removal, "alone", planting)
    SessionManager(path, pool=pool).delete()

    assert os.listdir(path.parent) == []
    assert precious.read_bytes() == b"precious" * 1000


@SUFFIXES
def test_a_database_in_use_stays_with_the_link(
    path: Path, pool: ConnectionPool, precious: Path, start_child: Any, suffix: str
) -> None:
    path.unlink()
    child = start_child(HOLDS, path)
    assert child.receive() == "open"
    place = Path(f"{path}{suffix}")
    aside = precious.with_name("aside")
    if suffix != "-journal":
        place.rename(aside)
    link(place, precious)

    with pytest.raises(DatabaseBusyError):
        SessionManager(path, pool=pool).delete(timeout=0.2)

    assert place.is_symlink()
    place.unlink()
    if suffix != "-journal":
        aside.rename(place)
    child.send("go on")
    assert child.receive() == "closed"
    assert titles(path, pool) == ["kept"]


@SUFFIXES
def test_what_is_no_database_stays_with_the_link(
    path: Path, pool: ConnectionPool, precious: Path, suffix: str
) -> None:
    path.write_text("a letter, and no database at all" * 100)
    link(Path(f"{path}{suffix}"), precious)

    with pytest.raises(NotADatabaseError):
        SessionManager(path, pool=pool).delete()

    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}{suffix}"]


@SUFFIXES
def test_a_folder_in_the_place_of_a_sidecar_file_is_named(
    path: Path, pool: ConnectionPool, suffix: str
) -> None:
    folder = Path(f"{path}{suffix}")
    folder.mkdir()

    with pytest.raises(DatabasePathError, match=f"{folder.name} is a folder: move it away"):
        SessionManager(path, pool=pool).delete()

    folder.rmdir()
    assert titles(path, pool) == ["kept"]
