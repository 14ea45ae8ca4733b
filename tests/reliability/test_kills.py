"""``kill -9`` in every phase of a process's life: what it had acknowledged is there, and whole.

Half of the kills come at a random time of the phase, half at one of its operations on files, which
hits what is too short for a clock: before it, after it, or with half of a write done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from kill_kit import ForkingRunner, key_of, text_of
from kill_workloads import BLOCK, Plan

from mandrake_sessions import (
    ConnectionPool,
    DatabaseMissingError,
    DatabaseOptions,
    Durability,
    Exchange,
    MandrakeManager,
    NewTurn,
    PoolOptions,
    SessionManager,
    TurnStatus,
)
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.files.paths import identify
from mandrake_sessions.database.files.turnstile import turnstile_path
from mandrake_sessions.database.migrations import head, migrate, revisions
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.schema import HEAD
from mandrake_sessions.testing import CrashReport, Life, Moment
from mandrake_sessions.workspace import workspace_database

pytestmark = pytest.mark.timeout(300)

LONGEST_OPENING = 30.0
ROUND_KINDS = {"recorded", "round", "block"}


@dataclass
class Row:
    """One line of the table: what the kills of a phase did."""

    kills: int = 0
    inside: int = 0
    acknowledged: int = 0
    found: int = 0
    unknown: int = 0
    longest_opening: float = 0.0


@dataclass
class Table:
    """What all kills did."""

    rows: dict[str, Row] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())

    def show(self) -> str:
        titles = ("phase", "kills", "inside", "acknowledged", "found", "unknown", "opening ms")
        lines = [titles] + [
            (name, *map(str, (row.kills, row.inside, row.acknowledged, row.found, row.unknown)),
             f"{row.longest_opening * 1000:.0f}")
            for name, row in self.rows.items()
        ]  # fmt: skip
        total = [str(sum(getattr(row, name) for row in self.rows.values()))
                 for name in ("kills", "inside", "acknowledged", "found", "unknown")]  # fmt: skip
        lines.append(("all", *total, ""))
        return "\n".join(f"{line[0]:18}" + "".join(f"{each:>14}" for each in line[1:])
                         for line in lines)  # fmt: skip


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    table = Table()
    before = len(os.listdir("/proc/self/fd"))
    yield table
    assert len(os.listdir("/proc/self/fd")) == before
    print(f"\n{table.show()}")  # shown with -s


@pytest.fixture(scope="module")
def runner() -> Iterator[ForkingRunner]:
    runner = ForkingRunner("kill_workloads:opening", seed=4)
    yield runner
    runner.close()


# -- what must hold after a kill ----------------------------------------------------------------


def reopened(
    path: Path, row: Row, *, create: bool = False
) -> tuple[ConnectionPool, SessionManager]:
    """Open a file that a killed process has left; it must not take long."""
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=LONGEST_OPENING)
    pool = ConnectionPool(PoolOptions(database=options, linger=0.0))
    began = monotonic()
    sessions = SessionManager(path, pool=pool, create=create).init()
    took = monotonic() - began
    row.longest_opening = max(row.longest_opening, took)
    assert took < LONGEST_OPENING
    return pool, sessions


def check(
    path: Path, report: CrashReport, session: str, row: Row, *, alone: bool = True
) -> set[str]:
    """Look at what a killed process has left; return the ids of its rounds."""
    acknowledged = [each for each in report.acknowledged if each[0] != "operations"]
    pool, sessions = reopened(path, row, create=not acknowledged)
    with pool, sessions:
        found: dict[str, Exchange] = {}
        if sessions.find_session(session) is not None:
            history = sessions.iter_session_history(session)
            found = {exchange.id: exchange for exchange in history}
        else:
            assert not acknowledged, "the session is lost"
        row.acknowledged += len({id for kind, id, _ in acknowledged if kind in ROUND_KINDS})
        row.found += len(found.keys() & {id for _, id, _ in acknowledged})
        row.unknown += len(found.keys() - {id for _, id, _ in acknowledged})
        for kind, id, key in acknowledged:
            check_acknowledged(kind, found.get(id), key)
        check_whole(found.values())
        if alone:
            assert not list(path.parent.glob(f"{path.name}-owner-*"))
            assert sessions.recover_interrupted() == []
        # It is not only readable.
        sessions.create_session()
    if alone:
        left = {each.name for each in path.parent.glob(f"{path.name}*")}
        assert left - {path.name, turnstile_path(path).name} == set()
        assert verify(path) == []
    return set(found)


def check_acknowledged(kind: str, found: Exchange | None, key: Any) -> None:
    if kind in {"session", "closed", "backup", "upgraded", "deleted"}:
        return
    assert found is not None, f"{kind} {key} is lost"
    if kind == "flushed":
        key, length = key
        assert found.turns[0].content.startswith(text_of(f"{key}.0")[:length])
    if kind == "turn":
        assert len(found.turns) == 1, f"the turn of {key} is lost"
    if kind in {"stepped", "streamed"}:
        assert [turn.status for turn in found.turns] == [TurnStatus.COMPLETED], f"{key} is lost"
    assert key_of(found.request.content) == key


def check_whole(rounds: Any) -> None:
    """Nothing is there by half: of a unit, of a block, of a text."""
    blocks: dict[str, int] = {}
    indexes = []
    for found in rounds:
        key = key_of(found.request.content)
        kind, _, rest = key.partition("/")
        statuses = [turn.status for turn in found.turns]
        indexes.append(found.index)
        assert TurnStatus.STREAMING not in statuses, f"no process streams {key}"
        if kind in {"recorded", "block"}:
            assert statuses == [TurnStatus.COMPLETED] * (2 if kind == "recorded" else 1)
        else:
            assert len(found.turns) <= 1
        for turn in found.turns:
            if turn.status is TurnStatus.COMPLETED:
                assert turn.content == text_of(f"{key}.{turn.index}")
            else:
                assert turn.status is TurnStatus.INTERRUPTED
                assert text_of(f"{key}.{turn.index}").startswith(turn.content)
        if kind == "block":
            name = rest.rpartition("/")[0]
            blocks[name] = blocks.get(name, 0) + 1
    assert set(blocks.values()) <= {BLOCK}, "half of a block is there"
    assert sorted(indexes) == list(range(len(indexes)))


@pytest.mark.parametrize(
    ("workload", "seen"), [("acknowledging_too_early", "is lost"), ("storing_by_halves", "half")]
)
def test_the_check_sees_each_fault_that_must_never_be(
    runner: ForkingRunner, tmp_path: Path, workload: str, seen: str
) -> None:
    path = tmp_path / "db.sqlite"
    plan = Plan(path=str(path), session="killed", at=0, manner="before")
    report = runner.use(f"kill_workloads:{workload}").run(plan)
    assert report.was_killed

    with pytest.raises(AssertionError, match=seen):
        check(path, report, "killed", Row())


# -- the campaign -------------------------------------------------------------------------------


class Campaign:
    """The kills of one phase, one after the other.

    Args:
        workload: of ``kill_workloads``.
        name: the phase in which it kills.
        row: where they are counted.
        rows: where those in another phase are counted.
    """

    def __init__(
        self, runner: ForkingRunner, workload: str, name: str, row: Row, **rows: Row
    ) -> None:
        self.row = row
        self._rows = rows
        self._name = name
        self._runner = runner.use(f"kill_workloads:{workload}")
        self._chance = random.Random(workload)
        # Of a phase without an end, until it was measured.
        self._operations = 400
        self._seconds = 0.12
        self._late = Moment(after=2.0)

    def measure(self, path: Path, session: str, *arguments: Any) -> CrashReport:
        """Let a life come to the end of the phase: how long that is, and how many operations."""
        plan = Plan(path=str(path), session=session, at=0, manner="before")
        report = self._runner.run(plan, *arguments, kill=Moment(phase="over"))
        began = dict(reversed(report.phases))
        self._seconds = (began["after"] - began[self._name]) * 1.1
        self._operations = next(
            count for kind, _, count in report.acknowledged if kind == "operations"
        )
        self._late = Moment(phase="over")
        return report

    def kill(self, number: int, path: Path, session: str, *arguments: Any) -> CrashReport:
        """Run a life and kill it: at an operation if the number is odd, else at a moment."""
        at = self._chance.randint(1, self._operations) if number % 2 else 0
        manner = self._chance.choice(["before", "torn", "after"])
        plan = Plan(path=str(path), session=session, at=at, manner=manner)
        moment = self._late if at else Moment(phase=self._name, within=self._seconds)
        report = self._runner.run(plan, *arguments, kill=moment)
        assert report.was_killed
        row = self.row_of(report)
        row.kills += 1
        row.inside += report.phase not in {"after", "over"}
        return report

    def row_of(self, report: CrashReport) -> Row:
        """Return where a kill is counted."""
        return self._rows.get(report.phase or "", self.row)


# -- opening ------------------------------------------------------------------------------------


def test_kills_while_a_new_file_is_opened_lose_nothing(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path
) -> None:
    row, migrating = table.row("opening, new"), table.row("migrating, new")
    kills = Campaign(runner, "opening", "opening", row, migrating=migrating)
    measured = kills.measure(tmp_path / "measured.sqlite", "measured")
    assert "migrating" in dict(measured.phases)

    for number in range(campaign.pick(2, 60, 240)):
        path = tmp_path / str(number) / "db.sqlite"
        report = kills.kill(number, path, "killed")
        check(path, report, "killed", kills.row_of(report))


def test_kills_while_the_file_of_a_killed_process_is_opened_lose_nothing(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path
) -> None:
    path = tmp_path / "db.sqlite"
    row = table.row("opening, left")
    writers = Campaign(runner, "writing_together", "writing", table.row("writing, together"))
    left = writers.kill(0, path, "first")
    kills = Campaign(runner, "opening", "opening", row)
    check(path, kills.measure(path, "measured"), "measured", row)
    check(path, left, "first", writers.row)

    for number in range(campaign.pick(1, 25, 100)):
        runner.use("kill_workloads:writing_together")
        left = writers.kill(number, path, f"writer-{number}")
        assert path.with_name("db.sqlite-wal").stat().st_size > 0
        runner.use("kill_workloads:opening")
        report = kills.kill(number, path, f"opener-{number}")
        check(path, report, f"opener-{number}", row)
        check(path, left, f"writer-{number}", writers.row)


# -- migrating ----------------------------------------------------------------------------------


REBUILD = """
from alembic import op
revision = "next"
down_revision = {head!r}
rebuilds_tables = True
def upgrade():
    with op.batch_alter_table("sessions", recreate="always") as batch:
        batch.alter_column("title", new_column_name="headline")
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Our migrations, and one more that rebuilds a table others refer to."""
    folder = tmp_path / "scripts"
    (folder / "versions").mkdir(parents=True)
    ours = revisions.script_location()
    for each in [Path("env.py"), *(p.relative_to(ours) for p in ours.glob("versions/*.py"))]:
        (folder / each).write_text((ours / each).read_text())
    (folder / "versions" / "next.py").write_text(REBUILD.format(head=HEAD))
    return folder


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Connection]:
    identity = identify(path)
    assert identity is not None
    connection = open_connection(path, identity, DatabaseOptions(), Budget(LONGEST_OPENING))
    try:
        yield connection
    finally:
        connection.close()


def test_kills_while_a_table_is_rebuilt_lose_nothing(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path, scripts: Path
) -> None:
    seed = tmp_path / "seed.sqlite"
    with ConnectionPool(PoolOptions(linger=0.0)) as pool, SessionManager(seed, pool=pool) as made:
        session = made.create_session("Old").id
        for number in range(20):
            made.record_round(session, text_of(f"recorded/{number}"), turns=[NewTurn()])
    rows = {"sessions": 1, "rounds": 20, "turns": 20}

    def old_file(name: str) -> Path:
        path = tmp_path / name / "db.sqlite"
        path.parent.mkdir()
        shutil.copyfile(seed, path)
        return path

    kills = Campaign(runner, "upgrading", "upgrading", table.row("migrating, old"))
    kills.measure(old_file("measured"), "", str(scripts))
    for number in range(campaign.pick(2, 40, 160)):
        path = old_file(str(number))
        report = kills.kill(number, path, "", str(scripts))

        began = monotonic()
        with opened(path) as connection:
            revision = head.current(connection)
            was_acknowledged = ["upgraded", "next", ""] in report.acknowledged
            assert revision == "next" or (revision == HEAD and not was_acknowledged)
            migrate.upgrade(connection, Budget(LONGEST_OPENING), scripts=scripts)
            assert head.current(connection) == "next"
            counts = {name: connection.value(f"SELECT count(*) FROM {name}") for name in rows}
            assert counts == rows
        kills.row.longest_opening = max(kills.row.longest_opening, monotonic() - began)
        assert monotonic() - began < LONGEST_OPENING
        assert verify(path) == []
        kills.row.acknowledged += was_acknowledged
        kills.row.found += was_acknowledged
        kills.row.unknown += revision == "next" and not was_acknowledged
        for backup in path.parent.glob("*.before-*"):
            # A half-made copy is called partial, and is no backup.
            assert ".partial-" in backup.name or verify(backup) == []


# -- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "phase", "name", "sizes"),
    [
        ("writing_alone", "writing", "writing, alone", (1, 30, 120)),
        ("writing_together", "writing", "writing, together", (1, 30, 120)),
        ("writing_in_tasks", "writing", "writing, tasks", (1, 30, 120)),
        ("writing_blocks", "writing", "writing, blocks", (1, 30, 120)),
        ("streaming", "streaming", "streaming", (2, 30, 120)),
        ("checkpointing", "checkpointing", "checkpointing", (2, 40, 160)),
    ],
)
def test_kills_while_a_process_writes_lose_nothing_acknowledged(  # noqa: PLR0917
    campaign: Any,
    runner: ForkingRunner,
    table: Table,
    tmp_path: Path,
    workload: str,
    phase: str,
    name: str,
    sizes: tuple[int, int, int],
) -> None:
    path = tmp_path / "db.sqlite"
    kills = Campaign(runner, workload, phase, table.row(name))
    stored: dict[str, set[str]] = {}

    for number in range(campaign.pick(*sizes)):
        session = f"life-{number}"
        report = kills.kill(number, path, session)
        stored[session] = check(path, report, session, kills.row)

    check_still_there(path, stored)


def check_still_there(path: Path, stored: dict[str, set[str]]) -> None:
    """Rows that were there after one kill are there after all that followed."""
    with ConnectionPool() as pool, SessionManager(path, pool=pool) as sessions:
        for session, ids in stored.items():
            # A process that was killed while it opened has made no session.
            if ids:
                assert {each.id for each in sessions.iter_session_history(session)} == ids


# -- backing up ---------------------------------------------------------------------------------


def test_kills_during_a_backup_leave_no_half_copy(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path
) -> None:
    path = tmp_path / "db.sqlite"
    kills = Campaign(runner, "backing_up", "backing up", table.row("backing up"))
    check(path, kills.measure(path, "measured"), "measured", kills.row)

    for number in range(campaign.pick(2, 30, 120)):
        session = f"life-{number}"
        target = path.with_name(f"{session}.backup")
        report = kills.kill(number, path, session)
        check(path, report, session, kills.row)
        was_acknowledged = ["backup", target.name, ""] in report.acknowledged
        assert target.exists() or not was_acknowledged
        if target.exists():
            check_backup(target, report, session)
        pool, sessions = reopened(path, kills.row)
        with pool, sessions:
            sessions.backup(target, overwrite=True)
        assert verify(target) == []
        # Nor is anything left of the one that was killed.
        assert list(tmp_path.glob(f"{session}.backup*")) == [target]


def check_backup(target: Path, report: CrashReport, session: str) -> None:
    """A backup that has its name is whole, and has all that was there when it began."""
    assert verify(target) == []
    before = {id for kind, id, key in report.acknowledged if "before" in str(key)}
    with ConnectionPool() as pool, SessionManager(target, pool=pool) as copy:
        found = list(copy.iter_session_history(session))
        check_whole(found)
        assert before <= {each.id for each in found}


# -- closing and deleting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "phase"), [("closing", "closing"), ("shutting_down", "shutting down")]
)
def test_kills_during_a_closing_lose_nothing(  # noqa: PLR0917
    campaign: Any,
    runner: ForkingRunner,
    table: Table,
    tmp_path: Path,
    workload: str,
    phase: str,
) -> None:
    path = tmp_path / "db.sqlite"
    kills = Campaign(runner, workload, phase, table.row(phase))
    stored = {"measured": check(path, kills.measure(path, "measured"), "measured", kills.row)}

    for number in range(campaign.pick(2, 30, 120)):
        session = f"life-{number}"
        report = kills.kill(number, path, session)
        stored[session] = check(path, report, session, kills.row)

    check_still_there(path, stored)


def test_kills_during_a_deletion_leave_all_or_nothing(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path
) -> None:
    kills = Campaign(runner, "deleting", "deleting", table.row("deleting"))
    measured = tmp_path / "measured" / "db.sqlite"
    kills.measure(measured, "measured")
    assert list(measured.parent.iterdir()) == []

    for number in range(campaign.pick(2, 40, 160)):
        path = tmp_path / str(number) / "db.sqlite"
        report = kills.kill(number, path, "killed")
        was_acknowledged = ["deleted", "killed", ""] in report.acknowledged
        left = sorted(each.name for each in path.parent.iterdir())
        if path.exists():
            assert not was_acknowledged
            check(path, report, "killed", kills.row)
        else:
            # All of it is gone: nothing may be replayed into a new file of this name.
            assert left == []
            kills.row.acknowledged += was_acknowledged
            kills.row.found += was_acknowledged
            pool, sessions = reopened(path, kills.row, create=True)
            with pool, sessions:
                assert sessions.count_sessions() == 0


def test_kills_while_workspaces_are_made_and_deleted_leave_them_whole(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path
) -> None:
    row = table.row("workspaces")
    kills = Campaign(runner, "making_workspaces", "workspaces", row)
    kills.measure(tmp_path / "db.sqlite", "measured")

    for number in range(campaign.pick(2, 30, 120)):
        name = f"life-{number}"
        report = kills.kill(number, tmp_path / "db.sqlite", name)
        with ConnectionPool(PoolOptions(linger=0.0)) as pool:
            began = monotonic()
            with MandrakeManager(tmp_path, pool=pool) as host:
                row.longest_opening = max(row.longest_opening, monotonic() - began)
                check_workspaces(host, report, name, row)


def check_workspaces(host: MandrakeManager, report: CrashReport, name: str, row: Row) -> None:
    """Each is there with its session, or gone; and each name can be had."""
    reported: dict[str, set[str]] = {
        kind: set() for kind in ("made", "filled", "leaving", "left", "operations")
    }
    for kind, _, key in report.acknowledged:
        reported[kind].add(str(key))
    there = {each.name: each for each in host.list_workspaces() if each.name.startswith(f"{name}-")}
    assert reported["made"] - reported["leaving"] <= there.keys()
    assert not reported["left"] & there.keys()
    row.acknowledged += len(reported["made"] - reported["leaving"]) + len(reported["left"])
    row.found += len(reported["made"] - reported["leaving"]) + len(reported["left"])
    row.unknown += len(there.keys() - reported["made"])
    for key, workspace in there.items():
        if key in reported["leaving"] and not workspace_database(workspace.path).exists():
            # Its database is deleted, and deleting it again does the rest.
            with pytest.raises(DatabaseMissingError):
                host.get_workspace(workspace.id)
            host.delete_workspace(workspace.id)
            host.create_workspace(key)
        else:
            sessions = host.get_workspace(workspace.id).sessions
            assert sessions.find_session(key) is not None or key not in reported["filled"]
    for key in reported["left"]:
        host.create_workspace(key)


# -- among others ------------------------------------------------------------------------------


def test_kills_of_one_process_among_several_harm_no_other(
    campaign: Any, runner: ForkingRunner, table: Table, tmp_path: Path
) -> None:
    """Three processes write; one is killed and another takes its place, while two go on."""
    path = tmp_path / "db.sqlite"
    row = table.row("among others")
    chance = random.Random(7)
    numbers = itertools.count()
    stored: dict[str, set[str]] = {}
    runner.use("kill_workloads:among_others")

    def start(stack: contextlib.ExitStack) -> tuple[str, Life]:
        session = f"life-{next(numbers)}"
        plan = Plan(path=str(path), session=session, at=0, manner="before")
        return session, stack.enter_context(runner.start(plan))

    def end(session: str, life: Life, *, alone: bool) -> None:
        life.kill()
        report = life.finish()
        assert report.was_killed
        row.kills += 1
        row.inside += 1
        stored[session] = check(path, report, session, row, alone=alone)

    with contextlib.ExitStack() as stack:
        living = [start(stack) for _ in range(3)]
        for _ in range(campaign.pick(2, 30, 120)):
            session, life = living.pop(chance.randrange(3))
            # In the opening, or later.
            life.wait_for(Moment(acknowledged=chance.choice([0, 0, 1, 5, 30]), within=0.02))
            end(session, life, alone=False)
            for _, other in living:
                began = monotonic()
                assert other.wait_for(Moment(acknowledged=len(other.acknowledged) + 20))
                assert monotonic() - began < LONGEST_OPENING
            living.append(start(stack))
        for number, (session, life) in enumerate(living):
            end(session, life, alone=number == 2)

    check_still_there(path, stored)
    assert set(tmp_path.glob("db.sqlite-*")) <= {turnstile_path(path)}
