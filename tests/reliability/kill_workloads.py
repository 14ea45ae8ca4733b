"""What the processes do that are killed; each is called with a plan, and acknowledges its units.

An acknowledgement is ``[kind, id, key]``, where the key is that of the content.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import apsw
from kill_kit import Killer, die, text_of

# Before any life is forked: what opening a new file needs.
import mandrake_sessions.database.connection.dialect
import mandrake_sessions.database.migrations.revisions  # noqa: F401
from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    MandrakeManager,
    NewTurn,
    PoolOptions,
    SessionManager,
    install_shutdown_hook,
)
from mandrake_sessions.aio import AsyncSessionManager
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.paths import identify
from mandrake_sessions.database.migrations import migrate
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.testing import acknowledge, phase

__import__("alembic.op")
__import__("alembic.script")
__import__("alembic.runtime.environment")

BLOCK = 5


class Plan(TypedDict):
    """One life: its file, the id of its session, and at which operation it kills itself."""

    path: str
    session: str
    at: int
    manner: str


class Stage:
    """The pool, the session and the killer of a life."""

    def __init__(self, plan: Plan, *, only_changes_of: str = "", **options: Any) -> None:
        self.path = Path(plan["path"])
        self.session = plan["session"]
        self.killer = Killer(self.path.parent, plan["at"], plan["manner"], only_changes_of)
        database = DatabaseOptions(
            vfs="killing", durability=Durability.FAST, busy_timeout=60.0, **options
        )
        self.pool = ConnectionPool(PoolOptions(database=database, linger=0.0))
        self.sessions = SessionManager(self.path, pool=self.pool)
        self.fatal = ""

    def open(self) -> None:
        """Open the file, and make the session of this life."""
        self.sessions.init()
        self.sessions.create_session(self.session, id=self.session)
        acknowledge(["session", self.session, self.session])

    def begin(self, name: str) -> None:
        """Begin the phase in which it is killed."""
        self.fatal = name
        phase(name)
        self.killer.arm()

    def end(self) -> None:
        """End that phase, and acknowledge how many operations it had."""
        acknowledge(["operations", self.fatal, self.killer.disarm()])
        phase("after")

    def over(self) -> NoReturn:
        """Wait to be killed from outside."""
        if self.killer.is_armed:
            self.end()
        phase("over")
        while True:
            threading.Event().wait(60)

    def add(self, name: str, count: int) -> None:
        """Add some rounds."""
        for number in range(count):
            record(self.sessions, self.session, f"{self.session}.{name}.{number}")

    def add_open_round(self) -> str:
        """Add a round that is not answered, and return its response's id."""
        made = self.sessions.create_round(self.session, text_of("open"))
        acknowledge(["round", made.id, "open"])
        return made.response.id


# -- units --------------------------------------------------------------------------------------


def record(sessions: SessionManager, session: str, key: str) -> None:
    """One unit: a round with two turns."""
    key = f"recorded/{key}"
    turns = [NewTurn(content=text_of(f"{key}.{number}")) for number in range(2)]
    made = sessions.record_round(session, text_of(key), turns=turns)
    acknowledge(["recorded", made.id, key])


def step(sessions: SessionManager, session: str, key: str) -> None:
    """Three units: a round, a turn of it, and the end of that."""
    key = f"stepped/{key}"
    made = sessions.create_round(session, text_of(key))
    acknowledge(["round", made.id, key])
    turn = sessions.create_turn(made.response.id)
    acknowledge(["turn", made.id, key])
    sessions.update_turn(turn.id, content=text_of(f"{key}.0"), status="completed")
    acknowledge(["stepped", made.id, key])


def block(sessions: SessionManager, session: str, key: str) -> None:
    """One transaction of five rounds, each with a turn."""
    with sessions.transaction() as tx:
        made = []
        for number in range(BLOCK):
            each = f"block/{key}/{number}"
            round_ = tx.create_round(session, text_of(each))
            tx.create_turn(round_.response.id, content=text_of(f"{each}.0"), status="completed")
            made.append((round_.id, each))
    for id, each in made:
        acknowledge(["block", id, each])


def stream(sessions: SessionManager, session: str, key: str) -> None:
    """A turn that is streamed and flushed now and then."""
    key = f"streamed/{key}"
    made = sessions.create_round(session, text_of(key))
    acknowledge(["round", made.id, key])
    text = text_of(f"{key}.0")
    with sessions.stream_turn(made.response.id) as turn:
        for start in range(0, len(text), 97):
            turn.write(text[start : start + 97])
            if start % 3 == 0:
                turn.flush()
                acknowledge(["flushed", made.id, [key, start + 97]])
    acknowledge(["streamed", made.id, key])


UNITS = (record, step, block, stream)


def write_without_end(stage: Stage, units: tuple[Any, ...], threads: int = 1) -> None:
    """Add units in several threads, until the end comes from outside."""

    def work(number: int) -> None:
        try:
            for turn in range(10**9):
                unit = units[turn % len(units)]
                unit(stage.sessions, stage.session, f"{stage.session}.{number}.{turn}")
        except BaseException:
            # A writer that fails is a failure of the test, not one thread less.
            traceback.print_exc()
            os._exit(3)
            raise

    others = [threading.Thread(target=work, args=(each,)) for each in range(1, threads)]
    for each in others:
        each.start()
    work(0)


# -- lives --------------------------------------------------------------------------------------


def opening(plan: Plan) -> None:
    """Open a file, which may be new, or left by a process that was killed."""
    stage = Stage(plan)
    # The first transaction in a new file is that of the migration.
    names = iter([] if stage.path.exists() else ["migrating", "opening"])

    def announce(connection: apsw.Connection) -> None:
        connection.exec_trace = trace

    def trace(_cursor: object, sql: str, _values: object) -> bool:
        if sql in {"BEGIN IMMEDIATE", "COMMIT"} and (name := next(names, None)):
            phase(name)
        return True

    apsw.connection_hooks.append(announce)
    stage.begin("opening")
    stage.sessions.init()
    stage.end()
    stage.open()
    stage.add("opened", 3)
    stage.over()


def upgrading(plan: Plan, scripts: str) -> None:
    """Bring a file from one revision to the next one, which rebuilds a table."""
    stage = Stage(plan)
    path = stage.path
    identity = identify(path)
    assert identity is not None
    connection = open_connection(path, identity, stage.pool.options.database, Budget(20.0))
    stage.begin("upgrading")
    migrate.upgrade(connection, Budget(20.0), scripts=Path(scripts))
    acknowledge(["upgraded", "next", ""])
    stage.over()


def writing_alone(plan: Plan) -> None:
    """One thread, each unit with a COMMIT of its own."""
    stage = Stage(plan)
    stage.open()
    stage.begin("writing")
    write_without_end(stage, (record, step))


def writing_together(plan: Plan) -> None:
    """Threads that share COMMITs, with every kind of unit."""
    stage = Stage(plan)
    stage.open()
    stage.begin("writing")
    write_without_end(stage, UNITS, threads=6)


def writing_blocks(plan: Plan) -> None:
    """``transaction()`` blocks among other writers."""
    stage = Stage(plan)
    stage.open()
    stage.begin("writing")
    write_without_end(stage, (block,), threads=2)


def streaming(plan: Plan) -> None:
    """Streams with flushes, several at once."""
    stage = Stage(plan, flush_interval=0.002)
    stage.open()
    stage.begin("streaming")
    write_without_end(stage, (stream,), threads=3)


def checkpointing(plan: Plan) -> None:
    """Writers with a checkpoint after every few pages; what kills is a write to the database."""
    stage = Stage(plan, only_changes_of=".sqlite", checkpoint_frames=8, wal_limit_bytes=65536)
    stage.open()
    stage.begin("checkpointing")
    write_without_end(stage, (record, step), threads=3)


def backing_up(plan: Plan) -> None:
    """Backups, one after the other, while threads write."""
    stage = Stage(plan)
    stage.open()
    stage.add("before", 10)
    thread = threading.Thread(
        target=write_without_end, args=(stage, (record,)), kwargs={"threads": 2}, daemon=True
    )
    thread.start()
    stage.begin("backing up")
    target = stage.path.with_name(f"{stage.session}.backup")
    stage.sessions.backup(target)
    acknowledge(["backup", target.name, ""])
    stage.over()


def closing(plan: Plan) -> None:
    """Close a pool: streams ended, the last checkpoint, the log removed."""
    stage = Stage(plan)
    stage.open()
    stage.add("before", 20)
    turn = stage.sessions.stream_turn(stage.add_open_round())
    turn.write(text_of("open.0"))
    stage.begin("closing")
    stage.pool.close()
    acknowledge(["closed", stage.session, ""])
    stage.over()


def shutting_down(plan: Plan) -> None:
    """The shutdown hook, while a thread writes."""
    # After the shutdown the signal does nothing, so that there is a process left to kill.
    signal.signal(signal.SIGTERM, lambda *_: None)
    stage = Stage(plan)
    stage.open()
    stage.add("before", 5)
    hook = install_shutdown_hook(stage.sessions, pool=stage.pool)
    thread = threading.Thread(target=until_refused, args=(stage,))
    thread.start()
    stage.begin("shutting down")
    signal.raise_signal(signal.SIGTERM)
    hook.wait(20.0)
    thread.join()
    stage.over()


def until_refused(stage: Stage) -> None:
    """Write until the library is closed."""
    from mandrake_sessions import HandleReleasedError, NotInitializedError, PoolClosedError

    try:
        for number in range(10**9):
            record(stage.sessions, stage.session, f"{stage.session}.last.{number}")
    except (HandleReleasedError, NotInitializedError, PoolClosedError):
        return


def deleting(plan: Plan) -> None:
    """Remove a database."""
    stage = Stage(plan)
    stage.open()
    stage.add("before", 10)
    stage.sessions.create_turn(stage.add_open_round())
    stage.begin("deleting")
    stage.sessions.delete()
    acknowledge(["deleted", stage.session, ""])
    stage.over()


def among_others(plan: Plan) -> None:
    """A process of several on the same file."""
    stage = Stage(plan, checkpoint_frames=50)
    stage.begin("among others")
    stage.open()
    write_without_end(stage, UNITS, threads=2)


def writing_in_tasks(plan: Plan) -> None:
    """Tasks of an event loop, which share a worker."""
    stage = Stage(plan)
    stage.open()
    sessions = AsyncSessionManager(stage.path, pool=stage.pool)

    async def work(number: int) -> None:
        for turn in range(10**9):
            key = f"recorded/{stage.session}.{number}.{turn}"
            turns = [NewTurn(content=text_of(f"{key}.{each}")) for each in range(2)]
            made = await sessions.record_round(stage.session, text_of(key), turns=turns)
            acknowledge(["recorded", made.id, key])

    async def work_together() -> None:
        async with sessions:
            stage.begin("writing")
            await asyncio.gather(*(work(number) for number in range(8)))

    asyncio.run(work_together())


def making_workspaces(plan: Plan) -> None:
    """Make workspaces, and delete every other one."""
    stage = Stage(plan)
    host = MandrakeManager(stage.path.parent, pool=stage.pool).init()
    stage.begin("workspaces")
    for number in range(4):
        name = f"{stage.session}-{number}"
        work = host.create_workspace(name)
        assert work.id is not None
        acknowledge(["made", work.id, name])
        work.sessions.create_session(id=name)
        acknowledge(["filled", work.id, name])
        if number % 2:
            acknowledge(["leaving", work.id, name])
            host.delete_workspace(work.id)
            acknowledge(["left", work.id, name])
    stage.over()


def acknowledging_too_early(plan: Plan) -> None:
    """What the library must never do: it is not committed yet."""
    stage = Stage(plan)
    stage.open()
    with stage.sessions.transaction() as tx:
        key = f"stepped/{stage.session}"
        acknowledge(["round", tx.create_round(stage.session, text_of(key)).id, key])
        die()


def storing_by_halves(plan: Plan) -> None:
    """What the library must never do: some of a block's rounds without the others."""
    stage = Stage(plan)
    stage.open()
    for number in range(BLOCK - 1):
        key = f"block/{stage.session}/{number}"
        turn = NewTurn(content=text_of(f"{key}.0"))
        stage.sessions.record_round(stage.session, text_of(key), turns=[turn])
    die()
