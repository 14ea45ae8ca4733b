"""In a folder that other users may write, files that they have planted are not used."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import (
    BackupError,
    ConnectionPool,
    DatabaseFolderError,
    DatabaseOpenError,
    DatabasePathError,
    MandrakeSessionsError,
    SessionManager,
)
from mandrake_sessions.database.connection import backup
from mandrake_sessions.database.files.atomic import sync_file
from mandrake_sessions.database.files.turnstile import Turnstile, turnstile_path
from mandrake_sessions.database.files.wal_index import WalIndex

OTHER, ANOTHER = 65534, 65533
ME = 65532

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="makes files of other users"
)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may go through; pytest's own one is root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def shared(public: Path) -> Path:
    """As ``/tmp``: every user may write, and none remove what is another's."""
    folder = public / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775])
def test_a_link_is_not_followed_in_any_folder_that_others_may_write(
    shared: Path, tmp_path: Path, pool: ConnectionPool, mode: int
) -> None:
    ours = tmp_path / "ours.sqlite"
    SessionManager(ours, pool=pool).init().close()
    link_of(OTHER, shared / "db.sqlite", ours)
    shared.chmod(mode)
    with pytest.raises(DatabasePathError, match="another user"):
        SessionManager(shared / "db.sqlite", pool=pool).init()
    # No other user could have put it there: root itself has given it away.
    shared.chmod(0o755)
    with SessionManager(shared / "db.sqlite", pool=pool) as sessions:
        assert sessions.path == ours


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A private file that a link could lead to."""
    path = tmp_path / "private" / "precious"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"precious")
    return path


def link_of(user: int, link: Path, target: Path) -> None:
    # Elsewhere first: it must never be there as ours.
    with tempfile.TemporaryDirectory(dir=link.parent.parent) as folder:
        made = Path(folder, "link")
        made.symlink_to(target)
        os.lchown(made, user, user)
        os.rename(made, link)


@contextlib.contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Act as a user for a block; late imports were made before."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_link_of_another_user_in_the_place_of_a_database_is_not_followed(
    shared: Path, tmp_path: Path, pool: ConnectionPool
) -> None:
    ours = tmp_path / "ours.sqlite"
    with SessionManager(ours, pool=pool) as sessions:
        sessions.create_session("private")
    link_of(OTHER, shared / "db.sqlite", ours)
    link_of(OTHER, shared / "dangling.sqlite", tmp_path / "new.sqlite")
    link_of(OTHER, shared / "folder", tmp_path)
    (tmp_path / "by.sqlite").symlink_to(shared / "db.sqlite")

    for path in (
        shared / "db.sqlite",
        shared / "dangling.sqlite",
        shared / "folder" / "ours.sqlite",
        tmp_path / "by.sqlite",
    ):
        for call in (
            SessionManager(path, pool=pool).init,
            SessionManager(path, pool=pool).delete,
            lambda path=path: SessionManager(path, pool=pool).restore(ours, overwrite=True),
            lambda path=path: SessionManager(tmp_path / "to.sqlite", pool=pool).restore(path),
        ):
            with pytest.raises(DatabasePathError, match="another user"):
                call()
    assert not (tmp_path / "new.sqlite").exists()
    with SessionManager(ours, pool=pool) as sessions:
        assert sessions.count_sessions() == 1


@pytest.mark.parametrize("owner", [0, ME])
def test_ones_own_links_and_the_systems_are_followed(
    shared: Path, public: Path, make_pool: Any, owner: int
) -> None:
    home = public / "home"
    home.mkdir()
    os.chown(home, ME, ME)
    link_of(owner, shared / "folder", home)
    pool = make_pool()
    SessionManager(public / "warm.sqlite", pool=pool).init().close()

    with acting_as(ME), SessionManager(shared / "folder" / "db.sqlite", pool=pool) as sessions:
        sessions.create_session("mine")
        assert sessions.path == home / "db.sqlite"
        pool.close()


def test_a_users_link_in_his_own_folder_is_followed(tmp_path: Path, pool: ConnectionPool) -> None:
    """He could put anything there; and root looks after what users have."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, OTHER, OTHER)
    link_of(OTHER, home / "db.sqlite", tmp_path / "there.sqlite")

    with SessionManager(home / "db.sqlite", pool=pool) as sessions:
        assert sessions.path == tmp_path / "there.sqlite"


def test_a_link_in_the_place_of_a_backups_target_is_not_followed(
    shared: Path, tmp_path: Path, victim: Path, pool: ConnectionPool
) -> None:
    link_of(OTHER, shared / "backup.sqlite", victim)
    link_of(OTHER, shared / "new.sqlite", victim.with_name("new"))

    with SessionManager(tmp_path / "db.sqlite", pool=pool) as sessions:
        for name in ("backup.sqlite", "new.sqlite"):
            for overwrite in (True, False):
                with pytest.raises(BackupError):
                    sessions.handle.backup(shared / name, overwrite=overwrite)
    assert victim.read_bytes() == b"precious"
    assert os.listdir(victim.parent) == [victim.name]


def test_a_link_that_comes_while_a_backup_is_made_is_not_followed(
    shared: Path,
    tmp_path: Path,
    victim: Path,
    pool: ConnectionPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look at the target and the moment in which the copy gets its name."""
    target = shared / "backup.sqlite"

    def plant(partial: Path) -> None:
        link_of(OTHER, target, victim)
        sync_file(partial)

    monkeypatch.setattr(backup, "sync_file", plant)
    with SessionManager(tmp_path / "db.sqlite", pool=pool) as sessions:
        with pytest.raises(BackupError):
            sessions.handle.backup(target)
        assert target.is_symlink()
        target.unlink()
        # The link is replaced, not what it leads to.
        sessions.handle.backup(target, overwrite=True)
        assert not target.is_symlink()
    assert victim.read_bytes() == b"precious"


def symbolic(planted_at: Path, victim: Path) -> None:
    link_of(OTHER, planted_at, victim)


def dangling(planted_at: Path, victim: Path) -> None:
    link_of(OTHER, planted_at, victim.with_name("new"))


def second_name(planted_at: Path, victim: Path) -> None:
    os.link(victim, planted_at)


def anothers_file(planted_at: Path, victim: Path) -> None:
    planted_at.write_bytes(b"planted")
    os.chown(planted_at, OTHER, OTHER)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize(
    "planting",
    [
        (plant, is_there)
        for plant in (symbolic, dangling, second_name, anothers_file)
        for is_there in (True, False)
    ],
)
def test_a_sidecar_that_another_user_has_put_there_is_not_used(
    shared: Path,
    victim: Path,
    pool: ConnectionPool,
    suffix: str,
    planting: tuple[Callable[[Path, Path], None], bool],
) -> None:
    plant, is_there = planting
    path = shared / "db.sqlite"
    if is_there:
        with SessionManager(path, pool=pool) as sessions:
            sessions.create_session("kept")
        with pool._reserved(path, _budget(), "delete"):
            pass
    planted_at = path.with_name(f"{path.name}{suffix}")
    plant(planted_at, victim)
    planted = os.lstat(planted_at)

    try:
        with SessionManager(path, pool=pool) as sessions:
            # Without a database the planted file is set aside.
            assert not is_there
            sessions.create_session("mine")
    except DatabaseOpenError:
        assert os.lstat(planted_at).st_ino == planted.st_ino
        assert path.exists()
    assert victim.read_bytes() == b"precious"
    assert os.listdir(victim.parent) == [victim.name]
    if is_there:
        planted_at.unlink()
        with SessionManager(path, pool=pool) as sessions:
            assert [each.title for each in sessions.list_sessions()] == ["kept"]


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("plant", [symbolic, dangling, second_name, anothers_file])
def test_what_another_user_has_put_in_the_place_of_a_sidecar_goes_with_the_database(
    shared: Path,
    victim: Path,
    pool: ConnectionPool,
    suffix: str,
    plant: Callable[[Path, Path], None],
) -> None:
    path = shared / "db.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("ours")
    with pool._reserved(path, _budget(), "delete"):
        pass
    plant(path.with_name(f"{path.name}{suffix}"), victim)

    SessionManager(path, pool=pool).delete()

    assert os.listdir(shared) == []
    assert victim.read_bytes() == b"precious"
    assert os.listdir(victim.parent) == [victim.name]


def test_where_the_system_keeps_anothers_link_the_database_stays_whole(
    shared: Path, victim: Path, tmp_path: Path, make_pool: Any
) -> None:
    path, log = shared / "db.sqlite", shared / "db.sqlite-wal"
    with SessionManager(tmp_path / "ours.sqlite", pool=make_pool(linger=60)) as sessions:
        sessions.create_session("in the log")
        for suffix in ("", "-wal"):
            made = shutil.copy(f"{sessions.path}{suffix}", f"{path}{suffix}")
            os.chown(made, ME, ME)
    planted = shared / "db.sqlite-journal"
    symbolic(planted, victim)
    before = log.read_bytes()

    with acting_as(ME):
        mine = make_pool()
        with pytest.raises(DatabaseFolderError):
            SessionManager(path, pool=mine).delete()
        assert planted.is_symlink()
        assert log.read_bytes() == before
    planted.unlink()
    with acting_as(ME), SessionManager(path, pool=mine) as sessions:
        assert [each.title for each in sessions.list_sessions()] == ["in the log"]
    assert victim.read_bytes() == b"precious"


def _budget() -> Any:
    from mandrake_sessions.engine.budget import Budget

    return Budget(30.0)


@pytest.mark.parametrize("plant", [symbolic, dangling, second_name, anothers_file])
def test_a_turnstile_file_that_another_user_has_put_there_is_not_used(
    shared: Path, victim: Path, pool: ConnectionPool, plant: Callable[[Path, Path], None]
) -> None:
    path = shared / "db.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        plant(turnstile_path(path), victim)
        turnstile = Turnstile(path, WalIndex(None))
        turnstile._open()
        assert turnstile.failure is not None
        # It is gone without.
        sessions.create_session("stored")
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("new").exists()


def test_a_user_who_locks_the_turnstile_file_he_put_there_stops_no_writer(
    shared: Path, pool: ConnectionPool, start_child: Any
) -> None:
    import fcntl

    path = shared / "db.sqlite"
    child = start_child(
        """
from mandrake_sessions import *
with SessionManager(sys.argv[1]) as sessions:
    send("open")
    for number in range(20):
        sessions.create_session("child")
    send("done")
""",
        path,
    )
    with SessionManager(path, pool=pool) as sessions:
        anothers_file(turnstile_path(path), path)
        with open(turnstile_path(path), "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert child.receive() == "open"
            for _ in range(20):
                sessions.create_session("ours")
            assert child.receive() == "done"
        assert sessions.count_sessions() == 40
    child.finish()


def test_a_group_that_shares_a_database_shares_its_log(
    public: Path, pool: ConnectionPool, make_pool: Any
) -> None:
    folder = public / "group"
    folder.mkdir()
    folder.chmod(0o777)
    path = folder / "db.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("root's")
    with pool._reserved(path, _budget(), "delete"):
        pass
    path.chmod(0o666)
    others = make_pool()

    with acting_as(ANOTHER):
        held = SessionManager(path, pool=others).init()
        held.create_session("another's")
    with SessionManager(path, pool=make_pool()) as sessions:
        assert sessions.count_sessions() == 2
    held.close()


def test_the_errors_are_typed_in_a_folder_that_changes(
    shared: Path, tmp_path: Path, pool: ConnectionPool
) -> None:
    """A link is put there and taken away, again and again, while the path is looked at."""
    ours = tmp_path / "ours.sqlite"
    SessionManager(ours, pool=pool).init().close()
    link, over = shared / "db.sqlite", threading.Event()

    def change() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                link_of(OTHER, link, ours)
            with contextlib.suppress(OSError):
                link.unlink()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            with contextlib.suppress(MandrakeSessionsError):
                handle = pool.acquire(link, create=False)
                handle.release()
                assert handle.path == link
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_reader_that_may_not_write_a_file_leaves_its_owner_nothing(
    shared: Path, pool: ConnectionPool, mode: int
) -> None:
    """What SQLite makes for it next to the file would be its own, and the owner refused for it."""
    shared.chmod(mode)
    path = shared / "db.sqlite"
    with SessionManager(path, pool=pool) as sessions:
        sessions.create_session("one")
    pool.close()
    path.chmod(0o644)

    with acting_as(OTHER), ConnectionPool() as theirs:
        reader = SessionManager(path, pool=theirs, read_only=True).init()
        assert reader.count_sessions() == 1
        assert os.listdir(shared) == ["db.sqlite"]
        reader.close()

    assert os.listdir(shared) == ["db.sqlite"]
    with ConnectionPool() as ours, SessionManager(path, pool=ours) as sessions:
        assert sessions.create_session("two").title == "two"
