"""What a session used: totals made by SQLite."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, bindparam, func, select

from mandrake_sessions import arguments, schema
from mandrake_sessions.database.statement import Statement
from mandrake_sessions.database.transaction import ReadTransaction, ReadUnit
from mandrake_sessions.errors import SessionNotFoundError
from mandrake_sessions.models import SessionUsage

_TURN = schema.turns.c
_LOW_BITS = 32


def _halves(column: Column[Any]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    # SQLite's sum() fails above 64 bits, and one count may be as large as that.
    return (
        func.coalesce(func.sum(column.bitwise_rshift(_LOW_BITS)), 0),
        func.coalesce(func.sum(column.bitwise_and((1 << _LOW_BITS) - 1)), 0),
    )


_USAGE = Statement(
    select(
        select(func.count())
        .select_from(schema.rounds)
        .where(schema.rounds.c.session_id == schema.sessions.c.id)
        .correlate(schema.sessions)
        .scalar_subquery(),
        func.count(_TURN.id),
        *_halves(_TURN.input_tokens),
        *_halves(_TURN.output_tokens),
        *_halves(_TURN.cache_read_tokens),
        *_halves(_TURN.cache_write_tokens),
        func.coalesce(func.sum(_TURN.input_cost), 0.0),
        func.coalesce(func.sum(_TURN.output_cost), 0.0),
    )
    .select_from(
        schema.sessions.outerjoin(schema.rounds).outerjoin(schema.responses).outerjoin(schema.turns)
    )
    .where(schema.sessions.c.id == bindparam("session_id"))
    # Without it an unknown session would have a row of zeros.
    .group_by(schema.sessions.c.id)
)


def get_session_usage(session_id: str) -> ReadUnit[SessionUsage]:
    """Return the tokens and costs of a session over all its turns.

    Args:
        session_id: the id of the session.

    Returns:
        The totals; deleted turns are not among them.

    Raises:
        InvalidArgumentError: the id is not a string.
        SessionNotFoundError: there is no such session.
    """
    values = {"session_id": arguments.lookup_id("session_id", session_id)}

    def work(tx: ReadTransaction) -> SessionUsage:
        row = tx.row(_USAGE, values)
        if row is None:
            raise SessionNotFoundError(session_id)
        rounds, turns, *halves, input_cost, output_cost = row
        read, written, cache_read, cache_written = (
            (high << _LOW_BITS) + low for high, low in zip(halves[::2], halves[1::2], strict=True)
        )
        return SessionUsage(
            session_id=session_id,
            rounds=rounds,
            turns=turns,
            input_tokens=read,
            output_tokens=written,
            cache_read_tokens=cache_read,
            cache_write_tokens=cache_written,
            input_cost=input_cost,
            output_cost=output_cost,
        )

    return work
