"""Turns that stream though nobody writes them any more: who owned them, and their end."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Integer, Text, bindparam, column, func, literal_column, null, select, update

from mandrake_sessions import schema
from mandrake_sessions.database.statement import Statement
from mandrake_sessions.database.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.ids import now
from mandrake_sessions.models import ChangeOp, Entity, Turn, TurnStatus
from mandrake_sessions.records.changes import record_change
from mandrake_sessions.records.chunks import DELETE_CHUNKS, IS_STREAMING, TEXTS, folded
from mandrake_sessions.records.columns import later
from mandrake_sessions.records.sessions import touch_session
from mandrake_sessions.records.turn_rows import (
    TURN_COLUMNS,
    encoded_tool_calls,
    read_tool_calls,
    turn_from,
    unanswered_marked,
)

_C = schema.turns.c
_OWNERS = Statement(select(_C.owner).where(IS_STREAMING).distinct())
_gone = func.json_each(bindparam("owners", type_=Text)).table_valued(column("value"))
# Not sorted here: for the order SQLite would walk another index, and through all turns.
_ABANDONED = Statement(
    select(_C.response_id, _C.index, _C.id, _C.tool_calls)
    # IS, so that nobody, NULL, is found like any other owner.
    .where(IS_STREAMING, select(_gone).where(_gone.c.value.is_not_distinct_from(_C.owner)).exists())
)
_STILL_STREAMING = Statement(
    select(_C.response_id, _C.index, _C.id, _C.tool_calls).where(
        _C.id == bindparam("id"), IS_STREAMING
    )
)
_INTERRUPT = Statement(
    update(schema.turns)
    .where(_C.id == bindparam("id"), IS_STREAMING)
    .values({name: folded(name) for name in TEXTS})
    .values(
        status=literal_column(f"'{TurnStatus.INTERRUPTED}'"),
        tool_calls=bindparam("tool_calls"),
        owner=null(),
        stream_ended_at=func.max(_C.stream_started_at, bindparam("now", type_=Integer)),
        revision=_C.revision + 1,
        updated_at=later(schema.turns),
    )
    .returning(*TURN_COLUMNS)
)


def streaming_owners() -> ReadUnit[list[str | None]]:
    """Return the owners of the turns that are streaming, each once; None is nobody.

    Returns:
        The owners, as the rows have them: a text may be anything.
    """

    def work(tx: ReadTransaction) -> list[str | None]:
        return [row[0] for row in tx.rows(_OWNERS)]

    return work


def interrupt_turns_of(
    owners: Sequence[str | None], turn_ids: Sequence[str] = ()
) -> WriteUnit[list[Turn]]:
    """End the streaming turns of owners that are gone, with the text that was stored.

    A tool call without a result is marked so.

    Args:
        owners: whose turns; None for those of nobody.
        turn_ids: further turns, of whomever; those that do not stream are left alone.

    Returns:
        The turns that were ended, those of a response in index order.
    """
    moment = now()
    values = {"owners": msgspec.json.encode(list(owners)).decode()}

    def work(tx: WriteTransaction) -> list[Turn]:
        abandoned = set(tx.rows(_ABANDONED, values))
        for id in turn_ids:
            abandoned.update(tx.rows(_STILL_STREAMING, {"id": id}))
        return [_interrupt(tx, id, calls, moment) for _, _, id, calls in sorted(abandoned)]

    return work


def _interrupt(tx: WriteTransaction, id: str, stored_calls: str, moment: int) -> Turn:
    calls = read_tool_calls(stored_calls, id)
    marked = unanswered_marked(calls)
    values = {
        "id": id,
        "tool_calls": stored_calls if marked == calls else encoded_tool_calls(marked),
        "now": moment,
    }
    row = tx.row(_INTERRUPT, values)
    assert row is not None
    turn = turn_from(row)
    tx.run(DELETE_CHUNKS, values)
    session_id = record_change(tx, Entity.TURN, id, ChangeOp.UPDATE, parent_id=turn.response_id)
    touch_session(tx, session_id, moment)
    return turn
