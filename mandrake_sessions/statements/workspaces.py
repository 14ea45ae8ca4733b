"""Statements about the registry of workspaces."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, func, select, update

from mandrake_sessions import schema
from mandrake_sessions.models import Workspace
from mandrake_sessions.statements.columns import columns_of
from mandrake_sessions.statements.portable import insert_or
from mandrake_sessions.statements.templates import RecordInsert

_c = schema.workspaces.c
_columns = columns_of(Workspace, schema.workspaces)

WORKSPACES = schema.workspaces
INSERT_WORKSPACE = RecordInsert(Workspace, schema.workspaces)
WORKSPACE_BY_ID = select(*_columns).where(_c.id == bindparam("id"))
WORKSPACE_BY_NAME = select(*_columns).where(_c.name == bindparam("name"))
ALL_WORKSPACES = select(*_columns).order_by(_c.name)
OPEN_WORKSPACE = (
    update(schema.workspaces)
    .values(last_opened_at=bindparam("now"), path=bindparam("path"))
    .where(_c.id == bindparam("id"))
    .returning(*_columns)
)
MOVE_WORKSPACE = (
    update(schema.workspaces)
    .values(
        path=bindparam("path"),
        description=func.coalesce(bindparam("description"), _c.description),
    )
    .where(_c.id == bindparam("id"))
    .returning(*_columns)
)
DELETE_WORKSPACE = delete(schema.workspaces).where(_c.id == bindparam("id"))

# The registries of workspaces outside their roots (records.places).
_meta = schema.meta.c
_put = insert_or(schema.meta).values(key=bindparam("key"), value=bindparam("value"))
REGISTRAR = select(_meta.value).where(_meta.key == bindparam("key"))
REGISTRARS = select(_meta.key, _meta.value).where(
    _meta.key >= bindparam("first"), _meta.key < bindparam("end")
)
PUT_REGISTRAR = _put.on_conflict_do_update(
    index_elements=[_meta.key], set_={"value": _put.excluded.value}
)
DELETE_REGISTRAR = delete(schema.meta).where(_meta.key == bindparam("key"))
