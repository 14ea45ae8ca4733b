"""Statements about requests and responses, by their own ids."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from mandrake_sessions import schema
from mandrake_sessions.models import Request, Response
from mandrake_sessions.statements.columns import columns_of, update_row

_c = schema.requests.c
_columns = columns_of(Request, schema.requests)

REQUEST_BY_ID = select(*_columns).where(_c.id == bindparam("id"))
RESPONSE_BY_ID = select(*columns_of(Response, schema.responses)).where(
    schema.responses.c.id == bindparam("id")
)
UPDATE_REQUEST = update_row(schema.requests, [_c.content.name]).returning(*_columns)
