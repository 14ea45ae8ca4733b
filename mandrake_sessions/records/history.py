"""A session's rounds with their turns, in a fixed number of statements whatever their number."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from mandrake_sessions import arguments
from mandrake_sessions.engine.statement import Row
from mandrake_sessions.engine.transaction import ReadTransaction, ReadUnit
from mandrake_sessions.models import Exchange, SessionHistory, Turn
from mandrake_sessions.records import sql
from mandrake_sessions.records.rounds import round_fields
from mandrake_sessions.records.sessions import get_session, require_session
from mandrake_sessions.records.turn_rows import turn_from

_RESPONSE_ID: Final = itemgetter(Turn.__struct_fields__.index("response_id"))
"""Returns the response's id of a row of ``turn_columns``."""


def render_session_history(session_id: str, *, last: int | None = None) -> ReadUnit[SessionHistory]:
    """Return a session with its rounds and their turns, all in index order.

    Args:
        session_id: the id of the session.
        last: how many of the last rounds, 1 to 10,000; all of them when None.

    Returns:
        The session, its rounds and their turns, all of one snapshot.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
    """
    session_id = arguments.lookup_id("session_id", session_id)
    get = get_session(session_id)
    values = {
        "session_id": session_id,
        "after": -1,
        "limit": arguments.optional_limit("last", last),
    }

    def work(tx: ReadTransaction) -> SessionHistory:
        session = get(tx)
        rows = (
            tx.rows(sql.ROUNDS_AFTER, values)
            if last is None
            else tx.rows(sql.LAST_ROUNDS, values)[::-1]
        )
        return SessionHistory(session, tuple(_exchanges(tx, session_id, rows)))

    return work


def history_page(session_id: str, after_index: int | None, limit: int) -> ReadUnit[list[Exchange]]:
    """Return a page of a session's rounds with their turns, in index order.

    Args:
        session_id: the id of the session.
        after_index: the index of the last round of the page before; None for the first page.
        limit: rounds of the page, 1 to 10,000.

    Returns:
        The rounds of the page with their turns; fewer than ``limit`` on the last page.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        SessionNotFoundError: there is no such session.
    """
    session_id = arguments.lookup_id("session_id", session_id)
    values: dict[str, Any] = {
        "session_id": session_id,
        "after": arguments.after_index("after_index", after_index),
        "limit": arguments.limit("limit", limit),
    }

    def work(tx: ReadTransaction) -> list[Exchange]:
        rows = tx.rows(sql.ROUNDS_AFTER, values)
        if not rows:
            require_session(tx, session_id)
        return _exchanges(tx, session_id, rows)

    return work


def _exchanges(tx: ReadTransaction, session_id: str, rows: list[Row]) -> list[Exchange]:
    if not rows:
        return []
    values = {"session_id": session_id, "first": rows[0][2], "last": rows[-1][2]}
    # No list is kept for each round: the garbage collector tracks lists, so that every third
    # rendering of 10,000 rounds made it scan the whole heap, and all threads waited.
    turns = {
        response_id: tuple(map(turn_from, of_response))
        for response_id, of_response in groupby(tx.rows(sql.TURNS_BETWEEN, values), _RESPONSE_ID)
    }
    return [Exchange(*fields, turns.get(fields[4].id, ())) for fields in map(round_fields, rows)]
