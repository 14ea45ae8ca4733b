"""Migrations: one schema, one transaction, for any caller and any number of them at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.config import main as alembic_main
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from kits.schema_texts import definitions

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.dialect import lend
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.migrations import head, migrate, revisions
from mandrake_sessions.database.pool.pool import ConnectionPool
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseOpenError,
    MigrationError,
    SchemaTooNewError,
    StorageFullError,
)
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.schema import APPLICATION_ID, HEAD, metadata

INI = revisions.script_location() / "alembic.ini"
ROUNDS = "SELECT count(*) FROM rounds"

Open = Callable[..., Connection]


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Open]:
    """Opens a connection to ``tmp_path/name`` and closes it in the end."""
    opened = []

    def open_it(name: str = "db.sqlite", *, auxiliary: bool = False) -> Connection:
        path = real_path(tmp_path / name)
        connection = open_connection(
            path, make_file(path), DatabaseOptions(), Budget(10), auxiliary=auxiliary
        )
        opened.append(connection)
        return connection

    yield open_it
    for connection in opened:
        connection.close()


@pytest.fixture
def database(open_file: Open) -> Connection:
    """A migrated database with one session of three rounds."""
    connection = open_file()
    head.bring_to_head(connection, Budget(10))
    add_session(connection, "s", rounds=3)
    return connection


def add_session(connection: Connection, id: str, *, rounds: int = 0) -> None:
    connection.execute(
        "INSERT INTO sessions (id, metadata, next_round_index, revision, created_at, updated_at)"
        " VALUES (?, '{}', ?, 0, 1, 1)",
        (id, rounds),
    )
    for index in range(rounds):
        connection.execute(
            'INSERT INTO rounds (id, session_id, "index", created_at, updated_at)'
            " VALUES (?, ?, ?, 1, 1)",
            (f"{id}-{index}", id, index),
        )


def schema_of(connection: Connection) -> list[tuple[Any, ...]]:
    """The schema as SQLite keeps it, without Alembic's table and what a closing leaves."""
    rows = connection.query_all(
        "SELECT type, name, sql FROM sqlite_schema"
        " WHERE tbl_name <> 'alembic_version' AND tbl_name NOT LIKE 'sqlite_stat_'"
    )
    return sorted((kind, name, definitions(sql)) for kind, name, sql in rows)


def contents_of(connection: Connection) -> list[Any]:
    """Everything in the file that a migration could have changed."""
    tables = [
        name for (name,) in connection.query_all("SELECT name FROM sqlite_schema WHERE sql > ''")
    ]
    pragmas = ("application_id", "user_version", "schema_version")
    return [
        *(connection.value(f"PRAGMA {name}") for name in pragmas),
        *connection.query_all("SELECT * FROM sqlite_schema"),
        *(
            (name, connection.query_all(f'SELECT * FROM "{name}"'))
            for name in tables
            if not name.startswith(("ix_", "uq_"))
        ),
    ]


@pytest.fixture
def scripts(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of scripts: our first revision, and a second one of the test's."""

    def make(upgrade: str, *, downgrade: str = "pass", rebuilds: bool = False) -> Path:
        folder = tmp_path / "scripts"
        versions = folder / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        for each in (revisions.script_location() / "versions").glob("*.py"):
            (versions / each.name).write_text(each.read_text())
        (folder / "env.py").write_text((revisions.script_location() / "env.py").read_text())
        (versions / "next.py").write_text(
            "import os\nimport signal\nimport sqlalchemy as sa\nfrom alembic import op\n"
            f"revision = 'next'\ndown_revision = {HEAD!r}\nrebuilds_tables = {rebuilds}\n"
            f"def upgrade():\n{textwrap.indent(textwrap.dedent(upgrade), '    ')}\n"
            f"def downgrade():\n{textwrap.indent(textwrap.dedent(downgrade), '    ')}\n"
        )
        return folder

    return make


REBUILD = """
with op.batch_alter_table("sessions", recreate="always") as batch:
    batch.alter_column("title", new_column_name="headline")
"""


# -- the schema ---------------------------------------------------------------------------------


def test_a_migrated_file_has_the_tables_of_the_schema(
    open_file: Open, database: Connection
) -> None:
    described = open_file("described.sqlite")
    with lend(described, Budget(10), "test") as borrowed:
        metadata.create_all(borrowed)

    assert schema_of(database) == schema_of(described)


def test_autogenerate_finds_nothing_to_do(database: Connection) -> None:
    with lend(database, Budget(10), "test") as borrowed:
        context = MigrationContext.configure(borrowed, opts=revisions.options())

        assert compare_metadata(context, metadata) == []


def test_autogenerate_would_find_a_difference(database: Connection) -> None:
    database.execute("ALTER TABLE sessions DROP COLUMN title")

    with lend(database, Budget(10), "test") as borrowed:
        context = MigrationContext.configure(borrowed, opts=revisions.options())

        assert compare_metadata(context, metadata)


def test_the_schema_names_the_newest_script() -> None:
    assert ScriptDirectory(str(revisions.script_location())).get_heads() == [HEAD]


def test_a_new_file_has_the_application_id(database: Connection) -> None:
    facts = dict(database.query_all("SELECT key, value FROM meta"))

    assert database.value("PRAGMA application_id") == APPLICATION_ID
    assert database.value("PRAGMA user_version") == int(facts["stamp"], 16) & 0x7FFFFFFF
    assert facts["created_by"].startswith("mandrake_sessions ")
    assert int(facts["created_at"]) > 1_700_000_000_000_000


def test_two_files_have_two_stamps(open_file: Open) -> None:
    stamps = set()
    for name in ("a.sqlite", "b.sqlite"):
        connection = open_file(name)
        head.bring_to_head(connection, Budget(10))
        stamps.add(connection.value("SELECT value FROM meta WHERE key = 'stamp'"))

    assert len(stamps) == 2


# -- up and down --------------------------------------------------------------------------------


def test_down_and_up_again_gives_the_same_schema(database: Connection) -> None:
    schema = schema_of(database)

    migrate.downgrade(database, Budget(10), "base")
    assert schema_of(database) == []
    assert head.current(database) is None
    assert not head.is_at_head(database)

    head.bring_to_head(database, Budget(10))
    assert schema_of(database) == schema
    assert head.current(database) == HEAD
    assert head.is_at_head(database)


def test_a_file_keeps_its_stamp_in_the_header(database: Connection) -> None:
    stamp = database.value("PRAGMA user_version")

    migrate.downgrade(database, Budget(10), "base")
    migrate.upgrade(database, Budget(10))

    assert database.value("PRAGMA user_version") == stamp
    whole = database.value("SELECT value FROM meta WHERE key = 'stamp'")
    assert int(whole, 16) & 0x7FFFFFFF == stamp


def test_a_file_at_head_costs_one_read(database: Connection) -> None:
    seen: list[str] = []

    def note(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        seen.append(sql)
        return True

    database.raw.exec_trace = note
    head.bring_to_head(database, Budget(10))

    database.raw.exec_trace = None
    assert seen == ["SELECT CAST(version_num AS BLOB) FROM alembic_version"]


def test_opening_a_file_at_head_does_not_import_alembic(database: Connection) -> None:
    code = f"""
import sys
from mandrake_sessions.database.pool.pool import ConnectionPool
with ConnectionPool() as pool, pool.acquire({str(database.path)!r}):
    pass
assert "mandrake_sessions" in sys.modules
assert not {{"alembic", "sqlalchemy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_offline_sql_makes_a_file_with_the_application_id(open_file: Open, tmp_path: Path) -> None:
    script = migrate.offline_sql("upgrade")
    # Inside the transaction it would do nothing.
    assert script.index("PRAGMA foreign_keys=OFF;") < script.index("BEGIN;")
    for table in metadata.tables:
        assert re.search(rf"CREATE TABLE {table} ", script)
    made = apsw.Connection(str(tmp_path / "made.sqlite"))
    made.execute(script).fetchall()
    made.close()
    migrated = open_file()
    head.bring_to_head(migrated, Budget(10))

    offline = open_file("made.sqlite")

    assert head.is_at_head(offline)
    assert schema_of(offline) == schema_of(migrated)


def test_offline_sql_goes_down_too(database: Connection) -> None:
    # ``database`` is at head; the script brings it to base.
    database.execute(migrate.offline_sql("downgrade", f"{HEAD}:base")).fetchall()

    assert schema_of(database) == []


def test_offline_sql_of_an_unknown_revision_is_a_migration_error() -> None:
    with pytest.raises(MigrationError):
        migrate.offline_sql("upgrade", "base:nowhere")


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_newer_schema_is_refused_before_any_write(open_file: Open, database: Connection) -> None:
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    watcher = open_file(auxiliary=True)
    before = contents_of(database), watcher.value("PRAGMA data_version")

    with pytest.raises(SchemaTooNewError) as caught:
        head.bring_to_head(database, Budget(10))
    assert caught.value.path == database.path
    with pytest.raises(SchemaTooNewError):
        migrate.downgrade(database, Budget(10), "base")

    assert (contents_of(database), watcher.value("PRAGMA data_version")) == before
    assert not database.in_transaction()


def test_a_failing_step_changes_nothing(database: Connection, scripts: Callable[..., Path]) -> None:
    before = contents_of(database)
    folder = scripts("op.execute('CREATE TABLE half (x)')\nop.execute('DROP TABLE nowhere')")

    with pytest.raises(MigrationError) as caught:
        migrate.upgrade(database, Budget(10), scripts=folder)

    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)
    assert caught.value.result_code == apsw.SQLITE_ERROR
    assert contents_of(database) == before
    assert not database.in_transaction()
    assert database.value("PRAGMA foreign_keys") == 1


def test_a_failing_step_leaves_a_fresh_file_fresh(
    open_file: Open, scripts: Callable[..., Path]
) -> None:
    connection = open_file()
    folder = scripts("raise RuntimeError('no')")

    with pytest.raises(MigrationError) as caught:
        migrate.upgrade(connection, Budget(10), scripts=folder)

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert connection.value("SELECT count(*) FROM sqlite_schema") == 0
    assert connection.value("PRAGMA application_id") == 0
    assert connection.value("PRAGMA user_version") == 0


def test_a_step_that_leaves_orphans_is_undone(
    database: Connection, scripts: Callable[..., Path]
) -> None:
    before = contents_of(database)
    # Foreign keys are off: nothing else would notice.
    folder = scripts("op.execute('DELETE FROM sessions')")

    with pytest.raises(MigrationError, match="3 rows"):
        migrate.upgrade(database, Budget(10), scripts=folder)

    assert contents_of(database) == before


def test_an_interrupt_undoes_the_steps(database: Connection, scripts: Callable[..., Path]) -> None:
    before = contents_of(database)
    folder = scripts("op.execute('CREATE TABLE half (x)')\nraise KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt):
        migrate.upgrade(database, Budget(10), scripts=folder)

    assert contents_of(database) == before
    assert database.value("PRAGMA foreign_keys") == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_killed_in_a_step_leaves_the_file_as_it_was(
    open_file: Open, tmp_path: Path, scripts: Callable[..., Path]
) -> None:
    folder = scripts("op.execute('CREATE TABLE half (x)')\nos.kill(os.getpid(), signal.SIGKILL)")
    code = f"""
from pathlib import Path
from mandrake_sessions.database.migrations import head, migrate, revisions
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import real_path
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.options import DatabaseOptions
path = real_path({str(tmp_path / "db.sqlite")!r})
connection = open_connection(path, make_file(path), DatabaseOptions(), Budget(10))
migrate.upgrade(connection, Budget(10), scripts=Path({str(folder)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL

    connection = open_file()

    assert connection.value("SELECT count(*) FROM sqlite_schema") == 0
    head.bring_to_head(connection, Budget(10))
    assert head.is_at_head(connection)


def test_waiting_for_another_writer_ends_at_the_deadline(
    open_file: Open, database: Connection
) -> None:
    migrate.downgrade(database, Budget(10), "base")
    other = open_file()
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(DatabaseBusyError) as caught:
        head.bring_to_head(database, Budget(0.02))

    assert caught.value.phase == "begin"
    other.execute("ROLLBACK")
    head.bring_to_head(database, Budget(10))


def test_steps_are_not_interrupted_at_the_deadline(
    database: Connection, scripts: Callable[..., Path]
) -> None:
    # It begins in time, and then waits for its deadline to pass before it goes on.
    folder = scripts("""
        import time
        from mandrake_sessions.database.connection.dialect import lent_connection
        connection = lent_connection(op.get_bind())
        while time.monotonic() <= connection.deadline:
            pass
        op.execute("WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n LIMIT 100000)"
                   " SELECT count(*) FROM n")
        op.execute("CREATE TABLE late (x)")
    """)

    migrate.upgrade(database, Budget(0.05), scripts=folder)

    assert database.value("SELECT count(*) FROM late") == 0


def test_a_full_disk_is_no_migration_error(
    database: Connection, scripts: Callable[..., Path]
) -> None:
    before = contents_of(database)
    folder = scripts("op.execute('CREATE TABLE big AS SELECT randomblob(100000) AS x')")
    # Of no use for growing: SQLite makes it the present size.
    database.execute("PRAGMA max_page_count = 1")

    with pytest.raises(StorageFullError):
        migrate.upgrade(database, Budget(10), scripts=folder)

    assert contents_of(database) == before


# -- rebuilding a table -------------------------------------------------------------------------


def test_rebuilding_a_parent_keeps_its_children(
    database: Connection, scripts: Callable[..., Path]
) -> None:
    migrate.upgrade(database, Budget(10), scripts=scripts(REBUILD, rebuilds=True))

    assert database.value("SELECT headline FROM sessions") is None
    assert database.value(ROUNDS) == 3
    assert head.current(database) == "next"


def test_the_canary_row_is_lost_where_foreign_keys_are_on(database: Connection) -> None:
    """The same rebuild without our precaution: the test above would notice."""
    with lend(database, Budget(10), "test") as borrowed:
        operations = Operations(MigrationContext.configure(borrowed))
        with operations.batch_alter_table("sessions", recreate="always") as batch:
            batch.alter_column("title", new_column_name="headline")

    assert database.value("SELECT count(*) FROM sessions") == 1
    assert database.value(ROUNDS) == 0


def test_a_rebuild_is_refused_where_foreign_keys_are_on(
    database: Connection, scripts: Callable[..., Path]
) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts(REBUILD, rebuilds=True)))

    with lend(database, Budget(10), "test") as borrowed:
        config.attributes["connection"] = borrowed
        with pytest.raises(MigrationError, match="Foreign keys"):
            command.upgrade(config, "head")

    assert database.value(ROUNDS) == 3
    assert head.current(database) == HEAD


def test_a_rebuild_makes_a_backup_first(database: Connection, scripts: Callable[..., Path]) -> None:
    migrate.upgrade(database, Budget(10), scripts=scripts(REBUILD, rebuilds=True))

    copy = Path(f"{database.path}.before-{HEAD}")
    assert verify(copy) == []
    raw = apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READONLY)
    assert raw.execute("SELECT title FROM sessions").fetchall() == [(None,)]
    assert raw.execute(ROUNDS).fetchall() == [(3,)]
    assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    raw.close()


def test_only_a_rebuild_makes_a_backup(
    database: Connection, scripts: Callable[..., Path], tmp_path: Path
) -> None:
    migrate.upgrade(database, Budget(10), scripts=scripts("op.execute('CREATE TABLE more (x)')"))

    assert list(tmp_path.glob("*.before-*")) == []


def test_a_fresh_file_needs_no_backup(
    open_file: Open, scripts: Callable[..., Path], tmp_path: Path
) -> None:
    migrate.upgrade(open_file(), Budget(10), scripts=scripts(REBUILD, rebuilds=True))

    assert list(tmp_path.glob("*.before-*")) == []


def test_a_failed_rebuild_leaves_no_backup(
    database: Connection, scripts: Callable[..., Path], tmp_path: Path
) -> None:
    seen = "import glob\nassert glob.glob(op.get_bind().engine.url.database + '.before-*')\n"
    folder = scripts(seen + "raise RuntimeError('after the backup')", rebuilds=True)

    with pytest.raises(MigrationError) as caught:
        migrate.upgrade(database, Budget(10), scripts=folder)

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert list(tmp_path.glob("*.before-*")) == []


def test_an_earlier_backup_is_kept(
    database: Connection, scripts: Callable[..., Path], tmp_path: Path
) -> None:
    earlier = Path(f"{database.path}.before-{HEAD}")
    earlier.write_bytes(b"of an earlier migration")
    # A kill between the two names of that copy has left this one.
    left = Path(f"{earlier}.partial-{'0' * 16}")
    os.link(earlier, left)

    migrate.upgrade(database, Budget(10), scripts=scripts(REBUILD, rebuilds=True))

    assert earlier.read_bytes() == b"of an earlier migration"
    assert verify(f"{earlier}-2") == []
    assert not left.exists()


def test_a_backup_that_cannot_be_made_stops_the_migration(
    database: Connection, scripts: Callable[..., Path]
) -> None:
    before = contents_of(database)
    # SQLite would take it for the log of the copy.
    Path(f"{database.path}.before-{HEAD}-wal").write_bytes(b"")

    with pytest.raises(MigrationError):
        migrate.upgrade(database, Budget(10), scripts=scripts(REBUILD, rebuilds=True))

    assert contents_of(database) == before


# -- the alembic command ------------------------------------------------------------------------


def run_alembic(path: Path, *arguments: str) -> None:
    alembic_main(argv=["-c", str(INI), "-x", f"path={path}", *arguments])


def test_the_alembic_command_makes_a_file(open_file: Open, tmp_path: Path) -> None:
    run_alembic(tmp_path / "db.sqlite", "upgrade", "head")

    connection = open_file()
    assert head.is_at_head(connection)
    assert connection.value("SELECT count(*) FROM meta") == 5


def test_the_alembic_command_harms_no_live_pool(tmp_path: Path) -> None:
    """With Alembic's default driver, of four acknowledged commits one was lost (rule 1)."""
    path = tmp_path / "db.sqlite"
    with ConnectionPool() as pool, pool.acquire(path) as handle:

        def add(id: str) -> None:
            with handle.sqlalchemy() as borrowed:
                values = {"metadata": "{}", "next_round_index": 0, "revision": 0}
                times = {"created_at": 1, "updated_at": 1}
                borrowed.execute(
                    sa.insert(metadata.tables["sessions"]).values(id=id, **values, **times)
                )

        add("before")
        files = {
            f"{path}{suffix}": identify(Path(f"{path}{suffix}")) for suffix in ("-wal", "-shm")
        }
        assert None not in files.values()

        run_alembic(path, "upgrade", "head")
        add("between")
        run_alembic(path, "check")
        run_alembic(path, "current")
        add("after")

        assert {name: identify(Path(name)) for name in files} == files
        with handle.sqlalchemy(read_only=True) as borrowed:
            ids = borrowed.scalars(sa.text("SELECT id FROM sessions ORDER BY id")).all()
            assert ids == ["after", "before", "between"]
            assert borrowed.scalar(sa.text("PRAGMA integrity_check")) == "ok"
        assert "sqlite3" not in sys.modules
    assert verify(path) == []


def test_the_alembic_command_migrates_under_a_live_connection(
    database: Connection, scripts: Callable[..., Path], tmp_path: Path
) -> None:
    ini = tmp_path / "alembic.ini"
    ini.write_text(f"[alembic]\nscript_location = {scripts(REBUILD, rebuilds=True)}\n")

    alembic_main(argv=["-c", str(ini), "-x", f"path={database.path}", "upgrade", "head"])

    assert head.current(database) == "next"
    assert database.value("SELECT headline FROM sessions") is None
    assert database.value(ROUNDS) == 3
    assert verify(f"{database.path}.before-{HEAD}") == []


def test_the_alembic_command_refuses_a_newer_schema(
    database: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    database.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(SystemExit):
        run_alembic(database.path, "upgrade", "head")

    assert SchemaTooNewError.default_message in capsys.readouterr().out


def test_the_alembic_command_wants_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        alembic_main(argv=["-c", str(INI), "upgrade", "head"])

    assert "path=FILE" in capsys.readouterr().out


def test_a_look_at_a_missing_file_does_not_make_it_and_says_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_alembic(tmp_path / "db.sqlite", "current")

    assert "upgrade head` makes one" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_alembic_takes_a_lent_connection_and_leaves_its_transaction_open(
    open_file: Open,
) -> None:
    connection = open_file()
    config = Config(INI)

    def migrate_and_fail() -> None:
        with migrate.migrating(connection, Budget(10)) as borrowed:
            config.attributes["connection"] = borrowed
            command.upgrade(config, "head")
            assert schema_of(connection) != []
            raise RuntimeError("after Alembic")

    with pytest.raises(MigrationError) as caught:
        migrate_and_fail()

    assert "after Alembic" in str(caught.value.__cause__)
    assert schema_of(connection) == []


def test_alembic_refuses_a_connection_of_another_driver() -> None:
    config = Config(INI)
    # A real one would bring the second SQLite library into this process.
    config.attributes["connection"] = SimpleNamespace(
        connection=SimpleNamespace(dbapi_connection=object())
    )

    with pytest.raises(DatabaseOpenError, match="lends"):
        command.upgrade(config, "head")


def test_alembic_writes_the_same_sql(capsys: pytest.CaptureFixture[str]) -> None:
    command.upgrade(Config(INI), "head", sql=True)

    def without_identity(script: str) -> list[str]:
        return [line for line in script.splitlines() if not re.search("user_version|meta", line)]

    assert without_identity(capsys.readouterr().out) == without_identity(
        migrate.offline_sql("upgrade")
    )


# -- many at once -------------------------------------------------------------------------------


def test_threads_migrate_different_files_at_once(open_file: Open) -> None:
    """``alembic.op`` is one for the process; unguarded, threads wrote into each other's files."""
    connections = [open_file(f"{number}.sqlite") for number in range(8)]
    together = threading.Barrier(len(connections))
    failures: list[BaseException] = []

    def bring(connection: Connection) -> None:
        try:
            together.wait(60)
            migrate.upgrade(connection, Budget(20))
        except BaseException as error:  # noqa: BLE001  # handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=bring, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len({str(schema_of(each)) for each in connections}) == 1
    assert all(head.is_at_head(each) for each in connections)


PROCESSES = 8


OPEN_FILES = """
import multiprocessing
from mandrake_sessions import ConnectionPool
# Once for all: they are forked before anything is open, and begin at the same time.
from mandrake_sessions.database.migrations import migrate

folder, processes, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fork = multiprocessing.get_context("fork")
together = fork.Barrier(processes)
results = fork.SimpleQueue()

def open_files():
    for number in range(files):
        together.wait(60)
        try:
            with ConnectionPool() as pool, pool.acquire(f"{folder}/{number}.sqlite"):
                results.put((number, "ok"))
        except BaseException as error:
            results.put((number, f"{type(error).__name__}: {error}"))

workers = [fork.Process(target=open_files) for _ in range(processes)]
for worker in workers:
    worker.start()
send([results.get() for _ in range(processes * files)])
for worker in workers:
    worker.join()
"""


def test_eight_processes_open_a_fresh_file_together(
    open_file: Open, tmp_path: Path, start_child: Callable[..., Any], campaign: Any
) -> None:
    files = campaign.pick(5, 10, 40)
    child = start_child(OPEN_FILES, tmp_path, PROCESSES, files)
    outcomes = child.receive()
    child.finish()

    assert sorted(outcomes) == sorted(
        [number, "ok"] for number in range(files) for _ in range(PROCESSES)
    )
    schemas = set()
    for number in range(files):
        connection = open_file(f"{number}.sqlite")
        schemas.add(str(schema_of(connection)))
        assert connection.query_all("SELECT * FROM alembic_version") == [(HEAD,)]
        assert connection.value("SELECT count(*) FROM meta") == 5
        assert connection.value("PRAGMA integrity_check") == "ok"
    assert len(schemas) == 1
    assert not [name for name in os.listdir(tmp_path) if ".before-" in name]
