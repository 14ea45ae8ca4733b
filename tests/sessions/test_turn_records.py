"""Turns and the streaming status."""

import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import chain

import pytest
import structlog.testing
from sqlalchemy import text

from mandrake_sessions import (
    InvalidArgumentError,
    ResponseNotFoundError,
    StaleRevisionError,
    ToolCall,
    TurnAlreadyExistsError,
    TurnFinishedError,
    TurnInterruptedError,
    TurnNotFoundError,
    TurnStatus,
    schema,
)
from mandrake_sessions.models import ChangeOp, Entity
from mandrake_sessions.records.turn_rows import FIELD_CHECKS

FIELDS = {
    "content": "text",
    "raw_response": "<raw>",
    "tool_calls": (ToolCall({"name": "ls"}, "bin"),),
    "error_message": "none yet",
    "current_tokens": 1,
    "expected_tokens": 2,
    "input_tokens": 3,
    "output_tokens": 4,
    "cache_read_tokens": 5,
    "cache_write_tokens": 6,
    "input_cost": 0.5,
    "output_cost": 0.25,
    "model": "any",
}
CLEARABLE = {
    "error_message",
    "expected_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "model",
}


def test_the_fields_of_these_tests_are_all_that_a_caller_may_set():
    assert FIELDS.keys() == (FIELD_CHECKS.keys() - {"status"}) | {"tool_calls"}
    assert {name for name in FIELDS if schema.turns.c[name].nullable} == CLEARABLE


def store_tool_calls(sessions, stored):
    with sessions.handle.sqlalchemy() as connection:
        connection.execute(text("UPDATE turns SET tool_calls = :stored"), {"stored": stored})


def test_a_new_turn_has_the_next_index_and_streams(sessions, response):
    before = datetime.now(UTC) - timedelta(microseconds=1)

    turn = sessions.create_turn(response.id)

    assert (turn.index, turn.status, turn.response_id) == (0, "streaming", response.id)
    assert before <= turn.stream_started_at <= datetime.now(UTC)
    assert turn.stream_ended_at is None
    assert (turn.content, turn.raw_response, turn.tool_calls) == ("", "", ())
    assert sessions.get_turn(turn.id) == turn
    assert sessions.create_turn(response.id).index == 1


def test_every_field_is_stored_as_given(sessions, response):
    started = datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))

    turn = sessions.create_turn(
        response.id, id="my-turn", index=4, started_at=started, status="error", **FIELDS
    )

    assert {name: getattr(turn, name) for name in FIELDS} == FIELDS
    assert (turn.id, turn.index, turn.status) == ("my-turn", 4, TurnStatus.ERROR)
    assert turn.stream_started_at == started
    assert turn.stream_ended_at is not None
    assert sessions.get_turn("my-turn") == turn
    # The counter goes on behind the gap.
    assert sessions.create_turn(response.id).index == 5


@pytest.mark.parametrize("status", [each for each in TurnStatus if each.is_finished])
def test_a_turn_that_is_created_finished_has_an_end(sessions, response, status):
    turn = sessions.create_turn(response.id, status=status)

    assert turn.status is status
    assert turn.stream_ended_at is not None
    assert turn.stream_ended_at >= turn.stream_started_at


def test_a_taken_index_or_id_or_an_unknown_response_stores_nothing(path, sessions, response, dump):
    turn = sessions.create_turn(response.id)
    sessions.delete_turn(sessions.create_turn(response.id).id)
    before = dump(path)

    with pytest.raises(TurnAlreadyExistsError):
        sessions.create_turn(response.id, index=0)
    with pytest.raises(InvalidArgumentError):
        sessions.create_turn(response.id, index=1)
    with pytest.raises(TurnAlreadyExistsError):
        sessions.create_turn(response.id, id=turn.id)
    with pytest.raises(ResponseNotFoundError):
        sessions.create_turn("missing")

    assert dump(path) == before
    assert sessions.create_turn(response.id).index == 2


@pytest.mark.parametrize("name", FIELDS)
def test_update_turn_changes_only_the_given_field(sessions, response, name):
    turn = sessions.create_turn(response.id)

    updated = sessions.update_turn(turn.id, **{name: FIELDS[name]})

    expected = {each: getattr(turn, each) for each in turn.__struct_fields__}
    expected |= {name: FIELDS[name], "revision": 1, "updated_us": updated.updated_us}
    assert {each: getattr(updated, each) for each in turn.__struct_fields__} == expected
    assert updated.updated_us >= turn.updated_us
    assert sessions.get_turn(turn.id) == updated


def test_none_clears_a_field_of_a_turn_and_an_empty_update_changes_nothing(
    path, sessions, response, dump
):
    turn = sessions.create_turn(response.id, **FIELDS)
    before = dump(path)
    assert sessions.update_turn(turn.id) == turn
    assert dump(path) == before

    cleared = sessions.update_turn(turn.id, **dict.fromkeys(CLEARABLE))

    assert {name: getattr(cleared, name) for name in CLEARABLE} == dict.fromkeys(CLEARABLE)


@pytest.mark.parametrize("status", [each for each in TurnStatus if each.is_finished])
def test_a_finished_turn_never_streams_again_nor_changes_its_final_status(
    sessions, response, status
):
    turn = sessions.create_turn(response.id, content="so far")
    finished = sessions.update_turn(turn.id, status=status.value)
    assert finished.status is status
    assert finished.stream_ended_at is not None

    for other in set(TurnStatus) - {status}:
        with pytest.raises(TurnFinishedError):
            sessions.update_turn(turn.id, status=other, content="lost")

    assert sessions.get_turn(turn.id) == finished
    # The end stays the first one, and what arrives late is taken.
    again = sessions.update_turn(turn.id, status=status, output_tokens=9)
    assert (again.stream_ended_us, again.output_tokens) == (finished.stream_ended_us, 9)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("status", [each for each in TurnStatus if each.is_finished])
def test_a_tool_call_whose_result_will_not_come_is_marked(sessions, response, status, is_streamed):
    calls = [ToolCall("answered", "result"), ToolCall("pending")]
    if is_streamed:
        with pytest.raises(TurnInterruptedError), sessions.stream_turn(response.id) as writer:
            sessions.update_turn(writer.id, tool_calls=calls)
            ended = sessions.update_turn(writer.id, status=status)
            writer.complete()
    else:
        turn = sessions.create_turn(response.id, tool_calls=calls)
        ended = sessions.update_turn(turn.id, status=status)

    # A host that completes a turn itself may bring the results later.
    is_marked = is_streamed or status is not TurnStatus.COMPLETED
    assert [call.is_interrupted for call in ended.tool_calls] == [False, is_marked]
    assert sessions.get_turn(ended.id) == ended
    answered = [ToolCall("answered", "result"), ToolCall("pending", "late")]
    later = sessions.update_turn(ended.id, status=status, tool_calls=answered)
    assert later.tool_calls == tuple(answered)


def test_an_expected_revision_refuses_the_slower_update_of_a_turn(sessions, response):
    turn = sessions.create_turn(response.id)
    faster = sessions.update_turn(turn.id, content="1", expected_revision=0)

    with pytest.raises(StaleRevisionError) as caught:
        sessions.update_turn(turn.id, content="2", expected_revision=0)

    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert sessions.get_turn(turn.id) == faster
    with pytest.raises(TurnNotFoundError):
        sessions.update_turn("missing", content="x")


def test_turns_are_listed_in_index_order_and_the_latest_is_the_newest(sessions, response):
    with pytest.raises(TurnNotFoundError):
        sessions.get_latest_turn(response.id)
    turns = [sessions.create_turn(response.id, content=str(number)) for number in range(12)]

    assert sessions.list_turns(response.id) == turns
    assert sessions.list_turns(response.id, limit=2, offset=3) == turns[3:5]
    assert sessions.list_turns(response.id, limit=2, after=9) == turns[10:]
    assert sessions.get_latest_turn(response.id) == turns[-1]
    for method in (sessions.list_turns, sessions.get_latest_turn):
        with pytest.raises(ResponseNotFoundError):
            method("missing")


def test_a_deleted_turn_is_gone_and_its_index_is_not_given_again(sessions, response):
    first, second = (sessions.create_turn(response.id) for _ in range(2))

    assert sessions.delete_turn(second.id) is True

    assert sessions.get_latest_turn(response.id) == first
    with pytest.raises(TurnNotFoundError):
        sessions.get_turn(second.id)
    with pytest.raises(TurnNotFoundError):
        sessions.delete_turn(second.id)
    assert sessions.delete_turn(second.id, missing_ok=True) is False
    assert sessions.create_turn(response.id).index == 2


def test_eight_threads_receive_each_index_once_also_after_a_delete(sessions, response, in_threads):
    """Every tenth turn is deleted at once; its index must not come again."""

    def create(number):
        turns = []
        for count in range(100):
            turns.append(sessions.create_turn(response.id, content=f"{number}"))
            if count % 10 == 9:
                sessions.delete_turn(turns[-1].id)
        return [turn.index for turn in turns]

    given = in_threads(8, create)

    assert sorted(chain(*given)) == list(range(800))
    assert all(indexes == sorted(indexes) for indexes in given)
    assert len(sessions.list_turns(response.id)) == 720
    sessions.delete_turn(sessions.get_latest_turn(response.id).id)
    assert sessions.create_turn(response.id).index == 800


CREATE = """
from concurrent.futures import ThreadPoolExecutor
from mandrake_sessions import *
options = DatabaseOptions(durability=Durability.FAST)
with ConnectionPool(PoolOptions(database=options)) as pool:
    with SessionManager(sys.argv[1], pool=pool) as sessions:
        def create(_):
            return [sessions.create_turn(sys.argv[2]).index for _ in range(100)]
        send("ready")
        receive()
        with ThreadPoolExecutor(4) as executor:
            given = list(executor.map(create, range(4)))
send(sum(given, []))
"""


def test_two_processes_with_four_threads_receive_each_index_once(
    path, sessions, response, start_child
):
    children = [start_child(CREATE, path, response.id) for _ in range(2)]
    assert [child.receive() for child in children] == ["ready", "ready"]
    for child in children:
        child.send("go")
    given = [child.receive() for child in children]
    for child in children:
        child.finish()

    assert sorted(chain(*given)) == list(range(800))
    assert [turn.index for turn in sessions.list_turns(response.id)] == list(range(800))


@pytest.mark.parametrize(
    "calls",
    [
        [ToolCall({"name": "ls"}, None)],
        [{"call": {"name": "ls"}, "response": {"ok": True}}, {"call": "x"}],
        [ToolCall([1, [2, {}]], "text", raw="kept")],
        [{"call": {}, "response": [None, False, 0, -1.5, "\N{SNOWMAN}\0"]}],
    ],
)
def test_tool_calls_are_read_as_parsed_objects(sessions, response, calls):
    expected = tuple(
        each if isinstance(each, ToolCall) else ToolCall(each["call"], each.get("response"))
        for each in calls
    )

    turn = sessions.create_turn(response.id, tool_calls=calls)

    assert turn.tool_calls == expected
    assert sessions.get_turn(turn.id).tool_calls == expected


@pytest.mark.parametrize(
    "stored",
    ["not json <secret>", "", "5", '"text"', "[5]", '{"other": 1}', "[" * 2000, '[{"call": 1}'],
)
def test_a_text_that_is_not_json_is_read_as_an_empty_call_with_the_raw_text(
    sessions, response, stored
):
    turn = sessions.create_turn(response.id)
    store_tool_calls(sessions, stored)

    with structlog.testing.capture_logs() as events:
        calls = sessions.get_turn(turn.id).tool_calls

    assert calls == (ToolCall({}, None, raw=stored),)
    assert [(each["log_level"], each["turn_id"]) for each in events] == [("warning", turn.id)]
    assert "secret" not in repr(events)


def test_a_single_call_and_response_object_is_read_as_a_list_of_one(sessions, response):
    turn = sessions.create_turn(response.id)
    store_tool_calls(sessions, '{"call": {"name": "ls"}, "response": "bin"}')

    with structlog.testing.capture_logs() as events:
        calls = sessions.get_turn(turn.id).tool_calls

    assert calls == (ToolCall({"name": "ls"}, "bin"),)
    assert events == []


def test_the_streaming_status_distinguishes_no_turns_from_complete(sessions, response):
    def status():
        found = sessions.get_streaming_status(response.id)
        return found.turns, found.streaming, found.is_empty, found.is_complete

    assert status() == (0, 0, True, False)
    first = sessions.create_turn(response.id)
    assert status() == (1, 1, False, False)
    second = sessions.create_turn(response.id)
    sessions.update_turn(first.id, status="completed")
    assert status() == (2, 1, False, False)
    sessions.update_turn(second.id, status="error", error_message="it broke")
    assert status() == (2, 0, False, True)
    with pytest.raises(ResponseNotFoundError):
        sessions.get_streaming_status("missing")


ENUMS = {
    ("turns", "status"): TurnStatus,
    ("changes", "entity"): Entity,
    ("changes", "op"): ChangeOp,
}


def test_the_schema_has_exactly_these_lists_of_values(sessions, dump):
    found = {
        (name, column)
        for kind, name, _, _, sql in dump(sessions.path)["sqlite_schema"]
        if kind == "table"
        for column in re.findall(r'CHECK \("?(\w+)"? IN \(', sql)
    }

    assert found == ENUMS.keys()


@pytest.mark.parametrize("table_column", ENUMS)
@pytest.mark.parametrize("value", ["done", "", "COMPLETED", "streaming ", None])
def test_no_table_accepts_a_value_outside_its_list(sessions, response, dump, table_column, value):
    table, column = table_column
    sessions.create_turn(response.id)
    before = dump(sessions.path)
    statement = text(f"UPDATE {table} SET {column} = :value")

    with (
        pytest.raises(Exception, match="constraint failed"),
        sessions.handle.sqlalchemy() as connection,
    ):
        connection.execute(statement, {"value": value})

    assert dump(sessions.path) == before


@pytest.mark.parametrize(("table", "column"), ENUMS)
def test_every_table_accepts_what_is_in_its_list(sessions, response, table, column):
    sessions.create_turn(response.id)
    end = ", stream_ended_at = CASE :value WHEN 'streaming' THEN NULL ELSE 1 END"
    statement = text(f"UPDATE {table} SET {column} = :value{end if table == 'turns' else ''}")

    with sessions.handle.sqlalchemy() as connection:
        for value in ENUMS[table, column]:
            assert connection.execute(statement, {"value": str(value)}).rowcount > 0


def test_a_turn_streams_exactly_as_long_as_it_has_no_end(sessions, response):
    sessions.create_turn(response.id)
    for change in ("stream_ended_at = 1", "status = 'completed'"):
        with (
            pytest.raises(Exception, match="ended_when_finished"),
            sessions.handle.sqlalchemy() as connection,
        ):
            connection.execute(text(f"UPDATE turns SET {change}"))
