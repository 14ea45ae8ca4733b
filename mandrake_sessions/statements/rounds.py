"""Statements about rounds: a request and the response to it, under the next index."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, bindparam, delete, func, insert, select, update

from mandrake_sessions import schema
from mandrake_sessions.models import Request, Response
from mandrake_sessions.statements.columns import columns_of, later
from mandrake_sessions.statements.templates import RecordInsert

_session = schema.sessions.c
_round = schema.rounds.c
_response = schema.responses.c

ROUND_ID = _round.id
ROUND_INDEX = _round.index
REQUEST_ID = schema.requests.c.id
RESPONSE_ID = _response.id

TAKE_ROUND_INDEX = (
    update(schema.sessions)
    .values(next_round_index=_session.next_round_index + 1, updated_at=later(schema.sessions))
    .where(
        _session.id == bindparam("session_id"),
        _session.next_round_index
        == func.coalesce(
            bindparam("expected_index", type_=schema.INTEGER), _session.next_round_index
        ),
    )
    .returning(_session.next_round_index)
)
NEXT_ROUND_INDEX = select(_session.next_round_index).where(_session.id == bindparam("session_id"))
INSERT_ROUND = insert(schema.rounds)
INSERT_REQUEST = RecordInsert(Request, schema.requests)
INSERT_RESPONSE = RecordInsert(Response, schema.responses, extra=(_response.next_turn_index,))

# The columns in the order of records.rounds.round_fields().
select_rounds: Select[Any] = select(
    _round.id,
    _round.session_id,
    _round.index,
    _round.created_at,
    _round.updated_at,
    *columns_of(Request, schema.requests),
    *columns_of(Response, schema.responses),
).select_from(
    schema.rounds.join(schema.requests).join(schema.responses, _round.id == _response.round_id)
)
ROUND_BY_ID = select_rounds.where(_round.id == bindparam("id"))
ROUND_BY_RESPONSE = select_rounds.where(_response.id == bindparam("response_id"))
LAST_ROUND = (
    select_rounds.where(_round.session_id == bindparam("session_id"))
    .order_by(_round.index.desc())
    .limit(1)
)
ROUND_PAGE = (
    select_rounds.where(
        _round.session_id == bindparam("session_id"), _round.index > bindparam("after")
    )
    .order_by(_round.index)
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
SESSION_OF_ROUND = select(_round.session_id).where(_round.id == bindparam("id"))
DELETE_ROUND = delete(schema.rounds).where(_round.id == bindparam("id"))
