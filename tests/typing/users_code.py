"""What a user would write, for strict mypy and pyright: types of results, and errors.

It is checked and not run. An expected error has a ``type: ignore`` with its code; one that is not
raised any more is an error too, because ``warn_unused_ignores`` is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, assert_type

from mandrake_sessions import (
    UNSET,
    ConnectionPool,
    DatabaseHandle,
    DatabaseOptions,
    DatabaseStats,
    Durability,
    Exchange,
    HealthLevel,
    HealthReport,
    MandrakeManager,
    NewTurn,
    PoolOptions,
    PoolStats,
    Request,
    Response,
    Round,
    RoundUpdate,
    Session,
    SessionEvent,
    SessionHistory,
    SessionManager,
    SessionTransaction,
    SessionUpdate,
    SessionUsage,
    StreamingStatus,
    Subscription,
    ToolCall,
    Turn,
    TurnStatus,
    TurnUpdate,
    TurnWriter,
    ValueChange,
    Watch,
    Workspace,
    WorkspaceManager,
    default_pool,
)


def records(sessions: SessionManager) -> None:
    session = sessions.create_session("title", metadata={"branch": "main"}, id="mine")
    assert_type(session, Session)
    assert_type(session.metadata, dict[str, Any])
    assert_type(session.title, str | None)
    assert_type(session.created_at, datetime)
    assert_type(sessions.get_session(session.id), Session)
    assert_type(sessions.find_session(session.id), Session | None)
    assert_type(sessions.list_sessions(limit=10, offset=0, after=session), list[Session])
    assert_type(sessions.count_sessions(), int)
    assert_type(sessions.update_session(session.id, title=None, description=UNSET), Session)
    assert_type(sessions.delete_session(session.id, missing_ok=True), bool)

    round_ = sessions.create_round(session.id, "question", expected_index=0)
    assert_type(round_, Round)
    assert_type(round_.request, Request)
    assert_type(round_.response, Response)
    assert_type(round_.index, int)
    exchange = sessions.record_round(session.id, "question", [NewTurn(content="answer")])
    assert_type(exchange, Exchange)
    assert_type(exchange.turns, tuple[Turn, ...])
    assert_type(sessions.get_round(round_.id), Round)
    assert_type(sessions.get_round_by_response(round_.response.id), Round)
    assert_type(sessions.get_current_round(session.id), Round)
    assert_type(sessions.list_rounds(session.id, limit=None, after=3), list[Round])
    assert_type(sessions.delete_round(round_.id), bool)
    assert_type(sessions.get_request(round_.request.id), Request)
    assert_type(sessions.update_request(round_.request.id, content="better"), Request)
    assert_type(sessions.get_response(round_.response.id), Response)

    turn = sessions.create_turn(
        round_.response.id, status="streaming", tool_calls=[{"call": {}}, ToolCall()]
    )
    assert_type(turn, Turn)
    assert_type(turn.status, TurnStatus)
    assert_type(turn.tool_calls, tuple[ToolCall, ...])
    assert_type(turn.stream_ended_at, datetime | None)
    assert_type(sessions.get_turn(turn.id), Turn)
    assert_type(sessions.get_latest_turn(round_.response.id), Turn)
    assert_type(sessions.list_turns(round_.response.id), list[Turn])
    assert_type(sessions.update_turn(turn.id, status=TurnStatus.ERROR, model=None), Turn)
    assert_type(sessions.delete_turn(turn.id), bool)
    assert_type(sessions.get_streaming_status(round_.response.id), StreamingStatus)

    assert_type(sessions.render_session_history(session.id, last=5), SessionHistory)
    assert_type(sessions.render_session_history(session.id).rounds, tuple[Exchange, ...])
    assert_type(sessions.iter_session_history(session.id, page_size=10), Iterator[Exchange])
    assert_type(sessions.get_session_usage(session.id), SessionUsage)
    assert_type(sessions.get_session_usage(session.id).total_cost, float)


def work(sessions: SessionManager) -> None:
    def append(tx: SessionTransaction) -> tuple[Session, Round]:
        session = tx.create_session()
        assert_type(session, Session)
        return session, tx.create_round(session.id, "x")

    assert_type(sessions.transact(append), tuple[Session, Round])
    assert_type(sessions.transact(lambda tx: tx.count_sessions(), timeout=1.5), int)
    with sessions.transaction(timeout=1) as tx:
        assert_type(tx, SessionTransaction)
        assert_type(tx.render_session_history("id"), SessionHistory)
        with tx.savepoint() as nothing:
            assert_type(nothing, None)
    assert_type(sessions.health(), HealthReport)
    assert_type(sessions.health(HealthLevel.FULL, timeout=60.0), HealthReport)
    assert_type(sessions.stats(), DatabaseStats)
    assert_type(sessions.backup(Path("copy.sqlite"), overwrite=True), Path)
    assert_type(sessions.handle, DatabaseHandle)
    with sessions.handle.sqlalchemy(read_only=True) as connection:
        connection.exec_driver_sql("SELECT 1")


def hosts() -> None:
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=5)
    with (
        ConnectionPool(PoolOptions(database=options, linger=0)) as pool,
        MandrakeManager("~/.mandrake", pool=pool) as mandrake,
    ):
        assert_type(pool, ConnectionPool)
        assert_type(pool.stats(), PoolStats)
        assert_type(mandrake, MandrakeManager)
        workspace = mandrake.create_workspace("my-project", path=Path("/tmp"))
        assert_type(workspace, WorkspaceManager)
        assert_type(workspace.sessions, SessionManager)
        assert_type(workspace.workspace, Workspace | None)
        assert_type(mandrake.get_workspace("id"), WorkspaceManager)
        assert_type(mandrake.find_workspace("my-project"), Workspace | None)
        assert_type(mandrake.list_workspaces(), list[Workspace])
        assert_type(mandrake.adopt_workspace("other", "/tmp"), WorkspaceManager)
        assert_type(mandrake.unregister_workspace("id"), Workspace)
        assert_type(mandrake.delete_workspace("id", timeout=1.0), Workspace)
        assert_type(mandrake.sessions_for(None), SessionManager)
        assert_type(SessionManager("db.sqlite").init(), SessionManager)
    assert_type(default_pool(), ConnectionPool)


def mistakes(sessions: SessionManager, session: Session, turn: Turn) -> None:
    """Each of these must be an error to the type checker."""
    sessions.create_session(5)  # type: ignore[arg-type]
    sessions.create_session(metadata="text")  # type: ignore[arg-type]
    sessions.create_session("title", "about", {}, "id")  # type: ignore[call-arg]
    sessions.create_session(colour="red")  # type: ignore[call-arg]
    sessions.get_session()  # type: ignore[call-arg]
    sessions.get_session(session)  # type: ignore[arg-type]
    sessions.list_sessions(10)  # type: ignore[call-arg]
    sessions.list_sessions(after=session.id)  # type: ignore[arg-type]
    sessions.update_session(session.id, "title")  # type: ignore[call-arg]
    sessions.create_round(session.id)  # type: ignore[call-arg]
    sessions.create_round(session.id, b"bytes")  # type: ignore[arg-type]
    sessions.record_round(session.id, "x", [{"content": "x"}])  # type: ignore[list-item]
    sessions.create_turn("id", input_tokens="1")  # type: ignore[arg-type]
    sessions.update_turn(turn.id, content=None)  # type: ignore[arg-type]
    sessions.update_turn(turn.id, index=1)  # type: ignore[call-arg]
    sessions.transact(lambda: None)  # type: ignore[misc,arg-type]
    _ = sessions.find_session("id").title  # type: ignore[union-attr]
    with sessions.transaction() as tx:
        tx.transaction()  # type: ignore[attr-defined]
    session.title = "frozen"  # type: ignore[misc]
    _ = turn.stream_ended_at.year  # type: ignore[union-attr]
    DatabaseOptions(durability="fast")  # type: ignore[arg-type]
    DatabaseOptions(Durability.FAST)  # type: ignore[call-arg]
    MandrakeManager(5)  # type: ignore[arg-type]


def streaming(sessions: SessionManager) -> None:
    with sessions.stream_turn("response", model="any", expected_tokens=3) as turn:
        assert_type(turn, TurnWriter)
        assert_type(turn.id, str)
        turn.write("text")
        turn.write(7)  # type: ignore[arg-type]
        call = turn.tool_call({"name": "ls"})
        changed: tuple[ValueChange, ...] = call.set_result(["bin"])
        turn.tool_call({"name": "ls"}, strict=True).set_result({"bin"}, strict=False)
        assert not changed
        assert not call.changes
        turn.set_usage(input_tokens=3, output_cost=0.5)
        turn.flush(timeout=1.0)
    assert_type(turn.turn, Turn)
    assert_type(turn.complete(), Turn)
    assert_type(sessions.recover_interrupted(timeout=1.0), list[Turn])
    sessions.stream_turn("response", content="text")  # type: ignore[call-arg]


def watching(sessions: SessionManager) -> None:
    for update in sessions.watch_response("response", follow=True):
        assert_type(update, TurnUpdate)
        assert_type(update.turn, Turn)
        assert_type((update.text, update.offset), tuple[str, int])
        assert_type(update.is_in_flight, bool)
    with sessions.watch_session("session", last=3) as watch:
        assert_type(watch, Watch[SessionEvent])
        assert_type(watch.receive(timeout=1.0), TurnUpdate | RoundUpdate | SessionUpdate | None)
        for event in watch:
            match event:
                case RoundUpdate():
                    assert_type(event.round, Round | None)
                case SessionUpdate():
                    assert_type(event.session, Session | None)
                case TurnUpdate():
                    assert_type(event.is_deleted, bool)

    def listener(update: TurnUpdate) -> None: ...

    def wrong(update: int) -> None: ...

    assert_type(sessions.add_turn_update_listener("turn", listener), Subscription)
    sessions.track_streaming_turns("response", wrong)  # type: ignore[arg-type]
    with sessions.track_streaming_turns("response", listener) as subscription:
        subscription()


async def watching_in_a_loop(sessions: SessionManager) -> None:
    async for update in sessions.watch_response("response"):
        assert_type(update, TurnUpdate)
