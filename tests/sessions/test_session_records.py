"""Sessions and their history."""

from itertools import chain

import pytest
from sqlalchemy import text

from mandrake_sessions import (
    InvalidArgumentError,
    NewTurn,
    SessionAlreadyExistsError,
    SessionManager,
    SessionNotFoundError,
    StaleRevisionError,
    ToolCall,
)

LONG_AGO = 1_000_000


def execute(sessions, sql, **values):
    """Run a statement of the test's own, as a user would."""
    with sessions.handle.sqlalchemy() as connection:
        connection.execute(text(sql), values)


def make_old(sessions, updated_at=LONG_AGO):
    execute(sessions, "UPDATE sessions SET created_at = :at, updated_at = :at", at=updated_at)


def test_a_session_is_created_with_title_description_and_metadata(sessions):
    metadata = {"branch": "main", "n": [1, 2.5, None, True], "nested": {"é": "\N{SNOWMAN}"}}

    created = sessions.create_session("Title", "What about", metadata)

    assert (created.title, created.description) == ("Title", "What about")
    assert created.metadata == metadata
    assert (created.next_round_index, created.revision) == (0, 0)
    assert created.created_at == created.updated_at
    assert created.created_at.tzinfo is not None
    assert sessions.get_session(created.id) == created


def test_a_session_is_created_without_any_field(sessions):
    created = sessions.create_session()

    assert (created.title, created.description, created.metadata) == (None, None, {})
    assert sessions.get_session(created.id) == created


def test_metadata_is_independent_of_the_callers_mapping(sessions):
    metadata = {"list": [1]}
    created = sessions.create_session(metadata=metadata)

    metadata["list"].append(2)

    assert created.metadata == {"list": [1]}


def test_an_id_of_the_caller_is_kept_and_accepted_once(sessions):
    created = sessions.create_session(id="my-id")
    assert created.id == "my-id"

    with pytest.raises(SessionAlreadyExistsError) as caught:
        sessions.create_session("another", id="my-id")

    assert caught.value.id == "my-id"
    assert sessions.list_sessions() == [created]


def test_get_session_raises_and_find_session_returns_none_for_a_missing_id(sessions):
    session = sessions.create_session("here")
    assert sessions.get_session(session.id) == session
    assert sessions.find_session(session.id) == session
    assert sessions.find_session("missing") is None

    with pytest.raises(SessionNotFoundError) as caught:
        sessions.get_session("missing")

    assert caught.value.id == "missing"


def test_list_sessions_honours_limit_and_offset_newest_first(sessions):
    made = [sessions.create_session(str(number)) for number in range(5)]
    for age, session in enumerate(made):
        execute(
            sessions,
            "UPDATE sessions SET updated_at = :at WHERE id = :id",
            id=session.id,
            at=100 - age,
        )

    def titles(**page):
        return [session.title for session in sessions.list_sessions(**page)]

    assert titles() == ["0", "1", "2", "3", "4"]
    assert titles(limit=2) == ["0", "1"]
    assert titles(limit=2, offset=2) == ["2", "3"]
    assert titles(offset=4) == ["4"]
    assert titles(offset=5) == []
    assert sessions.count_sessions() == 5


def test_a_changed_session_is_listed_first(sessions):
    first, second, third = (sessions.create_session() for _ in range(3))
    make_old(sessions)

    sessions.update_session(first.id, title="moved")
    assert sessions.list_sessions(limit=1)[0].id == first.id
    make_old(sessions)
    round_ = sessions.create_round(second.id, "moved too")
    assert sessions.list_sessions(limit=1)[0].id == second.id
    make_old(sessions)
    turn = sessions.create_turn(round_.response.id)
    assert sessions.list_sessions(limit=1)[0].updated_us > LONG_AGO
    make_old(sessions)
    sessions.update_turn(turn.id, content="a flush does not move it")
    assert {each.updated_us for each in sessions.list_sessions()} == {LONG_AGO}
    sessions.update_turn(turn.id, status="completed")
    assert sessions.list_sessions(limit=1)[0].id == second.id
    make_old(sessions)
    sessions.create_round(third.id, "and this")
    assert sessions.list_sessions(limit=1)[0].id == third.id


def test_paging_by_key_returns_each_session_once_also_with_equal_times(sessions):
    made = [sessions.create_session(id=f"{number:02}") for number in range(10)]
    make_old(sessions)
    pages, last = [], None
    while page := sessions.list_sessions(limit=3, after=last):
        pages.append([session.id for session in page])
        last = page[-1]

    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert list(chain(*pages)) == sorted((session.id for session in made), reverse=True)


def test_a_page_is_an_index_scan(path, pool, statements):
    with SessionManager(path, pool=pool) as sessions:
        last = sessions.create_session()
        sessions.list_sessions(after=last)
        (sql,) = [each for each in statements.take_work() if "ORDER BY sessions" in each]
        with sessions.handle.sqlalchemy(read_only=True) as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", (1, "a", 1, 0))
            details = [row[3] for row in plan]

    assert details == [
        "SEARCH sessions USING INDEX ix_sessions_updated_at_id ((updated_at,id)<(?,?))"
    ]


def test_update_session_changes_only_the_given_fields_and_updated_at(sessions):
    session = sessions.create_session("title", "description", {"a": 1})
    make_old(sessions)

    updated = sessions.update_session(session.id, title="new")

    assert updated.title == "new"
    assert (updated.description, updated.metadata) == ("description", {"a": 1})
    assert updated.created_us == LONG_AGO
    assert updated.updated_us > LONG_AGO
    assert updated.revision == session.revision + 1
    assert sessions.get_session(session.id) == updated


def test_update_session_replaces_metadata(sessions):
    session = sessions.create_session(metadata={"a": 1, "b": 2})

    assert sessions.update_session(session.id, metadata={"b": 3}).metadata == {"b": 3}


def test_an_update_of_nothing_changes_nothing(path, sessions, dump):
    session = sessions.create_session("title", metadata={"a": 1})
    before = dump(path)

    assert sessions.update_session(session.id) == session
    assert dump(path) == before


def test_update_session_clears_a_field_with_none(sessions):
    session = sessions.create_session("title", "description", {"a": 1})

    cleared = sessions.update_session(session.id, title=None, description=None, metadata=None)

    assert (cleared.title, cleared.description, cleared.metadata) == (None, None, {})
    assert sessions.get_session(session.id) == cleared


def test_update_of_an_unknown_session_raises_also_without_fields(sessions):
    with pytest.raises(SessionNotFoundError):
        sessions.update_session("missing", title="x")
    with pytest.raises(SessionNotFoundError):
        sessions.update_session("missing")


def test_an_expected_revision_refuses_the_slower_update_of_a_session(path, sessions, dump):
    session = sessions.create_session("0")
    faster = sessions.update_session(session.id, title="1", expected_revision=0)
    before = dump(path)

    with pytest.raises(StaleRevisionError) as caught:
        sessions.update_session(session.id, title="2", expected_revision=0)
    with pytest.raises(StaleRevisionError):
        sessions.update_session(session.id, expected_revision=0)

    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert dump(path) == before
    assert sessions.get_session(session.id) == faster


def test_delete_session_deletes_its_rounds_requests_responses_and_turns(path, sessions, dump):
    """Every table is looked at, also those that later revisions bring."""
    kept = sessions.create_session("kept")
    sessions.record_round(kept.id, "kept", [NewTurn(content="kept")])
    before = dump(path)
    session = sessions.create_session("secret", "secret", {"secret": "secret"})
    sessions.record_round(
        session.id,
        "secret",
        [NewTurn(content="secret", tool_calls=[ToolCall({"secret": 1}, "secret")])],
    )
    response = sessions.create_round(session.id, "secret").response
    turn = sessions.create_turn(response.id, content="secret", raw_response="secret")
    execute(sessions, "INSERT INTO turn_chunks VALUES (:id, 0, 'secret', 'secret')", id=turn.id)
    sessions.update_session(session.id, title="secret too")

    assert sessions.delete_session(session.id) is True

    after = dump(path)
    # The feed keeps its rows, which say what happened and hold ids only.
    changes = after.pop("changes")
    before.pop("changes")
    assert after == before
    assert "secret" not in repr(changes)


def test_the_parts_of_a_deleted_session_are_not_found(sessions):
    session = sessions.create_session()
    sessions.create_round(session.id, "x")
    sessions.delete_session(session.id)

    for method in (
        sessions.get_session,
        sessions.list_rounds,
        sessions.get_current_round,
        sessions.render_session_history,
        sessions.get_session_usage,
    ):
        with pytest.raises(SessionNotFoundError):
            method(session.id)


def test_delete_session_raises_for_a_missing_id_unless_missing_ok(path, sessions, dump):
    session = sessions.create_session()
    sessions.delete_session(session.id)
    before = dump(path)

    with pytest.raises(SessionNotFoundError):
        sessions.delete_session(session.id)
    assert sessions.delete_session(session.id, missing_ok=True) is False

    assert dump(path) == before


def test_the_history_is_in_index_order_with_tool_calls_parsed(sessions):
    session = sessions.create_session("talk")
    other = sessions.create_session("other")
    calls = [ToolCall({"name": "ls", "arguments": {"path": "/"}}, ["bin", "etc"])]
    first = sessions.record_round(
        session.id, "one", [NewTurn(content="a", tool_calls=calls), NewTurn(content="b")]
    )
    sessions.record_round(other.id, "not this", [NewTurn(content="not this")])
    second = sessions.create_round(session.id, "two")
    turns = [sessions.create_turn(second.response.id, content=text) for text in "cde"]
    sessions.delete_turn(turns[1].id)
    third = sessions.create_round(session.id, "three")
    sessions.delete_round(third.id)
    sessions.create_round(session.id, "four")

    history = sessions.render_session_history(session.id)

    assert history.session == sessions.get_session(session.id)
    assert [(each.index, each.request.content) for each in history.rounds] == [
        (0, "one"),
        (1, "two"),
        (3, "four"),
    ]
    assert [[turn.content for turn in each.turns] for each in history.rounds] == [
        ["a", "b"],
        ["c", "e"],
        [],
    ]
    assert history.rounds[0] == first
    assert history.rounds[0].turns[0].tool_calls == tuple(calls)


def test_the_history_can_be_limited_to_the_last_rounds(sessions):
    session = sessions.create_session()
    for number in range(4):
        sessions.record_round(session.id, str(number), [NewTurn(content=str(number))])

    history = sessions.render_session_history(session.id, last=2)

    assert [each.index for each in history.rounds] == [2, 3]
    assert [each.turns[0].content for each in history.rounds] == ["2", "3"]


def test_the_history_of_an_empty_session_has_no_rounds(sessions):
    session = sessions.create_session()

    assert sessions.render_session_history(session.id).rounds == ()
    assert list(sessions.iter_session_history(session.id)) == []
    with pytest.raises(SessionNotFoundError):
        sessions.render_session_history("missing")
    with pytest.raises(SessionNotFoundError):
        list(sessions.iter_session_history("missing"))
    # Refused at once, by both faces, and not by the first step of the iterator.
    for wrong in ({"session_id": 5}, {"session_id": session.id, "page_size": -1}):
        with pytest.raises(InvalidArgumentError):
            sessions.iter_session_history(**wrong)


@pytest.mark.parametrize("rounds", [1, 1000])
def test_a_history_takes_a_fixed_number_of_statements(path, pool, statements, rounds):
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.create_session()
        with sessions.transaction() as tx:
            for number in range(rounds):
                tx.record_round(session.id, str(number), [NewTurn(content="a"), NewTurn()])
        sessions.render_session_history(session.id)
        statements.take()

        history = sessions.render_session_history(session.id)

        issued = statements.take()
    assert [each.index for each in history.rounds] == list(range(rounds))
    assert all(len(each.turns) == 2 for each in history.rounds)
    # BEGIN, the session, its rounds, their turns, and the end of the snapshot.
    assert len(issued) == 5


def test_the_pages_of_a_history_add_up_to_the_whole_history(sessions):
    session = sessions.create_session()
    for number in range(7):
        sessions.record_round(session.id, str(number), [NewTurn(content=str(number))])
    whole = sessions.render_session_history(session.id).rounds

    for size in (1, 3, 7, 8):
        assert tuple(sessions.iter_session_history(session.id, page_size=size)) == whole


def test_no_lease_is_held_between_two_pages(sessions):
    session = sessions.create_session()
    for number in range(3):
        sessions.create_round(session.id, str(number))
    pages = sessions.iter_session_history(session.id, page_size=1)
    assert next(pages).index == 0

    sessions.create_round(session.id, "meanwhile")

    assert [each.request.content for each in pages] == ["1", "2", "meanwhile"]


def test_usage_is_the_sum_of_all_turns(sessions):
    session = sessions.create_session()
    assert sessions.get_session_usage(session.id).total_cost == 0
    turn = NewTurn(input_tokens=2**62, output_tokens=3, cache_read_tokens=5, input_cost=0.25)
    exchange = sessions.record_round(session.id, "x", [turn, turn, turn])
    sessions.delete_turn(exchange.turns[0].id)

    usage = sessions.get_session_usage(session.id)

    assert (usage.rounds, usage.turns) == (1, 2)
    assert (usage.input_tokens, usage.output_tokens) == (2**63, 6)
    assert (usage.cache_read_tokens, usage.cache_write_tokens) == (10, 0)
    assert usage.total_cost == 0.5


def test_metadata_that_another_program_broke_spoils_no_list(sessions):
    session = sessions.create_session("still here", metadata={"a": 1})
    execute(sessions, "UPDATE sessions SET metadata = 'no json'")

    assert [each.metadata for each in sessions.list_sessions()] == [{}]
    assert sessions.get_session(session.id).title == "still here"
