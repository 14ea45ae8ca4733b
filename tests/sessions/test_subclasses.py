"""Objects of subclasses are taken as the values they are; what a listener raises harms no other.

Each test runs against both faces.
"""

from __future__ import annotations

import asyncio
import queue
from collections import Counter, OrderedDict, UserDict, defaultdict
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import structlog
from kits.waiting import PATIENCE
from structlog.testing import capture_logs

from mandrake_sessions import (
    DatabaseOptions,
    HealthLevel,
    InvalidArgumentError,
    MandrakeManager,
    NewTurn,
    PoolOptions,
    SessionManager,
    SessionNotFoundError,
    ToolCall,
    TurnNotFoundError,
)
from mandrake_sessions.aio import AsyncMandrakeManager

KEPT = {
    "__class__",
    "__dict__",
    "__doc__",
    "__getattribute__",
    "__init__",
    "__init_subclass__",
    "__module__",
    "__new__",
    "__repr__",
    "__subclasshook__",
    "__weakref__",
}


def odd(kind: type, *kept: str) -> Any:
    """Return a subclass none of whose methods may be called but those that are kept."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a method of the argument's own was called")

    refused = dict.fromkeys(set(dir(kind)) - KEPT - set(kept), refuse)
    return type(f"Odd{kind.__name__}", (kind,), refused)


S = odd(str)
# A dict asks its keys these two.
K = odd(str, "__eq__", "__hash__")
I = odd(int)  # noqa: E741  # short, as the values below are many
F = odd(float)
# Only a mapping itself can name its items.
D = odd(dict, "items")


def is_plain(value: object) -> bool:
    """Whether a value and everything in it is of the builtin types, or of the library's."""
    if isinstance(value, msgspec.Struct):
        return all(is_plain(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    return (
        type(value).__module__ in ("builtins", "datetime") or type(value).__name__ == "TurnStatus"
    )


def test_records_take_subclasses_as_their_values(sessions):
    metadata = D({K("a"): I(1), K("b"): [F(0.5), S("x"), I(-2)], K("c"): D(), K("d"): None})
    session = sessions.create_session(
        S("Title"), description=S("Text"), metadata=metadata, id=S("the session")
    )
    assert session.metadata == {"a": 1, "b": [0.5, "x", -2], "c": {}, "d": None}
    assert (session.id, session.title) == ("the session", "Title")
    id = S("the session")
    session = sessions.update_session(id, title=S("New"), expected_revision=I(0))
    assert session == sessions.get_session(id) == sessions.find_session(id)
    assert sessions.list_sessions(limit=I(5), offset=I(0)) == [session]

    round_ = sessions.create_round(id, S("Why?"), id=S("the round"), expected_index=I(0))
    assert round_ == sessions.get_round(S("the round"))
    call = D({K("call"): D({K("name"): S("ls")}), K("response"): I(0)})
    new = NewTurn(
        id=S("recorded"),
        content=S("Because."),
        input_tokens=I(3),
        input_cost=F(0.25),
        output_cost=I(2),
        model=S("any"),
        status=S("completed"),
        tool_calls=[call, ToolCall(S("pwd"), S("/"))],
    )
    exchange = sessions.record_round(id, S("And?"), turns=[new], expected_index=I(1))
    (recorded,) = exchange.turns
    assert recorded.tool_calls == (ToolCall({"name": "ls"}, 0), ToolCall("pwd", "/"))
    assert (recorded.output_cost, recorded.model) == (2.0, "any")
    assert sessions.list_rounds(id, limit=I(1), offset=I(1)) == sessions.list_rounds(id, after=I(0))

    response_id = S(round_.response.id)
    turn = sessions.create_turn(response_id, index=I(4), content=S("one"), id=S("the turn"))
    turn = sessions.update_turn(
        S("the turn"),
        content=S("two"),
        tool_calls=[call],
        status=S("error"),
        error_message=S("broken"),
        expected_revision=I(0),
    )
    assert turn == sessions.get_turn(S("the turn")) == sessions.get_latest_turn(response_id)
    assert sessions.list_turns(response_id, limit=I(9), offset=I(0)) == [turn]
    request = sessions.update_request(S(round_.request.id), content=S("Why not?"))
    assert sessions.get_request(S(request.id)) == request
    assert sessions.get_response(response_id).id == round_.response.id
    assert sessions.get_round_by_response(response_id).request == request
    assert sessions.get_current_round(id).index == 1
    history = sessions.render_session_history(id, last=I(2))
    assert list(sessions.iter_session_history(id, page_size=I(1))) == list(history.rounds)
    usage = sessions.get_session_usage(id)
    status = sessions.get_streaming_status(response_id)
    found = (session, round_, exchange, turn, request, history, usage, status)
    assert [value for value in found if not is_plain(value)] == []

    sessions.delete_turn(S("the turn"))
    sessions.delete_round(S("the round"), missing_ok=True)
    sessions.delete_session(id)
    with pytest.raises(SessionNotFoundError, match="'the session'") as raised:
        sessions.get_session(id)
    assert type(raised.value.id) is str
    with pytest.raises(TurnNotFoundError, match="'the turn'"):
        sessions.update_turn(S("the turn"), content=S("three"))


def test_a_stream_takes_subclasses_as_their_values(sessions, response):
    with sessions.stream_turn(
        S(response.id), id=S("streamed"), input_tokens=I(5), model=S("any"), timeout=F(20)
    ) as turn:
        turn.write(S("one "))
        turn.write(S("\N{SNOWMAN}"))
        turn.write_raw(S("raw"))
        turn.tool_call(D({K("name"): S("ls")})).set_result(S("done"))
        turn.set_usage(output_tokens=I(7), output_cost=F(0.5))
        turn.flush(timeout=I(20))
    ended = sessions.get_turn("streamed")
    assert (ended.content, ended.raw_response) == ("one \N{SNOWMAN}", "raw")
    assert ended.tool_calls == (ToolCall({"name": "ls"}, "done"),)
    assert (ended.input_tokens, ended.output_tokens, ended.output_cost) == (5, 7, 0.5)
    failed = sessions.stream_turn(S(response.id))
    assert failed.fail(S("no more"), timeout=F(20)).error_message == "no more"


def test_a_subscription_takes_subclasses_as_their_values_and_harms_no_other(sessions, response):
    turn = sessions.create_turn(response.id, id="watched")
    session_id = sessions.get_round(response.round_id).session_id
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    others = [
        sessions.watch_response(response.id, follow=True),
        sessions.watch_session(session_id, last=1),
    ]
    odd_ones = [
        sessions.watch_response(S(response.id), follow=True),
        sessions.watch_session(S(session_id), last=I(1)),
    ]
    sessions.track_streaming_turns(S(response.id), received.put, follow=True)
    # The turn as it is; where the update came first, it would be the only delivery.
    assert received.get(timeout=PATIENCE).turn.content == ""
    sessions.add_turn_update_listener(S(turn.id), received.put)
    sessions.update_turn(turn.id, content="text")
    for watch in (*others, *odd_ones):
        while getattr(watch.receive(timeout=F(PATIENCE)), "text", None) != "text":
            pass
    heard = [received.get(timeout=PATIENCE).turn.content for _ in range(2)]
    assert heard == ["text"] * 2
    for watch in (*others, *odd_ones):
        watch.close()


def test_usual_mappings_are_taken_as_their_values(sessions):
    ordered = OrderedDict(b=1, a=2)
    ordered.move_to_end("b")
    metadata = {
        "ordered": ordered,
        "default": defaultdict(list, x=[1]),
        "counter": Counter("aab"),
        "user": UserDict(y=2),
    }
    session = sessions.create_session(metadata=metadata)
    assert session.metadata == {
        "ordered": {"a": 2, "b": 1},
        "default": {"x": [1]},
        "counter": {"a": 2, "b": 1},
        "user": {"y": 2},
    }
    assert list(sessions.get_session(session.id).metadata["ordered"]) == ["a", "b"]


def test_an_object_that_only_claims_to_be_a_string_is_refused(sessions):
    with pytest.raises(InvalidArgumentError):
        sessions.create_session(Mock(spec=str))
    with pytest.raises(InvalidArgumentError):
        sessions.get_session(Mock(spec=str))


def test_hosts_take_subclasses_as_their_values(tmp_path, pool):
    with MandrakeManager(S(tmp_path / "root"), pool=pool) as mandrake:
        work = mandrake.create_workspace(S("work"), S("for work"))
        other = mandrake.create_workspace(S("other"), path=S(tmp_path / "other"))
        assert mandrake.get_workspace(S(work.id)) is work
        assert mandrake.sessions_for(S(work.id)) is work.sessions
        assert mandrake.find_workspace(S("work")) == work.workspace
        mandrake.unregister_workspace(S(other.id))
        assert not other.sessions.is_initialized
        again = mandrake.adopt_workspace(S("again"), S(tmp_path / "other"))
        again.sessions.create_session(S("Title"))
        assert again.sessions.health(S("quick"), timeout=I(5)).level is HealthLevel.QUICK
        copy = again.sessions.backup(S(tmp_path / "copy.sqlite"), timeout=F(20))
        again.close()
        again.sessions.restore(S(copy), overwrite=True, timeout=I(20))
        mandrake.delete_workspace(S(again.id), timeout=F(20))
        assert [each.name for each in mandrake.list_workspaces()] == ["work"]


def test_hosts_of_coroutines_take_subclasses_as_their_values(tmp_path, pool):
    async def main():
        async with AsyncMandrakeManager(S(tmp_path / "root"), pool=pool) as mandrake:
            work = await mandrake.create_workspace(S("work"), S("for work"))
            assert await mandrake.get_workspace(S(work.id)) is work
            assert await mandrake.sessions_for(S(work.id)) is work.sessions
            await mandrake.unregister_workspace(S(work.id))
            assert not work.sessions.is_initialized
            again = await mandrake.adopt_workspace(S("again"), S(work.path))
            await mandrake.delete_workspace(S(again.id), timeout=F(20))
            assert await mandrake.list_workspaces() == []

    asyncio.run(main())


def test_options_and_paths_are_kept_as_plain_values(tmp_path, pool):
    given = DatabaseOptions(
        busy_timeout=I(5), group_max_units=I(8), flush_interval=F(0.05), cache_bytes=I(1_000_000)
    )
    assert given == DatabaseOptions(
        busy_timeout=5, group_max_units=8, flush_interval=0.05, cache_bytes=1_000_000
    )
    pool_options = PoolOptions(linger=F(0.5), max_open=I(7), max_idle=I(3))
    assert is_plain(pool_options.linger)
    assert is_plain(pool_options.max_open)

    class Place:
        def __fspath__(self) -> str:
            return S(tmp_path / "place" / "db.sqlite")

    with SessionManager(Place(), pool=pool, options=given) as sessions:
        assert sessions.path == tmp_path / "place" / "db.sqlite"


# -- listeners that raise ----------------------------------------------------------------------


class Unprintable(BaseException):
    """One whose every word raises another."""

    def __str__(self) -> str:
        raise Unprintable

    __repr__ = __str__


class Own(BaseException):
    """Neither an Exception nor one of the interpreter's own."""


RAISED = [
    RuntimeError,
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    SystemExit,
    KeyboardInterrupt,
    asyncio.CancelledError,
    MemoryError,
    RecursionError,
    TurnNotFoundError,
    Unprintable,
    Own,
]


class Raising:
    """A listener that raises each time it is called."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.called: queue.SimpleQueue[object] = queue.SimpleQueue()

    def __call__(self, update: object) -> None:
        self.called.put(update)
        raise self.kind


@pytest.mark.parametrize("kind", RAISED)
def test_a_listener_that_raises_anything_harms_no_other(sessions, response, kind):
    if kind is KeyboardInterrupt and not isinstance(sessions, SessionManager):
        pytest.skip("in the thread of an event loop it is a Ctrl-C, and goes on")
    turn = sessions.create_turn(response.id)
    bad = [Raising(kind) for _ in range(20)]
    good: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with capture_logs() as logs, sessions.watch_response(response.id) as watch:
        for each in bad:
            sessions.add_turn_update_listener(turn.id, each)
        sessions.add_turn_update_listener(turn.id, good.put)
        for number in range(1, 4):
            sessions.update_turn(turn.id, current_tokens=number)
            assert good.get(timeout=PATIENCE).turn.current_tokens == number
            while watch.receive(timeout=PATIENCE).turn.current_tokens != number:
                pass
            for each in bad:
                each.called.get(timeout=PATIENCE)
        # One that comes later is called too.
        late: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sessions.track_streaming_turns(response.id, late.put)
        assert late.get(timeout=PATIENCE).turn.current_tokens == 3
    assert {(log["event"], log["error"]) for log in logs} == {
        ("listener_failed", kind.__qualname__)
    }


def test_a_log_that_cannot_be_written_ends_no_listening(sessions, response):
    def refuse(*_):
        raise OSError("no space for a log")

    turn = sessions.create_turn(response.id)
    bad = Raising(RuntimeError)
    good: queue.SimpleQueue[Any] = queue.SimpleQueue()
    structlog.configure(processors=[refuse], cache_logger_on_first_use=False)
    try:
        for listener in (bad, good.put):
            sessions.add_turn_update_listener(turn.id, listener)
        for number in range(1, 4):
            sessions.update_turn(turn.id, current_tokens=number)
            assert good.get(timeout=PATIENCE).turn.current_tokens == number
            bad.called.get(timeout=PATIENCE)
    finally:
        structlog.reset_defaults()
