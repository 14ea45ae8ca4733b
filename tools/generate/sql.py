"""The text of ``mandrake_sessions/records/sql.py``: every statement in its compiled form."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from sqlalchemy import Column, Table
from sqlalchemy.sql import ClauseElement

from mandrake_sessions import statements
from mandrake_sessions.engine.statement import Statement
from mandrake_sessions.statements.templates import InsertMany, RecordInsert, UpdateSome
from tools.generate.compiler import compiled
from tools.generate.layout import (
    WIDTH,
    call,
    set_source,
    several,
    text_source,
    tuple_source,
)

_HEAD = '''\
"""Every statement as it is run. Made by ``make sql`` from ``mandrake_sessions.statements``."""

# fmt: off

from mandrake_sessions.engine.statement import Statement
from mandrake_sessions.records.templates import InsertMany, Piece, RecordInsert, UpdateSome
'''


def sql_source() -> str:
    """Return the module's text.

    Raises:
        ValueError: two statements have the same name.
    """
    return "".join([_HEAD, *_sections()])


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
        yield importlib.import_module(f"{statements.__name__}.{found.name}")


def _source(name: str, value: object) -> str:
    """Return the source of the compiled form of a value, under its name."""
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
    extra = [column.name for column in insert.extra]
    fields = insert.fields()
    arguments = [
        f'"{name}"',
        *_text_and_parameters(made),
        tuple_source(fields[column] for column in made.parameters if column not in extra),
    ]
    return call("RecordInsert", [*arguments, tuple_source(extra)] if extra else arguments)


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
    # The columns are compiled one by one: a piece that several share appears under each of them.
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
