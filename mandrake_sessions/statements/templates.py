"""Templates: a record's INSERT, and texts that vary.

Each is compiled into the class of the same name in ``records.templates``.
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
    """The INSERT of a record: each column gets the field that carries it.

    Args:
        record: the kind of record.
        table: its table.
        extra: columns whose values are given separately.
    """

    record: type[msgspec.Struct]
    table: Table
    extra: Sequence[Column[Any]] = ()

    def core(self) -> Insert:
        """Return the statement; its parameters are named as the columns."""
        names = {column.name for column in self.extra} | self.fields().keys()
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
    """An INSERT of several rows, each from its own SELECT.

    Args:
        source: makes the SELECT of the row at a position; a parameter that differs from row to row
            has the position as a suffix, as in ``seq_0``.
        core: makes the statement of a SELECT, or of several in a row.
    """

    source: Callable[[int], Select[Any]]
    core: Callable[[Select[Any] | CompoundSelect[Any]], Insert]
