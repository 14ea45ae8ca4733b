"""Rounds, requests and responses."""

import pytest

from mandrake_sessions import (
    NewTurn,
    RequestNotFoundError,
    ResponseNotFoundError,
    RoundAlreadyExistsError,
    RoundNotFoundError,
    SessionManager,
    SessionNotFoundError,
    StaleRevisionError,
    TurnAlreadyExistsError,
)


@pytest.fixture
def session(sessions):
    return sessions.create_session()


def test_create_round_returns_request_response_and_the_next_index(sessions, session):
    rounds = [sessions.create_round(session.id, f"question {number}") for number in range(3)]

    assert [each.index for each in rounds] == [0, 1, 2]
    assert [each.request.content for each in rounds] == ["question 0", "question 1", "question 2"]
    assert all(
        each.request.round_id == each.response.round_id == each.id and each.session_id == session.id
        for each in rounds
    )
    assert sessions.list_rounds(session.id) == rounds
    assert sessions.get_session(session.id).next_round_index == 3


def test_a_round_is_one_transaction(path, pool, statements):
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.create_session()
        statements.take()

        sessions.create_round(session.id, "x")

        issued = statements.take()
    assert issued[0] == "BEGIN IMMEDIATE"
    assert issued[-1] == "COMMIT"
    assert sum(sql.startswith(("BEGIN", "COMMIT")) for sql in issued) == 2
    assert {sql.split()[2] for sql in issued if sql.startswith("INSERT")} == {
        "rounds",
        "requests",
        "responses",
        "changes",
    }


def test_create_round_in_an_unknown_session_stores_no_row(path, sessions, session, dump):
    before = dump(path)

    with pytest.raises(SessionNotFoundError):
        sessions.create_round("missing", "x")
    with pytest.raises(SessionNotFoundError):
        sessions.create_round("missing", "x", expected_index=0)
    with pytest.raises(SessionNotFoundError):
        sessions.record_round("missing", "x", [NewTurn()])

    assert dump(path) == before


def test_a_round_that_fails_half_way_leaves_no_row_and_takes_no_index(
    path, sessions, session, dump
):
    taken = sessions.record_round(session.id, "x", [NewTurn()])
    before = dump(path)

    with pytest.raises(RoundAlreadyExistsError):
        sessions.create_round(session.id, "x", id=taken.id)
    with pytest.raises(TurnAlreadyExistsError):
        sessions.record_round(session.id, "x", [NewTurn(), NewTurn(id=taken.turns[0].id)])

    assert dump(path) == before
    assert sessions.create_round(session.id, "y").index == 1


@pytest.mark.parametrize("ids", [["new", "taken", "other"], ["new", "other", "other"]])
def test_the_error_names_the_turn_whose_id_is_taken_among_several(sessions, session, ids):
    sessions.record_round(session.id, "x", [NewTurn(id="taken")])

    with pytest.raises(TurnAlreadyExistsError) as raised:
        sessions.record_round(session.id, "x", [NewTurn(id=id) for id in ids])

    assert raised.value.id == ids[1 if "taken" in ids else 2]


def test_a_turn_whose_id_is_taken_is_named_without_another_statement(statements, tmp_path, pool):
    """A PostgreSQL transaction takes none after a violation but its end."""
    with SessionManager(tmp_path / "traced.sqlite", pool=pool) as sessions:
        session = sessions.create_session()
        sessions.record_round(session.id, "x", [NewTurn(id="taken")])
        statements.take()

        with pytest.raises(TurnAlreadyExistsError):
            sessions.record_round(session.id, "x", [NewTurn(), NewTurn(id="taken")])

        *_, last, end = statements.take()
        assert last.startswith("INSERT INTO turns ")
        assert end.startswith("ROLLBACK")


def test_the_index_of_a_deleted_round_is_not_assigned_again(sessions, session):
    for index in range(3):
        round_ = sessions.create_round(session.id, str(index))
        sessions.delete_round(round_.id)

    assert sessions.create_round(session.id, "last").index == 3


def test_a_finished_exchange_is_stored_in_one_call(sessions, session):
    exchange = sessions.record_round(
        session.id,
        "question",
        [NewTurn(content="a", input_tokens=7), NewTurn(content="b", status="error")],
    )

    assert [(turn.index, turn.content, turn.status) for turn in exchange.turns] == [
        (0, "a", "completed"),
        (1, "b", "error"),
    ]
    assert all(turn.stream_ended_at is not None for turn in exchange.turns)
    assert list(exchange.turns) == sessions.list_turns(exchange.response.id)
    # The next turn goes on behind those.
    assert sessions.create_turn(exchange.response.id).index == 2


def test_get_round_returns_round_request_and_response(sessions, session):
    made = sessions.create_round(session.id, "question", id="my-round")
    assert made.id == "my-round"

    assert sessions.get_round("my-round") == made
    with pytest.raises(RoundNotFoundError) as caught:
        sessions.get_round("missing")
    assert caught.value.id == "missing"


def test_rounds_are_listed_in_index_order_and_paged(sessions, session):
    for number in range(5):
        sessions.create_round(session.id, str(number))
    sessions.delete_round(sessions.list_rounds(session.id)[1].id)

    def indexes(**page):
        return [each.index for each in sessions.list_rounds(session.id, **page)]

    assert indexes() == [0, 2, 3, 4]
    assert indexes(limit=2) == [0, 2]
    assert indexes(limit=2, offset=1) == [2, 3]
    assert indexes(limit=2, after=2) == [3, 4]
    assert indexes(after=4) == []
    with pytest.raises(SessionNotFoundError):
        sessions.list_rounds("missing")


def test_expected_index_refuses_to_append_to_a_conversation_that_grew(
    path, sessions, session, dump
):
    sessions.create_round(session.id, "first", expected_index=0)
    before = dump(path)

    with pytest.raises(StaleRevisionError) as caught:
        sessions.create_round(session.id, "also first", expected_index=0)
    with pytest.raises(StaleRevisionError):
        sessions.record_round(session.id, "too early", expected_index=2)

    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert dump(path) == before
    assert sessions.record_round(session.id, "second", expected_index=1).index == 1


def test_one_of_many_threads_that_append_at_an_expected_index_succeeds(
    sessions, session, in_threads
):
    def append(number):
        try:
            return sessions.create_round(session.id, str(number), expected_index=0)
        except StaleRevisionError:
            return None

    won = [each for each in in_threads(8, append) if each is not None]

    assert sessions.list_rounds(session.id) == won
    assert len(won) == 1


def test_requests_and_responses_are_read_by_their_own_ids(sessions, session):
    made = sessions.create_round(session.id, "question")

    assert sessions.get_request(made.request.id) == made.request
    assert sessions.get_response(made.response.id) == made.response
    with pytest.raises(RequestNotFoundError):
        sessions.get_request(made.response.id)
    with pytest.raises(ResponseNotFoundError):
        sessions.get_response(made.request.id)


def test_a_request_is_updated(path, sessions, session, dump):
    made = sessions.create_round(session.id, "question")
    before = dump(path)
    assert sessions.update_request(made.request.id) == made.request
    assert dump(path) == before

    updated = sessions.update_request(made.request.id, content="better question")

    assert updated.content == "better question"
    assert sessions.get_round(made.id).request == updated
    with pytest.raises(RequestNotFoundError):
        sessions.update_request("missing", content="x")
    with pytest.raises(RequestNotFoundError):
        sessions.update_request("missing")


def test_a_round_is_found_by_its_response(sessions, session):
    rounds = [sessions.create_round(session.id, f"Question {number}") for number in range(3)]

    assert [sessions.get_round_by_response(each.response.id) for each in rounds] == rounds
    with pytest.raises(ResponseNotFoundError):
        sessions.get_round_by_response(rounds[0].id)


def test_a_round_is_found_by_its_response_in_one_query(path, pool, statements):
    with SessionManager(path, pool=pool) as sessions:
        made = sessions.create_round(sessions.create_session().id, "x")
        statements.take()

        found = sessions.get_round_by_response(made.response.id)

        assert len(statements.take()) == 1
        assert found == made
        with pytest.raises(ResponseNotFoundError):
            sessions.get_round_by_response(made.id)


def test_the_current_round_is_the_last_round(sessions, session):
    with pytest.raises(RoundNotFoundError):
        sessions.get_current_round(session.id)
    first = sessions.create_round(session.id, "first")
    second = sessions.create_round(session.id, "second")
    assert sessions.get_current_round(session.id) == second

    sessions.delete_round(second.id)

    assert sessions.get_current_round(session.id) == first
    with pytest.raises(SessionNotFoundError):
        sessions.get_current_round("missing")


def test_a_deleted_round_takes_its_parts_with_it(path, sessions, session, dump):
    sessions.record_round(session.id, "kept", [NewTurn()])
    before = dump(path)
    made = sessions.record_round(session.id, "gone", [NewTurn(), NewTurn()])

    assert sessions.delete_round(made.id) is True

    after = dump(path)
    own = ("rounds", "requests", "responses", "turns", "turn_chunks")
    assert {name: after[name] for name in own} == {name: before[name] for name in own}
    with pytest.raises(RoundNotFoundError):
        sessions.delete_round(made.id)
    assert sessions.delete_round(made.id, missing_ok=True) is False
