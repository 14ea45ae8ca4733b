"""Bytes of an open file are overwritten or cut off: the next write of every process is refused.

Everything is done to a file by another process: an open and a close of it in this one would drop
SQLite's locks, which is damage of another kind (``test_second_sqlite.py``).
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
from kernel_locks import own_lock_lines
from kits import waiting
from structlog.testing import capture_logs

from mandrake_sessions import (
    ConnectionPool,
    CorruptDatabaseError,
    DatabaseMovedError,
    DatabaseOptions,
    Durability,
    HealthStatus,
    MandrakeSessionsError,
    PoolOptions,
    SessionManager,
    salvage,
)
from mandrake_sessions.database.open_file import lifecycle, witness
from mandrake_sessions.database.pool.file_handle import file_handle

FAST = PoolOptions(database=DatabaseOptions(durability=Durability.FAST), linger=0)
REFUSED = {CorruptDatabaseError.__name__, DatabaseMovedError.__name__}
PATIENCE = 60.0
"""Seconds for what must come."""
LONGEST = 120.0
"""Seconds that no other process may take."""

COPY_OVER = """
def copy_over(data):
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
"""
GARBAGE = """
def garbage(at, amount):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(os.urandom(amount))
size = os.stat(path).st_size
"""
CUTS = {
    "cut to nothing": "os.truncate(path, 0)",
    "cut to a few bytes": "os.truncate(path, 50)",
    "cut in half": "os.truncate(path, os.stat(path).st_size // 2)",
    "cut by one byte": "os.truncate(path, os.stat(path).st_size - 1)",
    "cut by a page": "os.truncate(path, os.stat(path).st_size - 4096)",
}
OVERWRITINGS = {
    "another database of this library copied over it": COPY_OVER
    + "copy_over(open(other, 'rb').read())",
    "an older copy of itself copied over it": COPY_OVER + "copy_over(open(older, 'rb').read())",
    "another program's database copied over it": COPY_OVER
    + """
import sqlite3
with sqlite3.connect(other + ".foreign") as foreign:
    foreign.execute("CREATE TABLE cats (name)")
foreign.close()
copy_over(open(other + ".foreign", "rb").read())
""",
    "random bytes in all of it": GARBAGE + "garbage(0, size)",
    "random bytes at its head": GARBAGE + "garbage(0, 4096)",
    "random bytes behind its header": GARBAGE + "garbage(100, 3996)",
    "random bytes in its middle": GARBAGE + "garbage(size // 8192 * 4096, 8 * 4096)",
    "random bytes at its tail": GARBAGE + "garbage(size - 8 * 4096, 8 * 4096)",
    "random bytes at its head, and its dates as before": GARBAGE
    + """
was = os.stat(path)
garbage(100, 3996)
os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
""",
    "random bytes that the log overwrites": GARBAGE + "garbage(size // 8192 * 4096, size // 2)",
    "zeros where it was cut": """
size = os.stat(path).st_size
os.truncate(path, size // 2)
os.truncate(path, size)
""",
}
DAMAGES = CUTS | OVERWRITINGS
HARMLESS = {
    "touched": "os.utime(path)",
    "dated back": "os.utime(path, (1e9, 1e9))",
    "another mode": "os.chmod(path, 0o640); os.chmod(path, 0o600)",
    "opened and closed": "open(path, 'r+b').close()",
    "bytes behind its end": "file = open(path, 'ab'); file.write(b'x' * 100); file.close()",
    "the same bytes again": """
data = open(path, "rb").read()
with open(path, "r+b") as file:
    file.write(data)
""",
}

BESIDE = """
import sys
import structlog
from mandrake_sessions import *
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
with ConnectionPool(PoolOptions(database=DatabaseOptions(durability=Durability.FAST))) as pool:
    sessions = SessionManager(sys.argv[1], pool=pool).init()
    sessions.list_sessions()
    print("open", flush=True)
    for line in sys.stdin:
        try:
            if line == "write\\n":
                sessions.create_session("elsewhere")
            elif line == "checkpoint\\n":
                sessions.handle.file.checkpoint()
            elif line == "read\\n":
                sessions.list_sessions()
            print("done", flush=True)
        except MandrakeSessionsError as error:
            print(type(error).__name__, flush=True)
    sessions.close()
"""


class Beside:
    """Another process that has the file open, and does one thing when it is asked."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BESIDE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._answer() == "open"

    def do(self, what: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            self.process.communicate(timeout=LONGEST)


def run(script: str, path: Path) -> None:
    """Run a script in another process, which gets the names of the files."""
    names = {"path": path, "other": path.with_name("other"), "older": path.with_name("older")}
    prelude = "import os\n" + "".join(f"{name} = {str(it)!r}\n" for name, it in names.items())
    subprocess.run([sys.executable, "-IS", "-c", prelude + script], check=True, timeout=LONGEST)


def content(path: Path) -> str:
    """Return what a file has in it, as another process sees it."""
    script = (
        "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    )
    command = [sys.executable, "-IS", "-c", script, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except MandrakeSessionsError as error:
        return type(error).__name__
    return "done"


def fill(sessions: SessionManager, title: str, count: int) -> None:
    for _ in range(count):
        sessions.create_session(title, description="x" * 4000)


def checkpoint(sessions: SessionManager) -> None:
    file_handle(sessions.handle).file.checkpoint()
    assert file_handle(sessions.handle).file.checkpointer.backlog == 0


@pytest.fixture
def other(ready_path: Path, ready_database: Any) -> None:
    """Another database of this library, complete in its file."""
    path: Path = ready_database.lay(ready_path.with_name("other"))
    with ConnectionPool(FAST) as pool, SessionManager(path, pool=pool) as sessions:
        sessions.create_session("other")


@pytest.fixture
def sessions(ready_path: Path) -> Iterator[SessionManager]:
    """An open database, of which there is an older copy."""
    with ConnectionPool(FAST) as pool:
        sessions = SessionManager(ready_path, pool=pool).init()
        fill(sessions, "early", 10)
        checkpoint(sessions)
        run("import shutil; shutil.copyfile(path, older)", sessions.path)
        fill(sessions, "ours", 20)
        checkpoint(sessions)
        yield sessions
        sessions.close()


@pytest.fixture
def beside(sessions: SessionManager) -> Iterator[Beside]:
    beside = Beside(sessions.path)
    try:
        yield beside
    finally:
        beside.close()


@pytest.mark.parametrize("log", ["all is in the file", "some is in the log"])
@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("name", DAMAGES)
def test_the_first_write_after_the_damage_is_refused_in_every_process(
    sessions: SessionManager, beside: Beside, name: str, log: str
) -> None:
    path = sessions.path
    if log == "some is in the log":
        fill(sessions, "late", 3)
        assert beside.do("write") == "done"
    run(DAMAGES[name], path)
    after = content(path)

    assert outcome(lambda: sessions.create_session("lost")) in REFUSED
    assert beside.do("write") in REFUSED
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED
    assert beside.do("write") in REFUSED
    # Neither a checkpoint nor a closing writes into what is there.
    file_handle(sessions.handle).file.checkpoint()
    beside.do("checkpoint")
    sessions.close()
    beside.close()
    assert content(path) == after
    kept = [each for each in path.parent.iterdir() if each.name.startswith(f"{path.name}-wal")]
    assert log == "all is in the file" or any(each.stat().st_size for each in kept)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_that_comes_first_writes_nothing_into_a_damaged_file(
    sessions: SessionManager, beside: Beside, name: str
) -> None:
    fill(sessions, "late", 3)
    assert beside.do("read") == "done"
    run(DAMAGES[name], sessions.path)
    after = content(sessions.path)
    file_handle(sessions.handle).file.checkpoint()
    beside.do("checkpoint")
    assert content(sessions.path) == after
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED
    assert beside.do("write") in REFUSED


@pytest.mark.parametrize("log", ["empty", "some is in the log"])
def test_garbage_in_any_page_is_found(sessions: SessionManager, log: str, tmp_path: Path) -> None:
    """Also in one that the log has anew, and that SQLite would not read."""
    path = sessions.path
    pages = path.stat().st_size // 4096
    sessions.close()
    for page in range(0, pages, 7):
        copy = tmp_path / f"{page}.sqlite"
        run(f"import shutil; shutil.copyfile(path, {str(copy)!r})", path)
        with ConnectionPool(FAST) as pool, SessionManager(copy, pool=pool) as damaged:
            if log == "some is in the log":
                fill(damaged, "late", 3)
            run(GARBAGE + f"garbage({page} * 4096, 4096)", copy)
            assert outcome(partial(damaged.create_session, "lost")) in REFUSED, page


def test_a_write_that_waits_for_nothing_is_refused(sessions: SessionManager) -> None:
    run(DAMAGES["random bytes in its middle"], sessions.path)
    with (
        pytest.raises((CorruptDatabaseError, DatabaseMovedError)),
        sessions.transaction(timeout=0.0) as tx,
    ):
        tx.create_session("lost")


@pytest.mark.parametrize("way", ["transaction", "stream", "lent connection"])
def test_every_way_to_write_is_refused(sessions: SessionManager, way: str) -> None:
    session = sessions.create_session("written")
    response = sessions.create_round(session.id, "asked").response
    run(DAMAGES["random bytes in its middle"], sessions.path)
    with pytest.raises((CorruptDatabaseError, DatabaseMovedError)):
        if way == "transaction":
            with sessions.transaction() as tx:
                tx.create_session("lost")
        elif way == "stream":
            with sessions.stream_turn(response.id) as turn:
                turn.write("lost")
        else:
            with sessions.handle.sqlalchemy() as lent:
                lent.exec_driver_sql("DELETE FROM sessions")


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("name", DAMAGES)
def test_closing_writes_nothing_into_a_damaged_file(sessions: SessionManager, name: str) -> None:
    fill(sessions, "late", 3)
    run(DAMAGES[name], sessions.path)
    after = content(sessions.path)
    sessions.close()
    assert content(sessions.path) == after


@pytest.mark.parametrize("name", ["random bytes in its middle", "cut in half"])
def test_a_process_that_has_done_nothing_since_the_log_began_anew_refuses_too(
    sessions: SessionManager, beside: Beside, name: str
) -> None:
    """What it knew of the log was that all of it had been copied."""
    fill(sessions, "late", 3)
    run(DAMAGES[name], sessions.path)
    assert beside.do("write") in REFUSED


@pytest.mark.parametrize(
    "name", ["random bytes in its middle", "an older copy of itself copied over it"]
)
def test_a_process_that_has_missed_a_checkpoint_of_another_one_refuses_too(
    sessions: SessionManager, beside: Beside, name: str
) -> None:
    began = monotonic()
    fill(sessions, "late", 10)
    checkpoint(sessions)
    run(DAMAGES[name], sessions.path)
    while monotonic() - began < 0.2:
        run("", sessions.path)
    assert beside.do("write") in REFUSED


@pytest.fixture
def met(sessions: SessionManager, beside: Beside) -> Beside:
    """The other process, after both have waited for each other's transaction."""
    turnstile = file_handle(sessions.handle).file.writer.turnstile
    with sessions.transaction() as tx:
        tx.create_session("first")
        writing = threading.Thread(target=beside.do, args=("write",))
        writing.start()
        waiting.until(turnstile.path.exists)
    writing.join()

    def meets() -> bool:
        sessions.create_session("met")
        return turnstile.has_met_others

    waiting.until(meets)
    return beside


def pause_of_comparing(sessions: SessionManager) -> None:
    began = monotonic()
    while monotonic() - began < 2 * lifecycle._COMPARE_EVERY:
        run("", sessions.path)


def test_pages_that_the_process_of_a_checkpoint_has_seen_are_not_checked_again(
    sessions: SessionManager, met: Beside
) -> None:
    file = file_handle(sessions.handle).file
    # Again if need be: a checkpoint gives up where the file is busy.
    waiting.until(lambda: met.do("write") == met.do("checkpoint") and file.witness.has_changed())
    file.inspections.most = 0
    pause_of_comparing(sessions)
    sessions.create_session("more")
    assert file.inspections.most == 0


@pytest.mark.parametrize(
    "name", ["random bytes in its middle", "an older copy of itself copied over it"]
)
def test_damage_after_a_checkpoint_that_was_noted_is_refused(
    sessions: SessionManager, met: Beside, name: str
) -> None:
    fill(sessions, "late", 10)
    assert met.do("write") == met.do("checkpoint") == "done"
    run(DAMAGES[name], sessions.path)
    pause_of_comparing(sessions)
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED


@pytest.mark.parametrize("name", ["random bytes at its head", "cut to nothing", "cut by a page"])
def test_a_write_after_a_look_that_found_the_damage_is_refused(
    sessions: SessionManager, name: str
) -> None:
    run(DAMAGES[name], sessions.path)
    report = sessions.health()
    failed = {each.name for each in report.checks if each.status is HealthStatus.FAILED}
    assert failed & {"header", "size"}
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED


def test_the_wal_of_a_file_that_was_cut_is_salvaged(
    sessions: SessionManager, tmp_path: Path
) -> None:
    fill(sessions, "late", 3)
    run(CUTS["cut by a page"], sessions.path)
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED
    sessions.close()
    # Each opening leaves it as it is, and refuses writes as well.
    with ConnectionPool(FAST) as pool:
        for _ in range(2):
            with contextlib.suppress(MandrakeSessionsError):
                again = SessionManager(sessions.path, pool=pool).init()
                refused = outcome(partial(again.create_session, "lost"))
                again.close()
                assert refused in REFUSED
    salvage(sessions.path, tmp_path / "rescued.sqlite")
    rescued_path = tmp_path / "rescued.sqlite"
    with ConnectionPool(FAST) as pool, SessionManager(rescued_path, pool=pool) as rescued:
        titles = [each.title for each in rescued.list_sessions(limit=1000)]
    assert titles.count("late") == 3
    assert "lost" not in titles


@pytest.mark.parametrize("log", ["all is in the file", "some is in the log"])
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_refuses_nothing(
    sessions: SessionManager, beside: Beside, name: str, log: str
) -> None:
    if log == "some is in the log":
        fill(sessions, "late", 3)
    for _ in range(2):
        run(HARMLESS[name], sessions.path)
        sessions.create_session("more")
        assert beside.do("write") == "done"
    checkpoint(sessions)
    sessions.create_session("more")
    assert beside.do("write") == "done"
    assert sessions.health().is_usable


@pytest.fixture
def parked(ready_path: Path, ready_database: Any) -> Iterator[SessionManager]:
    """A database that was closed for another one: its next use opens it again."""
    second: Path = ready_database.lay(ready_path.with_name("second"))
    with ConnectionPool(msgspec.structs.replace(FAST, max_open=1)) as pool:
        sessions = SessionManager(ready_path, pool=pool).init()
        fill(sessions, "ours", 30)
        others = SessionManager(second, pool=pool).init()
        others.create_session("another")
        assert pool.stats().parked == 1
        yield sessions
        sessions.close()
        others.close()


@pytest.mark.parametrize("largest", [witness._SMALL, 0], ids=["small", "large"])
@pytest.mark.parametrize(
    "name", ["random bytes in its middle", "random bytes at its tail", "cut by a page"]
)
def test_a_file_that_was_damaged_while_it_was_parked_takes_no_writes(
    parked: SessionManager, name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "_SMALL", largest)
    run(DAMAGES[name], parked.path)
    after = content(parked.path)
    assert outcome(lambda: parked.create_session("lost")) in REFUSED
    assert outcome(lambda: parked.create_session("lost")) in REFUSED
    parked.close()
    assert content(parked.path) == after


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_of_a_parked_file_refuses_nothing(
    parked: SessionManager, name: str
) -> None:
    run(HARMLESS[name], parked.path)
    parked.create_session("more")
    assert parked.health().is_usable


@pytest.mark.parametrize("largest", [witness._SMALL, 0], ids=["small", "large"])
def test_a_parked_file_that_another_process_has_written_to_is_as_it_should_be(
    parked: SessionManager, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages of a large one are not looked at for it."""
    monkeypatch.setattr(witness, "_SMALL", largest)
    beside = Beside(parked.path)
    assert beside.do("write") == "done"
    beside.close()
    assert parked.count_sessions() == 31
    assert file_handle(parked.handle).file.witness.is_doubted is (largest > 0)
    parked.create_session("more")
    assert parked.count_sessions() == 32


def test_the_first_use_of_a_new_file_is_no_reason_to_check_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the pauses are in which another program could have written to it."""
    monkeypatch.setattr(lifecycle, "_COMPARE_EVERY", 0.0)
    path = tmp_path / "new.sqlite"
    with ConnectionPool(FAST) as pool, SessionManager(path, pool=pool) as sessions:
        for _ in range(3):
            sessions.create_session()
        assert file_handle(sessions.handle).file.inspections.most == 0


@pytest.mark.parametrize("name", ["random bytes in its middle", "cut by a page"])
def test_a_watcher_learns_of_the_damage_though_no_thread_uses_the_file(
    sessions: SessionManager, name: str
) -> None:
    session = sessions.create_session("watched")
    response = sessions.create_round(session.id, "asked").response
    heard: queue.Queue[str] = queue.Queue()
    with sessions.watch_response(response.id) as updates:
        run(DAMAGES[name], sessions.path)
        watching = partial(outcome, partial(list, updates))
        threading.Thread(target=lambda: heard.put(watching()), daemon=True).start()
        assert heard.get(timeout=PATIENCE) == CorruptDatabaseError.__name__
    # What can be read is read, and watched from then on.
    assert sessions.get_session(session.id).title == "watched"
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED


def test_looking_at_the_pages_drops_no_lock(sessions: SessionManager) -> None:
    def locks() -> list[str]:
        return own_lock_lines([sessions.path, Path(f"{sessions.path}-shm")])

    sessions.list_sessions()
    before = locks()
    assert before
    run(HARMLESS["touched"], sessions.path)
    sessions.create_session("more")
    assert not file_handle(sessions.handle).file.witness.is_doubted
    assert locks() == before


STORM = """
import sys
from mandrake_sessions import *
options = DatabaseOptions(
    durability=Durability.FAST, checkpoint_frames=int(sys.argv[2]), wal_limit_bytes=1 << 20
)
with ConnectionPool(PoolOptions(database=options)) as pool:
    with SessionManager(sys.argv[1], pool=pool) as sessions:
        for number in range(300):
            sessions.create_session("elsewhere", description="x" * (number % 7) * 3000)
            if number % 50 == 0:
                sessions.handle.file.checkpoint()
"""


def test_checkpoints_of_other_processes_are_no_damage(sessions: SessionManager) -> None:
    """Files that grow, logs that begin anew and are cut, checkpoints under way at each lease."""
    storm = [
        subprocess.Popen([sys.executable, "-c", STORM, str(sessions.path), frames])
        for frames in ("20", "100", "400")
    ]
    written = 0
    while written < 2000 and any(each.poll() is None for each in storm):
        sessions.create_session("here", description="x" * (written % 5) * 2000)
        sessions.list_sessions(limit=5)
        written += 1
    assert [each.wait() for each in storm] == [0, 0, 0]
    assert sessions.health().is_usable
    assert file_handle(sessions.handle).file.refusal.damage is None
    titles = [each.title for each in sessions.list_sessions(limit=10_000)]
    assert (titles.count("here"), titles.count("elsewhere")) == (written, 900)


KILLED = """
import os, signal, sys
from mandrake_sessions import *
from mandrake_sessions.testing import FaultVFS
vfs = FaultVFS("killed")
options = DatabaseOptions(durability=Durability.FAST, vfs=vfs.name)
written = []
def die():
    written.append(1)
    if len(written) > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
with ConnectionPool(PoolOptions(database=options)) as pool:
    sessions = SessionManager(sys.argv[1], pool=pool).init()
    for number in range(20):
        sessions.create_session("killed", description="x" * 4000)
    if sys.argv[2] == "0":
        die()
    with vfs.watching("db", "write", die):
        sessions.handle.file.checkpoint()
"""


@pytest.mark.parametrize("writes", [1, 10])
def test_a_checkpoint_that_was_killed_is_no_damage(sessions: SessionManager, writes: int) -> None:
    """Some of its pages are in the file, and the file is shorter than its first page says."""
    command = [sys.executable, "-c", KILLED, str(sessions.path), str(writes)]
    before = sessions.path.stat()
    assert subprocess.run(command, check=False, timeout=LONGEST).returncode == -9
    assert sessions.path.stat().st_mtime_ns != before.st_mtime_ns
    for _ in range(3):
        sessions.create_session("more")
        assert sessions.health().is_usable
    run(DAMAGES["random bytes in its middle"], sessions.path)
    assert outcome(lambda: sessions.create_session("lost")) in REFUSED


COPYING = (
    KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "stop()")
    .replace("written = []", "written = []\nsys.stdout.reconfigure(line_buffering=True)")
    .replace(
        "def die():",
        """def stop():
    if len(written) == 2:
        print("copying")
        sys.stdin.readline()
def die():""",
    )
)


def test_a_file_that_is_cut_while_a_checkpoint_copies_is_found(sessions: SessionManager) -> None:
    """The checkpoint would make it long again, with nothing where the pages were."""
    command = [sys.executable, "-c", COPYING, str(sessions.path), "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as copying:
        try:
            assert copying.stdout is not None
            assert copying.stdout.readline() == "copying\n"
            sessions.create_session("not lost")
            run(DAMAGES["cut in half"], sessions.path)
            assert outcome(lambda: sessions.create_session("lost")) in REFUSED
        finally:
            copying.kill()


@pytest.mark.parametrize(
    "name",
    ["random bytes in its middle", "cut by a page", "an older copy of itself copied over it"],
)
def test_damage_is_found_in_a_file_that_was_opened_after_a_kill(
    ready_path: Path, name: str
) -> None:
    command = [sys.executable, "-c", KILLED, str(ready_path), "1"]
    run("import shutil; shutil.copyfile(path, older)", ready_path)
    assert subprocess.run(command, check=False, timeout=LONGEST).returncode == -9
    assert os.stat(f"{ready_path}-wal").st_size
    with ConnectionPool(FAST) as pool, SessionManager(ready_path, pool=pool) as sessions:
        sessions.create_session("more")
        run(DAMAGES[name], ready_path)
        if name == "an older copy of itself copied over it":
            # All of what it lacks is in the log.
            assert sessions.health().is_usable
        else:
            assert outcome(lambda: sessions.create_session("lost")) in REFUSED


def test_a_check_of_pages_that_takes_too_long_is_abandoned_and_logged(
    sessions: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls until then are busy; none of them has written."""
    monkeypatch.setattr(witness, "_PAGES_PATIENCE", 0.0)
    monkeypatch.setattr(witness, "_PATIENCE", 0.02)
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT max(n) FROM c"
    monkeypatch.setattr(witness, "_CHECK", endless)
    run(HARMLESS["touched"], sessions.path)
    outcomes: list[str] = []
    with capture_logs() as logs:
        while not outcomes or outcomes[-1] != "done":
            outcomes.append(outcome(lambda: sessions.create_session("more")))
    assert set(outcomes[:-1]) <= {"DatabaseBusyError"}
    assert [log["event"] for log in logs] == ["database_pages_not_looked_at"]
    assert sum(each.title == "more" for each in sessions.list_sessions(limit=1000)) == 1
    sessions.create_session("more")
