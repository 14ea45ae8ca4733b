"""The change rows that other processes follow, written in the transaction of the change."""

from __future__ import annotations

from mandrake_sessions.engine.statement import Bound
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.models import ChangeOp, Entity
from mandrake_sessions.records import sql

KEPT_CHANGES = 10_000
"""How many rows stay: who is further behind reads the sessions anew."""

TRIM_EVERY = 1_000
"""Rows between two trimmings, so that 999 changes of 1,000 delete nothing."""


def record_change(
    tx: WriteTransaction, entity: Entity, id: str, op: ChangeOp, *, parent_id: str
) -> str:
    """Write the change row of one entity, and now and then delete the oldest ones.

    Args:
        tx: the transaction of the change.
        entity: what was changed.
        id: its id.
        op: what was done to it.
        parent_id: the session of a session or round, the round of a request, the response of a
            turn.

    Returns:
        The id of the session it belongs to; empty where that is not known, and no change row is
        written then.
    """
    if entity is Entity.REQUEST or entity is Entity.TURN:
        # Changed under the parent that its own row names; SQLite finds the session of it.
        is_request = entity is Entity.REQUEST
        insert = sql.INSERT_CHANGE_OF_ROUND if is_request else sql.INSERT_CHANGE_OF_RESPONSE
        row = tx.row(insert, {"parent_id": parent_id, "entity": entity, "id": id, "op": op})
        if row is None:
            # The row names a parent that there is none of: its text is damaged, or the parent's.
            return ""
        seq, session_id = row
    else:
        session_id = parent_id
        seq = tx.run_all((change_insert(entity, id, op, session_id=session_id),))
    trim_changes(tx, seq)
    return str(session_id)


def change_insert(entity: Entity, id: str, op: ChangeOp, *, session_id: str) -> Bound:
    """Return what stores a change row whose session is known."""
    values = {"session_id": session_id, "entity": entity, "id": id, "op": op}
    return sql.INSERT_CHANGE.bound(values)


def trim_changes(tx: WriteTransaction, seq: int) -> None:
    """Delete the oldest change rows, now and then.

    Args:
        tx: the transaction that has added one.
        seq: the number of that.
    """
    if seq % TRIM_EVERY == 0:
        tx.run(sql.TRIM_CHANGES, {"last": seq - KEPT_CHANGES})
