"""A streaming turn: its beginning, the chunks of its text, its end.

Storing anything again after an unknown outcome adds nothing: a chunk has a number, and an end its
time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from mandrake_sessions.engine.statement import Statement
from mandrake_sessions.engine.transaction import WriteTransaction, WriteUnit
from mandrake_sessions.errors import (
    MandrakeSessionsError,
    TurnInterruptedError,
    TurnNotFoundError,
)
from mandrake_sessions.models import ChangeOp, Entity, Turn, TurnStatus
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import record_change
from mandrake_sessions.records.sessions import touch_session
from mandrake_sessions.records.turn_rows import turn_from
from mandrake_sessions.records.turns import create_turn

FIRST_SEQ: Final = 1
"""The number of a stream's first text; the empty chunk, 0, marks a turn with a TurnWriter."""

_ROWS: Final = 32
"""Chunks of one INSERT: SQLite takes 500, and few different statements stay prepared.

Not one INSERT for each chunk: with threads that never wait, each return from SQLite can cost the
switch interval of the interpreter, and that for every chunk.
"""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Text that is appended to a turn.

    Attributes:
        seq: its number; the same number is stored once.
        fields: other changed columns of the turn, in their stored form.
        moment: when it was taken, microseconds UTC.
    """

    turn_id: str
    response_id: str
    seq: int
    content: str
    raw_response: str
    fields: Mapping[str, Any]
    moment: int


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How a turn ends.

    Attributes:
        content: text after the last chunk; ``raw_response`` likewise.
        fields: other changed columns of the turn, in their stored form.
        moment: when it ended, microseconds UTC; the same in each attempt.
    """

    turn_id: str
    response_id: str
    status: TurnStatus
    content: str
    raw_response: str
    fields: Mapping[str, Any]
    moment: int


class Remainder(msgspec.Struct, frozen=True, gc=False):
    """Text for a turn that another caller has ended, if it has exactly so much before it.

    Attributes:
        content_bytes: the UTF-8 bytes that the turn must hold; ``raw_bytes`` likewise.
    """

    content_bytes: int
    raw_bytes: int
    content: str
    raw_response: str


class Outcome(msgspec.Struct):
    """The outcome for chunks and ends.

    Attributes:
        ended: the turns that have ended, by their id.
        failed: the error that kept a turn's chunk or end from being stored, by its id.
    """

    ended: dict[str, Turn]
    failed: dict[str, Exception]


def start_stream(response_id: str, *, id: str, **fields: Any) -> WriteUnit[Turn]:
    """Add a turn whose text comes in chunks.

    Args:
        response_id: the response.
        id: the id of the turn, in its stored form.
        fields: other arguments of ``create_turn``, which also documents the errors.
    """
    create = create_turn(response_id, id=id, **fields)
    first = sql.INSERT_FIRST_CHUNK.bound(
        {"turn_id": id, "seq": 0, "content": "", "raw_response": ""}
    )

    def work(tx: WriteTransaction) -> Turn:
        turn = create(tx)
        tx.run_all((first,))
        return turn

    return work


def store_streams(
    owner: str, chunks: Sequence[Chunk], endings: Sequence[Ending]
) -> WriteUnit[Outcome]:
    """Store chunks of turns and end turns; a failure of one turn does not affect the others.

    Args:
        owner: the claim under which the turns are streaming.
        chunks: at most one for each turn.
        endings: stored after the chunks.
    """
    inserts = [
        (chunks[at : at + _ROWS], _bound_chunks(owner, chunks[at : at + _ROWS]))
        for at in range(0, len(chunks), _ROWS)
    ]
    finishes = [(ending, *_bound_ending(owner, ending)) for ending in endings]

    def work(tx: WriteTransaction) -> Outcome:
        outcome = Outcome({}, {})
        for several, (statement, values) in inserts:
            if tx.run(statement, values) != len(several):
                _note_lost(tx, owner, several, outcome)
            for chunk in several:
                if chunk.fields and chunk.turn_id not in outcome.failed:
                    _store_fields(tx, owner, chunk)
        for ending, statement, values in finishes:
            _end(tx, ending, statement, values, outcome)
        return outcome

    return work


def append_remainder(
    turn_id: str, candidates: Sequence[Remainder], fields: Mapping[str, Any], moment: int
) -> WriteUnit[bool]:
    """Add the unstored text to a turn that another caller has ended.

    Args:
        turn_id: the turn.
        candidates: tried in this order; the first one that fits the stored text is added.
        fields: other columns of the turn, in their stored form.
        moment: microseconds UTC.

    Returns:
        Whether one of them fitted, or there are none; if not, another caller has changed the text.

    Raises:
        TurnNotFoundError: the turn was deleted.
    """
    store_fields = sql.UPDATE_TURN.of(fields)
    figures = {**fields, "id": turn_id, "expected_revision": None, "now": moment}

    def work(tx: WriteTransaction) -> bool:
        response_id = _append_fitting(tx, turn_id, candidates, moment)
        is_fitting = response_id is not None or not candidates
        if fields:
            row = tx.row(store_fields, figures)
            response_id = None if row is None else row[1]
        if response_id is not None:
            record_change(tx, Entity.TURN, turn_id, ChangeOp.UPDATE, parent_id=response_id)
        elif tx.row(sql.TURN_BY_ID, {"id": turn_id}) is None:
            raise TurnNotFoundError(turn_id)
        return is_fitting

    return work


def _append_fitting(
    tx: WriteTransaction, turn_id: str, candidates: Sequence[Remainder], moment: int
) -> str | None:
    """Add the first text that fits; return the response of the turn, None if none fits."""
    for candidate in candidates:
        values = {
            "id": turn_id,
            "content_bytes": candidate.content_bytes,
            "raw_bytes": candidate.raw_bytes,
            "rest": candidate.content,
            "raw_rest": candidate.raw_response,
            "now": moment,
        }
        row = tx.row(sql.APPEND_REMAINDER, values)
        if row is not None:
            return str(row[0])
    return None


def _bound_chunks(owner: str, chunks: Sequence[Chunk]) -> tuple[Statement, dict[str, Any]]:
    values: dict[str, Any] = {"owner": owner}
    for at, chunk in enumerate(chunks):
        values[f"turn_id_{at}"] = chunk.turn_id
        values[f"seq_{at}"] = chunk.seq
        values[f"content_{at}"] = chunk.content
        values[f"raw_response_{at}"] = chunk.raw_response
    return sql.INSERT_CHUNKS.of(len(chunks)), values


def _bound_ending(owner: str, ending: Ending) -> tuple[Statement, dict[str, Any]]:
    values = {
        **ending.fields,
        "id": ending.turn_id,
        "owner": owner,
        "status": ending.status,
        "rest": ending.content,
        "raw_rest": ending.raw_response,
        "now": ending.moment,
    }
    return sql.FINISH_STREAMED.of(ending.fields), values


def _note_lost(tx: WriteTransaction, owner: str, chunks: Sequence[Chunk], outcome: Outcome) -> None:
    """Record turns that are deleted or have another owner; the other chunks are stored."""
    for chunk in chunks:
        row = tx.row(sql.STANDING, {"id": chunk.turn_id})
        if row is None:
            outcome.failed[chunk.turn_id] = TurnNotFoundError(chunk.turn_id)
        elif row != (TurnStatus.STREAMING, owner):
            outcome.failed[chunk.turn_id] = TurnInterruptedError()


def _store_fields(tx: WriteTransaction, owner: str, chunk: Chunk) -> None:
    values = {
        **chunk.fields,
        "id": chunk.turn_id,
        "owner": owner,
        "expected_revision": None,
        "now": chunk.moment,
    }
    tx.run(sql.UPDATE_STREAMED.of(chunk.fields), values)
    record_change(tx, Entity.TURN, chunk.turn_id, ChangeOp.UPDATE, parent_id=chunk.response_id)


def _end(
    tx: WriteTransaction,
    ending: Ending,
    statement: Statement,
    values: Mapping[str, Any],
    outcome: Outcome,
) -> None:
    id = ending.turn_id
    try:
        with tx.savepoint():
            row = tx.row(statement, values)
            if row is not None:
                outcome.ended[id] = turn_from(row)
                tx.run(sql.DELETE_CHUNKS, {"id": id})
                session_id = record_change(
                    tx, Entity.TURN, id, ChangeOp.UPDATE, parent_id=ending.response_id
                )
                touch_session(tx, session_id, ending.moment)
            else:
                outcome.ended[id] = _ended_before(tx, ending)
                # The attempt that stored this end has stored its chunk too.
                outcome.failed.pop(id, None)
    except MandrakeSessionsError as error:
        outcome.ended.pop(id, None)
        outcome.failed[id] = error


def _ended_before(tx: WriteTransaction, ending: Ending) -> Turn:
    """Return the turn if this very end was stored by an attempt whose outcome was unknown."""
    row = tx.row(sql.TURN_BY_ID, {"id": ending.turn_id})
    if row is None:
        raise TurnNotFoundError(ending.turn_id)
    turn = turn_from(row)
    ended = max(turn.stream_started_us, ending.moment)
    if turn.status is not ending.status or turn.stream_ended_us != ended:
        raise TurnInterruptedError
    return turn
