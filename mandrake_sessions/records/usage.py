"""The usage of a session: totals made by SQLite."""

from __future__ import annotations

from mandrake_sessions import arguments
from mandrake_sessions.engine.transaction import ReadTransaction, ReadUnit
from mandrake_sessions.errors import SessionNotFoundError
from mandrake_sessions.models import SessionUsage
from mandrake_sessions.records import sql


def get_session_usage(session_id: str) -> ReadUnit[SessionUsage]:
    """Return the tokens and costs of a session over all its turns.

    Args:
        session_id: the id of the session.

    Returns:
        The totals, without deleted turns.

    Raises:
        InvalidArgumentError: the id is not a string.
        SessionNotFoundError: there is no such session.
    """
    session_id = arguments.lookup_id("session_id", session_id)
    values = {"session_id": session_id}

    def work(tx: ReadTransaction) -> SessionUsage:
        row = tx.row(sql.SESSION_USAGE, values)
        if row is None:
            raise SessionNotFoundError(session_id)
        rounds, turns, *halves, input_cost, output_cost = row
        read, written, cache_read, cache_written = (
            (high << sql.LOW_BITS) + low
            for high, low in zip(halves[::2], halves[1::2], strict=True)
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
