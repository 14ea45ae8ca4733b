"""The tables of the origin, Mandrake's SessionManager in TypeScript, and how they are read.

Rows are found by their rowid and never by an id that Python has decoded: an id may be bytes that
are no text. The rowid is also the order of insertion, the only order of the origin's rounds: all of
them have the index 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mandrake_sessions.database.connection.foreign import Cell, fetchable

_TIMES: Final = ("createdAt", "updatedAt")
_SESSION: Final = ("id", "title", "description", "metadata", *_TIMES)
TURN_COLUMNS: Final = (
    "id",
    "index",
    "content",
    "rawResponse",
    "toolCalls",
    "status",
    "streamStartTime",
    "streamEndTime",
    "currentTokens",
    "expectedTokens",
    "inputTokens",
    "outputTokens",
    "cacheReadTokens",
    "cacheWriteTokens",
    "inputCost",
    "outputCost",
    *_TIMES,
)
COLUMNS: Final = {
    "sessions": {*_SESSION},
    "rounds": {"id", "sessionId", "requestId", "responseId", *_TIMES},
    "requests": {"id", "content", *_TIMES},
    "responses": {"id", *_TIMES},
    "turns": {*TURN_COLUMNS, "responseId"},
}
# The origin has these indexes; without one, reading the copy would take quadratic time.
INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS idx_rounds_sessionId ON rounds (sessionId)",
    "CREATE INDEX IF NOT EXISTS rounds_requestId_unique ON rounds (requestId)",
    "CREATE INDEX IF NOT EXISTS rounds_responseId_unique ON rounds (responseId)",
    "CREATE INDEX IF NOT EXISTS idx_turns_responseId ON turns (responseId)",
)


def _fetch(alias: str, *columns: str) -> str:
    # With its table's name, a quoted column that is missing is an error instead of a text.
    return ", ".join(fetchable(f'{alias}."{column}"') for column in columns)


SESSIONS: Final = f"SELECT s.rowid, {_fetch('s', *_SESSION)} FROM sessions s ORDER BY s.rowid"

# The columns of RoundRow.
_ROUNDS: Final = (
    f"SELECT r.rowid, {_fetch('r', 'id', *_TIMES)}, "
    f"q.rowid, {_fetch('r', 'requestId')}, {_fetch('q', 'content', *_TIMES)}, "
    f"a.rowid, {_fetch('r', 'responseId')}, {_fetch('a', *_TIMES)}, NULL "
    "FROM rounds r LEFT JOIN requests q ON q.id = r.requestId "
    "LEFT JOIN responses a ON a.id = r.responseId"
)
ROUNDS_OF_SESSION: Final = (
    f"{_ROUNDS} WHERE r.sessionId = (SELECT id FROM sessions WHERE rowid = ?) ORDER BY r.rowid"
)

_LIVE: Final = "rounds l JOIN sessions s ON s.id = l.sessionId"
ORPHANS: Final = {
    "orphaned_rounds": "SELECT count(*) FROM rounds r "
    "WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = r.sessionId)",
    "orphaned_requests": "SELECT count(*) FROM requests q "
    f"WHERE NOT EXISTS (SELECT 1 FROM {_LIVE} WHERE l.requestId = q.id)",
    "orphaned_responses": "SELECT count(*) FROM responses a "
    f"WHERE NOT EXISTS (SELECT 1 FROM {_LIVE} WHERE l.responseId = a.id)",
    "orphaned_turns": "SELECT count(*) FROM turns t "
    f"WHERE NOT EXISTS (SELECT 1 FROM {_LIVE} WHERE l.responseId = t.responseId)",
}

# Three kinds of orphans: rounds without their session, requests and responses without a round, and
# turns without even a response.
LOST_ROUNDS: Final = (
    f"{_ROUNDS} WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = r.sessionId) "
    "ORDER BY r.rowid"
)
LOST_PAIRS: Final = (
    "SELECT NULL, NULL, NULL, NULL, "
    f"q.rowid, {_fetch('q', 'id', 'content', *_TIMES)}, "
    f"a.rowid, {_fetch('a', 'id', *_TIMES)}, NULL "
    "FROM (SELECT q.rowid AS place FROM requests q "
    "WHERE NOT EXISTS (SELECT 1 FROM rounds r WHERE r.requestId = q.id)) x "
    "FULL JOIN (SELECT a.rowid AS place FROM responses a "
    "WHERE NOT EXISTS (SELECT 1 FROM rounds r WHERE r.responseId = a.id)) y ON x.place = y.place "
    "LEFT JOIN requests q ON q.rowid = x.place LEFT JOIN responses a ON a.rowid = y.place "
    "ORDER BY coalesce(x.place, y.place)"
)
LOST_TURNS: Final = (
    "SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, "
    f"NULL, {_fetch('t', 'responseId')}, NULL, NULL, min(t.rowid) FROM turns t "
    "WHERE NOT EXISTS (SELECT 1 FROM responses a WHERE a.id = t.responseId) "
    "AND NOT EXISTS (SELECT 1 FROM rounds r WHERE r.responseId = t.responseId) "
    "GROUP BY t.responseId ORDER BY min(t.rowid)"
)
# Whether any round pairs a request and a response that were not inserted one after the other.
HAS_UNEVEN_ROUND: Final = (
    "SELECT EXISTS (SELECT 1 FROM rounds r JOIN requests q ON q.id = r.requestId "
    "JOIN responses a ON a.id = r.responseId WHERE q.rowid <> a.rowid)"
)
# The origin never deletes a request, so the first one identifies a source under any name.
FIRST_ID: Final = (
    f"SELECT {_fetch('x', 'id')} FROM (SELECT coalesce("
    "(SELECT id FROM requests ORDER BY rowid LIMIT 1), "
    "(SELECT id FROM responses ORDER BY rowid LIMIT 1), "
    "(SELECT id FROM turns ORDER BY rowid LIMIT 1)) AS id) x"
)


def _turns_of(table: str, column: str, equals: str = "=") -> str:
    return (
        f"SELECT {_fetch('t', *TURN_COLUMNS)} FROM turns t "
        f"WHERE t.responseId {equals} (SELECT {column} FROM {table} WHERE rowid = ?) "
        "ORDER BY t.rowid"
    )


TURNS_OF_ROUND: Final = _turns_of("rounds", "responseId")
TURNS_OF_RESPONSE: Final = _turns_of("responses", "id")
# Even the id of their response may be lost.
TURNS_OF_TURN: Final = _turns_of("turns", "responseId", "IS")


class RoundRow(NamedTuple):
    """The found parts of a round; each may be missing.

    Attributes:
        round: its rowid, as ``request``, ``response`` and ``turn`` are theirs; None if it is
            missing.
        turn: one of the turns, if the other three are missing.
    """

    round: Cell
    id: Cell
    created: Cell
    updated: Cell
    request: Cell
    request_id: Cell
    content: Cell
    request_created: Cell
    request_updated: Cell
    response: Cell
    response_id: Cell
    response_created: Cell
    response_updated: Cell
    turn: Cell
