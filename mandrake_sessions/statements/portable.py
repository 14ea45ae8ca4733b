"""Functions that SQLite and PostgreSQL write differently, each with its text for both.

A statement uses one of these if a function of ``sqlalchemy.func`` would compile for SQLite only.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Table, TableValuedAlias, Text, bindparam, column
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from mandrake_sessions import schema


def greater_of(integers: Column[int], name: str) -> ColumnElement[int]:
    """Return the greater of an integer column and the parameter of a name.

    Neither may be NULL: SQLite then returns NULL, PostgreSQL the other one.
    """
    given = bindparam(name, type_=schema.INTEGER)
    return _Function("max({}, {})", "greatest({}, {})", integers, given, of=schema.INTEGER)


def end_of(text: ColumnElement[str], length: ColumnElement[int]) -> ColumnElement[str]:
    """Return the last characters of a text, or all of a shorter one.

    A negative start of ``substr`` compiles for PostgreSQL too, and gives the whole text there.
    """
    return _Function("substr({}, -{})", "right({}, {})", text, length, of=Text())


def sum_of(integers: ColumnElement[int]) -> ColumnElement[int]:
    """Return the sum of integers as an integer; that of PostgreSQL's BIGINT is a NUMERIC."""
    return _Function("sum({})", "CAST(sum({}) AS BIGINT)", integers, of=schema.INTEGER)


def elements_of(name: str) -> TableValuedAlias:
    """Return the elements of a JSON array of texts, as rows with one column, ``value``.

    The array is one parameter, so the statement is the same for any number of elements. An element
    ``null`` is a NULL.

    Args:
        name: the name of the parameter, whose value is JSON text.
    """
    sqlite, postgresql = "json_each({})", "json_array_elements_text(CAST({} AS JSON))"
    array = bindparam(name, type_=Text)
    return _Function(sqlite, postgresql, array, of=Text()).table_valued(column("value"))


def insert_or(table: Table) -> Insert:
    """Return an INSERT that accepts an ON CONFLICT.

    It is that of the PostgreSQL dialect: SQLite's compiler writes its ON CONFLICT too, while
    PostgreSQL's compiler does not write that of SQLite.
    """
    return Insert(table)


class _Function(FunctionElement[Any]):
    inherit_cache = False  # its two texts are no part of a cache key

    def __init__(
        self, sqlite: str, postgresql: str, *arguments: ColumnElement[Any], of: TypeEngine[Any]
    ) -> None:
        super().__init__(*arguments)
        self.texts = {"sqlite": sqlite, "postgresql": postgresql}
        self.type = of


@compiles(_Function)
def _text(function: _Function, compiler: SQLCompiler, **options: Any) -> str:
    arguments = [compiler.process(each, **options) for each in function.clauses]
    return function.texts[compiler.dialect.name].format(*arguments)
