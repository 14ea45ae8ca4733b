"""Turns records of a damaged file into valid rows: each bad value is repaired or defaulted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from mandrake_sessions import arguments, ids, tables
from mandrake_sessions.database.files.btree import Record, Value
from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.models import TurnStatus
from mandrake_sessions.tables import Column

Row: TypeAlias = dict[str, Any]

LOST_REQUEST: Final = "(This request was lost: the database file was damaged.)"
"""The content of a request whose own could not be read."""

TABLES: Final = ("sessions", "rounds", "requests", "responses", "turns", "turn_chunks", "meta")
"""The tables that are read, in addition to ``workspaces``; ``changes`` holds only past news."""

TABLE_OF_WIDTH: Final = {8: "sessions", 23: "turns", 6: "workspaces"}
"""The table of a row by its number of values, where no other table's rows have as many.

A row that is older than a column has one value less, and keeps it until it is changed: a migration
that adds a column adds an entry here, and the entry before it stays.
"""

# The first value of a row of the schema, which otherwise resembles a request.
_SCHEMA_KINDS: Final = ("table", "index", "view", "trigger")
_MILLISECONDS: Final = 12
_STREAMING: Final = TurnStatus.STREAMING.value


def tables_of(values: tuple[Value, ...]) -> tuple[str, ...]:
    """Return the tables whose row a record of a whole database page can be."""
    count = len(values)
    if count == 5:
        if not isinstance(values[0], str):
            return ()
        if isinstance(values[2], str):
            return ("requests",) if values[0] not in _SCHEMA_KINDS else ()
        return ("rounds", "responses")
    return (TABLE_OF_WIDTH[count],) if count in TABLE_OF_WIDTH else ()


def keyed_table_of(values: tuple[Value, ...]) -> str | None:
    """Return the table without row numbers whose row an index record can be."""
    if len(values) == 4 and isinstance(values[1], int) and isinstance(values[2], str | None):
        return "turn_chunks"
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        return "meta"
    return None


def repaired(table: str, record: Record) -> tuple[Row, bool] | None:
    """Return a record as a row of a table, and whether a value was changed or is missing.

    An unusable index becomes None, which stands for the next free one.

    Returns:
        None for a record without an id.
    """
    row: Row = {}
    was_changed = record.is_garbled
    for position, column in enumerate(tables.TABLES[table]):
        there = position < len(record.values)
        value = record.values[position] if there else None
        fixed = _mended_value(table, column, value, row)
        if column.is_key and fixed is None:
            return None
        # The comparison ignores types, because SQLite stores a whole REAL as an integer.
        # A value behind the last column of the record is not lost: the row is older than that.
        was_changed |= record.whole <= position < record.columns or fixed != value
        row[column.name] = fixed
    if table == "turns":
        was_changed |= _settle(row)
    return row, was_changed


def _mended_value(table: str, column: Column, value: Value, row: Row) -> Any:
    if column.kind == "TEXT":
        return _text(table, column, value)
    if column.kind != "INTEGER":
        is_amount = isinstance(value, int | float) and math.isfinite(value) and value >= 0
        return value if is_amount else 0.0
    if column.name.endswith("_at"):
        return _checked(arguments.stored_moment, value, _default_moment(column, row))
    if column.name in ("index", "seq"):
        return _checked(arguments.index, value, None)
    return _checked(arguments.count, value, None if column.is_nullable else 0)


def _text(table: str, column: Column, value: Value) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, int | float):
        value = str(value)
    if column.name == "status":
        return value if value in set(TurnStatus) else TurnStatus.INTERRUPTED.value
    if column.is_key:
        return value or None
    if value is not None or column.is_nullable:
        return value
    if column.is_reference:
        # The rest of the row may be readable: it gets a new parent.
        return ids.new_id()
    defaults = {"metadata": "{}", "tool_calls": "[]"}
    if table == "requests":
        return LOST_REQUEST
    return defaults.get(column.name, "")


def _checked(check: Callable[[str, object], int], value: Value, default: int | None) -> int | None:
    try:
        return check("value", value)
    except InvalidArgumentError:
        return default


def _default_moment(column: Column, row: Row) -> int | None:
    if column.is_nullable:
        return None
    return moment_of(row.get("id"))


def moment_of(id: object) -> int:
    """Return the time in an id that is a UUIDv7, otherwise the present time."""
    digits = str(id).replace("-", "")
    try:
        made = int(digits[:_MILLISECONDS], 16) * 1000
    except ValueError:
        return ids.now()
    is_ours = len(digits) == 32 and digits[_MILLISECONDS] == "7"
    return made if is_ours and made < ids.now() else ids.now()


def _settle(row: Row) -> bool:
    """Make a turn's end fit its status; return whether that changed it."""
    is_streaming = row["status"] == _STREAMING
    if is_streaming is (row["stream_ended_at"] is None):
        return False
    # The status is more reliable than the time: few damaged texts are still a valid status.
    ended = max(row["stream_started_at"], row["updated_at"])
    row["stream_ended_at"] = None if is_streaming else ended
    return True
