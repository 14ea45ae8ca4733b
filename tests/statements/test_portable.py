"""Every statement and table can also be compiled for PostgreSQL, and means the same there.

A server is not asked: what it would accept and read in another way is looked for in the texts.
"""

import re
from typing import Any

import pytest
from sqlalchemy import Column, Table
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql import ClauseElement

from mandrake_sessions import schema
from mandrake_sessions.statements.templates import InsertMany, RecordInsert, UpdateSome
from mandrake_sessions.tables import TABLES
from tools.generate.compiler import POSTGRESQL, SQLITE, compiled
from tools.generate.sql import named

# Functions that give the same on both databases with so many arguments. Not among them: max() of
# two, json_each() and group_concat(), which PostgreSQL has not; round(), char(), date(), which it
# has and which give something else.
SAME = {
    ("CAST", 1),
    ("coalesce", 2),
    ("count", 1),
    ("length", 1),
    ("max", 1),
    ("octet_length", 1),
    ("sum", 1),
}
# The same as a function of SQLite with another name.
POSTGRESQL_ONLY = {
    ("greatest", 2),
    ("json_array_elements_text", 1),
    ("nullif", 2),
    ("right", 2),
    ("string_agg", 2),
}
SQLITE_ONLY = re.compile(
    r"\b(rowid|oid|glob|match|pragma|autoincrement|indexed by|collate nocase|insert or|replace)\b"
    r"|\bis (?!null|not null|not distinct from|distinct from)"
    r"|limit (?!nullif\()"
    r"|[?`\[]|==|->",
    re.IGNORECASE,
)


def variants(value):
    """Return the Core statements of a name: one, or those that a text is put together from."""
    match value:
        case Column() | Table():
            return []
        case RecordInsert():
            return [value.core()]
        case UpdateSome():
            names = [column.name for column in value.settable]
            return [value.core(some) for some in ([], *([name] for name in names), names)]
        case InsertMany():
            selects = [value.source(at) for at in range(3)]
            return [value.core(selects[0]), value.core(selects[0].union_all(*selects[1:]))]
        case ClauseElement():
            return [value]
    return []


STATEMENTS = {name: found for name, value in named().items() if (found := variants(value))}


def calls(text):
    """Yield the functions that a text calls, with their arguments."""
    text = re.sub(r"'[^']*'", "''", text)
    for call in re.finditer(r"(\w+)\(", text):
        arguments, depth = [""], 0
        for character in text[call.end() :]:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth < 0:
                break
            if character == "," and not depth:
                arguments.append("")
            else:
                arguments[-1] += character
        yield call[1], [argument.strip() for argument in arguments]


def test_the_calls_of_a_text_are_found_with_their_arguments():
    text = "SELECT max(a, (b, c)), count(*) FROM t WHERE x IN ('f(y, z)', lower(upper(d)))"

    assert list(calls(text)) == [
        ("max", ["a", "(b, c)"]),
        ("count", ["*"]),
        ("lower", ["upper(d)"]),
        ("upper", ["d"]),
    ]


def test_most_statements_have_one_text_and_some_have_several():
    assert len(STATEMENTS) > 60
    assert sum(map(len, STATEMENTS.values())) > 130


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_has_a_text_for_postgresql_without_anything_of_sqlite_alone(name):
    for core in STATEMENTS[name]:
        text = compiled(core, dialect=POSTGRESQL).sql
        found = list(calls(text))
        starts = {arguments[1] for function, arguments in found if function == "substr"}

        assert not SQLITE_ONLY.search(text), text
        assert {
            (function, len(arguments)) for function, arguments in found if function != "substr"
        } <= SAME | POSTGRESQL_ONLY
        # From the start alone: PostgreSQL counts a negative one from there too, not from the end.
        assert starts <= {"1"}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_takes_the_same_parameters_on_both_databases(name):
    for core in STATEMENTS[name]:
        sqlite, postgresql = compiled(core, dialect=SQLITE), compiled(core, dialect=POSTGRESQL)
        numbers = {int(number) for number in re.findall(r"\$(\d+)", postgresql.sql)}

        assert set(postgresql.parameters) == set(sqlite.parameters)
        # Each once: PostgreSQL's parameters have numbers, and a number may come again.
        assert len(postgresql.parameters) == len(set(postgresql.parameters))
        assert numbers == set(range(1, len(postgresql.parameters) + 1))
        assert postgresql.is_read is sqlite.is_read


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_integer_of_four_bytes_is_asked_of_postgresql(name):
    casts = {
        cast
        for core in STATEMENTS[name]
        for cast in re.findall(r"::(\w+)", compiled(core, dialect=POSTGRESQL).sql)
    }

    # A number of characters is one: right() takes no other.
    assert casts <= {"TEXT", "BIGINT"} | ({"INTEGER"} if name == "IDS_ENDING_AS" else set())


def test_a_negative_limit_is_none_on_both_databases():
    page: Any = named()["ROUND_PAGE"]
    text = compiled(page, dialect=POSTGRESQL).sql

    assert "LIMIT nullif(CAST($3 AS BIGINT), -1) OFFSET CAST($4 AS BIGINT)" in text


def test_an_insert_into_postgresql_returns_only_what_sqlite_returns():
    for cores in STATEMENTS.values():
        for core in cores:
            returning = {
                "RETURNING" in compiled(core, dialect=dialect).sql
                for dialect in (SQLITE, POSTGRESQL)
            }
            assert len(returning) == 1, str(core)


# -- the tables ---------------------------------------------------------------------------------


def types_of(table):
    """Return the type of each column as PostgreSQL's CREATE TABLE has it."""
    text = str(CreateTable(table).compile(dialect=POSTGRESQL))
    return {
        name: kind
        for name, kind in re.findall(
            r"^\t(\w+) (.+?)(?: NOT NULL.*| CONSTRAINT.*)?,? ?$", text, re.MULTILINE
        )
        if name in table.columns
    }


@pytest.mark.parametrize("table", schema.metadata.tables.values(), ids=str)
def test_every_column_has_a_type_of_postgresql_that_holds_what_sqlite_holds(table):
    kinds = {column.name: column.kind for column in TABLES[table.name]}
    types = types_of(table)

    assert types.keys() == kinds.keys()
    for name, kind in types.items():
        # JSON is TEXT too: jsonb refuses \u0000 and gives the keys in another order.
        wanted = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "TEXT": "TEXT"}[kinds[name]]
        if (table.name, name) == ("changes", "seq"):
            wanted = "BIGSERIAL"
        # SQLite compares texts by their bytes. What rows are ordered and joined by must be too.
        elif name in ("id", "key", "name") or name.endswith("_id"):
            wanted += ' COLLATE "C"'
        assert kind == wanted, name


def test_postgresql_gets_every_index_and_the_partial_one_as_a_partial_one():
    texts = [
        str(CreateIndex(index).compile(dialect=POSTGRESQL))
        for table in schema.metadata.tables.values()
        for index in table.indexes
    ]

    assert sorted(texts) == [
        "CREATE INDEX ix_sessions_updated_at_id ON sessions (updated_at, id)",
        "CREATE INDEX ix_turns_streaming ON turns (response_id) WHERE status = 'streaming'",
    ]
