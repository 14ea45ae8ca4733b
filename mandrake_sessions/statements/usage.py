"""Totals of a session, computed by SQLite."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, bindparam, func, select

from mandrake_sessions import schema
from mandrake_sessions.statements.portable import sum_of

_turn = schema.turns.c

LOW_BITS = 32
"""Where a count is halved: sum() fails above 64 bits, and one count may be as large as that."""


def _halves(column: Column[Any]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    return (
        func.coalesce(sum_of(column.bitwise_rshift(LOW_BITS)), 0),
        func.coalesce(sum_of(column.bitwise_and((1 << LOW_BITS) - 1)), 0),
    )


SESSION_USAGE = (
    select(
        select(func.count())
        .select_from(schema.rounds)
        .where(schema.rounds.c.session_id == schema.sessions.c.id)
        .correlate(schema.sessions)
        .scalar_subquery(),
        func.count(_turn.id),
        *_halves(_turn.input_tokens),
        *_halves(_turn.output_tokens),
        *_halves(_turn.cache_read_tokens),
        *_halves(_turn.cache_write_tokens),
        func.coalesce(func.sum(_turn.input_cost), 0.0),
        func.coalesce(func.sum(_turn.output_cost), 0.0),
    )
    .select_from(
        schema.sessions.outerjoin(schema.rounds).outerjoin(schema.responses).outerjoin(schema.turns)
    )
    .where(schema.sessions.c.id == bindparam("session_id"))
    # Without this an unknown session would have a row of zeros.
    .group_by(schema.sessions.c.id)
)
