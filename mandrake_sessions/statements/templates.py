"""Statements beside the plain ones: a record's INSERT, and those whose text varies.

Each is compiled into what has the same name in ``records.templates``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, CompoundSelect, Insert, Select, Table, Update, bindparam, insert

from mandrake_sessions.statements.columns import column_of


@dataclass(frozen=True)
class RecordInsert:
    """The INSERT of a record: each column from the field that carries it.

    Args:
        record: the kind of record.
        table: where it is stored.
        beside: columns whose values are given beside the record.
    """

    record: type[msgspec.Struct]
    table: Table
    beside: Sequence[Column[Any]] = ()

    def core(self) -> Insert:
        """Return the statement; its parameters are named as the columns."""
        names = {column.name for column in self.beside} | self.fields().keys()
        ordered = [column.name for column in self.table.columns if column.name in names]
        return insert(self.table).values({name: bindparam(name) for name in ordered})

    def fields(self) -> dict[str, str]:
        """Return the field of each column that the record carries."""
        return {column_of(field): field for field in self.record.__struct_fields__}


@dataclass(frozen=True)
class UpdateSome:
    """An UPDATE whose text varies by the columns that are set.

    Args:
        core: makes the statement for the names of some columns.
        settable: the columns that may be set.
    """

    core: Callable[[Sequence[str]], Update]
    settable: Sequence[Column[Any]]


@dataclass(frozen=True)
class InsertMany:
    """An INSERT of several rows, each from a SELECT of its own.

    Args:
        source: makes the SELECT of the row at a position; a parameter that differs from row to row
            has the position behind its name, as in ``seq_0``.
        core: makes the statement of a SELECT, or of several behind each other.
    """

    source: Callable[[int], Select[Any]]
    core: Callable[[Select[Any] | CompoundSelect[Any]], Insert]
