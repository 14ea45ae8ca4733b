"""The reads of followers: change rows, and the present rows they refer to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, bindparam, func, select

from mandrake_sessions import schema
from mandrake_sessions.statements.chunks import turn_columns
from mandrake_sessions.statements.portable import elements_of
from mandrake_sessions.statements.rounds import select_rounds

_change = schema.changes.c
_round = schema.rounds.c
_request = schema.requests.c
_response = schema.responses.c
_turn = schema.turns.c
_chunk = schema.turn_chunks.c


def _ids() -> Select[Any]:
    """Return the ids of the JSON array ``:ids``."""
    return select(elements_of("ids").c.value)


CHANGES_FROM = (
    select(_change.seq, _change.session_id, _change.entity, _change.id, _change.op)
    .where(_change.seq >= bindparam("seq"))
    .order_by(_change.seq)
    .limit(bindparam("limit"))
)
LAST_CHANGE = (
    select(_change.seq, _change.session_id, _change.entity, _change.id, _change.op)
    .order_by(_change.seq.desc())
    .limit(1)
)
_last_chunk = (
    select(func.max(_chunk.seq).label("seq"))
    .where(_chunk.turn_id == _turn.id)
    .correlate(schema.turns)
    .scalar_subquery()
)
# The text and the number of its last chunk come from one statement, so from one snapshot.
_turns = select(
    *turn_columns, _turn.owner, _last_chunk.label("last_chunk"), _round.session_id, _round.id
).select_from(
    schema.rounds.join(schema.responses, _round.id == _response.round_id).join(schema.turns)
)
TURNS_BY_ID = _turns.where(_turn.id.in_(_ids())).order_by(_round.index, _turn.index)
TURNS_OF_RESPONSE = _turns.where(_turn.response_id == bindparam("response_id")).order_by(
    _turn.index
)
TURNS_OF_ROUNDS = _turns.where(_round.id.in_(_ids())).order_by(_round.index, _turn.index)
PLACE_OF_RESPONSE = (
    select(_round.session_id, _round.id)
    .select_from(schema.rounds.join(schema.responses, _round.id == _response.round_id))
    .where(_response.id == bindparam("response_id"))
)
ROUNDS_BY_ID: Select[Any] = select_rounds.where(_round.id.in_(_ids())).order_by(_round.index)
ROUNDS_BY_REQUEST: Select[Any] = select_rounds.where(_request.id.in_(_ids())).order_by(_round.index)
ROUNDS_FROM: Select[Any] = (
    select_rounds.where(
        _round.session_id == bindparam("session_id"), _round.index >= bindparam("index")
    )
    .order_by(_round.index)
    .limit(bindparam("limit"))
)
CHUNKS_AFTER = (
    select(_chunk.seq, _chunk.content)
    .where(_chunk.turn_id == bindparam("turn_id"), _chunk.seq > bindparam("seq"))
    .order_by(_chunk.seq)
)
