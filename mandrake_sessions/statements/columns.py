"""Parts of statements: a record's columns, ``updated_at``, the UPDATE of some columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, Table, Update, bindparam, func, update

from mandrake_sessions import schema
from mandrake_sessions.statements.portable import greater_of


def columns_of(record: type[msgspec.Struct], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of a record's fields, in their order: a row then fits by position."""
    return tuple(table.c[column_of(field)] for field in record.__struct_fields__)


def column_of(field: str) -> str:
    """Return the column of a record's field."""
    # A field that counts microseconds ends in ``_us``, the column of a time in ``_at``.
    return f"{field[:-3]}_at" if field.endswith("_us") else field


def later(table: Table) -> ColumnElement[int]:
    """Return the expression that advances ``updated_at`` to ``:now``, and never back.

    Units take their time before they queue, so they may run in another order.
    """
    return greater_of(table.c.updated_at, "now")


def update_row(table: Table, names: Iterable[str]) -> Update:
    """Return the UPDATE of the row ``:id`` that sets the named columns and moves ``updated_at``.

    Each column is set from the parameter of its name. If the table counts revisions, the UPDATE
    adds one, and changes no row unless ``:expected_revision`` is None or the row's.
    """
    changed = update(table).where(table.c.id == bindparam("id"))
    changed = changed.values({name: bindparam(name) for name in names})
    changed = changed.values(updated_at=later(table))
    if "revision" in table.c:
        expected = func.coalesce(
            bindparam("expected_revision", type_=schema.INTEGER), table.c.revision
        )
        changed = changed.where(table.c.revision == expected)
        changed = changed.values(revision=table.c.revision + 1)
    return changed
