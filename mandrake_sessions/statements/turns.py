"""Statements about turns: their rows, and changes of some columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import (
    Update,
    bindparam,
    delete,
    func,
    not_,
    null,
    or_,
    select,
    update,
)

from mandrake_sessions import schema
from mandrake_sessions.models import NewTurn, Turn
from mandrake_sessions.statements.chunks import (
    has_chunks,
    is_streaming,
    texts,
    turn_columns,
    whole,
)
from mandrake_sessions.statements.columns import later, update_row
from mandrake_sessions.statements.portable import greater_of
from mandrake_sessions.statements.templates import RecordInsert, UpdateSome

_c = schema.turns.c
_response = schema.responses.c

TURN_ID = _c.id
INSERT_TURN = RecordInsert(Turn, schema.turns, extra=(_c.tool_calls, _c.owner))

# One statement takes the next index, or the given later one, and advances the counter.
_wanted_index = func.coalesce(bindparam("index", type_=schema.INTEGER), _response.next_turn_index)
TAKE_TURN_INDEX = (
    update(schema.responses)
    .values(next_turn_index=_wanted_index + 1, updated_at=later(schema.responses))
    .where(_response.id == bindparam("response_id"), _response.next_turn_index <= _wanted_index)
    .returning(_response.next_turn_index)
)
RESPONSE_EXISTS = select(_response.id).where(_response.id == bindparam("response_id"))
TURN_AT_INDEX = select(_c.id).where(
    _c.response_id == bindparam("response_id"), _c.index == bindparam("index")
)
TURN_BY_ID = select(*turn_columns).where(_c.id == bindparam("id"))
_of_response = select(*turn_columns).where(_c.response_id == bindparam("response_id"))
LATEST_TURN = _of_response.order_by(_c.index.desc()).limit(1)
TURN_PAGE = (
    _of_response.where(_c.index > bindparam("after"))
    .order_by(_c.index)
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
RESPONSE_OF_TURN = select(_c.response_id).where(_c.id == bindparam("id"))
DELETE_TURN = delete(schema.turns).where(_c.id == bindparam("id"))
_count_turns = (
    select(func.count()).where(_c.response_id == _response.id).correlate(schema.responses)
)
STREAMING_STATUS = select(
    _response.id,
    _count_turns.scalar_subquery(),
    _count_turns.where(is_streaming).scalar_subquery(),
).where(_response.id == bindparam("response_id"))

settable: Final = [
    column
    for column in schema.turns.columns
    if column.name in NewTurn.__struct_fields__ and column is not _c.id
]
"""The columns that a caller may set."""


def _changed(names: Sequence[str]) -> Update:
    changed = update_row(schema.turns, names)
    if _c.status.name in names:
        # A streaming turn may get any status; an ended one keeps it (records.turn_updates.MOVES).
        changed = changed.where(or_(is_streaming, _c.status == bindparam(_c.status.name)))
    if not set(texts).isdisjoint(names):
        changed = changed.where(not_(has_chunks))
    return changed.returning(*turn_columns, has_chunks.label("has_chunks"))


def _ended(names: Sequence[str]) -> Update:
    # The first end counts: a turn that is finished again keeps its time. And if the clock went
    # back, the turn does not end before it began.
    ended = greater_of(_c.stream_started_at, "now")
    return (
        _changed([*names, _c.status.name])
        .values({name: whole(name) for name in texts if name not in names})
        .values(stream_ended_at=func.coalesce(_c.stream_ended_at, ended), owner=null())
    )


UPDATE_TURN = UpdateSome(_changed, settable)
END_TURN = UpdateSome(_ended, settable)
"""For a status other than ``streaming``."""
MARK_TOOL_CALLS = (
    update(schema.turns).where(_c.id == bindparam("id")).values(tool_calls=bindparam("tool_calls"))
)
"""Runs in the transaction of the end, which counts the revision."""
