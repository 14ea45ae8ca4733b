"""Statements for importers, which insert complete records."""

from __future__ import annotations

from sqlalchemy import bindparam, select, update

from mandrake_sessions import schema
from mandrake_sessions.statements.portable import greater_of

_session = schema.sessions.c
_round = schema.rounds.c
_index = select(_round.index)

INDEX_BY_ROUND = _index.where(_round.id == bindparam("id"))
INDEX_BY_REQUEST = _index.select_from(schema.rounds.join(schema.requests)).where(
    schema.requests.c.id == bindparam("request_id")
)
INDEX_BY_RESPONSE = _index.select_from(schema.rounds.join(schema.responses)).where(
    schema.responses.c.id == bindparam("response_id")
)
ROUND_AT_INDEX = select(_round.id).where(
    _round.session_id == bindparam("session_id"), _round.index == bindparam("index")
)
# The times of an imported session are those of its source, so ``updated_at`` stays.
RAISE_ROUND_INDEX = (
    update(schema.sessions)
    .values(next_round_index=greater_of(_session.next_round_index, "next_round_index"))
    .where(_session.id == bindparam("session_id"))
)
