"""What belongs into the generated modules; a test compares it with the files."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Table
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql import ClauseElement

from mandrake_sessions import schema, statements
from mandrake_sessions.database.revisions import scripts_in_order
from mandrake_sessions.database.statement import Statement
from mandrake_sessions.statements.generator.compiler import SQLITE, compiled
from mandrake_sessions.statements.generator.layout import (
    WIDTH,
    call,
    enclosed,
    set_source,
    several,
    text_source,
    tuple_source,
)
from mandrake_sessions.statements.kinds import InsertMany, RecordInsert, UpdateSome

_PACKAGE = Path(__file__).parents[2]

_SQL_HEAD = '''\
"""Every statement as it is run. Made by ``make sql`` from ``mandrake_sessions.statements``."""

# fmt: off

from mandrake_sessions.database.statement import Statement
from mandrake_sessions.records.forms import InsertMany, Piece, RecordInsert, UpdateSome
'''

_TABLES_HEAD = '''\
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


_DDL_HEAD = '''\
"""What a new file gets. Made by ``make sql`` from ``schema.py`` and ``migrations/``."""

# fmt: off

'''


def generated() -> dict[Path, str]:
    """Return the files and what belongs into them."""
    return {
        _PACKAGE / "database" / "ddl.py": "".join([_DDL_HEAD, *_ddl()]),
        _PACKAGE / "tables.py": "".join([_TABLES_HEAD, *_tables()]),
        _PACKAGE / "records" / "sql.py": "".join([_SQL_HEAD, *_sections()]),
    }


# -- tables.py ----------------------------------------------------------------------------------


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
    told = "".join(f", {name}=True" for name, is_so in facts.items() if is_so)
    return f'Column("{column.name}", "{column.type}"{told})'


# -- database/ddl.py ----------------------------------------------------------------------------


def _ddl() -> Iterator[str]:
    project = tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    yield f'CREATED_BY = "mandrake_sessions {project["version"]}"\n'
    yield f"REVISIONS = {tuple_source(scripts_in_order())}\n"
    yield f"SCHEMA = {several(enclosed(text_source(text)) for text in _creations())}\n"


def _creations() -> Iterator[str]:
    """Return what makes the tables, in the order in which migrations make those of ``0001``."""
    # Alembic's own table has no other name in public.
    version = MigrationContext.configure(dialect_name="sqlite")._version
    for table in (version, *schema.metadata.tables.values()):
        # What stands behind the last word is kept by SQLite, what stands before the first is not.
        yield str(CreateTable(table).compile(dialect=SQLITE)).lstrip()
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            yield str(CreateIndex(index).compile(dialect=SQLITE)).lstrip()


# -- records/sql.py -----------------------------------------------------------------------------


def _sections() -> Iterator[str]:
    given: set[str] = set()
    for module in _modules():
        named = dict(_named_in(module))
        if again := given & named.keys():
            raise ValueError(f"given twice, the second time in {module.__name__}: {again}")
        given |= named.keys()
        if named:
            title = module.__name__.rpartition(".")[2]
            yield f"\n# -- {title} {'-' * (WIDTH - 7 - len(title))}\n\n"
            yield from (f"{name} = {_source(name, value)}\n" for name, value in named.items())


def named() -> dict[str, object]:
    """Return everything that is compiled, by its name."""
    return {name: value for module in _modules() for name, value in _named_in(module)}


def _named_in(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name.isupper() and not name.startswith("_"):
            yield name, value


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(statements.__path__):
        if not found.ispkg:
            yield importlib.import_module(f"{statements.__name__}.{found.name}")


def _source(name: str, value: object) -> str:
    """Return what makes the compiled form of a value, under its name."""
    match value:
        case Column() | Table():
            return f'"{value}"'
        case RecordInsert():
            return _record_insert(name, value)
        case UpdateSome():
            return _update_some(name, value)
        case InsertMany():
            return _insert_many(name, value)
        case ClauseElement():
            made = compiled(value)
            kind = ["is_read=True"] if made.is_read else []
            return call("Statement", [f'"{name}"', *_text_and_parameters(made), *kind])
        case _:
            return repr(value).replace("'", '"')


def _record_insert(name: str, insert: RecordInsert) -> str:
    made = compiled(insert.core())
    beside = [column.name for column in insert.beside]
    fields = insert.fields()
    arguments = [
        f'"{name}"',
        *_text_and_parameters(made),
        tuple_source(fields[column] for column in made.parameters if column not in beside),
    ]
    return call("RecordInsert", [*arguments, tuple_source(beside)] if beside else arguments)


def _insert_many(name: str, insert: InsertMany) -> str:
    source = compiled(insert.source(0))
    head, tail = compiled(insert.core(insert.source(0))).sql.split(source.sql)
    second = compiled(insert.source(1)).parameters
    parameters = (
        first if first == other else f"{first.removesuffix('0')}{{at}}"
        for first, other in zip(source.parameters, second, strict=True)
    )
    return call(
        "InsertMany",
        [
            f'"{name}"',
            text_source(head),
            text_source(source.sql),
            tuple_source(parameters),
            text_source(tail),
        ],
    )


def _update_some(name: str, update: UpdateSome) -> str:
    names = [column.name for column in update.settable]
    # What each column alone changes: a piece that others share appears under several of them.
    with_none = _Pieces(compiled(update.core(())))
    with_one = {name: _Pieces(compiled(update.core((name,)))) for name in names}
    with_all = _Pieces(compiled(update.core(names)))
    every = [with_none, *with_one.values(), with_all]
    order = [column.name for column in update.settable[0].table.columns]
    assignments = {text: values for pieces in every for text, values in pieces.assignments.items()}
    conditions = with_all.conditions

    def piece(text: str, parameters: tuple[str, ...]) -> str:
        there = {column for column, pieces in with_one.items() if text in pieces.all}
        arguments = [text_source(text)]
        if parameters:
            arguments.append(tuple_source(parameters))
        if text not in with_none.all:
            arguments.append(f"when={set_source(there)}")
        elif there != set(names):
            arguments.append(f"unless={set_source(set(names) - there)}")
        return call("Piece", arguments)

    in_order = sorted(assignments, key=lambda text: order.index(text.partition("=")[0]))
    return call(
        "UpdateSome",
        [
            f'"{name}"',
            text_source(with_all.head),
            several(piece(text, assignments[text]) for text in in_order),
            several(piece(text, parameters) for text, parameters in conditions.items()),
            text_source(with_all.tail),
            f"settable={set_source(names)}",
        ],
    )


def _text_and_parameters(made: Statement) -> list[str]:
    return [text_source(made.sql), *([tuple_source(made.parameters)] if made.parameters else [])]


class _Pieces:
    """An UPDATE taken apart, each piece with its parameters."""

    def __init__(self, made: Statement) -> None:
        before, _, after = made.sql.partition(" SET ")
        assignments, conditions = _split(after, " WHERE ")
        conditions, *tail = _split(conditions, " RETURNING ")
        parameters = iter(made.parameters)

        def taken(text: str) -> tuple[str, ...]:
            return tuple(next(parameters) for _ in range(text.count("?")))

        self.head = f"{before} SET "
        self.assignments = {text: taken(text) for text in _split(assignments, ", ")}
        self.conditions = {text: taken(text) for text in _split(conditions, " AND ")}
        self.tail = "".join(f" RETURNING {text}" for text in tail)
        self.all = self.assignments.keys() | self.conditions.keys()


def _split(text: str, separator: str) -> list[str]:
    """Split a text where a separator stands outside of parentheses."""
    parts = [""]
    for piece in text.split(separator):
        is_open = parts[-1].count("(") != parts[-1].count(")")
        if is_open:
            parts[-1] += separator + piece
        else:
            parts.append(piece)
    return parts[1:]
