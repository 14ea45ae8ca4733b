"""The change rows that other processes follow, written in the transaction of the change."""

from __future__ import annotations

from mandrake_sessions.engine.statement import Bound
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.models import ChangeOp, Entity
from mandrake_sessions.records import sql

KEPT_CHANGES = 10_000
"""How many rows stay: a follower that is further behind reads the sessions anew."""

TRIM_EVERY = 1_000
"""Rows between two trimmings, so that 999 changes of 1,000 delete nothing."""


def record_change(
    tx: WriteTransaction, entity: Entity, id: str, op: ChangeOp, *, parent_id: str
) -> str:
    """Write the change row of one entity; every ``TRIM_EVERY`` rows, delete the oldest ones.

    Args:
        tx: the transaction of the change.
        entity: the kind of the changed row.
        id: its id.
        op: the kind of the change.
        parent_id: the session of a session or round, the round of a request, the response of a
            turn.

    Returns:
        The id of the session it belongs to; empty if that is unknown, and then no change row is
        written.
    """
    if entity is Entity.REQUEST or entity is Entity.TURN:
        # SQLite finds the session through the parent that the changed row names.
        is_request = entity is Entity.REQUEST
        insert = sql.INSERT_CHANGE_OF_ROUND if is_request else sql.INSERT_CHANGE_OF_RESPONSE
        row = tx.row(insert, {"parent_id": parent_id, "entity": entity, "id": id, "op": op})
        if row is None:
            # There is no such parent: its id is damaged in this row, or in its own.
            return ""
        seq, session_id = row
    else:
        session_id = parent_id
        seq = tx.run_all((change_insert(entity, id, op, session_id=session_id),))
    trim_changes(tx, seq)
    return str(session_id)


def change_insert(entity: Entity, id: str, op: ChangeOp, *, session_id: str) -> Bound:
    """Return the INSERT of a change row whose session is known."""
    values = {"session_id": session_id, "entity": entity, "id": id, "op": op}
    return sql.INSERT_CHANGE.bound(values)


def trim_changes(tx: WriteTransaction, seq: int) -> None:
    """Delete the oldest change rows, every ``TRIM_EVERY`` rows.

    Args:
        tx: the transaction that has added a row.
        seq: the number of that row.
    """
    if seq % TRIM_EVERY == 0:
        tx.run(sql.TRIM_CHANGES, {"last": seq - KEPT_CHANGES})
