"""The change rows that other processes follow, written in the transaction of the change."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, Text, bindparam, delete, insert, select

from mandrake_sessions import schema
from mandrake_sessions.database.statement import Statement
from mandrake_sessions.database.transaction import WriteTransaction
from mandrake_sessions.models import ChangeOp, Entity

KEPT_CHANGES = 10_000
"""How many rows stay: who is further behind reads the sessions anew."""

TRIM_EVERY = 1_000
"""Rows between two trimmings, so that 999 changes of 1,000 delete nothing."""

_C = schema.changes.c
_TRIM = Statement(delete(schema.changes).where(_C.seq <= bindparam("last")))


def _insert_change(session_id: Select[Any]) -> Statement:
    columns = (_C.entity, _C.id, _C.op)
    source = session_id.add_columns(*(bindparam(c.name, type_=Text) for c in columns))
    return Statement(
        insert(schema.changes)
        .from_select([_C.session_id, *columns], source)
        .returning(_C.seq, _C.session_id)
    )


# The session is known: no RETURNING, which would cost a table of its own.
_OF_SESSION = Statement(
    insert(schema.changes).values(
        {c.name: bindparam(c.name) for c in (_C.session_id, _C.entity, _C.id, _C.op)}
    )
)
_OF_ROUND = _insert_change(
    select(schema.rounds.c.session_id).where(schema.rounds.c.id == bindparam("parent_id"))
)
_OF_RESPONSE = _insert_change(
    select(schema.rounds.c.session_id)
    .select_from(schema.responses.join(schema.rounds))
    .where(schema.responses.c.id == bindparam("parent_id"))
)
# An entity is changed under the parent that its own row names; SQLite finds the session of it.
_INSERT = {Entity.REQUEST: _OF_ROUND, Entity.TURN: _OF_RESPONSE}


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
        The id of the session it belongs to.
    """
    if entity in _INSERT:
        values = {"parent_id": parent_id, "entity": entity, "id": id, "op": op}
        row = tx.row(_INSERT[entity], values)
        assert row is not None
        seq, session_id = row
    else:
        session_id = parent_id
        values = {"session_id": session_id, "entity": entity, "id": id, "op": op}
        seq = tx.insert(_OF_SESSION, values)
    if seq % TRIM_EVERY == 0:
        tx.run(_TRIM, {"last": seq - KEPT_CHANGES})
    return str(session_id)
