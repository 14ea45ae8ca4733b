"""Rounds: a request and the response to it, stored together under the next index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Integer, bindparam, delete, func, insert, select, update

from mandrake_sessions import arguments, schema
from mandrake_sessions.database.statement import Bound, Row, Statement
from mandrake_sessions.database.transaction import (
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
)
from mandrake_sessions.ids import new_id, now
from mandrake_sessions.models import (
    ChangeOp,
    Entity,
    Exchange,
    NewTurn,
    Request,
    Response,
    Round,
    TurnStatus,
)
from mandrake_sessions.records.changes import record_change
from mandrake_sessions.records.columns import RecordInsert, columns_of, later
from mandrake_sessions.records.sessions import require_session, touch_session
from mandrake_sessions.records.turn_rows import add_turn, prepare_turn, turn_insert

_SESSION = schema.sessions.c
_ROUND = schema.rounds.c
_RESPONSE = schema.responses.c

_TAKE_INDEX = Statement(
    update(schema.sessions)
    .values(next_round_index=_SESSION.next_round_index + 1, updated_at=later(schema.sessions))
    .where(
        _SESSION.id == bindparam("session_id"),
        _SESSION.next_round_index
        == func.coalesce(bindparam("expected_index", type_=Integer), _SESSION.next_round_index),
    )
    .returning(_SESSION.next_round_index)
)
_NEXT_INDEX = Statement(
    select(_SESSION.next_round_index).where(_SESSION.id == bindparam("session_id"))
)
_INSERT_ROUND = Statement(insert(schema.rounds))
_INSERT_REQUEST = RecordInsert(Request, schema.requests)
_INSERT_RESPONSE = RecordInsert(Response, schema.responses, extra=(_RESPONSE.next_turn_index,))

# The columns in the order of round_fields().
SELECT_ROUNDS = select(
    _ROUND.id,
    _ROUND.session_id,
    _ROUND.index,
    _ROUND.created_at,
    _ROUND.updated_at,
    *columns_of(Request, schema.requests),
    *columns_of(Response, schema.responses),
).select_from(
    schema.rounds.join(schema.requests).join(schema.responses, _ROUND.id == _RESPONSE.round_id)
)
_BY_ID = Statement(SELECT_ROUNDS.where(_ROUND.id == bindparam("id")))
_BY_RESPONSE = Statement(SELECT_ROUNDS.where(_RESPONSE.id == bindparam("response_id")))
_LAST = Statement(
    SELECT_ROUNDS.where(_ROUND.session_id == bindparam("session_id"))
    .order_by(_ROUND.index.desc())
    .limit(1)
)
_PAGE = Statement(
    SELECT_ROUNDS.where(
        _ROUND.session_id == bindparam("session_id"), _ROUND.index > bindparam("after")
    )
    .order_by(_ROUND.index)
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
_DELETE = Statement(
    delete(schema.rounds).where(_ROUND.id == bindparam("id")).returning(_ROUND.session_id)
)


def round_fields(row: Row) -> tuple[str, str, int, Request, Response, int, int]:
    """Return the fields of a round, in their order, from a row of ``SELECT_ROUNDS``."""
    return (row[0], row[1], row[2], Request(*row[5:10]), Response(*row[10:]), row[3], row[4])


def create_round(
    session_id: str, content: str, *, id: str | None = None, expected_index: int | None = None
) -> WriteUnit[Round]:
    """Add a round: the request with its content, and a response that has no turns yet.

    Args:
        session_id: the session it belongs to.
        content: what the user asked.
        id: the id the round shall have, 1 to 255 characters; a new UUIDv7 when None.
        expected_index: the index the round must get; refuses a conversation that grew meanwhile.

    Returns:
        The new round.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
        RoundAlreadyExistsError: the id is taken.
        StaleRevisionError: the next index is not the expected one.
    """
    moment = now()
    new = _prepare_round(session_id, content, id, moment)
    arguments.optional_index("expected_index", expected_index)
    inserts = round_inserts(new, next_turn_index=0)

    def work(tx: WriteTransaction) -> Round:
        index = _take_index(tx, session_id, moment, expected_index)
        round_ = Round(new.id, session_id, index, new.request, new.response, moment, moment)
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
        content: what the user asked.
        turns: the turns of the response in their order, all of them finished.
        id: the id the round shall have, 1 to 255 characters; a new UUIDv7 when None.
        expected_index: the index the round must get; refuses a conversation that grew meanwhile.

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
    new = _prepare_round(session_id, content, id, moment)
    arguments.optional_index("expected_index", expected_index)
    prepared = [
        prepare_turn(turn, new.response.id, index, moment)
        for index, turn in enumerate(arguments.new_turns("turns", turns))
    ]
    stored = tuple(turn for turn, _ in prepared)
    inserts = round_inserts(new, next_turn_index=len(stored))
    turn_inserts = [(turn, turn_insert(turn, encoded)) for turn, encoded in prepared]
    if any(turn.status is TurnStatus.STREAMING for turn in stored):
        raise InvalidArgumentError("turns must be finished; create_turn makes one that streams.")

    def work(tx: WriteTransaction) -> Exchange:
        index = _take_index(tx, session_id, moment, expected_index)
        exchange = Exchange(
            new.id, session_id, index, new.request, new.response, moment, moment, stored
        )
        add_round(tx, exchange, inserts)
        for turn, insert_turn in turn_inserts:
            add_turn(tx, turn, insert_turn)
        return exchange

    return work


def _prepare_round(session_id: str, content: str, id: str | None, moment: int) -> Round:
    """Return the round as it will be, but for its index."""
    session_id = arguments.lookup_id("session_id", session_id)
    round_id = arguments.fresh_id("id", id)
    request = Request(new_id(), round_id, arguments.text("content", content), moment, moment)
    response = Response(new_id(), round_id, moment, moment)
    return Round(round_id, session_id, 0, request, response, moment, moment)


def _take_index(
    tx: WriteTransaction, session_id: str, moment: int, expected_index: int | None
) -> int:
    values = {"session_id": session_id, "now": moment, "expected_index": expected_index}
    row = tx.row(_TAKE_INDEX, values)
    if row is not None:
        return int(row[0]) - 1
    row = tx.row(_NEXT_INDEX, values)
    if row is None or expected_index is None:
        raise SessionNotFoundError(session_id)
    raise StaleRevisionError(expected=expected_index, actual=row[0])


def round_inserts(round_: Round, *, next_turn_index: int) -> list[Bound]:
    """Return what stores a round's request and response: all of it that needs no index."""
    return [
        _INSERT_REQUEST.of(round_.request),
        _INSERT_RESPONSE.of(round_.response, next_turn_index),
    ]


def add_round(tx: WriteTransaction, round_: Round, inserts: Iterable[Bound]) -> None:
    """Insert a round with what hangs on it, and its change row.

    Args:
        tx: the transaction.
        round_: with its index.
        inserts: those of its request and response.
    """
    insert_round = _INSERT_ROUND.bound(
        {
            "id": round_.id,
            "session_id": round_.session_id,
            "index": round_.index,
            "created_at": round_.created_us,
            "updated_at": round_.updated_us,
        }
    )
    try:
        tx.run_all((insert_round, *inserts))
    except ConstraintViolationError as violation:
        taken = _taken(violation, round_)
        if taken is None:
            raise
        raise taken from violation
    record_change(tx, Entity.ROUND, round_.id, ChangeOp.CREATE, parent_id=round_.session_id)


def _taken(violation: ConstraintViolationError, round_: Round) -> AlreadyExistsError | None:
    if str(schema.requests.c.id) in violation.columns:
        return RequestAlreadyExistsError(round_.request.id)
    if str(_RESPONSE.id) in violation.columns:
        return ResponseAlreadyExistsError(round_.response.id)
    if str(_ROUND.id) in violation.columns:
        return RoundAlreadyExistsError(round_.id)
    if str(_ROUND.index) in violation.columns:
        return RoundAlreadyExistsError(
            round_.id, f"The session has a round of the index {round_.index}."
        )
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
    values = {"id": arguments.lookup_id("id", id)}

    def work(tx: ReadTransaction) -> Round:
        row = tx.row(_BY_ID, values)
        if row is None:
            raise RoundNotFoundError(id)
        return Round(*round_fields(row))

    return work


def get_round_by_response(response_id: str) -> ReadUnit[Round]:
    """Return the round that a response belongs to.

    Args:
        response_id: the id of the response.

    Returns:
        The round.

    Raises:
        InvalidArgumentError: the id is not a string.
        ResponseNotFoundError: there is no such response.
    """
    values = {"response_id": arguments.lookup_id("response_id", response_id)}

    def work(tx: ReadTransaction) -> Round:
        row = tx.row(_BY_RESPONSE, values)
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
    values = {"session_id": arguments.lookup_id("session_id", session_id)}

    def work(tx: ReadTransaction) -> Round:
        row = tx.row(_LAST, values)
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
        offset: rounds left out in front; each costs a step, ``after`` costs none.
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
        rows = tx.rows(_PAGE, values)
        if not rows:
            require_session(tx, session_id)
        return [Round(*round_fields(row)) for row in rows]

    return work


def delete_round(id: str, *, missing_ok: bool = False) -> WriteUnit[bool]:
    """Delete a round with its request, response and turns; its index is not given again.

    Args:
        id: the id of the round.
        missing_ok: whether to return False, rather than raise, if there is none.

    Returns:
        Whether there was one.

    Raises:
        InvalidArgumentError: the id is not a string.
        RoundNotFoundError: there is no such round.
    """
    arguments.flag("missing_ok", missing_ok)
    values = {"id": arguments.lookup_id("id", id)}
    moment = now()

    def work(tx: WriteTransaction) -> bool:
        row = tx.row(_DELETE, values)
        if row is not None:
            record_change(tx, Entity.ROUND, id, ChangeOp.DELETE, parent_id=row[0])
            touch_session(tx, row[0], moment)
            return True
        if missing_ok:
            return False
        raise RoundNotFoundError(id)

    return work
