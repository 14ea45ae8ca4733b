"""Rounds: a request and the response to it, stored together under the next index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mandrake_sessions import arguments
from mandrake_sessions.engine.statement import Bound, Row
from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import (
    AlreadyExistsError,
    ConstraintViolationError,
    InvalidArgumentError,
    RequestAlreadyExistsError,
    ResponseAlreadyExistsError,
    ResponseNotFoundError,
    RoundAlreadyExistsError,
    RoundNotFoundError,
    SessionNotFoundError,
    StaleRevisionError,
    TurnAlreadyExistsError,
)
from mandrake_sessions.ids import new_ids, now
from mandrake_sessions.models import (
    ChangeOp,
    Entity,
    Exchange,
    NewTurn,
    Request,
    Response,
    Round,
    Turn,
)
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import change_insert, record_change, trim_changes
from mandrake_sessions.records.sessions import require_session, touch_session
from mandrake_sessions.records.turn_rows import prepare_turn, turn_insert


def round_fields(row: Row) -> tuple[str, str, int, Request, Response, int, int]:
    """Return the fields of a round, in their order, from a row of ``select_rounds``."""
    # Each by name: slices and stars take twice as long, and a history has thousands.
    (
        id,
        session_id,
        index,
        created,
        updated,
        request_id,
        request_round_id,
        content,
        request_created,
        request_updated,
        response_id,
        response_round_id,
        response_created,
        response_updated,
    ) = row
    request = Request(request_id, request_round_id, content, request_created, request_updated)
    response = Response(response_id, response_round_id, response_created, response_updated)
    return (id, session_id, index, request, response, created, updated)


def create_round(
    session_id: str, content: str, *, id: str | None = None, expected_index: int | None = None
) -> WriteUnit[Round]:
    """Add a round: the request with its content, and a response that has no turns yet.

    Args:
        session_id: the session it belongs to.
        content: the user's text.
        id: the id of the round, 1 to 255 characters; a new UUIDv7 when None.
        expected_index: the index that the round must get; refuses a conversation that has grown.

    Returns:
        The new round.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
        RoundAlreadyExistsError: the id is taken.
        StaleRevisionError: the next index is not the expected one.
    """
    moment, expected = now(), arguments.optional_index("expected_index", expected_index)
    new = _prepare_round(session_id, content, id, moment, new_ids(3))
    inserts = round_inserts(new, next_turn_index=0)

    def work(tx: WriteTransaction) -> Round:
        index = _take_index(tx, new.session_id, moment, expected)
        round_ = Round(new.id, new.session_id, index, new.request, new.response, moment, moment)
        add_round(tx, round_, inserts)
        return round_

    return work


def record_round(
    session_id: str,
    content: str,
    turns: Sequence[NewTurn] = (),
    *,
    id: str | None = None,
    expected_index: int | None = None,
) -> WriteUnit[Exchange]:
    """Store a finished exchange in one call: a round with the turns of its response.

    Args:
        session_id: the session it belongs to.
        content: the user's text.
        turns: the turns of the response in their order, all of them finished.
        id: the id of the round, 1 to 255 characters; a new UUIDv7 when None.
        expected_index: the index that the round must get; refuses a conversation that has grown.

    Returns:
        The new round with its turns.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
        RoundAlreadyExistsError: the id is taken.
        TurnAlreadyExistsError: the id of a turn is taken.
        StaleRevisionError: the next index is not the expected one.
    """
    moment = now()
    turns = arguments.new_turns("turns", turns)
    ids = new_ids(3 + len(turns))
    new = _prepare_round(session_id, content, id, moment, ids)
    expected_index = arguments.optional_index("expected_index", expected_index)
    stored: list[Turn] = []
    turn_inserts: list[Bound] = []
    for index, turn in enumerate(turns):
        prepared, encoded_calls = prepare_turn(turn, new.response.id, index, moment, ids[3 + index])
        if prepared.stream_ended_us is None:
            raise InvalidArgumentError(
                "turns must be finished; create_turn makes one that streams."
            )
        stored.append(prepared)
        turn_inserts.append(turn_insert(prepared, encoded_calls))
    inserts = round_inserts(new, turn_inserts, next_turn_index=len(turns))

    def work(tx: WriteTransaction) -> Exchange:
        index = _take_index(tx, new.session_id, moment, expected_index)
        exchange = Exchange(
            new.id, new.session_id, index, new.request, new.response, moment, moment, tuple(stored)
        )
        add_round(tx, exchange, inserts, stored)
        return exchange

    return work


def _prepare_round(
    session_id: str, content: str, id: str | None, moment: int, ids: Sequence[str]
) -> Round:
    """Return the new round, complete but for its index.

    Args:
        session_id: the session it belongs to.
        content: of the request.
        id: the id of the round, if the caller gives one.
        moment: the present time.
        ids: new ones for the round, its request and its response.
    """
    session_id = arguments.lookup_id("session_id", session_id)
    round_id = ids[0] if id is None else arguments.fresh_id("id", id)
    request = Request(ids[1], round_id, arguments.text("content", content), moment, moment)
    response = Response(ids[2], round_id, moment, moment)
    return Round(round_id, session_id, 0, request, response, moment, moment)


def _take_index(
    tx: WriteTransaction, session_id: str, moment: int, expected_index: int | None
) -> int:
    values = {"session_id": session_id, "now": moment, "expected_index": expected_index}
    row = tx.row(sql.TAKE_ROUND_INDEX, values)
    if row is not None:
        return int(row[0]) - 1
    row = tx.row(sql.NEXT_ROUND_INDEX, values)
    if row is None or expected_index is None:
        raise SessionNotFoundError(session_id)
    raise StaleRevisionError(expected=expected_index, actual=row[0])


def round_inserts(
    round_: Round, turns: Iterable[Bound] = (), *, next_turn_index: int
) -> list[Bound]:
    """Return the INSERTs of a round that need no index; the last one is its change row.

    Args:
        round_: the round; its index is not used.
        turns: the INSERTs of its response's turns.
        next_turn_index: the next index of the response.
    """
    return [
        sql.INSERT_REQUEST.of(round_.request),
        sql.INSERT_RESPONSE.of(round_.response, next_turn_index),
        *turns,
        change_insert(Entity.ROUND, round_.id, ChangeOp.CREATE, session_id=round_.session_id),
    ]


def add_round(
    tx: WriteTransaction, round_: Round, inserts: Iterable[Bound], turns: Sequence[Turn] = ()
) -> None:
    """Insert a round, its dependent rows and its change row.

    Args:
        tx: the transaction.
        round_: with its index.
        inserts: of ``round_inserts``.
        turns: the turns among the inserts, in their order.
    """
    insert_round = sql.INSERT_ROUND.bound(
        {
            "id": round_.id,
            "session_id": round_.session_id,
            "index": round_.index,
            "created_at": round_.created_us,
            "updated_at": round_.updated_us,
        }
    )
    try:
        trim_changes(tx, tx.run_all((insert_round, *inserts)))
    except ConstraintViolationError as violation:
        taken = _taken(violation, round_, turns)
        if taken is None:
            raise
        raise taken from violation


def _taken(
    violation: ConstraintViolationError, round_: Round, turns: Sequence[Turn]
) -> AlreadyExistsError | None:
    if sql.REQUEST_ID in violation.columns:
        return RequestAlreadyExistsError(round_.request.id)
    if sql.RESPONSE_ID in violation.columns:
        return ResponseAlreadyExistsError(round_.response.id)
    if sql.ROUND_ID in violation.columns:
        return RoundAlreadyExistsError(round_.id)
    if sql.ROUND_INDEX in violation.columns:
        return RoundAlreadyExistsError(
            message=f"The session has a round of the index {round_.index}."
        )
    if sql.TURN_ID in violation.columns and violation.position is not None:
        # The INSERTs of the round, the request and the response come before those of the turns.
        return TurnAlreadyExistsError(turns[violation.position - 3].id)
    return None


def get_round(id: str) -> ReadUnit[Round]:
    """Return a round with its request and response.

    Args:
        id: the id of the round.

    Returns:
        The round.

    Raises:
        InvalidArgumentError: the id is not a string.
        RoundNotFoundError: there is no such round.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: ReadTransaction) -> Round:
        row = tx.row(sql.ROUND_BY_ID, values)
        if row is None:
            raise RoundNotFoundError(id)
        return Round(*round_fields(row))

    return work


def get_round_by_response(response_id: str) -> ReadUnit[Round]:
    """Return the round of a response.

    Args:
        response_id: the id of the response.

    Returns:
        The round.

    Raises:
        InvalidArgumentError: the id is not a string.
        ResponseNotFoundError: there is no such response.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    values = {"response_id": response_id}

    def work(tx: ReadTransaction) -> Round:
        row = tx.row(sql.ROUND_BY_RESPONSE, values)
        if row is None:
            raise ResponseNotFoundError(response_id)
        return Round(*round_fields(row))

    return work


def get_current_round(session_id: str) -> ReadUnit[Round]:
    """Return the last round of a session.

    Args:
        session_id: the id of the session.

    Returns:
        The round with the highest index.

    Raises:
        InvalidArgumentError: the id is not a string.
        SessionNotFoundError: there is no such session.
        RoundNotFoundError: the session has no round.
    """
    session_id = arguments.lookup_id("session_id", session_id)
    values = {"session_id": session_id}

    def work(tx: ReadTransaction) -> Round:
        row = tx.row(sql.LAST_ROUND, values)
        if row is None:
            require_session(tx, session_id)
            raise RoundNotFoundError(message="The session has no round.")
        return Round(*round_fields(row))

    return work


def list_rounds(
    session_id: str, *, limit: int | None = None, offset: int = 0, after: int | None = None
) -> ReadUnit[list[Round]]:
    """Return rounds of a session in index order.

    Args:
        session_id: the id of the session.
        limit: rounds of the page, 1 to 10,000; all of them when None.
        offset: rounds to skip; each costs a step, ``after`` costs none.
        after: the index of the last round of the page before.

    Returns:
        The rounds.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
    """
    values: dict[str, Any] = {
        "session_id": arguments.lookup_id("session_id", session_id),
        "limit": arguments.optional_limit("limit", limit),
        "offset": arguments.offset("offset", offset),
        "after": arguments.after_index("after", after),
    }

    def work(tx: ReadTransaction) -> list[Round]:
        rows = tx.rows(sql.ROUND_PAGE, values)
        if not rows:
            require_session(tx, values["session_id"])
        return [Round(*round_fields(row)) for row in rows]

    return work


def delete_round(id: str, *, missing_ok: bool = False) -> WriteUnit[bool]:
    """Delete a round with its request, response and turns; its index is never given again.

    Args:
        id: the id of the round.
        missing_ok: whether to return False instead of raising if there is none.

    Returns:
        Whether there was one.

    Raises:
        InvalidArgumentError: the id is not a string.
        RoundNotFoundError: there is no such round.
    """
    arguments.flag("missing_ok", missing_ok)
    values = {"id": (id := arguments.lookup_id("id", id))}
    moment = now()

    def work(tx: WriteTransaction) -> bool:
        row = tx.row(sql.SESSION_OF_ROUND, values)
        if row is not None:
            tx.run(sql.DELETE_ROUND, values)
            record_change(tx, Entity.ROUND, id, ChangeOp.DELETE, parent_id=row[0])
            touch_session(tx, row[0], moment)
            return True
        if missing_ok:
            return False
        raise RoundNotFoundError(id)

    return work
