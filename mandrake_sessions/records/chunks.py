"""The text of a turn that is still streamed: what its row holds, and its chunks behind it."""

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
from mandrake_sessions.database.statement import Statement
from mandrake_sessions.models import TurnStatus

_TURN = schema.turns.c
_CHUNK = schema.turn_chunks.c
_NOTHING: ColumnElement[str] = literal_column("''", Text)

TEXTS: Final = (_TURN.content.name, _TURN.raw_response.name)
"""The columns of a turn that come in chunks."""

# The status is part of the text: with a parameter SQLite could not use the partial index.
IS_STREAMING: Final = _TURN.status == literal_column(f"'{TurnStatus.STREAMING}'")

HAS_CHUNKS: Final = exists().where(_CHUNK.turn_id == _TURN.id).correlate(schema.turns)
"""Whether a TurnWriter writes the turn: its first chunk is there before any text."""

DELETE_CHUNKS: Final = Statement(
    delete(schema.turn_chunks).where(_CHUNK.turn_id == bindparam("id"))
)


def folded(name: str) -> ColumnElement[str]:
    """Return a column of ``TEXTS`` with the turn's chunks behind it, in the order of writing."""
    column: Column[Any] = _CHUNK[name]
    joined = func.group_concat(column, _NOTHING).aggregate_order_by(_CHUNK.seq)
    of_turn = select(joined).where(_CHUNK.turn_id == _TURN.id).correlate(schema.turns)
    return _TURN[name] + func.coalesce(of_turn.scalar_subquery(), _NOTHING)


def whole(name: str) -> ColumnElement[str]:
    """Return a column of ``TEXTS`` as readers see it; only streaming turns are looked at twice."""
    return case((IS_STREAMING, folded(name)), else_=_TURN[name])
