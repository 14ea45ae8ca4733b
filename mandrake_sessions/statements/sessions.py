"""Statements about sessions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    Integer,
    Text,
    Update,
    bindparam,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)

from mandrake_sessions import schema
from mandrake_sessions.models import Session
from mandrake_sessions.statements.columns import columns_of, later, update_row
from mandrake_sessions.statements.portable import elements_of, end_of
from mandrake_sessions.statements.templates import RecordInsert, UpdateSome

_c = schema.sessions.c
_columns = columns_of(Session, schema.sessions)

SESSION_ID = _c.id
INSERT_SESSION = RecordInsert(Session, schema.sessions, extra=(_c.metadata,))
SESSION_BY_ID = select(*_columns).where(_c.id == bindparam("id"))
SESSION_EXISTS = select(_c.id).where(_c.id == bindparam("id"))
_part = bindparam("part", type_=Text)
_length = func.length(_part)
IDS_WITH_PART = (
    select(_c.id)
    .where(or_(func.substr(_c.id, 1, _length) == _part, end_of(_c.id, _length) == _part))
    .order_by(_c.id)
    .limit(bindparam("limit"))
)
_endings = elements_of("endings")
IDS_ENDING_AS = select(_c.id).where(
    end_of(_c.id, bindparam("length", type_=Integer)).in_(select(_endings.c.value))
)
COUNT_SESSIONS = select(func.count()).select_from(schema.sessions)
# A row value and not an OR of two comparisons: so SQLite starts in the index where the page does.
SESSION_PAGE = (
    select(*_columns)
    .where(
        tuple_(_c.updated_at, _c.id)
        < tuple_(bindparam("before_time", type_=schema.INTEGER), bindparam("before_id", type_=Text))
    )
    .order_by(_c.updated_at.desc(), _c.id.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
TOUCH_SESSION = (
    update(schema.sessions)
    .values(updated_at=later(schema.sessions))
    .where(_c.id == bindparam("id"))
)
DELETE_SESSION = delete(schema.sessions).where(_c.id == bindparam("id"))


def _update(names: Sequence[str]) -> Update:
    return update_row(schema.sessions, names).returning(*_columns)


UPDATE_SESSION = UpdateSome(_update, (_c.title, _c.description, _c.metadata))
