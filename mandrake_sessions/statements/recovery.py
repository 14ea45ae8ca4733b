"""Statements about turns that are still streaming after their writer is gone."""

from __future__ import annotations

from sqlalchemy import bindparam, literal_column, null, select, update

from mandrake_sessions import schema
from mandrake_sessions.models import TurnStatus
from mandrake_sessions.statements.chunks import folded, is_streaming, texts, turn_columns
from mandrake_sessions.statements.columns import later
from mandrake_sessions.statements.portable import elements_of, greater_of

_c = schema.turns.c

# Not DISTINCT: every opening prepares it, and preparing a table of distinct values took 24 of
# 31 µs.
STREAMING_OWNERS = select(_c.owner).where(is_streaming)
_gone = elements_of("owners")
# Not sorted here: for the order SQLite would scan another index, and all turns.
ABANDONED_TURNS = (
    select(_c.response_id, _c.index, _c.id, _c.tool_calls)
    # IS, so that NULL, for no owner, is found like any other owner.
    .where(is_streaming, select(_gone).where(_gone.c.value.is_not_distinct_from(_c.owner)).exists())
)
STREAMING_TURNS = select(_c.owner, _c.response_id, _c.index, _c.id, _c.tool_calls).where(
    is_streaming
)
STILL_STREAMING = select(_c.response_id, _c.index, _c.id, _c.tool_calls).where(
    _c.id == bindparam("id"), is_streaming
)
INTERRUPT_TURN = (
    update(schema.turns)
    .where(_c.id == bindparam("id"), is_streaming)
    .values({name: folded(name) for name in texts})
    .values(
        status=literal_column(f"'{TurnStatus.INTERRUPTED}'"),
        tool_calls=bindparam("tool_calls"),
        owner=null(),
        stream_ended_at=greater_of(_c.stream_started_at, "now"),
        revision=_c.revision + 1,
        updated_at=later(schema.turns),
    )
    .returning(*turn_columns)
)
