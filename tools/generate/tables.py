"""The text of ``mandrake_sessions/tables.py``: names and kinds of columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column

from mandrake_sessions import schema

_HEAD = '''\
"""What the tables are, without SQLAlchemy. Made by ``make sql`` from ``schema.py``."""

# fmt: off

from typing import NamedTuple


class Column(NamedTuple):
    """A column.

    Attributes:
        kind: ``TEXT``, ``INTEGER`` or ``REAL``.
        is_key: whether it is part of the primary key.
        is_reference: whether it refers to another table's row.
    """

    name: str
    kind: str
    is_nullable: bool = False
    is_key: bool = False
    is_reference: bool = False


'''


def tables_source() -> str:
    """Return the module's text."""
    return "".join([_HEAD, *_tables()])


def _tables() -> Iterator[str]:
    yield f'HEAD = "{schema.HEAD}"\n'
    yield f"APPLICATION_ID = 0x{schema.APPLICATION_ID:X}\n\n"
    yield "TABLES: dict[str, tuple[Column, ...]] = {\n"
    for table in schema.metadata.tables.values():
        columns = "".join(f"        {_column(column)},\n" for column in table.columns)
        yield f'    "{table.name}": (\n{columns}    ),\n'
    yield "}\n"


def _column(column: Column[Any]) -> str:
    facts = {
        "is_nullable": bool(column.nullable),
        "is_key": column.primary_key,
        "is_reference": bool(column.foreign_keys),
    }
    options = "".join(f", {name}=True" for name, is_so in facts.items() if is_so)
    return f'Column("{column.name}", "{column.type}"{options})'
