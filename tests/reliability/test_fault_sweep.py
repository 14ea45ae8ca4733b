"""The fault sweep: each read, write, sync and truncate of the public calls fails, in turn.

After each: the file is whole, all acknowledged rows are there, each row that is there without
an acknowledgement was reported as unknown, every error was one of the library's, the pool still
serves, and no descriptor is left open.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import apsw
import pytest
import structlog.testing
from sweep_kit import Tally, Trial, Work, plain, start_older, start_with, sweep, talk

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    NewTurn,
    NotFoundError,
    PoolOptions,
    SessionManager,
)
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.files.paths import identify
from mandrake_sessions.database.migrations import migrate
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.schema import APPLICATION_ID, HEAD
from mandrake_sessions.testing import PowerLossVFS


class CreateRound(Work):
    name = "create_round"

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.create_round("talk", "one more " * 500, id="new")

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        rounds = "SELECT count(*) FROM rounds WHERE id = 'new'"
        others = [
            f"SELECT count(*) FROM {table} WHERE round_id = 'new'"
            for table in ("requests", "responses")
        ]
        return all_or_none(raw, rounds, *others)


class UpdateTurn(Work):
    name = "update_turn"

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.update_turn("turn-1", content="better " * 1000, input_tokens=7)

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        turn = "FROM turns WHERE id = 'turn-1' AND"
        return all_or_none(
            raw,
            f"SELECT count(*) {turn} content LIKE 'better%' AND length(content) = 7000",
            f"SELECT count(*) {turn} input_tokens = 7",
            f"SELECT count(*) {turn} revision = 1",
        )


class Transaction(Work):
    name = "transaction() of five calls"

    def act(self, trial: Trial, unit: str) -> None:
        with trial.sessions.transaction() as tx:
            tx.create_session(id="second")
            response = tx.create_round("second", "question " * 500).response
            turn = tx.create_turn(response.id, content="answer " * 500, id="new")
            tx.update_turn(turn.id, status="completed")
            tx.delete_round("round-0")

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        return all_or_none(
            raw,
            "SELECT count(*) FROM sessions WHERE id = 'second'",
            "SELECT count(*) FROM rounds WHERE session_id = 'second'",
            "SELECT count(*) FROM turns WHERE id = 'new'",
            "SELECT count(*) FROM turns WHERE id = 'new' AND status = 'completed'",
            "SELECT 1 - count(*) FROM rounds WHERE id = 'round-0'",
        )


class Call(Work):
    """Any other writing call.

    Args:
        name: of the method.
        call: does it.
        parts: statements that count what it stores, each 0 before.
    """

    stride = 6

    def __init__(self, name: str, call: Callable[[SessionManager], Any], *parts: str) -> None:
        self.name = name
        self._call = call
        self._parts = parts

    def prepare(self, trial: Trial) -> None:
        trial.sessions.init()
        trial.sessions.create_session(id="other")
        turns = [NewTurn(id="turn-of-other", content="answer " * 500)]
        trial.sessions.record_round("other", "question " * 500, turns, id="round-of-other")

    def act(self, trial: Trial, unit: str) -> None:
        self._call(trial.sessions)

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        return all_or_none(raw, *self._parts)

    def serve(self, trial: Trial) -> None:
        super().serve(trial)
        # A turn that streams keeps this process's claim, and with it a descriptor.
        with contextlib.suppress(NotFoundError):
            trial.sessions.update_turn("new", status="completed")


CALLS = (
    Call(
        "create_session",
        lambda sessions: sessions.create_session("A title", id="new", metadata={"k": "v" * 9000}),
        "SELECT count(*) FROM sessions WHERE id = 'new'",
    ),
    Call(
        "update_session",
        lambda sessions: sessions.update_session("other", title="better", description="x" * 9000),
        "SELECT count(*) FROM sessions WHERE id = 'other' AND title = 'better'",
        "SELECT count(*) FROM sessions WHERE id = 'other' AND length(description) = 9000",
        "SELECT revision FROM sessions WHERE id = 'other'",
    ),
    Call(
        "delete_session",
        lambda sessions: sessions.delete_session("other"),
        "SELECT 1 - count(*) FROM sessions WHERE id = 'other'",
        "SELECT 1 - count(*) FROM rounds WHERE id = 'round-of-other'",
        "SELECT 1 - count(*) FROM requests WHERE round_id = 'round-of-other'",
        "SELECT 1 - count(*) FROM turns WHERE id = 'turn-of-other'",
    ),
    Call(
        "record_round",
        lambda sessions: sessions.record_round(
            "other", "question " * 500, [NewTurn(id="new-turn"), NewTurn()], id="new"
        ),
        "SELECT count(*) FROM rounds WHERE id = 'new'",
        "SELECT count(*) FROM requests WHERE round_id = 'new'",
        "SELECT count(*) FROM turns WHERE id = 'new-turn'",
        "SELECT next_round_index - 1 FROM sessions WHERE id = 'other'",
    ),
    Call(
        "delete_round",
        lambda sessions: sessions.delete_round("round-of-other"),
        "SELECT 1 - count(*) FROM rounds WHERE id = 'round-of-other'",
        "SELECT 1 - count(*) FROM turns WHERE id = 'turn-of-other'",
    ),
    Call(
        "update_request",
        lambda sessions: sessions.update_request(
            sessions.get_round("round-of-other").request.id, content="better " * 1000
        ),
        "SELECT content LIKE 'better%' AND length(content) = 7000 FROM requests"
        " WHERE round_id = 'round-of-other'",
    ),
    Call(
        "create_turn",
        lambda sessions: sessions.create_turn(
            sessions.get_round("round-of-other").response.id, id="new", content="more " * 1000
        ),
        "SELECT count(*) FROM turns WHERE id = 'new' AND length(content) = 5000",
        "SELECT next_turn_index - 1 FROM responses WHERE round_id = 'round-of-other'",
    ),
    Call(
        "delete_turn",
        lambda sessions: sessions.delete_turn("turn-of-other"),
        "SELECT 1 - count(*) FROM turns WHERE id = 'turn-of-other'",
    ),
)


class Backup(Work):
    name = "backup"

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.backup(trial.folder / "copy.sqlite")

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        assert raw.execute("SELECT count(*) FROM turns").get == 3
        # Besides the database and its own two files there is the whole copy, or nothing.
        found = {each.name for each in trial.folder.iterdir()} - {
            "db.sqlite",
            "db.sqlite-wal",
            "db.sqlite-shm",
        }
        if not found:
            return False
        assert found == {"copy.sqlite"}
        assert verify(trial.folder / "copy.sqlite") == []
        with plain(trial.folder / "copy.sqlite") as copy:
            assert copy.execute("SELECT count(*) FROM turns").get == 3
        return True


class Opening(Work):
    """The migration of a file that is there and empty: from nothing to the newest revision."""

    name = "opening, with the first migration"
    starts_with_talk = False
    stride = 5
    is_repeated = True
    # It can fail after the migration is stored; the next one goes on from there.
    goes_on = True

    def prepare(self, trial: Trial) -> None:
        pass

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.init()

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        tables = raw.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table'").get
        if not tables:
            assert raw.pragma("application_id") == 0
            return False
        assert raw.pragma("application_id") == APPLICATION_ID
        assert raw.execute("SELECT version_num FROM alembic_version").get == HEAD
        return True


class Recovery(Work):
    """The opening of a file whose last user died: its log is read first."""

    name = "opening, with a log left behind"
    stride = 3
    is_repeated = True
    goes_on = True

    def prepare(self, trial: Trial) -> None:
        pass

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.init()

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        assert raw.execute("SELECT count(*) FROM turns").get == 3
        return True


class Checkpoint(Work):
    """A checkpoint that truncates the log, whose failure is no caller's error."""

    name = "checkpoint"
    options: ClassVar[dict[str, Any]] = {"wal_limit_bytes": 1}
    goes_on = True

    def prepare(self, trial: Trial) -> None:
        trial.sessions.init()
        trial.sessions.create_round("talk", "one more " * 500, id="new")

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.handle.file.checkpoint()

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        return bool(raw.execute("SELECT count(*) FROM requests WHERE round_id = 'new'").get)


class Closing(Checkpoint):
    """The end of a pool."""

    name = "closing"

    def act(self, trial: Trial, unit: str) -> None:
        trial.sessions.close()
        trial.pool.close()

    def serve(self, trial: Trial) -> None:
        trial.close()
        trial.open()
        super().serve(trial)


class SharedCommit(Work):
    """Three calls at once, some of which share a COMMIT."""

    name = "create_round in three threads"
    stride = 3
    units = ("first", "second", "third")

    def prepare(self, trial: Trial) -> None:
        trial.sessions.init()
        self.barrier = threading.Barrier(len(self.units))

    def act(self, trial: Trial, unit: str) -> None:
        self.barrier.wait()
        trial.sessions.create_round("talk", "one more " * 500, id=unit)

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        return all_or_none(
            raw,
            f"SELECT count(*) FROM rounds WHERE id = '{unit}'",
            f"SELECT count(*) FROM requests WHERE round_id = '{unit}'",
            f"SELECT count(*) FROM responses WHERE round_id = '{unit}'",
        )


class Stream(Work):
    """A turn that is streamed; what could not be stored is tried further."""

    name = "stream_turn"
    stride = 2
    goes_on = True
    text = "token " * 400

    def prepare(self, trial: Trial) -> None:
        trial.sessions.init()
        self.response = trial.sessions.get_round("round-1").response.id

    def act(self, trial: Trial, unit: str) -> None:
        with trial.sessions.stream_turn(self.response, id="streamed") as turn:
            turn.write(self.text[:1000])
            turn.flush()
            turn.write(self.text[1000:])

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        of_it = "FROM turns WHERE id = 'streamed'"
        chunks = "SELECT content FROM turn_chunks WHERE turn_id = 'streamed' ORDER BY seq"
        stored = raw.execute(f"SELECT content {of_it}").get or ""
        stored += "".join(text for (text,) in raw.execute(chunks))
        assert self.text.startswith(stored)
        is_completed = raw.execute(f"SELECT status = 'completed' {of_it}").get
        return bool(is_completed) and stored == self.text


class Rebuild(Work):
    """A migration that rebuilds the table everything hangs on, with its backup before it."""

    name = "migration that rebuilds a table"
    served = "SELECT version_num = 'next' FROM alembic_version"
    stride = 5
    is_repeated = True

    def prepare(self, trial: Trial) -> None:
        pass

    def act(self, trial: Trial, unit: str) -> None:
        identity = identify(trial.path)
        assert identity is not None
        options = DatabaseOptions(vfs=trial.vfs.name)
        connection = open_connection(trial.path, identity, options, Budget(5.0))
        try:
            migrate.upgrade(connection, Budget(5.0), scripts=trial.folder / "scripts")
        finally:
            with contextlib.suppress(apsw.Error):
                connection.close()

    def is_stored(self, trial: Trial, raw: apsw.Connection, unit: str) -> bool:
        # A rebuild of the parents with foreign keys on would have deleted them.
        assert raw.execute("SELECT count(*) FROM rounds").get == 3
        revision = raw.execute("SELECT version_num FROM alembic_version").get
        columns = {row[1] for row in raw.execute("PRAGMA table_info(sessions)")}
        assert ("headline" in columns) == (revision == "next")
        copies = list(trial.folder.glob("*.before-*"))
        assert all(verify(copy) == [] for copy in copies)
        assert copies or revision != "next"
        return bool(revision == "next")

    def serve(self, trial: Trial) -> None:
        self.act(trial, "")


def all_or_none(raw: apsw.Connection, *counts: str) -> bool:
    """Return whether something is stored of which each statement counts a part."""
    found = {bool(raw.execute(sql).get) for sql in counts}
    assert len(found) == 1, "a part of it is stored"
    return found.pop()


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of one session."""
    return start_with(tmp_path_factory.mktemp("talked"), talk)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty file."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "db.sqlite").touch(0o600)
    return folder


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, and the scripts of a version that is newer than it."""
    return start_older(tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database as a process leaves it that dies."""
    folder = tmp_path_factory.mktemp("left")
    vfs = PowerLossVFS()
    options = PoolOptions(database=DatabaseOptions(vfs=vfs.name))
    with (
        ConnectionPool(options) as pool,
        SessionManager(folder / "lived.sqlite", pool=pool) as sessions,
    ):
        talk(sessions)
        cut = vfs.cut()
    vfs.unregister()
    cut.write(folder / "cut")
    for each in (folder / "cut").iterdir():
        each.rename(folder / "cut" / each.name.replace("lived", "db"))
    assert (folder / "cut" / "db.sqlite-wal").stat().st_size
    return folder / "cut"


# Some failures SQLite lets pass, such as that of removing a journal of no use; APSW warns.
let_pass = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


CASES: list[tuple[Work, str]] = [
    (CreateRound(), "talked"),
    (UpdateTurn(), "talked"),
    (Transaction(), "talked"),
    *((call, "talked") for call in CALLS),
    (Backup(), "talked"),
    (Opening(), "empty"),
    (Rebuild(), "older"),
    (Recovery(), "left_behind"),
    (Checkpoint(), "talked"),
    (Closing(), "talked"),
    (SharedCommit(), "talked"),
    (Stream(), "talked"),
]


@let_pass
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("work", "start"), [pytest.param(work, start, id=work.name) for work, start in CASES]
)
def test_every_operation_of_a_case_may_fail(
    work: Work, start: str, request: pytest.FixtureRequest, tmp_path: Path, campaign: Any
) -> None:
    tally = Tally()

    step = campaign.pick(15, work.stride, 1)
    folder = request.getfixturevalue(start)
    with structlog.testing.capture_logs():
        sweep(work, tmp_path, folder, tally, step, briefly=campaign.name == "brief")

    print(tally)  # the number of points is a result
    assert sum(tally.points.values()) >= campaign.pick(4, 20, 50)
