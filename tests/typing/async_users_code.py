"""What a user of the asyncio face would write, for strict mypy and pyright.

It is checked and not run. An expected error has a ``type: ignore`` with its code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any, assert_type

from mandrake_sessions import (
    ConnectionPool,
    DatabaseStats,
    Exchange,
    HealthLevel,
    HealthReport,
    NewTurn,
    Request,
    Response,
    Round,
    Session,
    SessionEvent,
    SessionHistory,
    SessionTransaction,
    SessionUsage,
    StreamingStatus,
    Subscription,
    Turn,
    TurnUpdate,
    Watch,
    Workspace,
)
from mandrake_sessions.aio import (
    AsyncMandrakeManager,
    AsyncSessionManager,
    AsyncTurnWriter,
    AsyncWorkspaceManager,
    CancelledCall,
    cancelled_call,
)


async def records(sessions: AsyncSessionManager) -> None:
    session = await sessions.create_session("title", metadata={"branch": "main"}, id="mine")
    assert_type(session, Session)
    assert_type(sessions.get_session(session.id), Coroutine[Any, Any, Session])  # type: ignore[unused-coroutine]
    assert_type(await sessions.find_session(session.id), Session | None)
    assert_type(await sessions.list_sessions(limit=10, after=session), list[Session])
    assert_type(await sessions.count_sessions(), int)
    assert_type(await sessions.update_session(session.id, title=None), Session)
    assert_type(await sessions.delete_session(session.id, missing_ok=True), bool)

    round_ = await sessions.create_round(session.id, "question", expected_index=0)
    assert_type(round_, Round)
    exchange = await sessions.record_round(session.id, "question", [NewTurn(content="answer")])
    assert_type(exchange, Exchange)
    assert_type(await sessions.list_rounds(session.id, after=3), list[Round])
    assert_type(await sessions.get_request(round_.request.id), Request)
    assert_type(await sessions.get_response(round_.response.id), Response)
    assert_type(await sessions.create_turn(round_.response.id, status="streaming"), Turn)
    assert_type(await sessions.list_turns(round_.response.id), list[Turn])
    assert_type(await sessions.get_streaming_status(round_.response.id), StreamingStatus)
    assert_type(await sessions.render_session_history(session.id, last=5), SessionHistory)
    assert_type(sessions.iter_session_history(session.id), AsyncGenerator[Exchange, None])
    async for each in sessions.iter_session_history(session.id, page_size=10):
        assert_type(each, Exchange)
    assert_type(await sessions.get_session_usage(session.id), SessionUsage)
    task = asyncio.create_task(sessions.count_sessions())
    assert_type(await task, int)


async def work(sessions: AsyncSessionManager) -> None:
    def append(tx: SessionTransaction) -> tuple[Session, Round]:
        session = tx.create_session()
        return session, tx.create_round(session.id, "x")

    assert_type(await sessions.transact(append), tuple[Session, Round])
    assert_type(await sessions.transact(lambda tx: tx.count_sessions(), timeout=1.5), int)
    assert_type(await sessions.health(), HealthReport)
    assert_type(await sessions.health(HealthLevel.FULL, timeout=60.0), HealthReport)
    assert_type(await sessions.stats(), DatabaseStats)
    assert_type(await sessions.backup(Path("copy.sqlite"), overwrite=True), Path)
    try:
        await sessions.create_session()
    except asyncio.CancelledError as error:
        call = cancelled_call(error)
        assert_type(call, CancelledCall | None)
        if call is not None:
            assert_type(call.is_committed, bool | None)
        raise


async def live(sessions: AsyncSessionManager) -> None:
    async with sessions.stream_turn("response", model="any", timeout=1.0) as turn:
        assert_type(turn, AsyncTurnWriter)
        turn.write("text")
        turn.tool_call({"name": "ls"}, strict=True).set_result(["bin"], strict=True)
        turn.set_usage(input_tokens=3)
        await turn.flush()
    assert_type(turn.turn, Turn)
    assert_type(await turn.complete(), Turn)
    assert_type(await sessions.recover_interrupted(), list[Turn])

    assert_type(sessions.watch_response("response"), Watch[TurnUpdate])
    assert_type(sessions.watch_session("session"), Watch[SessionEvent])
    async for update in sessions.watch_response("response", follow=True):
        assert_type(update, TurnUpdate)

    def plain(update: TurnUpdate) -> None: ...

    async def coroutine(update: TurnUpdate) -> None: ...

    def wrong(update: int) -> None: ...

    assert_type(await sessions.add_turn_update_listener("turn", plain), Subscription)
    assert_type(await sessions.track_streaming_turns("response", coroutine), Subscription)
    await sessions.track_streaming_turns("response", wrong)  # type: ignore[arg-type]


async def hosts(pool: ConnectionPool) -> None:
    async with AsyncMandrakeManager("~/.mandrake", pool=pool) as mandrake:
        assert_type(mandrake, AsyncMandrakeManager)
        workspace = await mandrake.create_workspace("my-project", path=Path("/tmp"))
        assert_type(workspace, AsyncWorkspaceManager)
        assert_type(workspace.sessions, AsyncSessionManager)
        assert_type(await mandrake.get_workspace("id"), AsyncWorkspaceManager)
        assert_type(await mandrake.find_workspace("my-project"), Workspace | None)
        assert_type(await mandrake.list_workspaces(), list[Workspace])
        assert_type(await mandrake.delete_workspace("id", timeout=1.0), Workspace)
        assert_type(await mandrake.sessions_for(None), AsyncSessionManager)
    assert_type(await AsyncSessionManager("db.sqlite").init(), AsyncSessionManager)


async def mistakes(sessions: AsyncSessionManager) -> None:
    """Each of these must be an error to the type checker."""
    sessions.create_session()  # type: ignore[unused-coroutine]
    _ = sessions.get_session("id").title  # type: ignore[attr-defined]
    await sessions.create_session(5)  # type: ignore[arg-type]
    await sessions.create_session(colour="red")  # type: ignore[call-arg]
    await sessions.create_round("id")  # type: ignore[call-arg]
    await sessions.transact(lambda: None)  # type: ignore[misc,arg-type]
    sessions.stream_turn("response", content="text")  # type: ignore[call-arg]
    with sessions.transaction():  # type: ignore[attr-defined]
        pass
