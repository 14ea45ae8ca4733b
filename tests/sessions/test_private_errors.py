"""What users wrote is in no error and in no log: errors end in reports that others read."""

import math
from typing import Any

import pytest
import structlog.testing
from sqlalchemy import text

from mandrake_sessions import MandrakeManager, MandrakeSessionsError, NewTurn, ToolCall

CANARY = "canary-7f3a"
LONE = f"{CANARY}\ud800"
TURN: dict[str, Any] = {
    "content": CANARY,
    "raw_response": CANARY,
    "error_message": CANARY,
    "model": CANARY,
    "tool_calls": [ToolCall({CANARY: CANARY}, CANARY)],
}


def chain(error):
    """An error and everything that hangs on it."""
    found, waiting = [], [error]
    while waiting:
        each = waiting.pop()
        if each is None or each in found:
            continue
        found.append(each)
        waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return found


def failing_calls(sessions):
    session = sessions.create_session(CANARY, CANARY, {CANARY: CANARY}, id="session")
    exchange = sessions.record_round(session.id, CANARY, [NewTurn(**TURN, id="turn")], id="round")
    response = exchange.response.id
    finished = {**TURN, "status": "error"}
    texts = {"title": CANARY, "description": CANARY}

    def sql(statement):
        with sessions.handle.sqlalchemy() as connection:
            connection.execute(text(statement), {"value": CANARY})

    def in_transaction():
        with sessions.transaction() as tx:
            tx.create_session(CANARY)
            tx.create_round("missing", CANARY)

    return {
        "title": lambda: sessions.create_session(LONE),
        "description": lambda: sessions.create_session(None, LONE),
        "metadata value": lambda: sessions.create_session(metadata={"a": LONE}),
        "metadata key": lambda: sessions.create_session(metadata={LONE: 1}),
        "metadata NaN": lambda: sessions.create_session(metadata={CANARY: math.nan}),
        "metadata set": lambda: sessions.create_session(metadata={CANARY: {CANARY}}),
        "metadata text": lambda: sessions.create_session(metadata=CANARY),
        "metadata key type": lambda: sessions.create_session(metadata={CANARY.encode(): 1}),
        "duplicate session": lambda: sessions.create_session(**texts, id="session"),
        "unknown session": lambda: sessions.update_session("missing", **texts),
        "stale session": lambda: sessions.update_session("session", **texts, expected_revision=9),
        "content": lambda: sessions.create_round("session", LONE),
        "content type": lambda: sessions.create_round("session", CANARY.encode()),
        "round of a missing session": lambda: sessions.create_round("missing", CANARY),
        "duplicate round": lambda: sessions.create_round("session", CANARY, id="round"),
        "stale round": lambda: sessions.create_round("session", CANARY, expected_index=9),
        "request": lambda: sessions.update_request("missing", content=CANARY),
        "request text": lambda: sessions.update_request(exchange.request.id, content=LONE),
        "duplicate turn": lambda: sessions.create_turn(response, **TURN, id="turn"),
        "duplicate index": lambda: sessions.create_turn(response, **TURN, index=0),
        "turn of a missing response": lambda: sessions.create_turn("missing", **TURN),
        "turn status": lambda: sessions.create_turn(response, **TURN | {"status": CANARY}),
        "turn count": lambda: sessions.create_turn(response, **TURN, input_tokens=CANARY),
        "turn cost": lambda: sessions.create_turn(response, **TURN, input_cost=CANARY),
        "turn time": lambda: sessions.create_turn(response, **TURN, started_at=CANARY),
        "tool calls": lambda: sessions.create_turn(response, tool_calls=[{CANARY: CANARY}]),
        "tool call text": lambda: sessions.create_turn(response, tool_calls=[{"call": LONE}]),
        "tool call raw": lambda: sessions.create_turn(response, tool_calls=[ToolCall(raw=LONE)]),
        "finished turn": lambda: sessions.update_turn("turn", **finished),
        "stale turn": lambda: sessions.update_turn("turn", **TURN, expected_revision=9),
        "recorded turn": lambda: sessions.record_round(
            "session", CANARY, [NewTurn(**TURN), NewTurn(**TURN, id="turn")]
        ),
        "recorded text": lambda: sessions.record_round("session", CANARY, [CANARY]),
        "limit": lambda: sessions.list_sessions(limit=CANARY),
        "after": lambda: sessions.list_sessions(after=CANARY),
        "transaction": in_transaction,
        "check of a statement": lambda: sql("UPDATE turns SET status = :value"),
        "unique of a statement": lambda: sql(
            "INSERT INTO sessions (id, title, description, metadata, next_round_index, revision,"
            " created_at, updated_at) SELECT id, :value, :value, '{}', 0, 0, 1, 1 FROM sessions"
        ),
        "type of a statement": lambda: sql("UPDATE turns SET created_at = :value"),
        "foreign key of a statement": lambda: sql("UPDATE rounds SET session_id = :value"),
    }


def test_no_error_and_no_event_carries_a_users_text(sessions):
    calls = failing_calls(sessions)
    found = {}
    with structlog.testing.capture_logs() as events:
        for name, call in calls.items():
            with pytest.raises(Exception, match=r".") as caught:
                call()
            texts = [
                part
                for error in chain(caught.value)
                for part in (str(error), repr(error), *map(str, getattr(error, "__notes__", ())))
            ]
            # The errors of a user's own SQLAlchemy statements hold what SQLAlchemy puts there.
            if isinstance(caught.value, MandrakeSessionsError):
                texts.append(repr(vars(caught.value)))
            if any(CANARY in each for each in texts):
                found[name] = [each for each in texts if CANARY in each]

    assert found == {}
    assert CANARY not in repr(events)


def test_no_warning_of_unreadable_rows_carries_them(sessions):
    session = sessions.create_session(id="session")
    sessions.record_round(session.id, "x", [NewTurn()])
    with sessions.handle.sqlalchemy() as connection:
        connection.execute(text("UPDATE sessions SET metadata = :value"), {"value": CANARY})
        connection.execute(text("UPDATE turns SET tool_calls = :value"), {"value": CANARY})

    with structlog.testing.capture_logs() as events:
        sessions.render_session_history(session.id)

    assert len(events) == 2
    assert CANARY not in repr(events)


def test_no_error_of_a_host_carries_a_description(tmp_path, pool):
    with MandrakeManager(tmp_path, pool=pool) as mandrake:
        mandrake.create_workspace("taken", CANARY)
        (tmp_path / "file").touch()
        calls = {
            "name": lambda: mandrake.create_workspace(f"no name {CANARY}"),
            "taken": lambda: mandrake.create_workspace("taken", CANARY),
            "description": lambda: mandrake.create_workspace("new", LONE),
            "folder": lambda: mandrake.create_workspace("new", CANARY, tmp_path / "file"),
            "adopt": lambda: mandrake.adopt_workspace("new", tmp_path / "nothing", CANARY),
        }
        with structlog.testing.capture_logs() as events:
            for call in calls.values():
                with pytest.raises(Exception, match=r".") as caught:
                    call()
                texts = [str(each) + repr(each) for each in chain(caught.value)]
                assert CANARY not in "".join(texts) + repr(vars(caught.value))

    assert CANARY not in repr(events)


def test_no_error_and_no_event_of_a_tool_call_carries_it(sessions):
    class Telling:
        def __repr__(self):
            raise ValueError(CANARY)

    session = sessions.create_session()
    response = sessions.create_round(session.id, "x").response
    wrong = [LONE, {CANARY: {CANARY}}, {LONE: 1}, [CANARY, math.nan], {1: CANARY}, Telling()]
    with structlog.testing.capture_logs() as events, sessions.stream_turn(response.id) as writer:
        for value in wrong:
            assert writer.tool_call("plain").set_result(value)
            assert writer.tool_call(value).changes
            for call in (writer.tool_call, writer.tool_call("plain").set_result):
                with pytest.raises(Exception, match=r".") as caught:
                    call(value, strict=True)
                assert CANARY not in "".join(str(each) + repr(each) for each in chain(caught.value))

    assert [event["event"] for event in events].count("value_changed") == 2 * len(wrong)
    assert CANARY not in repr(events)
