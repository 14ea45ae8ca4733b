"""A state machine: random conversations against a dict that says what must be there.

The same machine drives both faces. It closes and opens, takes the image a crash would leave, has
the disk fail, lets another process write and has the idle file parked.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import apsw
import hypothesis.strategies as st
import pytest
from async_face import AsyncFace
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from machine_kit import BLOCK, OPERATION, TEXT, Model, Told, Work

from mandrake_sessions import (
    CommitOutcomeUnknownError,
    ConnectionPool,
    DatabaseOptions,
    MandrakeSessionsError,
    PoolOptions,
    SessionManager,
)
from mandrake_sessions.testing import Fault, FaultVFS

# Mostly what a COMMIT asks of the disk: there the outcome is hardest to know.
FAULT = st.builds(
    Fault,
    operation=st.sampled_from(["write", "write", "write", "sync", "sync", "read", "truncate"]),
    nth=st.sampled_from([1, 1, 2, 3]),
    sticking=st.booleans(),
    written=st.sampled_from([0.0, 0.5]),
)

COPY = """
import shutil
for line in sys.stdin:
    path, image = json.loads(line)
    for name in ("", "-wal"):
        try:
            shutil.copyfile(path + name, image + name)
        except FileNotFoundError:
            pass
    send(image)
"""

WRITE = """
from mandrake_sessions import NewTurn, SessionManager
for line in sys.stdin:
    path, title = json.loads(line)
    with SessionManager(path) as sessions:
        session = sessions.create_session(title)
        round = sessions.record_round(session.id, title, [NewTurn(content=title)])
    send([session.id, round.id, round.request.id, round.response.id, round.turns[0].id])
"""


class UndoError(Exception):
    """What undoes a block."""


class Conversations(RuleBasedStateMachine):
    """Operations one by one, in transactions with savepoints, as streams, and what befalls them."""

    face: ClassVar[str]
    ready_database: ClassVar[Any]
    copier: ClassVar[Any]
    writer: ClassVar[Any]
    dump: ClassVar[Callable[[Path], Any]]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.ready_database.lay(Path(self.folder.name) / "db.sqlite")
        self.vfs = FaultVFS()
        self.numbers = itertools.count()
        # Text that was written to a stream is stored on request, and not before.
        options = DatabaseOptions(vfs=self.vfs.name, flush_interval=60.0)
        self.pool = ConnectionPool(PoolOptions(database=options, linger=0, max_open=1))
        self.stream: Any = None
        self.written = self.flushed = ""
        self.open()
        talk = self.manager.create_session("streams")
        self.talk = talk.id
        self.response = self.manager.create_round(talk.id, "").response.id

    def open(self) -> None:
        self.life = contextlib.ExitStack()
        make = SessionManager if self.face == "sync" else AsyncFace
        self.manager: Any = self.life.enter_context(make(self.path, pool=self.pool))

    def teardown(self) -> None:
        try:
            self.end_stream()
            self.compare()
            self.life.close()
            self.pool.close()
            raw = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            assert raw.execute("PRAGMA integrity_check").get == "ok"
            assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
            raw.close()
        finally:
            with contextlib.suppress(MandrakeSessionsError, ExceptionGroup):
                self.life.close()
                self.pool.close()
            self.vfs.unregister()
            self.folder.cleanup()

    # -- work -----------------------------------------------------------------------------------

    @rule(operation=OPERATION)
    def one_call(self, operation: Any) -> None:
        self.call(self.manager, operation)

    def call(self, store: Any, operation: Any) -> None:
        name, arguments = operation
        getattr(Work(self.model, store), name)(*arguments)

    @rule(block=BLOCK)
    def transaction(self, block: Any) -> None:
        if self.face == "async":
            self.transact(block)
            return
        operations, fails = block
        before = copy.deepcopy(self.model.sessions)
        with contextlib.suppress(UndoError), self.manager.transaction() as tx:
            self.run_operations(tx, operations)
            if fails:
                raise UndoError
        if fails:
            self.model.sessions = before

    @rule(block=BLOCK)
    def transact(self, block: Any) -> None:
        operations, fails = block
        before = copy.deepcopy(self.model.sessions)

        def work(tx: Any) -> None:
            # It may be called again.
            self.model.sessions = copy.deepcopy(before)
            self.run_operations(tx, operations)
            if fails:
                raise UndoError

        try:
            self.manager.transact(work)
        except UndoError:
            self.model.sessions = before
        except CommitOutcomeUnknownError:
            self.look_which(before, self.model.sessions)
        except BaseException:
            self.model.sessions = before
            raise

    def run_operations(self, tx: Any, operations: Any) -> None:
        for name, arguments in operations:
            if isinstance(name, str):
                self.call(tx, (name, arguments))
                continue
            before = copy.deepcopy(self.model.sessions)
            with contextlib.suppress(UndoError), tx.savepoint():
                self.run_operations(tx, name)
                if arguments:
                    raise UndoError
            if arguments:
                self.model.sessions = before

    # -- streams --------------------------------------------------------------------------------

    @rule(text=TEXT)
    def write_to_a_stream(self, text: str) -> None:
        if self.stream is None:
            self.stream = self.manager.stream_turn(self.response)
            self.written = self.flushed = ""
        self.stream.write(text)
        self.written += text

    @rule()
    def flush_the_stream(self) -> None:
        if self.stream is not None:
            self.stream.flush()
            self.flushed = self.written

    @rule()
    def end_stream(self) -> None:
        if self.stream is not None:
            stream, self.stream = self.stream, None
            turn = stream.complete()
            assert (turn.content, turn.status) == (self.written, "completed")
            assert self.manager.get_turn(turn.id) == turn

    # -- what befalls them ----------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.end_stream()
        self.life.close()
        assert self.pool.stats().databases == ()
        self.open()
        self.compare()

    @rule()
    def park(self) -> None:
        self.pool.acquire(self.path.with_name("other.sqlite")).release()

    @rule()
    def crash(self) -> None:
        """The files as they are this moment, opened by another process: everything is there."""
        image = self.path.with_name(f"image-{next(self.numbers)}.sqlite")
        self.copier.send([str(self.path), str(image)])
        assert self.copier.receive() == str(image)
        with ConnectionPool(PoolOptions(linger=0)) as pool, pool.acquire(image):
            assert type(self).dump(image) == type(self).dump(self.path)

    @rule(title=TEXT)
    def another_process_writes(self, title: str) -> None:
        self.writer.send([str(self.path), title])
        session, *ids = self.writer.receive()
        self.model.add_stored(session, title, ids)

    @rule(fault=FAULT, operation=OPERATION)
    def the_disk_fails_in_a_call(self, fault: Fault, operation: Any) -> None:
        before = copy.deepcopy(self.model.sessions)
        try:
            with self.vfs.injecting(fault):
                self.one_call(operation)
        except CommitOutcomeUnknownError as error:
            self.model.sessions = copy.deepcopy(before)
            self.call(Told(error.result), operation)
            self.look_which(before, self.model.sessions)
        except MandrakeSessionsError:
            self.model.sessions = before
        self.go_on()

    @rule(fault=FAULT, block=BLOCK)
    def the_disk_fails_in_a_transaction(self, fault: Fault, block: Any) -> None:
        with contextlib.suppress(MandrakeSessionsError), self.vfs.injecting(fault):
            self.transact(block)
        self.go_on()

    @rule(fault=FAULT, text=TEXT)
    def the_disk_fails_under_a_stream(self, fault: Fault, text: str) -> None:
        self.write_to_a_stream(text)
        with contextlib.suppress(MandrakeSessionsError), self.vfs.injecting(fault):
            self.stream.flush()
        self.go_on()
        if self.stream is not None:
            self.flush_the_stream()

    def go_on(self) -> None:
        """The disk works again: so does the database, opened anew if it was given up."""
        try:
            self.manager.count_sessions()
            self.manager.update_session(self.talk, title="streams")
        except MandrakeSessionsError:
            # A stream of a file that is not used any more has returned what was not stored.
            self.stream = None
            with contextlib.suppress(MandrakeSessionsError, ExceptionGroup):
                self.life.close()
            self.open()
        self.compare()

    def look_which(self, before: Any, after: Any) -> None:
        """Follow the stored rows after an unknown outcome: all of them, or none."""
        stored = self.stored()
        self.model.sessions = before if stored == Model.expected(before) else after
        assert stored == Model.expected(self.model.sessions)

    # -- comparing ------------------------------------------------------------------------------

    @invariant()
    def what_is_counted_is_what_must_be(self) -> None:
        assert self.manager.count_sessions() == len(self.model.sessions) + 1
        if self.stream is not None:
            turn = self.manager.get_turn(self.stream.id)
            assert (turn.status, turn.content) == ("streaming", self.flushed)

    def compare(self) -> None:
        assert self.stored() == Model.expected(self.model.sessions)

    def stored(self) -> dict[str, Any]:
        stored = {}
        for session in self.manager.list_sessions():
            if session.id != self.talk:
                history = self.manager.render_session_history(session.id)
                assert history.session == session
                stored[session.id] = Model.of(history)
        return stored


@pytest.fixture(params=["sync", "async"])
def machine(
    request: pytest.FixtureRequest,
    ready_database: Any,
    start_child: Callable[..., Any],
    dump: Callable[[Path], Any],
) -> type[Conversations]:
    """The machine of one face, with its other processes."""
    return type(
        f"{request.param.title()}Conversations",
        (Conversations,),
        {
            "face": request.param,
            "ready_database": ready_database,
            "copier": start_child(COPY),
            "writer": start_child(WRITE),
            "dump": staticmethod(dump),
        },
    )


@pytest.mark.timeout(3600)
def test_any_conversation_is_stored_as_the_model_predicts(
    machine: type[Conversations], campaign: Any
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=campaign.pick(5, 100, 3000),
            stateful_step_count=campaign.pick(20, 30, 50),
            # The same examples in every run, except where there is time to look further.
            derandomize=campaign.name != "full",
        ),
    )
