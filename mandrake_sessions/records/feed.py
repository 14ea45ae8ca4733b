"""The reads of followers: change rows, and the present rows they refer to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.engine.statement import Row, Statement
from mandrake_sessions.engine.transaction import ReadTransaction, ReadUnit
from mandrake_sessions.errors import ResponseNotFoundError, TurnNotFoundError
from mandrake_sessions.models import ChangeOp, Entity, Round, Session, Turn
from mandrake_sessions.records import sql
from mandrake_sessions.records.rounds import round_fields
from mandrake_sessions.records.sessions import get_session
from mandrake_sessions.records.turn_rows import turn_from

_ENTITIES: Final = frozenset(Entity)
_OPS: Final = frozenset(ChangeOp)


class Change(NamedTuple):
    """One change row."""

    seq: int
    session_id: str
    entity: str
    id: str
    op: str

    @property
    def is_damaged(self) -> bool:
        """Whether a text of it is damaged in the file, so that it names no row."""
        is_known = self.entity in _ENTITIES and self.op in _OPS
        return not is_known or "\ufffd" in self.id or "\ufffd" in self.session_id


NO_CHANGE = Change(0, "", "", "", "")
"""The change before the first one of a database."""


class StoredTurn(NamedTuple):
    """A turn as one statement found it.

    Attributes:
        owner: the claim of the process that streams it; None for none.
        last_chunk: the number of the last chunk in its text; None if no writer streams it.
    """

    turn: Turn
    owner: str | None
    last_chunk: int | None
    session_id: str
    round_id: str


class StoredResponse(NamedTuple):
    """The session and round of a response, and its turns in index order."""

    session_id: str
    round_id: str
    turns: list[StoredTurn]


class StoredChunk(NamedTuple):
    """A piece of the text of a turn that is being streamed."""

    seq: int
    content: str


def last_change() -> ReadUnit[Change]:
    """Return the newest change; ``NO_CHANGE`` if there is none."""

    def work(tx: ReadTransaction) -> Change:
        row = tx.row(sql.LAST_CHANGE)
        return NO_CHANGE if row is None else Change(*row)

    return work


def changes_from(seq: int, limit: int) -> ReadUnit[list[Change]]:
    """Return the changes from number ``seq`` on, that one included, oldest first.

    The first row shows a caller that knows the change ``seq`` whether others were trimmed, or the
    numbers went back.
    """
    values = {"seq": seq, "limit": limit}
    return lambda tx: [Change(*row) for row in tx.rows(sql.CHANGES_FROM, values)]


def find_turns(ids: Iterable[str]) -> ReadUnit[list[StoredTurn]]:
    """Return the existing turns among these ids."""
    return _of_ids(sql.TURNS_BY_ID, ids)


def turn_of(id: str) -> ReadUnit[StoredTurn]:
    """Return a turn.

    Raises:
        TurnNotFoundError: there is no such turn.
    """
    id = arguments.lookup_id("turn_id", id)
    find = find_turns([id])

    def work(tx: ReadTransaction) -> StoredTurn:
        found = find(tx)
        if not found:
            raise TurnNotFoundError(id)
        return found[0]

    return work


def turns_of_rounds(round_ids: Iterable[str]) -> ReadUnit[list[StoredTurn]]:
    """Return the turns of these rounds, in the order of rounds and turns."""
    return _of_ids(sql.TURNS_OF_ROUNDS, round_ids)


def response_with_turns(response_id: str) -> ReadUnit[StoredResponse]:
    """Return the session and round of a response, and all its turns.

    Raises:
        ResponseNotFoundError: there is no such response.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    values = {"response_id": response_id}

    def work(tx: ReadTransaction) -> StoredResponse:
        place = tx.row(sql.PLACE_OF_RESPONSE, values)
        if place is None:
            raise ResponseNotFoundError(response_id)
        session_id, round_id = place
        return StoredResponse(session_id, round_id, _stored(tx.rows(sql.TURNS_OF_RESPONSE, values)))

    return work


def find_rounds(ids: Iterable[str]) -> ReadUnit[list[Round]]:
    """Return the existing rounds among these ids."""
    return _rounds_of_ids(sql.ROUNDS_BY_ID, ids)


def rounds_of_requests(request_ids: Iterable[str]) -> ReadUnit[list[Round]]:
    """Return the rounds of these requests."""
    return _rounds_of_ids(sql.ROUNDS_BY_REQUEST, request_ids)


def session_with_rounds(session_id: str, last: int) -> ReadUnit[tuple[Session, list[Round]]]:
    """Return a session and its last rounds in index order.

    Raises:
        SessionNotFoundError: there is no such session.
    """
    get = get_session(session_id)
    values = {"session_id": session_id, "limit": last}

    def work(tx: ReadTransaction) -> tuple[Session, list[Round]]:
        rows = tx.rows(sql.LAST_ROUNDS, values) if last else []
        return get(tx), [Round(*round_fields(row)) for row in reversed(rows)]

    return work


def rounds_from(session_id: str, index: int, limit: int) -> ReadUnit[list[Round]]:
    """Return the rounds of a session from an index on, that one included."""
    values = {"session_id": session_id, "index": index, "limit": limit}
    return lambda tx: [Round(*round_fields(row)) for row in tx.rows(sql.ROUNDS_FROM, values)]


def chunks_after(turn_id: str, seq: int) -> ReadUnit[list[StoredChunk]]:
    """Return the chunks of a turn's text after chunk ``seq``."""
    values = {"turn_id": turn_id, "seq": seq}
    return lambda tx: [StoredChunk(*row) for row in tx.rows(sql.CHUNKS_AFTER, values)]


def _of_ids(statement: Statement, ids: Iterable[str]) -> ReadUnit[list[StoredTurn]]:
    values = {"ids": msgspec.json.encode(list(ids)).decode()}
    return lambda tx: _stored(tx.rows(statement, values))


def _rounds_of_ids(statement: Statement, ids: Iterable[str]) -> ReadUnit[list[Round]]:
    values = {"ids": msgspec.json.encode(list(ids)).decode()}
    return lambda tx: [Round(*round_fields(row)) for row in tx.rows(statement, values)]


def _stored(rows: list[Row]) -> list[StoredTurn]:
    return [StoredTurn(turn_from(row[:-4]), *row[-4:]) for row in rows]
