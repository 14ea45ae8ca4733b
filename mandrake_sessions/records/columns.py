"""Which columns a record is read from and written to: its INSERT, and the UPDATE of some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Table,
    Update,
    bindparam,
    func,
    insert,
    update,
)

from mandrake_sessions.database.statement import Bound, Row, Statement


def columns_of(record: type[msgspec.Struct], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of a record's fields, in their order: a row then fits by position."""
    return tuple(table.c[name] for name in _column_names(record))


class RecordInsert(Statement):
    """The INSERT of a record: each column from the field that carries it.

    Args:
        record: the kind of record.
        table: where it is stored.
        extra: columns whose values are given beside the record.
    """

    def __init__(
        self, record: type[msgspec.Struct], table: Table, extra: Sequence[Column[Any]] = ()
    ) -> None:
        fields = dict(zip(_column_names(record), record.__struct_fields__, strict=True))
        beside = [column.name for column in extra]
        names = {*fields, *beside}
        # In the table's order, which is the order the compiler gives the parameters.
        ordered = [column.name for column in table.columns if column.name in names]
        super().__init__(insert(table).values({name: bindparam(name) for name in ordered}))
        of_record = [name for name in ordered if name not in beside]
        self._fields: Callable[[msgspec.Struct], Row] = attrgetter(
            *(fields[name] for name in of_record)
        )
        given = [*of_record, *beside]
        self._in_order: Callable[[Row], Row] = itemgetter(*map(given.index, ordered))

    def of(self, record: msgspec.Struct, *extra: object) -> Bound:
        """Return the statement with a record's values and those beside it, ready to run."""
        row = self._fields(record)
        return self.sql, self._in_order((*row, *extra)) if extra else row


@cache
def _column_names(record: type[msgspec.Struct]) -> tuple[str, ...]:
    # A time is called ..._us where it is a number of microseconds and ..._at where it is a time.
    return tuple(
        f"{field[:-3]}_at" if field.endswith("_us") else field for field in record.__struct_fields__
    )


def later(table: Table) -> ColumnElement[int]:
    """Return what moves ``updated_at`` on to ``:now``, and never back.

    Units take their time before they queue, so they may run in another order.
    """
    return func.max(table.c.updated_at, bindparam("now", type_=Integer))


def update_row(table: Table, names: Iterable[str]) -> Update:
    """Return the UPDATE of the row ``:id`` that sets the named columns and moves ``updated_at``.

    Each column is set from the parameter of its name. Where the table counts revisions, it counts
    this one, and no row is changed unless ``:expected_revision`` is None or the row's.
    """
    changed = update(table).where(table.c.id == bindparam("id"))
    changed = changed.values({name: bindparam(name) for name in names})
    changed = changed.values(updated_at=later(table))
    if "revision" in table.c:
        expected = func.coalesce(bindparam("expected_revision", type_=Integer), table.c.revision)
        changed = changed.where(table.c.revision == expected)
        changed = changed.values(revision=table.c.revision + 1)
    return changed
