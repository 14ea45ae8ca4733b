"""What the tests share: real files, a trace of statements, threads and child processes."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest
from hypothesis import HealthCheck, settings

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    PoolOptions,
    Response,
    SessionManager,
)

T = TypeVar("T")
PROJECT = Path(__file__).parent.parent

# The examples are the same in every run, so a failure is one of the change that is tested; `-m
# long` looks further.
settings.register_profile(
    "mandrake",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("mandrake")


@dataclass(frozen=True)
class Campaign:
    """How far the reliability tests go; ``--campaign`` chooses.

    Attributes:
        name: ``brief`` in ``make test``, ``bounded`` in ``.ci/run``, ``full`` in
            ``make test-long``.
    """

    name: str

    def pick(self, brief: int, bounded: int, full: int) -> int:
        """Return how many of something this campaign does."""
        return {"brief": brief, "bounded": bounded, "full": full}[self.name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign",
        choices=["brief", "bounded", "full"],
        default="brief",
        help="how far the reliability tests go",
    )


def pytest_configure() -> None:
    """Let Ctrl-C end this process and its children, also where a shell runs it behind an ``&``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes for each core: most tests wait for threads, processes or the disk."""
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def pytest_collection_finish() -> None:
    """Spare the collector what lives until the end; some tests call it after each attempt."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where no bytecode is to be written, hundreds of children would compile what they import."""
    with pytest.MonkeyPatch.context() as patch:
        if "PYTHONDONTWRITEBYTECODE" in os.environ:
            patch.delenv("PYTHONDONTWRITEBYTECODE")
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
        yield


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Campaign:
    return Campaign(pytestconfig.getoption("campaign"))


class StatementLog:
    """The statements of every connection that is opened while it listens, in their order."""

    def __init__(self) -> None:
        self.connections: list[apsw.Connection] = []
        self._statements: list[str] = []

    def attach(self, connection: apsw.Connection) -> None:
        """Listen to a connection; the way of ``apsw.connection_hooks``."""
        self.connections.append(connection)
        # Not trace_v2: it reports a cascading DELETE once for each table.
        connection.exec_trace = self._note

    def _note(self, _cursor: object, sql: str, _bindings: object) -> bool:
        self._statements.append(sql)
        return True

    def __len__(self) -> int:
        return len(self._statements)

    def take(self) -> list[str]:
        """Return what was executed since the last time."""
        taken, self._statements = self._statements, []
        return taken

    def take_work(self) -> list[str]:
        """Return what ``take`` does, without pragmas and what begins and ends a transaction."""
        control = ("PRAGMA", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
        return [sql for sql in self.take() if not sql.startswith(control)]


class Child:
    """A Python process that runs a script, and talks with the test in lines of JSON."""

    PRELUDE = (
        "import json, sys\n"
        "def send(value): print(json.dumps(value), flush=True)\n"
        "def receive(): return json.loads(sys.stdin.readline())\n"
    )

    def __init__(self, script: str, *arguments: object, **environment: str) -> None:
        variables = (
            os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"} | environment
        )
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", self.PRELUDE + script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )

    def receive(self) -> Any:
        """Return the next value that the child sends."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait()} and sent nothing"
        return json.loads(line)

    def send(self, value: object = None) -> None:
        """Send a value to the child, which gets it by ``receive()``."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(value)}\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        """Wait for the child's end, which must be a good one."""
        assert self.process.wait() == 0

    def stop(self) -> None:
        """End the child, whatever it does."""
        self.process.kill()
        # A value for a child that has ended cannot be flushed any more.
        with contextlib.suppress(BrokenPipeError):
            self.process.__exit__(None, None, None)


class ReadyDatabase:
    """A new database as its first opening leaves it, for tests of what comes after that.

    To migrate costs more than most tests do, and ten times that in a child, which imports Alembic.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "db.sqlite"
        with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool):
            pass
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            ((stamp,),) = connection.execute(
                "SELECT value FROM meta WHERE key = 'stamp'"
            ).fetchall()
            # As before there was such a mark: to put a new file into use takes one more COMMIT,
            # and tests count their own. What has the mark is tested with files of its own.
            connection.execute("DELETE FROM meta WHERE key = 'log'")
        self._stamp = str(stamp).encode()
        self._content = path.read_bytes()
        assert self._content.count(self._stamp) == 1

    def lay(self, path: Path) -> Path:
        """Put one where nothing is yet; like every database it has a stamp of its own."""
        stamp = uuid.uuid4()
        content = self._content.replace(self._stamp, stamp.hex.encode())
        number = (stamp.int & 0x7FFFFFFF or 1).to_bytes(4, "big")  # the header's user_version
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content[:60] + number + content[64:])
        return path


def dump_database(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table, as a reader of its own sees the file.

    What ``PRAGMA optimize`` leaves at closing is not among them, nor is the mark of the log.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(5000)
        schema = "SELECT * FROM sqlite_schema WHERE tbl_name NOT LIKE 'sqlite_stat_' ORDER BY name"
        entries = connection.execute(schema).fetchall()
        names = [name for kind, name, *_ in entries if kind == "table"]
        found: dict[str, list[tuple[Any, ...]]] = {"sqlite_schema": [*entries]}
        found |= {
            str(name): sorted(connection.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr)
            for name in names
        }
        if "meta" in found:
            found["meta"] = [row for row in found["meta"] if row[0] != "log"]
        return found
    finally:
        connection.close()


def run_in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """Call ``work(0)`` to ``work(count - 1)`` at once, each in a thread; return their results."""
    barrier = threading.Barrier(count)

    def start(number: int) -> T:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(start, range(count)))


@pytest.fixture
def statements() -> Iterator[StatementLog]:
    """A trace of every connection that the test opens."""
    log = StatementLog()
    apsw.connection_hooks.append(log.attach)
    yield log
    apsw.connection_hooks.remove(log.attach)
    for connection in log.connections:
        with contextlib.suppress(apsw.ConnectionClosedError):
            connection.exec_trace = None


@contextlib.contextmanager
def _children() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(script: str, *arguments: object, **environment: str) -> Child:
        children.append(Child(script, *arguments, **environment))
        return children[-1]

    yield start
    for child in children:
        child.stop()


@pytest.fixture
def start_child() -> Iterator[Callable[..., Child]]:
    """Starts a ``Child``; those that still run at the end of the test are stopped."""
    with _children() as start:
        yield start


@pytest.fixture(scope="module")
def start_child_of_module() -> Iterator[Callable[..., Child]]:
    """Starts a ``Child`` that several tests ask; it is stopped after the last of a module."""
    with _children() as start:
        yield start


@pytest.fixture
def dump() -> Callable[[Path], dict[str, list[tuple[Any, ...]]]]:
    """``dump_database``."""
    return dump_database


@pytest.fixture
def in_threads() -> Callable[[int, Callable[[int], T]], list[T]]:
    """``run_in_threads``."""
    return run_in_threads


@pytest.fixture
def pool() -> Iterator[ConnectionPool]:
    """A pool that keeps nothing open, and does not wait for the disk."""
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
    with ConnectionPool(PoolOptions(database=options, linger=0)) as pool:
        yield pool


@pytest.fixture(scope="session")
def ready_database(tmp_path_factory: pytest.TempPathFactory) -> ReadyDatabase:
    """Lays new databases that need not be migrated."""
    return ReadyDatabase(tmp_path_factory.mktemp("ready"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of ``sessions`` is."""
    return tmp_path / "db.sqlite"


@pytest.fixture
def ready_path(tmp_path: Path, ready_database: ReadyDatabase) -> Path:
    """``path``, with a new database there."""
    return ready_database.lay(tmp_path / "db.sqlite")


@pytest.fixture
def sessions(ready_path: Path, pool: ConnectionPool) -> Iterator[SessionManager]:
    """An open SessionManager of a new database."""
    with SessionManager(ready_path, pool=pool) as manager:
        yield manager


@pytest.fixture
def response(sessions: SessionManager) -> Response:
    """A response without turns, of the only round of the only session."""
    return sessions.create_round(sessions.create_session("A talk").id, "Hello?").response


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of its own, of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux makes a small file system")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
