"""Turns that are still streaming after their writer is gone: their owners, and their end."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.ids import now
from mandrake_sessions.models import ChangeOp, Entity, Turn
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import record_change
from mandrake_sessions.records.sessions import touch_session
from mandrake_sessions.records.turn_rows import marked_as_interrupted, turn_from


def streaming_owners() -> ReadUnit[list[str | None]]:
    """Return the owners of the streaming turns, each once; None for turns without an owner.

    Returns:
        The owners as the rows have them: any text.
    """

    def work(tx: ReadTransaction) -> list[str | None]:
        return list(dict.fromkeys(row[0] for row in tx.rows(sql.STREAMING_OWNERS)))

    return work


def interrupt_turns_of(
    owners: Sequence[str | None], turn_ids: Sequence[str] = ()
) -> WriteUnit[list[Turn]]:
    """End the streaming turns of owners that are gone; their stored text is kept.

    A tool call without a result is marked as interrupted.

    Args:
        owners: the owners; None for turns without one.
        turn_ids: further turns, of any owner; those that are not streaming do not change.

    Returns:
        The turns that were ended, those of a response in index order.
    """
    moment = now()
    values = {"owners": msgspec.json.encode(list(owners)).decode()}
    # No parameter of a statement can equal a text that is not UTF-8.
    damaged = {name for name in owners if name is not None and "\ufffd" in name}

    def work(tx: WriteTransaction) -> list[Turn]:
        abandoned = set(tx.rows(sql.ABANDONED_TURNS, values))
        if damaged:
            found = tx.rows(sql.STREAMING_TURNS)
            abandoned.update(row[1:] for row in found if row[0] in damaged)
        for id in turn_ids:
            abandoned.update(tx.rows(sql.STILL_STREAMING, {"id": id}))
        ended = (_interrupt(tx, id, calls, moment) for _, _, id, calls in sorted(abandoned))
        return [turn for turn in ended if turn is not None]

    return work


def _interrupt(tx: WriteTransaction, id: str, stored_calls: str, moment: int) -> Turn | None:
    """End a turn; None if its id is damaged, so that no statement finds it."""
    values = {
        "id": id,
        "tool_calls": marked_as_interrupted(stored_calls) or stored_calls,
        "now": moment,
    }
    row = tx.row(sql.INTERRUPT_TURN, values)
    if row is None:
        return None
    turn = turn_from(row)
    tx.run(sql.DELETE_CHUNKS, values)
    session_id = record_change(tx, Entity.TURN, id, ChangeOp.UPDATE, parent_id=turn.response_id)
    touch_session(tx, session_id, moment)
    return turn
