"""Small rows for tests of the database layer: entries of ``meta``, by key."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import bindparam, insert, select

from mandrake_sessions import schema
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.engine.transaction import WriteTransaction
from tools.generate.compiler import compiled

_meta = schema.meta.c
ADD = compiled(insert(schema.meta).values(key=bindparam("key"), value=bindparam("value")))
# Not the mark of the log, which comes with the first transaction, nor where the file is at home.
KEYS = compiled(select(_meta.key).where(_meta.key.not_in(["log", "home"])))
_FACTS = {"stamp", "created_by", "created_at", "home"}


def add(tx: WriteTransaction, key: str, value: str = "") -> str:
    """Store a row and return its key."""
    tx.run(ADD, {"key": key, "value": value})
    return key


def adding(key: str, value: str = "") -> Callable[[WriteTransaction], str]:
    """Return a unit that stores a row."""
    return lambda tx: add(tx, key, value)


def keys(handle: DatabaseHandle) -> set[str]:
    """Return the keys that are stored."""
    found = file_handle(handle).query(lambda tx: tx.rows(KEYS))
    return {row[0] for row in found} - _FACTS
