"""One file under two names: SQLite keeps a log for each name, so a second name is refused."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from mandrake_sessions import (
    ConnectionPool,
    DatabaseNamesError,
    DatabaseOpenError,
    DatabaseOptions,
    HealthStatus,
    InvalidArgumentError,
    PoolOptions,
    SessionManager,
    diagnose,
)
from mandrake_sessions.database.files.mounts import Mount, naming_of, nearest
from mandrake_sessions.database.pool.file_handle import file_handle

OTHERWISE = DatabaseOptions(allow_other_names=True)

WRITES = """
from mandrake_sessions import *
try:
    with SessionManager(sys.argv[1]) as sessions:
        sessions.create_session(sys.argv[1])
except DatabaseError as error:
    send([type(error).__name__, error.kind])
else:
    send("stored")
"""


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
def linked(ready_path: Path, tmp_path: Path) -> Path:
    """A second name of a database, in another folder."""
    folder = tmp_path / "other"
    folder.mkdir()
    os.link(ready_path, folder / "db.sqlite")
    return folder / "db.sqlite"


@pytest.fixture
def new_pool():
    with ConnectionPool(PoolOptions(linger=0)) as pool:
        yield pool


@pytest.fixture
def own(tmp_path: Path, new_pool: ConnectionPool) -> Path:
    """A database that was made under its name, and closed."""
    path = tmp_path / "db.sqlite"
    with SessionManager(path, pool=new_pool) as sessions:
        sessions.create_session("first")
    return path


def titles(path: Path, pool: ConnectionPool, **options: Any) -> list[str]:
    with SessionManager(path, pool=pool, **options) as sessions:
        return sorted(str(each.title) for each in sessions.list_sessions())


def test_a_file_with_two_names_opens_by_the_one_it_was_made_under(own, new_pool, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    link = folder / "link.sqlite"
    os.link(own, link)
    before = own.read_bytes()

    with pytest.raises(DatabaseNamesError) as caught:
        titles(link, new_pool)

    assert isinstance(caught.value, DatabaseOpenError)
    assert caught.value.kind == "hard link"
    assert caught.value.path == link
    assert "cp" in caught.value.message
    assert "allow_other_names" in caught.value.message
    assert own.read_bytes() == before
    assert names(folder) == ["link.sqlite"]
    assert titles(own, new_pool) == ["first"]


def test_other_names_in_the_same_folder_are_named(own, new_pool):
    link = own.with_name("link.sqlite")
    os.link(own, link)

    with pytest.raises(DatabaseNamesError) as caught:
        titles(link, new_pool)

    assert caught.value.others == (own,)


def test_a_second_name_is_refused_while_another_process_writes(own, new_pool, start_child):
    link = own.with_name("link.sqlite")
    os.link(own, link)
    with SessionManager(own, pool=new_pool) as sessions:
        assert start_child(WRITES, link).receive() == ["DatabaseNamesError", "hard link"]
        sessions.create_session("second")

    assert titles(own, new_pool) == ["first", "second"]


def test_a_host_that_was_killed_under_its_name_loses_nothing_to_a_link(own, new_pool, start_child):
    child = start_child(
        "import os, structlog\n"
        "from mandrake_sessions import *\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "sessions.create_session('second')\n"
        "send('stored')\n"
        "receive()\n",
        own,
    )
    assert child.receive() == "stored"
    child.stop()
    link = own.with_name("link.sqlite")
    os.link(own, link)

    with pytest.raises(DatabaseNamesError):
        titles(link, new_pool)

    assert titles(own, new_pool) == ["first", "second"]


def test_a_file_of_unknown_origin_with_two_names_is_refused(linked, ready_path, new_pool):
    for path in (linked, ready_path):
        with pytest.raises(DatabaseNamesError):
            titles(path, new_pool)
    linked.unlink()
    assert titles(ready_path, new_pool) == []


def test_the_option_opens_a_second_name(linked, new_pool):
    assert titles(linked, new_pool, options=OTHERWISE) == []
    with pytest.raises(InvalidArgumentError):
        DatabaseOptions(allow_other_names="yes")  # type: ignore[arg-type]


def test_a_moved_folder_keeps_its_files_at_home(tmp_path, new_pool):
    path = tmp_path / "here" / "db.sqlite"
    with SessionManager(path, pool=new_pool) as sessions:
        sessions.create_session("first")
    path.parent.rename(tmp_path / "there")
    os.link(tmp_path / "there" / "db.sqlite", tmp_path / "backup")

    assert titles(tmp_path / "there" / "db.sqlite", new_pool) == ["first"]
    with pytest.raises(DatabaseNamesError):
        titles(tmp_path / "backup", new_pool)


def refused(path: Path, pool: ConnectionPool) -> bool:
    """Whether a name is refused, and no sidecar made."""
    before = names(path.parent)
    try:
        titles(path, pool)
    except DatabaseNamesError:
        assert names(path.parent) == before
        return True
    return False


@pytest.mark.parametrize("how", ["the file is moved", "its folder is copied", "it has no home"])
def test_a_file_is_at_home_where_it_was_last_written_under_its_only_name(
    own, new_pool, tmp_path, how
):
    path = tmp_path / "elsewhere" / "c.sqlite"
    path.parent.mkdir()
    if how == "the file is moved":
        own.rename(path)
    else:
        shutil.copy(own, path)
    if how == "it has no home":
        with contextlib.closing(apsw.Connection(str(path))) as raw:
            raw.execute("DELETE FROM meta WHERE key = 'home'")
    with SessionManager(path, pool=new_pool) as sessions:
        sessions.create_session("second")
    link = tmp_path / "link"
    os.link(path, link)

    assert refused(link, new_pool)
    assert titles(path, new_pool) == ["first", "second"]


def test_a_moved_file_is_at_home_while_its_host_goes_on(own, new_pool, tmp_path, start_child):
    """The host closes nothing, and another process comes when there is a link."""
    path = own.rename(tmp_path / "moved.sqlite")
    with SessionManager(path, pool=new_pool) as sessions:
        sessions.create_session("second")
        # It brings the home into the file, where others look.
        file_handle(sessions.handle).file.checkpoint()
        link = tmp_path / "link"
        os.link(path, link)

        assert start_child(WRITES, link).receive() == ["DatabaseNamesError", "hard link"]
        assert start_child(WRITES, path).receive() == "stored"


def test_the_home_is_written_in_the_first_transaction_and_in_no_other(own, new_pool, tmp_path):
    path = own.rename(tmp_path / "moved.sqlite")
    statements: list[str] = []

    def note(_cursor: object, sql: str, _bindings: object) -> bool:
        statements.append(sql)
        return True

    def attach(connection: apsw.Connection) -> None:
        connection.exec_trace = note

    apsw.connection_hooks.append(attach)
    try:
        with SessionManager(path, pool=new_pool) as sessions:
            statements.clear()
            sessions.create_session("second")
            first = statements.count("COMMIT")
            sessions.create_session("third")
    finally:
        apsw.connection_hooks.remove(attach)

    assert first == 1
    assert len([each for each in statements if "'home', ?" in each]) == 1


def test_a_file_that_has_two_names_keeps_its_home(own, new_pool):
    link = own.with_name("link.sqlite")
    os.link(own, link)
    with SessionManager(link, pool=new_pool, options=OTHERWISE) as sessions:
        sessions.create_session("second")

    assert refused(link, new_pool)
    assert titles(own, new_pool) == ["first", "second"]


def test_two_names_of_unknown_origin_are_refused_in_two_processes_at_once(
    linked, ready_path, start_child
):
    children = [start_child(WRITES, path) for path in (linked, ready_path)]
    assert [child.receive() for child in children] == [["DatabaseNamesError", "hard link"]] * 2


def test_a_database_that_a_killed_restore_has_kept_is_no_second_name(own, new_pool):
    """It is killed between the link that keeps a damaged file and the end of its name."""
    moved = own.rename(own.with_name("moved.sqlite"))
    kept = moved.with_name(f"{moved.name}.damaged-0198c0de-0000-7000-8000-000000000000")
    os.link(moved, kept)

    assert titles(moved, new_pool) == ["first"]
    assert not kept.exists()
    os.link(moved, moved.with_name("link"))
    assert refused(moved, new_pool)


def test_a_second_name_that_cannot_be_removed_is_none_all_the_same(own, new_pool, monkeypatch):
    moved = own.rename(own.with_name("moved.sqlite"))
    kept = moved.with_name(f"{moved.name}.damaged-0198c0de-0000-7000-8000-000000000000")
    os.link(moved, kept)
    unlink = os.unlink

    def refusing(path, **options):
        if os.fspath(path) == os.fspath(kept):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refusing)

    assert titles(moved, new_pool) == ["first"]
    assert kept.exists()


def test_a_copy_opens(own, new_pool, tmp_path):
    os.link(own, tmp_path / "link")
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(own.read_bytes())

    assert titles(copy, new_pool) == ["first"]


def test_a_restored_file_is_at_home_where_it_was_restored(own, new_pool, tmp_path):
    target = tmp_path / "restored.sqlite"
    with SessionManager(own, pool=new_pool) as sessions:
        sessions.backup(tmp_path / "backup")
    SessionManager(target, pool=new_pool).restore(tmp_path / "backup")
    os.link(target, tmp_path / "link")

    assert titles(target, new_pool) == ["first"]
    with pytest.raises(DatabaseNamesError):
        titles(tmp_path / "link", new_pool)


def test_the_leftovers_of_a_killed_restore_are_no_second_name(own, new_pool):
    """It is killed between the link that gives a file its name and the end of the other one."""
    left = own.with_name(f"{own.name}.partial-0123456789abcdef")
    moved = own.with_name("moved.sqlite")
    own.rename(moved)
    own = moved
    left = own.with_name(f"{own.name}.partial-0123456789abcdef")
    os.link(own, left)

    assert titles(own, new_pool) == ["first"]
    assert not left.exists()


def test_a_second_name_is_refused_in_every_mode_of_opening(linked, new_pool):
    with pytest.raises(DatabaseNamesError):
        titles(linked, new_pool, create=False)
    with pytest.raises(DatabaseNamesError):
        new_pool.acquire(linked)


needs_mounts = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="only root on Linux mounts a file",
)


def in_container(
    source: Path, point: Path, script: str, *arguments: Path
) -> subprocess.CompletedProcess[str]:
    """Run a script where ``source`` is mounted at ``point`` as well."""
    mounted = 'mount --bind "$0" "$1" && shift && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, source, point, sys.executable, "-c", script]
    return subprocess.run(
        [*map(str, command), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@needs_mounts
def test_a_file_that_is_mounted_by_itself_is_refused(own, new_pool, tmp_path):
    point = tmp_path / "container" / "db.sqlite"
    point.parent.mkdir()
    point.touch()
    before = own.read_bytes()
    script = (
        "import sys\n"
        "from mandrake_sessions import *\n"
        "for how in (None, DatabaseOptions(allow_other_names=True)):\n"
        "    try:\n"
        "        with SessionManager(sys.argv[1], options=how): print('opened')\n"
        "    except DatabaseNamesError as error: print(error.kind)\n"
        "    default_pool().close()\n"
        "    if how is None: print(open(sys.argv[2], 'rb').read() == "
        "open(sys.argv[1], 'rb').read())\n"
    )
    done = in_container(own, point, script, point, own)

    assert done.stdout.splitlines()[:2] == ["mounted file", "True"], done.stderr
    assert done.stdout.splitlines()[2] == "opened"
    assert names(point.parent) == ["db.sqlite"]
    assert before[:100] == own.read_bytes()[:100]
    assert titles(own, new_pool) == ["first"]


@needs_mounts
def test_a_folder_that_is_mounted_is_not_refused(own, tmp_path):
    point = tmp_path / "mounted"
    point.mkdir()
    script = (
        "import sys\n"
        "from mandrake_sessions import *\n"
        "with SessionManager(sys.argv[1]) as sessions: print(sessions.count_sessions())\n"
    )
    done = in_container(own.parent, point, script, point / own.name)
    assert done.stdout.strip() == "1", done.stderr


MOUNTS = r"""
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 21 0:25 / /home rw - nfs4 server:/home rw
31 30 0:26 / /home/me/my\040files rw master:2 shared:3 - fuse.sshfs me@there: rw
32 21 0:27 / /var/lib rw - overlay overlay rw
33 32 0:28 / /var/lib rw - virtiofs host rw
34 21 0:29 / /media rw - fuseblk /dev/sdb1 rw
nonsense
""".splitlines()


@pytest.mark.parametrize(
    ("path", "found", "is_unshared"),
    [
        ("/db.sqlite", Mount("/", "ext4"), False),
        ("/homely/db.sqlite", Mount("/", "ext4"), False),
        ("/home/db.sqlite", Mount("/home", "nfs4"), True),
        ("/home/me/my files/db.sqlite", Mount("/home/me/my files", "fuse.sshfs"), True),
        ("/var/lib/db.sqlite", Mount("/var/lib", "virtiofs"), True),
        ("/media/db.sqlite", Mount("/media", "fuseblk"), False),
    ],
)
def test_the_mount_of_a_path_is_found(path, found, is_unshared):
    mount = nearest(Path(path), MOUNTS)

    assert mount is not None
    assert mount == found
    assert mount.is_unshared is is_unshared


def test_without_a_table_of_mounts_nothing_is_known():
    assert nearest(Path("/db.sqlite"), []) is None


def test_a_plain_file_has_one_name(own):
    assert (naming_of(own).links, naming_of(own).is_mount_point) == (1, False)


def test_a_doctor_names_a_second_name_where_it_would_be_refused(own, tmp_path):
    link = tmp_path / "link"
    os.link(own, link)

    assert diagnose(own).status is HealthStatus.OK
    (check,) = [each for each in diagnose(link).checks if each.name == "names"]
    assert check.status is HealthStatus.FAILED
    assert str(own) in check.detail
    assert "cp FILE COPY" in check.advice


def test_health_names_the_file_system(own, new_pool):
    with SessionManager(own, pool=new_pool) as sessions:
        for report in (sessions.health(), diagnose(own)):
            (check,) = [each for each in report.checks if each.name == "file_system"]
            assert check.status is HealthStatus.OK


@pytest.fixture
def behind_fuse(own, tmp_path):
    """The database, reached through a FUSE mount of its folder."""
    if os.geteuid() != 0 or shutil.which("bindfs") is None or not Path("/dev/fuse").exists():
        pytest.skip("bindfs, which mounts a folder by FUSE, is not here")
    point = tmp_path / "fuse"
    point.mkdir()
    folder = tmp_path / "real"
    folder.mkdir()
    own.rename(folder / own.name)
    mounted = subprocess.run(["bindfs", str(folder), str(point)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"FUSE cannot be mounted here: {mounted.stderr!r}")
    yield point / own.name
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_file_system_that_shares_no_locks_is_named(behind_fuse, new_pool):
    with SessionManager(behind_fuse, pool=new_pool) as sessions:
        report = sessions.health()
    for each in (report, diagnose(behind_fuse)):
        (check,) = [check for check in each.checks if check.name == "file_system"]
        assert check.status is HealthStatus.DEGRADED
        assert "fuse" in check.detail
        assert str(behind_fuse.parent) in check.detail
        assert check.advice


HOSTS = """
from mandrake_sessions import *
sessions = SessionManager(sys.argv[1]).init()
sessions.create_session("second")
send("stored")
receive()
sessions.create_session("third")
sessions.close()
default_pool().close()
send("closed")
"""


@pytest.fixture(params=["the first user is behind FUSE", "the second user is behind FUSE"])
def two_ways(request, behind_fuse, tmp_path):
    """The path of the first user of a folder that is mounted by FUSE, and that of the second."""
    ways = (behind_fuse, tmp_path / "real" / behind_fuse.name)
    return ways if request.param.startswith("the first") else ways[::-1]


def test_a_file_that_a_process_has_open_by_another_mount_is_refused(
    two_ways, new_pool, start_child, tmp_path
):
    first, second = two_ways
    backup = tmp_path / "backup"
    with SessionManager(first, pool=new_pool) as sessions:
        sessions.backup(backup)
    host = start_child(HOSTS, first)
    assert host.receive() == "stored"
    before = names(second.parent)

    for _ in range(2):
        with pytest.raises(DatabaseNamesError) as caught:
            titles(second, new_pool)
    with pytest.raises(DatabaseNamesError):
        titles(second, new_pool, read_only=True)
    with pytest.raises(DatabaseNamesError):
        SessionManager(second, pool=new_pool).delete()
    with pytest.raises(DatabaseNamesError):
        SessionManager(second, pool=new_pool).restore(backup, overwrite=True)
    (check,) = [each for each in diagnose(second).checks if each.name == "names"]

    assert caught.value.kind == "other mount"
    assert caught.value.others == (first,)
    assert str(host.process.pid) in caught.value.message
    assert check.status is HealthStatus.FAILED
    assert names(second.parent) == before
    host.send("go on")
    assert host.receive() == "closed"
    assert titles(first, new_pool) == ["first", "second", "third"]


def test_a_manager_of_this_process_counts_too(two_ways, new_pool):
    first, second = two_ways
    with SessionManager(first, pool=new_pool) as sessions:
        sessions.create_session("second")
        with pytest.raises(DatabaseNamesError):
            titles(second, new_pool)
        sessions.create_session("third")
    assert titles(first, new_pool) == ["first", "second", "third"]


def test_the_files_of_a_killed_host_open_by_another_mount(two_ways, new_pool, start_child):
    first, second = two_ways
    host = start_child(HOSTS, first)
    assert host.receive() == "stored"
    host.stop()
    assert f"{second.name}-shm" in names(second.parent)

    assert titles(second, new_pool) == ["first", "second"]


def test_another_process_that_came_the_same_way_is_let_in(two_ways, new_pool, start_child):
    first, _ = two_ways
    host = start_child(HOSTS, first)
    assert host.receive() == "stored"

    assert titles(first, new_pool) == ["first", "second"]


def test_a_copy_of_the_files_of_a_running_host_opens(two_ways, new_pool, start_child, tmp_path):
    """It has the same name, size and times, and lies on another device than the host's files."""
    first, second = two_ways
    host = start_child(HOSTS, first)
    assert host.receive() == "stored"
    copy = second.parent / "copy"
    subprocess.run(["mkdir", copy], check=True)
    subprocess.run(["sh", "-c", 'cp -a "$0"* "$1"', str(first), str(copy)], check=True)

    assert titles(copy / first.name, new_pool) == ["first", "second"]
    assert names(copy) == [first.name]


COMMANDS = ("chmod", "restore", "--overwrite", "Delete", "Remove", "mkdir")


def advice_of(path: Path) -> str:
    report = diagnose(path)
    assert not report.is_usable or report.status is HealthStatus.DEGRADED
    return " ".join(check.advice for check in report.checks)


@pytest.mark.parametrize("mode", [0o644, 0o400, 0o666])
@pytest.mark.parametrize("kind", ["text", "sqlite", "wal", "empty", "another's magic"])
def test_no_advice_changes_or_replaces_a_file_of_another_program(tmp_path, kind, mode):
    path = tmp_path / "file"
    if kind in ("sqlite", "wal"):
        with contextlib.closing(apsw.Connection(str(path))) as raw:
            raw.execute(f"PRAGMA journal_mode={'wal' if kind == 'wal' else 'delete'}").fetchall()
            raw.execute("CREATE TABLE sessions (id); CREATE TABLE t (x); PRAGMA user_version = 9")
    else:
        path.write_bytes({"text": b"root:x:0:0\n" * 99, "empty": b""}.get(kind, b"PK\3\4" * 999))
    path.chmod(mode)
    path.with_name("file.damaged-x").touch()
    advice = advice_of(path)

    assert not any(word in advice for word in COMMANDS), advice
    assert "Check the path" in advice


@pytest.mark.parametrize("damage", [slice(0, 100), slice(0, 16), slice(68, 72)])
def test_damage_to_a_database_of_the_library_still_has_its_advice(own, damage):
    content = bytearray(own.read_bytes())
    content[damage] = b"\xaa" * (damage.stop - damage.start)
    own.write_bytes(content)

    assert "salvage" in advice_of(own)
    assert "restore" in advice_of(own)
