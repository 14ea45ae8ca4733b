"""Paths that cannot be opened: each its own error, nothing changed, and it opens afterwards."""

import os
import shutil
import tempfile
from pathlib import Path

import apsw
import pytest

from mandrake_sessions import (
    BackupError,
    DatabaseError,
    DatabaseFolderError,
    DatabaseMissingError,
    DatabaseOpenError,
    DatabasePathError,
    HealthStatus,
    InvalidArgumentError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    SessionManager,
    UnrecognizedDatabaseError,
    diagnose,
)


def files(folder):
    """Every file with its bytes, so that nothing that was touched stays unseen."""
    return {each.name: each.read_bytes() for each in sorted(folder.iterdir()) if each.is_file()}


def attempt(path, pool, **how):
    """Open a database, and leave nothing open where it succeeds against expectation."""
    with SessionManager(path, pool=pool, **how):
        pass


def require_opens(path, pool):
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.create_session("works")
        assert sessions.get_session(session.id) == session


def test_a_folder_cannot_be_opened_as_a_database(tmp_path, pool):
    path = tmp_path / "db.sqlite"
    path.mkdir()

    with pytest.raises(DatabasePathError) as caught:
        attempt(path, pool)

    assert caught.value.path == path
    assert list(path.iterdir()) == []
    path.rmdir()
    require_opens(path, pool)


@pytest.mark.parametrize("path", ["/", "//", "/..", "."])
def test_the_root_folder_cannot_be_opened_as_a_database(tmp_path, pool, monkeypatch, path):
    """It has no name from which a file next to it could take its own."""
    monkeypatch.chdir("/")
    with pool.acquire(tmp_path / "db.sqlite") as handle, pytest.raises(BackupError):
        handle.backup(path, overwrite=True)
    for use in (
        lambda: attempt(path, pool),
        lambda: pool.acquire(path, follow_links=False),
        lambda: pool.remove(path),
        lambda: pool.restore(path, tmp_path / "db.sqlite", overwrite=True),
        lambda: pool.restore(tmp_path / "db.sqlite", path, overwrite=True),
    ):
        with pytest.raises(DatabasePathError):
            use()


def test_a_device_cannot_be_opened_as_a_database(pool):
    with pytest.raises(DatabasePathError):
        attempt("/dev/null", pool)


def test_a_file_whose_wal_would_have_too_long_a_name_is_diagnosed(tmp_path):
    (check, *_) = diagnose(tmp_path / ("a" * 255)).checks

    assert (check.name, check.status) == ("file", HealthStatus.FAILED)


NO_DATABASES = {
    "text": b"Dear diary, this is no database and longer than a header.\n" * 100,
    # SQLite takes a file of one byte for an empty one, and would write over it.
    "one byte": b"x",
    "short": b"xy",
    "almost": b"SQLite format 3\0" + b"\xff" * 4080,
}


@pytest.mark.parametrize("content", NO_DATABASES.values(), ids=NO_DATABASES)
def test_a_file_that_is_no_database_stays_as_it_is(path, pool, content):
    path.write_bytes(content)

    with pytest.raises(NotADatabaseError) as caught:
        attempt(path, pool)

    assert caught.value.path == path
    assert files(path.parent) == {path.name: content}
    path.unlink()
    require_opens(path, pool)


def test_an_empty_file_becomes_a_database(path, pool):
    path.touch()

    require_opens(path, pool)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_another_programs_database_stays_as_it_is(path, pool, mode):
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
    connection.execute("CREATE TABLE sessions (id); INSERT INTO sessions VALUES (1)")
    connection.close()
    before = files(path.parent)

    with pytest.raises(UnrecognizedDatabaseError) as caught:
        attempt(path, pool)

    assert caught.value.path == path
    assert files(path.parent) == before
    path.unlink()
    require_opens(path, pool)


def test_a_loop_of_links_is_refused(tmp_path, pool):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "db.sqlite"):
        with pytest.raises(DatabasePathError):
            attempt(path, pool)

    (tmp_path / "b").unlink()
    require_opens(tmp_path / "a", pool)
    assert (tmp_path / "b").is_file()


def test_a_loop_of_links_behind_a_missing_folder_is_refused(tmp_path, pool):
    """The system's own look for loops ends at what is missing."""
    (tmp_path / "loop").symlink_to("loop")

    for name in ("nothing/../loop/db.sqlite", "loop/db.sqlite"):
        with pytest.raises(DatabasePathError):
            SessionManager(f"{tmp_path}/{name}", pool=pool).init()
    assert os.listdir(tmp_path) == ["loop"]


@pytest.mark.parametrize(
    "path",
    ["", ":memory:", "file:x", "file:x?mode=memory", "with\0nul", "lone\ud800surrogate", "\udcff"],
)
def test_a_name_that_is_no_path_is_refused(tmp_path, pool, monkeypatch, path):
    monkeypatch.chdir(tmp_path)

    with pytest.raises((DatabasePathError, InvalidArgumentError)):
        attempt(path, pool)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 256, f"{'y' * 300}/db.sqlite", "d/" * 3000 + "db.sqlite"])
def test_a_name_that_is_too_long_is_refused(tmp_path, pool, name):
    with pytest.raises(DatabasePathError):
        attempt(tmp_path / name, pool)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["with space?.sqlite", "per%20cent#", "e\u0301\N{SNOWMAN}'\"", "-"]
)
def test_any_other_name_is_taken_literally(tmp_path, pool, name):
    require_opens(tmp_path / name, pool)

    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_hard_link_to_an_open_database_is_refused(path, tmp_path, pool):
    require_opens(path, pool)
    os.link(path, tmp_path / "hard")
    with SessionManager(path, pool=pool) as sessions:
        with pytest.raises(DatabasePathError):
            attempt(tmp_path / "hard", pool)
        assert sessions.count_sessions() == 1

    require_opens(path, pool)


def test_a_missing_database_is_not_made_unasked(tmp_path, pool):
    for path in (tmp_path / "db.sqlite", tmp_path / "folder" / "db.sqlite"):
        with pytest.raises(DatabaseMissingError):
            attempt(path, pool, create=False)

    assert list(tmp_path.iterdir()) == []


def test_every_waiter_gets_the_error_of_an_opening_that_failed(path, pool, in_threads):
    path.write_bytes(NO_DATABASES["text"])

    def open_it(_):
        try:
            attempt(path, pool)
        except DatabaseError as error:
            return type(error), error.path
        return None

    assert set(in_threads(8, open_it)) == {(NotADatabaseError, path)}


# Permissions do not bind root, so these tests run in a process of another user.
UNPRIVILEGED = """
import os
from pathlib import Path
from mandrake_sessions import *
# All that is imported late is imported now: the user below may not read this installation.
with SessionManager(sys.argv[1]):
    pass
default_pool().close()
if os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    except OSError as error:
        send(str(error))

def attempt(path):
    try:
        with SessionManager(path) as sessions:
            sessions.create_session()
    except MandrakeSessionsError as error:
        return type(error).__name__
    finally:
        default_pool().close()
    return "works"

send("ready")
while asked := receive():
    folder = Path(asked["folder"])
    for path, mode in asked["modes"].items():
        os.chmod(folder / path, mode)
    send(attempt(folder / asked["open"]))
"""


@pytest.fixture(scope="module")
def other_user(start_child_of_module, tmp_path_factory):
    """A process that is not root."""
    child = start_child_of_module(UNPRIVILEGED, tmp_path_factory.mktemp("other_user") / "db.sqlite")
    outcome = child.receive()
    if outcome != "ready":
        pytest.skip(f"root, and cannot become another user here: {outcome}")
    return child


@pytest.fixture
def unprivileged(other_user, ready_database):
    """Opens databases in a folder, after changing modes, in a process that is not root."""
    # Not in tmp_path, whose parents no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="mandrake-"))
    first = ready_database.lay(folder / "first.sqlite")
    if os.geteuid() == 0:
        for each in (folder, first):
            os.chown(each, 65534, 65534)

    def ask(path, **modes):
        other_user.send({"folder": str(folder), "open": path, "modes": modes})
        return other_user.receive()

    yield folder, ask
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_new_database_in_an_unwritable_folder_is_refused(unprivileged):
    folder, ask = unprivileged

    assert ask("new.sqlite", **{".": 0o555}) == DatabaseFolderError.__name__
    assert ask("sub/new.sqlite") == DatabaseFolderError.__name__
    assert sorted(files(folder)) == ["first.sqlite"]
    assert ask("new.sqlite", **{".": 0o755}) == "works"


def test_a_folder_that_cannot_be_entered_is_named(unprivileged):
    _, ask = unprivileged

    assert ask("first.sqlite", **{".": 0o000}) == DatabaseFolderError.__name__
    assert ask("first.sqlite", **{".": 0o755}) == "works"


def test_a_database_in_an_unwritable_folder_is_refused(unprivileged):
    """There is no place for its -wal."""
    folder, ask = unprivileged
    before = files(folder)

    outcome = ask("first.sqlite", **{".": 0o555})

    assert outcome in {DatabaseFolderError.__name__, ReadOnlyDatabaseError.__name__}
    assert files(folder) == before
    assert ask("first.sqlite", **{".": 0o755}) == "works"


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_a_file_that_cannot_be_written_is_refused(unprivileged, mode):
    folder, ask = unprivileged
    before = files(folder)

    outcome = ask("first.sqlite", **{"first.sqlite": mode})

    # A file that cannot even be read has a different error.
    assert outcome == (ReadOnlyDatabaseError if mode else DatabaseOpenError).__name__
    (folder / "first.sqlite").chmod(0o600)
    assert files(folder) == before
    assert ask("first.sqlite", **{"first.sqlite": 0o600}) == "works"
