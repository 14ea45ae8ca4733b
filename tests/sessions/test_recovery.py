"""Text of a turn that streams is seen whole, and a turn whose owner is gone ends with it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from sqlalchemy import insert, select, update

from mandrake_sessions import (
    ConnectionPool,
    NewTurn,
    Response,
    SessionManager,
    ToolCall,
    Turn,
    TurnFinishedError,
    TurnStatus,
    schema,
)
from mandrake_sessions.database.files import owner
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.errors import TurnBeingWrittenError, TurnInterruptedError
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.patrol import patrol
from mandrake_sessions.records import sql
from mandrake_sessions.records.recovery import interrupt_turns_of, streaming_owners
from mandrake_sessions.records.transfer import insert_exchange, insert_session

PIECES = ["one, ", "", "two\0, ", "\N{SNOWMAN}", "three" * 2000]
TEXT = "".join(PIECES)
RAW = "".join(f"<{piece}>" for piece in PIECES)
STRANGE = ["", "../../../etc/passwd", "not a uuid", "nul\0", "\N{SNOWMAN}" * 300]

HOST = """
from sqlalchemy import insert
from mandrake_sessions import *
from mandrake_sessions import schema
manager = SessionManager(sys.argv[1]).init()
response, pieces = receive()
turn = manager.create_turn(
    response, content="begun: ",
    tool_calls=[ToolCall({"name": "ls"}), ToolCall({"name": "pwd"}, "/")],
)
with manager.handle.sqlalchemy() as connection:
    for seq, piece in enumerate(pieces):
        connection.execute(insert(schema.turn_chunks).values(
            turn_id=turn.id, seq=seq, content=piece, raw_response=f"<{piece}>"))
send([turn.id, manager.handle.file.owner])
receive()
"""


@pytest.fixture
def sessions(ready_path: Path, pool: ConnectionPool) -> Iterator[SessionManager]:
    """These tests concern code below the faces: one face is enough."""
    with SessionManager(ready_path, pool=pool) as manager:
        # Only the tests end turns here.
        patrol.remove(Hub.of(file_handle(manager.handle).file))
        yield manager
    owner._at_exit()


def chunk(sessions: SessionManager, turn_id: str, pieces: list[str]) -> None:
    """Store text of a turn as its writer does."""
    with sessions.handle.sqlalchemy() as connection:
        # Not in the order of writing: the number says what that is.
        for seq, piece in reversed([*enumerate(pieces)]):
            connection.execute(
                insert(schema.turn_chunks).values(
                    turn_id=turn_id, seq=seq, content=piece, raw_response=f"<{piece}>"
                )
            )


def streamed(sessions: SessionManager, response: Response, **fields: Any) -> Turn:
    """Return a turn that a writer is writing."""
    turn = sessions.create_turn(response.id, **fields)
    chunk(sessions, turn.id, PIECES)
    return turn


def column(sessions: SessionManager, name: str, turn_id: str) -> Any:
    with sessions.handle.sqlalchemy(read_only=True) as connection:
        found = select(schema.turns.c[name]).where(schema.turns.c.id == turn_id)
        return connection.execute(found).scalar_one()


def rows(sessions: SessionManager, table: str) -> list[Any]:
    with sessions.handle.sqlalchemy(read_only=True) as connection:
        return list(connection.execute(select(schema.metadata.tables[table])))


def set_owner(sessions: SessionManager, turn_id: str, name: str | None) -> None:
    with sessions.handle.sqlalchemy() as connection:
        connection.execute(
            update(schema.turns).where(schema.turns.c.id == turn_id).values(owner=name)
        )


def owners(sessions: SessionManager) -> set[str | None]:
    return set(file_handle(sessions.handle).fetch(streaming_owners()))


def recover(sessions: SessionManager) -> list[Turn]:
    """End the turns of owners that are gone, as an opening does."""
    path = sessions.handle.path
    gone = [name for name in owners(sessions) if name is None or not owner.is_alive(path, name)]
    return file_handle(sessions.handle).transact(interrupt_turns_of(gone))


# -- what readers see --------------------------------------------------------------------------


def test_every_reader_sees_the_text_of_a_turn_that_streams(
    sessions: SessionManager, response: Response
) -> None:
    turn = streamed(sessions, response, content="begun: ", raw_response="raw: ")
    session_id = sessions.get_round(response.round_id).session_id
    found = [
        sessions.get_turn(turn.id),
        sessions.get_latest_turn(response.id),
        *sessions.list_turns(response.id),
        *sessions.render_session_history(session_id).rounds[0].turns,
        *sessions.render_session_history(session_id, last=1).rounds[0].turns,
        *next(iter(sessions.iter_session_history(session_id))).turns,
        sessions.update_turn(turn.id, input_tokens=5),
        sessions.update_turn(turn.id, status="streaming"),
    ]
    assert {(each.content, each.raw_response) for each in found} == {
        (f"begun: {TEXT}", f"raw: {RAW}")
    }
    # And the row itself is not rewritten.
    assert column(sessions, "content", turn.id) == "begun: "


def test_turns_next_to_a_streaming_turn_keep_their_own_text(
    sessions: SessionManager, response: Response
) -> None:
    first = sessions.create_turn(response.id, content="first", status="completed")
    second = streamed(sessions, response)
    third = sessions.create_turn(response.id, content="third")
    turns = sessions.list_turns(response.id)
    assert [each.id for each in turns] == [first.id, second.id, third.id]
    assert [each.content for each in turns] == ["first", TEXT, "third"]


def test_a_streamed_turn_is_copied_with_its_whole_text(
    sessions: SessionManager, response: Response, tmp_path: Path, pool: ConnectionPool
) -> None:
    streamed(sessions, response)
    session_id = sessions.get_round(response.round_id).session_id
    history = sessions.render_session_history(session_id)
    with SessionManager(tmp_path / "copy" / "db.sqlite", pool=pool) as copy:
        file_handle(copy.handle).transact(insert_session(history.session))
        file_handle(copy.handle).transact(insert_exchange(history.rounds[0]))
        assert copy.render_session_history(session_id).rounds == history.rounds
        assert rows(copy, "turn_chunks") == []
        # No process streams into the copy.
        assert owners(copy) == {None}


def test_a_backup_is_recovered_by_itself(
    sessions: SessionManager, response: Response, tmp_path: Path, pool: ConnectionPool
) -> None:
    turn = streamed(sessions, response)
    target = sessions.backup(tmp_path / "backup.sqlite")
    with SessionManager(target, pool=pool) as copy:
        recover(copy)
        assert copy.get_turn(turn.id).status is TurnStatus.INTERRUPTED
        assert copy.get_turn(turn.id).content == TEXT
    assert recover(sessions) == []


# -- owners and changes ------------------------------------------------------------------------


def test_a_turn_that_streams_has_an_owner_until_it_ends(
    sessions: SessionManager, response: Response
) -> None:
    done = sessions.create_turn(response.id, status="completed")
    turn = sessions.create_turn(response.id)
    assert column(sessions, "owner", done.id) is None
    assert column(sessions, "owner", turn.id) == file_handle(sessions.handle).file.owner is not None
    sessions.update_turn(turn.id, content="some text", input_tokens=5)
    assert column(sessions, "owner", turn.id) is not None
    sessions.update_turn(turn.id, status="completed")
    assert column(sessions, "owner", turn.id) is None
    assert owners(sessions) == set()


@pytest.mark.parametrize("name", ["content", "raw_response"])
def test_the_text_that_a_writer_writes_is_not_changed_by_others(
    sessions: SessionManager, response: Response, dump: Callable[..., Any], name: str
) -> None:
    mine: dict[str, Any] = {name: "mine"}
    states: list[dict[str, Any]] = [{}, {"status": "completed"}, {"status": "streaming"}]
    turn = sessions.create_turn(response.id)
    # A writer that has not been given any text yet.
    chunk(sessions, turn.id, [""])
    before = dump(sessions.path)
    for status in states:
        with pytest.raises(TurnBeingWrittenError):
            sessions.update_turn(turn.id, **mine, **status)
    assert dump(sessions.path) == before
    sessions.update_turn(turn.id, status="completed")
    assert getattr(sessions.update_turn(turn.id, **mine), name) == "mine"
    with pytest.raises(TurnFinishedError):
        sessions.update_turn(turn.id, **mine, status="error")


@pytest.mark.parametrize("status", ["completed", "error", "interrupted"])
def test_an_end_takes_the_chunks_into_the_turn(
    sessions: SessionManager, response: Response, status: str
) -> None:
    turn = streamed(sessions, response, content="begun: ")
    other = streamed(sessions, response)
    changes = len(rows(sessions, "changes"))
    ended = sessions.update_turn(turn.id, status=status, output_tokens=7)
    assert (ended.content, ended.raw_response) == (f"begun: {TEXT}", RAW)
    assert (ended.status, ended.output_tokens, ended.revision) == (status, 7, 1)
    assert sessions.get_turn(turn.id) == ended
    assert column(sessions, "content", turn.id) == f"begun: {TEXT}"
    assert {each.turn_id for each in rows(sessions, "turn_chunks")} == {other.id}
    assert len(rows(sessions, "changes")) == changes + 1
    assert sessions.get_turn(other.id).content == TEXT
    # Finished again, it stays as it is.
    assert sessions.update_turn(turn.id, status=status).content == f"begun: {TEXT}"


def test_an_end_with_its_text_needs_no_chunks(sessions: SessionManager, response: Response) -> None:
    turn = sessions.create_turn(response.id, content="begun", raw_response="raw")
    ended = sessions.update_turn(turn.id, status="completed", content="whole")
    assert (ended.content, ended.raw_response) == ("whole", "raw")


def test_a_clock_that_went_back_lets_no_turn_end_before_it_began(
    sessions: SessionManager, response: Response
) -> None:
    began = sessions.get_round(response.round_id).created_at
    later = began.replace(year=began.year + 1)
    turn = sessions.create_turn(response.id, started_at=later)
    assert sessions.update_turn(turn.id, status="completed").stream_ended_at == later
    turn = sessions.create_turn(response.id, started_at=later)
    set_owner(sessions, turn.id, None)
    assert [each.stream_ended_at for each in recover(sessions)] == [later]


def test_deleting_leaves_no_chunk(sessions: SessionManager, response: Response) -> None:
    turn = streamed(sessions, response)
    streamed(sessions, response)
    sessions.delete_turn(turn.id)
    assert len(rows(sessions, "turn_chunks")) == len(PIECES)
    sessions.delete_round(response.round_id)
    assert rows(sessions, "turn_chunks") == []


# -- recovery ----------------------------------------------------------------------------------


def test_the_turns_of_a_host_that_was_killed_end_with_what_was_stored(
    sessions: SessionManager, response: Response, start_child: Callable[..., Any]
) -> None:
    hosts = [start_child(HOST, sessions.path) for _ in range(2)]
    for host in hosts:
        host.send([response.id, PIECES])
    (dead_turn, dead), (living_turn, living) = [host.receive() for host in hosts]
    own = streamed(sessions, response)
    assert owners(sessions) == {dead, living, file_handle(sessions.handle).file.owner}
    assert recover(sessions) == []
    hosts[0].process.send_signal(signal.SIGKILL)
    hosts[0].process.wait()
    before = sessions.get_turn(dead_turn)
    changes = len(rows(sessions, "changes"))
    (turn,) = recover(sessions)
    assert turn == sessions.get_turn(dead_turn)
    assert turn.status is TurnStatus.INTERRUPTED
    assert (turn.content, turn.raw_response) == (f"begun: {TEXT}", RAW)
    assert turn.content == before.content
    assert turn.revision == before.revision + 1
    assert turn.stream_ended_us == turn.updated_us >= turn.stream_started_us
    assert turn.tool_calls == (
        ToolCall({"name": "ls"}, is_interrupted=True),
        ToolCall({"name": "pwd"}, "/"),
    )
    assert column(sessions, "owner", dead_turn) is None
    assert {each.turn_id for each in rows(sessions, "turn_chunks")} == {living_turn, own.id}
    assert [(each.id, each.op) for each in rows(sessions, "changes")[changes:]] == [
        (dead_turn, "update")
    ]
    session_id = sessions.get_round(response.round_id).session_id
    assert sessions.get_session(session_id).updated_us == turn.stream_ended_us
    for id in (living_turn, own.id):
        assert sessions.get_turn(id).status is TurnStatus.STREAMING
    assert recover(sessions) == []
    hosts[1].send()
    hosts[1].finish()
    # It ended without a word about its turn.
    assert [each.id for each in recover(sessions)] == [living_turn]


@pytest.mark.parametrize("name", [None, *STRANGE])
def test_a_streaming_turn_without_a_living_owner_is_ended(
    sessions: SessionManager, response: Response, name: str | None
) -> None:
    turn = streamed(sessions, response)
    own = streamed(sessions, response)
    set_owner(sessions, turn.id, name)
    assert owners(sessions) == {name, file_handle(sessions.handle).file.owner}
    assert [each.id for each in recover(sessions)] == [turn.id]
    assert sessions.get_turn(own.id).status is TurnStatus.STREAMING


def test_turns_are_ended_in_index_order_and_finished_ones_left_alone(
    sessions: SessionManager, response: Response
) -> None:
    done = sessions.create_turn(response.id, status="completed", content="done")
    turns = [streamed(sessions, response) for _ in range(5)]
    for turn in reversed(turns):
        set_owner(sessions, turn.id, None)
    assert [each.index for each in recover(sessions)] == [1, 2, 3, 4, 5]
    assert sessions.get_turn(done.id) == done


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([], ()),
        ([ToolCall("x", False)], (ToolCall("x", False),)),
        ([ToolCall("x", "done")], (ToolCall("x", "done"),)),
        ([ToolCall("x")], (ToolCall("x", is_interrupted=True),)),
        ([ToolCall(raw="unreadable")], (ToolCall(raw="unreadable"),)),
    ],
)
def test_a_tool_call_without_a_result_is_marked(
    sessions: SessionManager,
    response: Response,
    calls: list[ToolCall],
    expected: tuple[ToolCall, ...],
) -> None:
    turn = sessions.create_turn(response.id, tool_calls=calls)
    set_owner(sessions, turn.id, None)
    (ended,) = recover(sessions)
    assert ended.tool_calls == expected
    assert sessions.get_turn(turn.id).tool_calls == expected


def test_a_tool_that_gave_none_has_answered(sessions: SessionManager, response: Response) -> None:
    writer = sessions.stream_turn(response.id)
    writer.tool_call("gave none").set_result(None)
    writer.tool_call("pending")
    writer.flush()
    expected = ToolCall("gave none"), ToolCall("pending", is_interrupted=True)
    (ended,) = file_handle(sessions.handle).transact(interrupt_turns_of((), [writer.id]))
    assert ended.tool_calls == expected
    with pytest.raises(TurnInterruptedError):
        writer.complete()
    assert sessions.get_turn(writer.id).tool_calls == expected


@pytest.mark.parametrize("stored", ['{"call":1.50}', '[{"call":1.50}]'])
def test_a_mark_leaves_everything_else_of_a_stored_call_as_it_is(
    sessions: SessionManager, response: Response, stored: str
) -> None:
    turn = sessions.create_turn(response.id)
    with sessions.handle.sqlalchemy() as connection:
        connection.execute(update(schema.turns).values(tool_calls=stored))
    sessions.update_turn(turn.id, status="interrupted")
    assert column(sessions, "tool_calls", turn.id) == '[{"call":1.50,"is_interrupted":true}]'


def test_tool_calls_that_cannot_be_read_are_kept_as_they_are(
    sessions: SessionManager, response: Response
) -> None:
    turn = sessions.create_turn(response.id)
    with sessions.handle.sqlalchemy() as connection:
        connection.execute(update(schema.turns).values(tool_calls="not json", owner=None))
    (ended,) = recover(sessions)
    assert ended.tool_calls == (ToolCall(raw="not json"),)
    assert column(sessions, "tool_calls", turn.id) == "not json"


def test_the_mark_is_stored_only_where_it_says_something(
    sessions: SessionManager, response: Response
) -> None:
    calls = [{"call": "a", "is_interrupted": False}, {"call": "b", "is_interrupted": True}]
    turn = sessions.create_turn(response.id, tool_calls=calls)
    assert [each.is_interrupted for each in turn.tool_calls] == [False, True]
    assert sessions.get_turn(turn.id).tool_calls == turn.tool_calls
    assert column(sessions, "tool_calls", turn.id) == (
        '[{"call":"a"},{"call":"b","is_interrupted":true}]'
    )


def test_looking_for_owners_reads_only_the_turns_that_stream(
    sessions: SessionManager, response: Response
) -> None:
    session_id = sessions.get_round(response.round_id).session_id
    for _ in range(20):
        sessions.record_round(session_id, "asked", [NewTurn(content="answered")])
    sessions.create_turn(response.id)
    connection = apsw.Connection(str(sessions.path), flags=apsw.SQLITE_OPEN_READONLY)
    plans = [
        connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", values).fetchall()
        for statement, values in ((sql.STREAMING_OWNERS, ()), (sql.ABANDONED_TURNS, ("[null]",)))
    ]
    connection.close()
    for plan in plans:
        assert any("ix_turns_streaming" in str(row[-1]) for row in plan)


def test_a_database_without_a_host_is_recovered_after_a_crash_of_the_file_too(
    path: Path, pool: ConnectionPool
) -> None:
    """The owner's file may be gone before anybody looks: no file, no owner."""
    with SessionManager(path, pool=pool) as manager:
        response = manager.create_round(manager.create_session("A talk").id, "Hello?").response
        turn = streamed(manager, response)
    owner._at_exit()
    assert list(path.parent.glob("*-owner-*")) == []
    with SessionManager(path, pool=pool) as manager:
        recover(manager)
        assert manager.get_turn(turn.id).status is TurnStatus.INTERRUPTED
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT count(*) FROM turn_chunks").fetchall() == [(0,)]
    connection.close()
