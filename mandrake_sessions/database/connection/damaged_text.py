"""Reads rows with a text that is not UTF-8 again, with U+FFFD in place of the bad bytes.

APSW refuses such a text, and with it every row of its statement. Sound rows never need this module.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from mandrake_sessions.concurrency.blocks import closing
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.engine.statement import Row, Statement, Values
from mandrake_sessions.errors import StatementError
from mandrake_sessions.log import get_logger

_CHANGING: Final = re.compile(r"(UPDATE|INSERT INTO) (\w+)")
_CHANGED_ROW: Final = {"UPDATE": "id = ?", "INSERT INTO": "rowid = last_insert_rowid()"}
_KEYS: Final = ("id", "turn_id")
_MOST_NAMED: Final = 10_000
_UNREADABLE: Final = "A statement that writes cannot return a text that is not UTF-8."


class _Column(NamedTuple):
    """A column of a result: its name, and the table and column whose values it has unchanged."""

    name: str
    table: str | None
    origin: str | None


class _Result(NamedTuple):
    """The form of a statement's result.

    Attributes:
        key: the id of its row, if no column has one.
    """

    path: Path
    columns: list[_Column]
    key: str | None

    def replaced(self, pairs: Row) -> Row:
        """Return a row with its damaged texts replaced, and log which ones they are.

        Args:
            pairs: each value and its type, as ``_readable`` has them.
        """
        cells: list[Any] = list(pairs[::2])
        damaged: dict[int, bytes] = {}
        for at, (cell, kind) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
            if kind == "text":
                try:
                    cells[at] = cell.decode()
                except UnicodeDecodeError:
                    cells[at] = cell.decode(errors="replace")
                    damaged[at] = cell
        for at, cell in damaged.items():
            self._name(cells, at, cell)
        return tuple(cells)

    def _name(self, cells: list[Any], at: int, stored: bytes) -> None:
        """Log the place of a damaged value, never the value."""
        column = self.columns[at]
        # A value computed from several columns has no table; it gets that of the row.
        table = column.table or next((it.table for it in self.columns if it.table), "")
        ids = (
            cells[place]
            for place, it in enumerate(self.columns)
            if (it.table, it.origin) == (table, "id")
        )
        found = {
            "path": str(self.path),
            "table": table,
            "column": column.origin or column.name,
            "id": next(ids, self.key),
        }
        value = (*found.values(), hash(stored))
        this = object()
        # A single operation, so that only one of several threads logs it.
        if len(_named) < _MOST_NAMED and _named.setdefault(value, this) is this:
            get_logger(__name__).warning("text_not_utf8", **found)


_named: Final[dict[tuple[object, ...], object]] = {}
"""The values that were logged; each is logged once in a process."""


def rows_of(connection: Connection, statement: Statement, values: Values) -> list[Row]:
    """Return the rows of a statement that has run and whose texts APSW could not decode.

    Args:
        connection: in the transaction of the statement, if it was in one.
        statement: one that reads; or one that has inserted a row, or changed the row whose ``id``
            is among the values, and returns columns of it. The change is not repeated.
        values: its values.

    Raises:
        apsw.Error: the rows cannot be read.
        StatementError: its rows cannot be read again.
    """
    if statement.is_read:
        sql, bound = statement.sql, statement.bind(values)
    else:
        sql, bound = _reading_changed_row(connection.path, statement.sql, values)
    key = next((values[name] for name in _KEYS if name in values), None)
    return _rows_of_select(connection, sql, bound, key)


def fetched(cursor: apsw.Cursor, sql: str, bound: Row, connection: Connection) -> list[Row]:
    """Run a statement of a host and return its rows, also with texts that are not UTF-8.

    Raises:
        apsw.Error: it cannot be run.
        StatementError: it writes, and its rows cannot be read again.
    """
    try:
        return cursor.execute(sql, bound).fetchall()
    except UnicodeDecodeError:
        # Read below: this exception holds the text, and would become the context of another one.
        pass
    return _rows_of_select(connection, sql, bound)


def _rows_of_select(
    connection: Connection, sql: str, bound: Row, key: str | None = None
) -> list[Row]:
    """Return the rows of a SELECT.

    Args:
        connection: reads the rows.
        sql: the SELECT.
        bound: its parameters.
        key: the id of the row, for the log, if no column has one.

    Raises:
        apsw.Error: the rows cannot be read.
    """
    columns = _columns(connection.raw, sql, bound)
    if columns is None:
        raise StatementError(_UNREADABLE, path=connection.path)
    result = _Result(connection.path, columns, key)
    found = connection.execute(_readable(sql, len(result.columns)), bound).fetchall()
    return [result.replaced(row) for row in found]


def _reading_changed_row(path: Path, sql: str, values: Values) -> tuple[str, Row]:
    """Return the SELECT, with its parameters, for the row that a statement changed or inserted."""
    changing = _CHANGING.match(sql)
    _, returning, columns = sql.rpartition(" RETURNING ")
    if changing is None or not returning:
        raise StatementError(_UNREADABLE, path=path)
    kind, table = changing.groups()
    return (
        f"SELECT {columns} FROM {table} WHERE {_CHANGED_ROW[kind]}",
        (values["id"],) if kind == "UPDATE" else (),
    )


def _columns(raw: apsw.Connection, sql: str, bound: Row) -> list[_Column] | None:
    """Return the columns of a SELECT, which is prepared but not run; None for other statements."""
    columns: list[_Column] = []

    def before_it_runs(cursor: apsw.Cursor, *_: object) -> bool:
        if not cursor.is_readonly:
            return False
        for name, _kind, _schema, table, origin in cursor.description_full:
            columns.append(_Column(name, table, origin))
        return False

    with closing(raw.cursor()) as cursor:
        cursor.exec_trace = before_it_runs
        with contextlib.suppress(apsw.ExecTraceAbort):
            cursor.execute(sql, bound)
    return columns or None


def _readable(sql: str, width: int) -> str:
    """Return a SELECT of the same rows that gives each value, texts as bytes, and its type."""
    names = [f"c{at}" for at in range(width)]
    pairs = [
        f"CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END, typeof({name})"
        for name in names
    ]
    # Materialized, so that the rows keep their order.
    return (
        f"WITH found({', '.join(names)}) AS MATERIALIZED ({sql.rstrip().rstrip(';')}) "
        f"SELECT {', '.join(pairs)} FROM found"
    )
