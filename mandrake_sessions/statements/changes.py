"""Statements about the change rows that other processes follow."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Insert, Select, Text, bindparam, delete, insert, select

from mandrake_sessions import schema

_c = schema.changes.c

TRIM_CHANGES = delete(schema.changes).where(_c.seq <= bindparam("last"))


def _insert_change(session_id: Select[Any]) -> Insert:
    columns = (_c.entity, _c.id, _c.op)
    given = [bindparam(c.name, type_=Text).label(c.name) for c in columns]
    return (
        insert(schema.changes)
        .from_select([_c.session_id, *columns], session_id.add_columns(*given))
        .returning(_c.seq, _c.session_id)
    )


# The session is known: no RETURNING, which would cost a table of its own. PostgreSQL's compiler
# adds one for the key unless the INSERT is inline.
INSERT_CHANGE = (
    insert(schema.changes)
    .values({c.name: bindparam(c.name) for c in (_c.session_id, _c.entity, _c.id, _c.op)})
    .inline()
)
INSERT_CHANGE_OF_ROUND = _insert_change(
    select(schema.rounds.c.session_id).where(schema.rounds.c.id == bindparam("parent_id"))
)
INSERT_CHANGE_OF_RESPONSE = _insert_change(
    select(schema.rounds.c.session_id)
    .select_from(schema.responses.join(schema.rounds))
    .where(schema.responses.c.id == bindparam("parent_id"))
)
