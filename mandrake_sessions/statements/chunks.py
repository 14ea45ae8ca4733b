"""The text of a streaming turn: the part in its row, and the chunks after it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Text,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    select,
)

from mandrake_sessions import schema
from mandrake_sessions.models import Turn, TurnStatus
from mandrake_sessions.statements.columns import columns_of

_turn = schema.turns.c
_chunk = schema.turn_chunks.c
_nothing: ColumnElement[str] = literal_column("''", Text)

texts: Final = (_turn.content.name, _turn.raw_response.name)
"""The columns of a turn whose text comes in chunks."""

# The status is part of the text: with a parameter SQLite could not use the partial index.
is_streaming: Final = _turn.status == literal_column(f"'{TurnStatus.STREAMING}'")

has_chunks: Final = exists().where(_chunk.turn_id == _turn.id).correlate(schema.turns)
"""Whether a TurnWriter writes the turn: its first chunk is stored before any text."""

TEXTS = texts
DELETE_CHUNKS = delete(schema.turn_chunks).where(_chunk.turn_id == bindparam("id"))


def folded(name: str) -> ColumnElement[str]:
    """Return a column of ``texts`` with the turn's chunks appended, in the order of writing."""
    column: Column[Any] = _chunk[name]
    joined = func.aggregate_strings(column, "").aggregate_order_by(_chunk.seq).label("chunks")
    of_turn = select(joined).where(_chunk.turn_id == _turn.id).correlate(schema.turns)
    return _turn[name] + func.coalesce(of_turn.scalar_subquery(), _nothing)


def whole(name: str) -> ColumnElement[str]:
    """Return a column of ``texts`` as readers get it; only streaming turns read their chunks."""
    return case((is_streaming, folded(name)), else_=_turn[name])


turn_columns: Final = tuple(
    whole(column.name).label(column.name) if column.name in texts else column
    for column in columns_of(Turn, schema.turns)
)
"""The columns of a turn, in the order of its fields."""
