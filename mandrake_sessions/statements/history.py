"""Statements that read a session's rounds with their turns."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, bindparam, select

from mandrake_sessions import schema
from mandrake_sessions.statements.chunks import turn_columns
from mandrake_sessions.statements.rounds import select_rounds

_round = schema.rounds.c
_turn = schema.turns.c
_of_session = _round.session_id == bindparam("session_id")

ROUNDS_AFTER: Select[Any] = (
    select_rounds.where(_of_session, _round.index > bindparam("after"))
    .order_by(_round.index)
    .limit(bindparam("limit"))
)
LAST_ROUNDS: Select[Any] = (
    select_rounds.where(_of_session).order_by(_round.index.desc()).limit(bindparam("limit"))
)
# Two nested index scans give this order, without sorting. So the turns of a response follow each
# other.
TURNS_BETWEEN = (
    select(*turn_columns)
    .select_from(schema.rounds.join(schema.responses).join(schema.turns))
    .where(_of_session, _round.index.between(bindparam("first"), bindparam("last")))
    .order_by(_round.index, _turn.index)
)
