"""Each revision to each other, at once, killed, with a failing disk: the old or the new, whole."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from alembic.config import main as alembic_main
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from migration_kit import (
    BASE,
    NEWEST,
    REVISIONS,
    contents,
    go_to,
    is_whole,
    make_databases,
    opened,
    schema,
    trace_everything,
    write_scripts,
)

from mandrake_sessions import (
    CommitOutcomeUnknownError,
    ConnectionPool,
    MandrakeSessionsError,
    SchemaTooNewError,
)
from mandrake_sessions.database.connection.dialect import lend
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.schema import HEAD
from mandrake_sessions.testing import Fault, FaultVFS, failure

PAIRS = list(itertools.combinations(REVISIONS, 2))
WAYS = [(BASE, NEWEST), (HEAD, NEWEST), (NEWEST, HEAD)]


class Matrix:
    """A database for each revision, and its content."""

    def __init__(self, folder: Path) -> None:
        self.scripts = write_scripts(folder / "scripts")
        self.files = make_databases(folder, self.scripts)
        self.contents: dict[str, Any] = {}
        self.schemas: dict[str, Any] = {}
        for revision in REVISIONS:
            path = folder / f"{revision}.sqlite"
            path.write_bytes(self.files[revision])
            with opened(path) as connection:
                self.contents[revision] = contents(connection)
                self.schemas[revision] = schema(connection)

    def revision_of(self, path: Path) -> str:
        """Return at which revision a database is; it must be whole, and have all its data."""
        with opened(path) as connection:
            assert is_whole(connection)
            found = contents(connection)
            names = [name for name in REVISIONS if self.contents[name] == found]
            assert names, "neither the old revision nor the new one"
            return names[0]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"))


@pytest.fixture
def at(matrix: Matrix, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a database at a revision, in a folder of its own."""
    numbers = itertools.count()

    def make(revision: str) -> Path:
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        path = folder / "db.sqlite"
        path.write_bytes(matrix.files[revision])
        return path

    return make


def test_every_table_has_data_at_every_revision(matrix: Matrix) -> None:
    for revision in REVISIONS[1:]:
        assert all(matrix.contents[revision].values()), revision


# -- up and down --------------------------------------------------------------------------------


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_each_revision_goes_to_each_later_one_and_back(
    matrix: Matrix, at: Callable[[str], Path], lower: str, upper: str
) -> None:
    path = at(lower)
    with opened(path) as connection:
        go_to(connection, upper, matrix.scripts)
        assert is_whole(connection)
        assert schema(connection) == matrix.schemas[upper]
        if lower != BASE:
            assert contents(connection) == matrix.contents[upper]

        go_to(connection, lower, matrix.scripts)
        assert is_whole(connection)
        if lower != BASE:
            assert contents(connection) == matrix.contents[lower]
        assert {name for _, name, _ in schema(connection)} - {"alembic_version"} == {
            name for _, name, _ in matrix.schemas[lower]
        } - {"alembic_version"}


def test_the_canary_sees_a_rebuild_with_foreign_keys_on(
    matrix: Matrix, at: Callable[[str], Path]
) -> None:
    """The step that rebuilds ``sessions``, wrongly run: everything below is gone, and seen so."""
    path = at("adds")
    with opened(path) as connection, lend(connection, Budget(10), "test") as borrowed:
        operations = Operations(MigrationContext.configure(borrowed))
        with operations.batch_alter_table("sessions", recreate="always") as batch:
            batch.alter_column("title", new_column_name="headline")

    with opened(path) as connection:
        found = contents(connection)
    lost = {
        name
        for name, rows in matrix.contents["rebuilds_sessions"].items()
        if rows and not found[name]
    }
    assert lost == {"rounds", "requests", "responses", "turns", "turn_chunks", "labels"}
    with pytest.raises(AssertionError, match="neither"):
        matrix.revision_of(path)


@pytest.mark.parametrize("lower", REVISIONS[:-1])
def test_the_alembic_command_gives_the_same(
    matrix: Matrix, at: Callable[[str], Path], lower: str
) -> None:
    path = at(lower)
    ini = str(matrix.scripts / "alembic.ini")
    for command, revision in (("upgrade", NEWEST), ("downgrade", HEAD)):
        alembic_main(argv=["-c", ini, "-x", f"path={path}", command, revision])
        with opened(path) as connection:
            assert is_whole(connection)
            if command == "upgrade":
                assert schema(connection) == matrix.schemas[revision]
            if lower != BASE:
                assert contents(connection) == matrix.contents[revision]


@pytest.mark.parametrize("revision", [*REVISIONS[2:], "9999"])
def test_a_newer_schema_is_refused_and_not_one_byte_written(
    matrix: Matrix, at: Callable[[str], Path], revision: str
) -> None:
    path = at(NEWEST if revision == "9999" else revision)
    if revision == "9999":
        raw = apsw.Connection(str(path))
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.close()
    before = path.read_bytes()
    with ConnectionPool() as pool:
        for _ in range(2):
            with pytest.raises(SchemaTooNewError):
                pool.acquire(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


# -- many at once -------------------------------------------------------------------------------

MIGRATE = """
import os, signal
from pathlib import Path
import apsw
import pytest
from migration_kit import go_to, opened, trace_everything
scripts, scratch = Path(sys.argv[1]), Path(sys.argv[2])
with opened(scratch) as connection:
    # Everything is imported before it counts.
    go_to(connection, sys.argv[3], scripts)
"""

AT_ONCE = (
    MIGRATE
    + """
send("ready")
for line in sys.stdin:
    path, revision = json.loads(line)
    try:
        with opened(Path(path)) as connection:
            go_to(connection, revision, scripts)
        send("ok")
    except BaseException as error:
        send(repr(error))
"""
)


@pytest.fixture
def start_migrating(
    matrix: Matrix, start_child: Callable[..., Any], tmp_path: Path
) -> Callable[[str], Any]:
    """Starts a process that migrates."""
    numbers = itertools.count()

    def start(script: str) -> Any:
        paths = f"{Path(__file__).parent.parent.parent}:{Path(__file__).parent}"
        scratch = tmp_path / f"scratch-{next(numbers)}.sqlite"
        return start_child(script, matrix.scripts, scratch, NEWEST, PYTHONPATH=paths)

    return start


@pytest.mark.timeout(600)
def test_many_processes_migrate_one_file_at_once(
    matrix: Matrix, at: Callable[[str], Path], start_migrating: Callable[[str], Any], campaign: Any
) -> None:
    children = [start_migrating(AT_ONCE) for _ in range(campaign.pick(3, 8, 8))]
    for child in children:
        assert child.receive() == "ready"
    every = [*PAIRS, *((upper, lower) for lower, upper in PAIRS if lower != BASE)]
    ways = WAYS if campaign.name == "brief" else every
    for _ in range(campaign.pick(1, 5, 50)):
        for lower, upper in ways:
            path = at(lower)
            for child in children:
                child.send([str(path), upper])
            assert [child.receive() for child in children] == ["ok"] * len(children)
            with opened(path) as connection:
                assert is_whole(connection)
                assert {name for _, name, _ in schema(connection)} == {
                    name for _, name, _ in matrix.schemas[upper]
                }
            if lower != BASE:
                assert matrix.revision_of(path) == upper
            # One of them migrated, and made the one copy.
            assert len(list(path.parent.glob("*.before-*"))) <= 1


# -- killed -------------------------------------------------------------------------------------

KILLED = (
    MIGRATE
    + """
class Killing(apsw.VFS):
    def __init__(self):
        super().__init__("killing", "")
    def xOpen(self, name, flags):
        return KillingFile(name, flags)
class KillingFile(apsw.VFSFile):
    def __init__(self, name, flags):
        super().__init__("", name, flags)
    def xWrite(self, data, offset):
        point("write")
        super().xWrite(data, offset)
    def xSync(self, flags):
        point("sync")
        super().xSync(flags)
met = {}
def point(kind):
    met[kind] = met.get(kind, 0) + 1
    if kind == where and met[kind] == number:
        os.kill(os.getpid(), signal.SIGKILL)
def trace(cursor, sql, values):
    point("statement")
    return True
vfs = Killing()
send("ready")
for line in sys.stdin:
    path, revision, where, number = json.loads(line)
    pid = os.fork()
    if pid == 0:
        met.clear()
        with opened(Path(path), "killing") as connection:
            trace_everything(connection, trace, pytest.MonkeyPatch())
            go_to(connection, revision, scripts)
            connection.raw.exec_trace = None
        send(met)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    send(code)
"""
)


def some(count: int, most: int) -> range:
    """Return at most so many of the numbers from 1 to ``count``, evenly spread."""
    return range(1, count + 1, max(1, math.ceil(count / most)))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.timeout(1800)
def test_a_process_killed_during_a_migration_leaves_the_old_revision_or_the_new_one(
    matrix: Matrix, at: Callable[[str], Path], start_migrating: Callable[[str], Any], campaign: Any
) -> None:
    child = start_migrating(KILLED)
    assert child.receive() == "ready"
    found = {"old": 0, "new": 0}
    for lower, upper in WAYS[campaign.pick(1, 0, 0) : campaign.pick(2, 3, 3)]:
        child.send([str(at(lower)), upper, "", 0])
        points = child.receive()
        assert child.receive() == 0
        for where in ("statement", "write", "sync"):
            for number in some(points[where], campaign.pick(3, 40, 10_000)):
                path = at(lower)
                child.send([str(path), upper, where, number])
                assert child.receive() == -signal.SIGKILL, (where, number)
                found["new" if is_finished(matrix, path, lower, upper) else "old"] += 1
    print(f"\n{sum(found.values())} kills: {found}")  # a result
    assert found["old"]
    assert found["new"]


def is_finished(matrix: Matrix, path: Path, lower: str, upper: str) -> bool:
    """Whether a migration that was stopped is stored; begun again it ends as it should."""
    if lower == BASE:
        with opened(path) as connection:
            assert is_whole(connection)
            found = schema(connection)
            assert found in (matrix.schemas[BASE], matrix.schemas[upper])
            go_to(connection, upper, matrix.scripts)
            assert schema(connection) == matrix.schemas[upper]
        return bool(found == matrix.schemas[upper])
    revision = matrix.revision_of(path)
    assert revision in {lower, upper}
    with opened(path) as connection:
        go_to(connection, upper, matrix.scripts)
    assert matrix.revision_of(path) == upper
    return revision == upper


# -- with a failing disk ------------------------------------------------------------------------


def migrate_and_fail(matrix: Matrix, path: Path, revision: str, fails_at: int) -> int:
    """Migrate with a statement failing and all after it; return how many there were.

    A rollback comes through: SQLite would undo the transaction by itself as well.
    """
    met = 0

    def trace(_cursor: object, sql: str, _values: object) -> bool:
        nonlocal met
        met += sql != "ROLLBACK"
        if 0 < fails_at <= met and sql != "ROLLBACK":
            raise failure(apsw.SQLITE_IOERR)
        return True

    with opened(path) as connection:
        try:
            with pytest.MonkeyPatch.context() as patch:
                trace_everything(connection, trace, patch)
                go_to(connection, revision, matrix.scripts)
        finally:
            connection.raw.exec_trace = None
            assert is_whole(connection)
    return met


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("lower", "upper"), WAYS)
def test_a_statement_that_fails_undoes_the_whole_migration(
    matrix: Matrix, at: Callable[[str], Path], campaign: Any, lower: str, upper: str
) -> None:
    count = migrate_and_fail(matrix, at(lower), upper, 0)
    for number in some(count, campaign.pick(3, 100, 10_000)):
        path = at(lower)
        with pytest.raises(MandrakeSessionsError):
            migrate_and_fail(matrix, path, upper, number)
        assert not is_finished(matrix, path, lower, upper)
    print(f"\n{lower} to {upper}: {count} statements")  # a result


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("operation", ["write", "sync", "truncate"])
@pytest.mark.parametrize("way", WAYS[1:])
def test_a_disk_that_fails_leaves_the_old_revision_or_the_new_one(
    matrix: Matrix, at: Callable[[str], Path], campaign: Any, way: tuple[str, str], operation: str
) -> None:
    lower, upper = way
    vfs = FaultVFS()
    for sticking in (False, True):
        for number in itertools.count(1, campaign.pick(100, 5, 1)):
            path = at(lower)
            outcome: bool | None = None
            with vfs.injecting(Fault(operation, number, sticking=sticking)) as injection:
                try:
                    with opened(path, vfs.name) as connection:
                        go_to(connection, upper, matrix.scripts)
                        outcome = True
                except CommitOutcomeUnknownError:
                    pass
                except MandrakeSessionsError:
                    outcome = False
            stored = is_finished(matrix, path, lower, upper)
            assert outcome is None or stored is outcome, (number, sticking)
            if not injection.struck:
                break
    vfs.unregister()
