"""The statements that run are those that SQLAlchemy compiles from their sources now."""

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mandrake_sessions
from mandrake_sessions.engine.statement import Statement
from mandrake_sessions.models import TurnStatus
from mandrake_sessions.records import sql
from mandrake_sessions.records.turn_updates import MOVES
from mandrake_sessions.statements import streaming, templates
from tools.generate.compiler import compiled
from tools.generate.files import generated
from tools.generate.sql import named

RECORDS = Path(mandrake_sessions.__file__).parent / "records"
SOURCES: dict[str, Any] = named()
INSERTS = [name for name, source in SOURCES.items() if isinstance(source, templates.RecordInsert)]
UPDATES = [name for name, source in SOURCES.items() if isinstance(source, templates.UpdateSome)]


def facts(statement):
    return statement.sql, statement.parameters, statement.is_read


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_the_generated_file_is_that_of_the_sources(path):
    assert path.read_text("utf-8") == generated()[path], "run `make sql`"


def test_each_kind_of_statement_occurs():
    assert len(INSERTS) == len(UPDATES) == 5
    assert len(SOURCES) > 60


def test_every_plain_statement_is_compiled_from_its_source():
    plain = {name: value for name, value in vars(sql).items() if type(value) is Statement}

    assert len(plain) > 50
    for name, statement in plain.items():
        assert statement.name == name
        assert facts(statement) == facts(compiled(SOURCES[name])), name


def names_used(node):
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and getattr(each.value, "id", None) == "sql"
    }


def test_every_statement_is_run_by_some_function_and_none_at_an_import():
    """At an import, a new name would keep `make sql` from making it."""
    statements = [
        statement
        for path in RECORDS.glob("*.py")
        for statement in ast.parse(path.read_text("utf-8")).body
    ]
    functions = [each for each in statements if isinstance(each, ast.FunctionDef)]
    others = [each for each in statements if not isinstance(each, ast.FunctionDef)]

    assert set().union(*map(names_used, functions)) == SOURCES.keys()
    assert set().union(*map(names_used, others)) == set()


# -- a record's INSERT --------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSERTS)
def test_a_record_is_inserted_by_position_as_it_would_be_by_name(name):
    source = SOURCES[name]
    by_name = compiled(source.core())
    columns = {column: f"the {field}" for column, field in source.fields().items()}
    beside = {column.name: f"extra {column.name}" for column in source.extra}
    record = source.record(**{field: f"the {field}" for field in source.record.__struct_fields__})

    statement, row = getattr(sql, name).of(record, *beside.values())

    assert statement is getattr(sql, name)
    assert statement.name == name
    assert statement.sql == by_name.sql
    assert row == by_name.bind({**columns, **beside})
    assert set(row) > {f"extra {name}" for name in beside}


# -- an UPDATE of some columns ------------------------------------------------------------------


@pytest.mark.parametrize("name", UPDATES)
def test_each_column_alone_all_and_none_give_cores_own_text(name):
    source, made = SOURCES[name], getattr(sql, name)
    columns = [column.name for column in source.settable]

    for names in ([], *([column] for column in columns), columns, columns[::-1]):
        assert facts(made.of(names)) == facts(compiled(source.core(names))), names
        assert made.of(names).name == f"{name}:{','.join(sorted(names))}"


@given(st.data())
@pytest.mark.parametrize("name", UPDATES)
def test_any_columns_give_cores_own_text(name, data):
    source, made = SOURCES[name], getattr(sql, name)
    columns = st.sampled_from([column.name for column in source.settable])
    names = data.draw(st.lists(columns, unique=True))

    assert facts(made.of(names)) == facts(compiled(source.core(names)))
    # In whatever order they are named.
    assert made.of(names) is made.of(list(names)) is made.of(list(names)[::-1])


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("unknown", ["id", "colour"])
def test_a_column_that_is_not_to_be_set_is_refused_and_not_left_out(name, unknown):
    with pytest.raises(ValueError, match=unknown):
        getattr(sql, name).of([unknown])


@pytest.mark.parametrize("before", TurnStatus)
@pytest.mark.parametrize("after", TurnStatus)
def test_a_status_may_follow_another_in_sql_as_in_the_table_of_moves(before, after, sessions):
    session = sessions.create_session()
    response = sessions.create_round(session.id, "question").response
    turn = sessions.create_turn(response.id, status=before)
    update = sql.END_TURN if after.is_finished else sql.UPDATE_TURN
    values = {"id": turn.id, "status": after, "expected_revision": None, "now": 0}

    changed = sessions.handle.transact(lambda tx: tx.row(update.of(["status"]), values))

    assert (changed is not None) is (after in MOVES[before])


# -- an INSERT of many rows ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 100])
def test_any_number_of_rows_gives_cores_own_text(count):
    source = streaming.INSERT_CHUNKS
    selects = [source.source(at) for at in range(count)]
    core = source.core(selects[0] if count == 1 else selects[0].union_all(*selects[1:]))

    assert facts(sql.INSERT_CHUNKS.of(count)) == facts(compiled(core))
    assert sql.INSERT_CHUNKS.of(count).name == f"INSERT_CHUNKS:{count}"
