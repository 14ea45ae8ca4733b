"""Statements about the registry of workspaces."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select, update

from mandrake_sessions import schema
from mandrake_sessions.models import Workspace
from mandrake_sessions.statements.columns import columns_of
from mandrake_sessions.statements.kinds import RecordInsert

_c = schema.workspaces.c
_columns = columns_of(Workspace, schema.workspaces)

WORKSPACES = schema.workspaces
INSERT_WORKSPACE = RecordInsert(Workspace, schema.workspaces)
WORKSPACE_BY_ID = select(*_columns).where(_c.id == bindparam("id"))
WORKSPACE_BY_NAME = select(*_columns).where(_c.name == bindparam("name"))
ALL_WORKSPACES = select(*_columns).order_by(_c.name)
OPEN_WORKSPACE = (
    update(schema.workspaces)
    .values(last_opened_at=bindparam("now"))
    .where(_c.id == bindparam("id"))
    .returning(*_columns)
)
DELETE_WORKSPACE = delete(schema.workspaces).where(_c.id == bindparam("id")).returning(*_columns)
