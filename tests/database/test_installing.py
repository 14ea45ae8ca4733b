"""A fresh file gets its schema from compiled texts: by any program, whole, and quickly."""

from __future__ import annotations

import errno
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from kits.descriptors import open_connections
from kits.entries import adding
from kits.schema_texts import definitions

import mandrake_sessions
from mandrake_sessions import ConnectionPool, DatabaseOptions, SchemaTooNewError
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.migrations import ddl, head, installing, migrate, revisions
from mandrake_sessions.database.migrations.ddl import REVISIONS
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.tables import APPLICATION_ID, HEAD

PACKAGE = Path(mandrake_sessions.__file__).parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="no files without a name")
AS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
MakePool = Callable[..., ConnectionPool]

ROUND = """
from mandrake_sessions import SessionManager
def use(path):
    with SessionManager(path) as sessions:
        session = sessions.create_session("title")
        response = sessions.create_round(session.id, "question").response
        with sessions.stream_turn(response.id) as turn:
            turn.write("answer")
        assert sessions.render_session_history(session.id).rounds[0].turns
"""


def contents(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Callable[[str], Connection]]:
    """Opens ``tmp_path/name``, made empty if it is not there, and closes it in the end."""
    opened = []

    def open_it(name: str) -> Connection:
        path = real_path(tmp_path / name)
        opened.append(open_connection(path, make_file(path), DatabaseOptions(), Budget(10)))
        return opened[-1]

    yield open_it
    for connection in opened:
        connection.close()


def structure(raw: apsw.Connection) -> dict[str, Any]:
    """Everything that SQLite says of the tables and indexes of a file."""
    entries = raw.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    found: dict[str, Any] = {
        "entries": sorted((*names, definitions(str(sql or ""))) for *names, sql in entries),
        "tables": sorted(raw.execute("PRAGMA table_list").fetchall()),
        "encoding": raw.pragma("encoding"),
        "page_size": raw.pragma("page_size"),
        "application_id": raw.pragma("application_id"),
    }
    for kind, name, *_ in found["entries"]:
        pragmas = ["index_xinfo"]
        if kind == "table":
            pragmas = ["table_xinfo", "index_list", "foreign_key_list"]
        for pragma in pragmas:
            found[f"{pragma} {name}"] = raw.execute(f'PRAGMA {pragma}("{name}")').fetchall()
    return found


# -- what is made -------------------------------------------------------------------------------


def test_a_new_file_has_the_schema_of_all_migrations(
    pool: ConnectionPool, open_file: Callable[[str], Connection], tmp_path: Path
) -> None:
    """Salvage reads by position, so the order of the columns counts too."""
    migrated, installed = open_file("migrated.sqlite"), open_file("installed.sqlite")
    migrate.upgrade(migrated, Budget(10))
    installing.install(installed, Budget(10))
    pool.acquire(tmp_path / "whole.sqlite").release()
    whole = apsw.Connection(str(tmp_path / "whole.sqlite"))

    expected = structure(migrated.raw)
    assert structure(installed.raw) == expected
    assert structure(whole) == expected
    assert len(expected["entries"]) == 25
    assert whole.pragma("integrity_check") == "ok"
    whole.close()


def test_the_compiled_revisions_are_those_of_the_scripts() -> None:
    assert list(REVISIONS) == revisions.scripts_in_order()
    assert REVISIONS[-1] == HEAD


@pytest.mark.parametrize("way", ["whole", "installed"])
def test_each_new_file_has_the_application_id_and_its_own_stamp(
    pool: ConnectionPool, tmp_path: Path, way: str
) -> None:
    stamps = set()
    for number in range(3):
        path = tmp_path / f"{number}.sqlite"
        if way == "installed":
            path.touch()
        pool.acquire(path).release()
        raw = apsw.Connection(str(path))
        facts = {key: str(value) for key, value in raw.execute("SELECT key, value FROM meta")}
        assert raw.pragma("application_id") == APPLICATION_ID
        assert raw.pragma("user_version") == int(facts["stamp"], 16) & 0x7FFFFFFF
        assert abs(int(facts["created_at"]) / 1e6 - time.time()) < 3600
        assert facts["created_by"].startswith("mandrake_sessions ")
        stamps.add(facts["stamp"])
        raw.close()
    assert len(stamps) == 3


def test_stamps_differ_where_a_host_makes_uuids_repeat(
    tmp_path: Path, start_child: Callable[..., Any]
) -> None:
    """A host that wants its tests to repeat seeds the generator, and replaces ``uuid4``."""
    child = start_child(
        """
import random, uuid
import apsw
from mandrake_sessions import SessionManager
uuid.uuid4 = lambda: uuid.UUID(int=17)
for name in ("a", "b"):
    random.seed(0)
    SessionManager(f"{sys.argv[1]}/{name}").init().close()
send([apsw.Connection(f"{sys.argv[1]}/{name}").pragma("user_version") for name in ("a", "b")])
""",
        tmp_path,
    )
    one, other = child.receive()
    child.finish()
    assert one != other


@pytest.mark.parametrize("way", ["whole", "installed", "of another VFS"])
def test_a_copy_of_the_main_file_alone_has_the_schema_from_the_beginning(
    make_pool: MakePool, path: Path, vfs: Any, tmp_path: Path, way: str
) -> None:
    """As cp, or a synchronizing program, makes one while a host has just opened the file."""
    if way == "installed":
        path.touch()
    options = DatabaseOptions(vfs=vfs.name if way == "of another VFS" else None)
    with make_pool().acquire(path, options=options):
        (tmp_path / "copy.sqlite").write_bytes(contents(path))
    raw = apsw.Connection(str(tmp_path / "copy.sqlite"))
    assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    assert raw.pragma("integrity_check") == "ok"
    raw.close()


@LINUX
def test_a_new_file_has_its_content_when_it_gets_its_name(tmp_path: Path) -> None:
    """It has one name, never two, and what makes it leaves nothing else in the folder."""
    seen = []

    def content() -> bytes:
        seen.extend(os.listdir(tmp_path))
        return b"x" * 5000

    make_file(tmp_path / "db.sqlite", content)

    assert seen == []
    assert os.listdir(tmp_path) == ["db.sqlite"]
    assert contents(tmp_path / "db.sqlite") == b"x" * 5000
    assert (tmp_path / "db.sqlite").stat().st_nlink == 1


def test_where_no_file_can_be_made_whole_it_is_made_empty_and_installed(
    pool: ConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "this file system has no links")

    monkeypatch.setattr(os, "link", no_link)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
    assert os.listdir(path.parent) == [path.name]
    assert identify(path) is not None


def test_a_file_that_another_process_has_just_made_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"

    def content() -> bytes:
        # Not one of this library: it does not take the lock of the folder.
        path.write_bytes(b"theirs")
        return b"ours"

    make_file(path, content)

    assert contents(path) == b"theirs"


def test_a_failed_installation_leaves_an_empty_file_empty(
    pool: ConnectionPool, path: Path, vfs: Any
) -> None:
    path.touch()
    options = DatabaseOptions(vfs=vfs.name)
    with vfs.failing("wal", "write", apsw.SQLITE_IOERR_WRITE), pytest.raises(Exception) as caught:  # noqa: PT011
        pool.acquire(path, options=options)
    assert isinstance(caught.value, mandrake_sessions.DatabaseError)
    assert open_connections(path) == 0
    with pool.acquire(path, options=options) as handle:
        assert head.is_at_head(handle._file.writer.connection)


@pytest.mark.parametrize("way", ["whole", "installed"])
def test_eight_processes_that_make_one_file_agree_on_it(
    tmp_path: Path, start_child: Callable[..., Any], way: str
) -> None:
    path = tmp_path / "db.sqlite"
    if way == "installed":
        path.touch()
    children = [
        start_child(
            """
from mandrake_sessions import SessionManager
send("ready")
receive()
sessions = SessionManager(sys.argv[1]).init()
send(sessions.create_session("mine").id)
receive()
sessions.close()
send("closed")
""",
            path,
        )
        for _ in range(8)
    ]
    for child in children:
        assert child.receive() == "ready"
    for child in children:
        child.send()
    ids = {child.receive() for child in children}
    for child in children:
        child.send()
    for child in children:
        assert child.receive() == "closed"
        child.finish()
    raw = apsw.Connection(str(path))
    assert {id for (id,) in raw.execute("SELECT id FROM sessions")} == ids
    assert raw.execute("SELECT count(*) FROM alembic_version").get == 1
    assert raw.execute("SELECT count(*) FROM meta WHERE key = 'stamp'").get == 1
    assert raw.pragma("integrity_check") == "ok"
    raw.close()


def test_a_fresh_file_takes_little_more_than_its_tables(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """Two to three times the processor's time of making the tables in memory; Alembic took ten.

    Of the same process in turns: other load of the machine slows both.
    """
    pool = make_pool(linger=600, max_idle=100)
    pool.acquire(tmp_path / "first.sqlite").release()
    ratios = []
    for number in range(25):
        since = time.thread_time()
        handle = pool.acquire(tmp_path / f"{number}.sqlite")
        opening = time.thread_time() - since
        handle.release()
        since = time.thread_time()
        raw = apsw.Connection(":memory:")
        raw.execute("BEGIN")
        for statement in ddl.SCHEMA:
            raw.execute(statement)
        raw.execute("COMMIT")
        raw.close()
        ratios.append(opening / (time.thread_time() - since))
    assert statistics.median(ratios) < 5


# -- by any program -----------------------------------------------------------------------------


def run(code: str, *arguments: object, **options: Any) -> str:
    """Run code in a new interpreter; return what it printed last."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the package, and no ``migrations/`` in it or above it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "app" / "mandrake_sessions", ignore=ignored)
    return tmp_path / "app"


def test_a_copy_without_migrations_makes_a_file_and_imports_no_alembic(
    copied: Path, tmp_path: Path
) -> None:
    code = f"""
import sys
sys.path.insert(0, sys.argv[1])
{ROUND}
import mandrake_sessions
assert mandrake_sessions.__file__.startswith(sys.argv[1])
use(sys.argv[2])
assert not {{"alembic", "sqlalchemy"}} & sys.modules.keys()
print("works")
"""
    assert run(code, copied, tmp_path / "db.sqlite") == "works"


def test_a_package_in_a_zip_makes_a_file(copied: Path, tmp_path: Path) -> None:
    """As a zipapp, and as PyInstaller without its option: the package is no folder on the disk."""
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for each in copied.rglob("*.py"):
            archive.write(each, each.relative_to(copied))
    shutil.rmtree(copied)
    code = f"""
import sys
sys.path.insert(0, sys.argv[1])
{ROUND}
import mandrake_sessions
assert mandrake_sessions.__file__.startswith(sys.argv[1])
use(sys.argv[2])
use(sys.argv[2])
print("works")
"""
    assert run(code, tmp_path / "app.zip", tmp_path / "db.sqlite") == "works"


@AS_ROOT
def test_a_process_that_dropped_its_privileges_makes_a_file(copied: Path) -> None:
    """Its code stands in a folder that only root may enter."""
    copied.chmod(0o700)
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        code = f"""
import os, sys
sys.path.insert(0, sys.argv[1])
{ROUND}
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert not os.access(sys.argv[1], os.R_OK | os.X_OK)
use(sys.argv[2])
use(sys.argv[2])
print("works")
"""
        assert run(code, copied, Path(folder, "new", "db.sqlite")) == "works"


# -- files of earlier versions ------------------------------------------------------------------


def emptied(path: Path, revision: str | None = None) -> bytes:
    """Bring a database to another revision, and return its bytes."""
    with ConnectionPool() as pool:
        pool.acquire(path).release()
    raw = apsw.Connection(str(path))
    if revision is None:
        raw.execute("DELETE FROM alembic_version")
        for name in ("workspaces", "changes", "turn_chunks", "turns", "responses", "requests"):
            raw.execute(f"DROP TABLE {name}")
        for name in ("rounds", "sessions", "meta"):
            raw.execute(f"DROP TABLE {name}")
    else:
        raw.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    raw.close()
    return contents(path)


def test_an_earlier_file_is_refused_where_the_scripts_are_missing_and_says_what_to_do(
    copied: Path, tmp_path: Path
) -> None:
    """As PyInstaller leaves them out, and as its --collect-data leaves their .py files out."""
    path = tmp_path / "db.sqlite"
    before = emptied(path)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from mandrake_sessions import MigrationError, SessionManager
try:
    SessionManager(sys.argv[2]).init()
except MigrationError as error:
    print(error.message)
"""
    for _ in range(2):
        message = run(code, copied, path)
        assert f"no migration script for {', '.join(REVISIONS)}" in message
        assert "mandrake_sessions/migrations" in message
        assert contents(path) == before
        versions = copied / "mandrake_sessions" / "migrations" / "versions"
        versions.mkdir(parents=True, exist_ok=True)


def test_a_later_file_is_refused_as_such_where_the_scripts_are_missing(
    copied: Path, tmp_path: Path
) -> None:
    path = tmp_path / "db.sqlite"
    before = emptied(path, "9999")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from mandrake_sessions import SessionManager
try:
    SessionManager(sys.argv[2]).init()
except Exception as error:
    print(type(error).__name__)
"""
    assert run(code, copied, path) == SchemaTooNewError.__name__
    assert contents(path) == before


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'sa.Column("description", sa.Text()),',
            "",
            "column 3 of sessions is metadata instead of description",
        ),
        (
            'sa.Column("path", sa.Text(), nullable=False),',
            'sa.Column("path", sa.Text(), nullable=False), sa.Column("owner", sa.Text()),',
            "column 4 of workspaces is owner instead of description",
        ),
    ],
    ids=["a column less", "a column more"],
)
def test_the_migrations_of_another_version_change_nothing(
    copied: Path, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = tmp_path / "db.sqlite"
    before = emptied(path)
    scripts = copied / "mandrake_sessions" / "migrations"
    shutil.copytree(revisions.script_location(), scripts)
    (first,) = (scripts / "versions").glob("0001*.py")
    text = first.read_text("utf-8")
    assert old in text
    first.write_text(text.replace(old, new, 1), "utf-8")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from mandrake_sessions import MigrationError, SessionManager
try:
    SessionManager(sys.argv[2]).init()
except MigrationError as error:
    print(error.message)
"""
    assert expected in run(code, copied, path)
    assert contents(path) == before


def test_migrations_without_the_newest_revision_change_nothing(
    copied: Path, tmp_path: Path
) -> None:
    path = tmp_path / "db.sqlite"
    before = emptied(path)
    scripts = copied / "mandrake_sessions" / "migrations"
    shutil.copytree(revisions.script_location(), scripts)
    (newest,) = (scripts / "versions").glob(f"{HEAD}*.py")
    newest.write_text(newest.read_text("utf-8").replace(f'"{HEAD}"', '"other"', 1), "utf-8")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from mandrake_sessions import MigrationError, SessionManager
try:
    SessionManager(sys.argv[2]).init()
except MigrationError as error:
    print(error.message)
"""
    assert f"no migration script for {HEAD}" in run(code, copied, path)
    assert contents(path) == before


def test_an_earlier_file_is_migrated_by_the_scripts(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    emptied(path)
    with ConnectionPool() as pool, file_handle(pool.acquire(path)) as handle:
        assert head.is_at_head(handle._file.writer.connection)
        handle.transact(adding("a"))
