"""SQLAlchemy over a lent connection: one scope, one transaction, nothing of it stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import apsw
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.dialect import lend, lent_connection, typed_cause
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import real_path
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    ConstraintViolationError,
    DatabaseBusyError,
    DatabaseOpenError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    StatementError,
    TransactionLostError,
)
from mandrake_sessions.options import DatabaseOptions

Open = Callable[..., Connection]

metadata = sa.MetaData()
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, unique=True),
    sa.Column("weight", sa.Float),
    sa.Column("raw", sa.LargeBinary),
    sa.Column("extra", sa.JSON),
    sa.Column("at", sa.DateTime),
    sa.Column("is_open", sa.Boolean),
)


class Base(orm.DeclarativeBase):
    metadata = metadata


class Note(Base):
    __table__ = notes

    text: orm.Mapped[str]


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Open]:
    """Opens a connection to the same file, and closes it in the end."""
    opened = []

    def open_it(*, auxiliary: bool = False) -> Connection:
        path = real_path(tmp_path / "db.sqlite")
        connection = open_connection(
            path, make_file(path), DatabaseOptions(), Budget(10), auxiliary=auxiliary
        )
        opened.append(connection)
        return connection

    yield open_it
    for connection in opened:
        connection.close()


@pytest.fixture
def connection(open_file: Open) -> Connection:
    """A connection to a file with the table ``notes`` and one row."""
    connection = open_file()
    # A table makes the file another program's for each process that opens it later.
    connection.execute("PRAGMA application_id = 1296974930")
    with lend(connection, Budget(10), "test") as borrowed:
        metadata.create_all(borrowed)
        borrowed.execute(sa.insert(notes).values(id=1, text="first"))
    return connection


def texts(connection: Connection) -> list[str]:
    return [text for (text,) in connection.query_all("SELECT text FROM notes ORDER BY id")]


# -- a scope is a transaction -------------------------------------------------------------------


def test_leaving_the_block_commits(connection: Connection, open_file: Open) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        borrowed.execute(sa.insert(notes).values(text="second"))

    assert not connection.in_transaction()
    assert texts(open_file()) == ["first", "second"]


def test_an_exception_undoes_the_block(connection: Connection) -> None:
    def fail() -> None:
        with lend(connection, Budget(10), "test") as borrowed:
            borrowed.execute(sa.insert(notes).values(text="second"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert not connection.in_transaction()
    assert texts(connection) == ["first"]


def test_commit_inside_the_block_is_its_end(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        borrowed.execute(sa.insert(notes).values(text="second"))
        borrowed.commit()
        assert not connection.in_transaction()
        with pytest.raises(sa.exc.InvalidRequestError):
            borrowed.execute(sa.insert(notes).values(text="third"))

    assert texts(connection) == ["first", "second"]


def test_rollback_inside_the_block_is_its_end(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        borrowed.execute(sa.insert(notes).values(text="second"))
        borrowed.rollback()

    assert texts(connection) == ["first"]


def test_a_savepoint_undoes_its_part(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        borrowed.execute(sa.insert(notes).values(text="second"))
        nested = borrowed.begin_nested()
        borrowed.execute(sa.insert(notes).values(text="third"))
        nested.rollback()

    assert texts(connection) == ["first", "second"]


def test_writing_begins_immediate(connection: Connection, open_file: Open) -> None:
    other = open_file()
    other.deadline = monotonic()

    with lend(connection, Budget(10), "test"), pytest.raises(apsw.BusyError):
        other.execute("BEGIN IMMEDIATE")


def test_a_connection_that_only_reads_holds_no_writer_up(
    connection: Connection, open_file: Open
) -> None:
    with lend(open_file(auxiliary=True), Budget(10), "test") as borrowed:
        count = sa.select(sa.func.count()).select_from(notes)
        assert borrowed.scalar(count) == 1
        connection.execute("INSERT INTO notes (text) VALUES ('second')")
        # One transaction, one snapshot.
        assert borrowed.scalar(count) == 1


def test_a_connection_that_only_reads_does_not_write(
    connection: Connection, open_file: Open
) -> None:
    auxiliary = open_file(auxiliary=True)

    def write() -> None:
        with lend(auxiliary, Budget(10), "test") as borrowed:
            borrowed.execute(sa.insert(notes).values(text="second"))

    with pytest.raises(sa.exc.OperationalError) as caught:
        write()

    assert isinstance(typed_cause(caught.value), ReadOnlyDatabaseError)
    assert not auxiliary.in_transaction()
    assert texts(connection) == ["first"]


# -- the driver ---------------------------------------------------------------------------------


def test_values_come_back_as_they_went_in(connection: Connection) -> None:
    values = {
        "text": "ünï\U0001f600",
        "weight": 0.1,
        "raw": b"\0\xff",
        "extra": {"a": [1, None, "x"]},
        "at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC).replace(tzinfo=None),
        "is_open": True,
    }
    with lend(connection, Budget(10), "test") as borrowed:
        id = borrowed.execute(sa.insert(notes).values(**values)).inserted_primary_key
        assert id is not None
        row = borrowed.execute(sa.select(notes).where(notes.c.id == id[0])).one()

    assert row._asdict() == {"id": 2, **values}


def test_row_counts_are_those_of_the_statement(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        many = [{"text": f"note {number}"} for number in range(5)]
        assert borrowed.execute(sa.insert(notes), many).rowcount == 5
        update = sa.update(notes).values(weight=1).where(notes.c.id > sa.bindparam("least"))
        assert borrowed.execute(update, {"least": 3}).rowcount == 3
        # SQLite would repeat the last statement's count.
        assert borrowed.exec_driver_sql("CREATE TABLE more (x)").rowcount == 0
        assert borrowed.execute(update, {"least": 99}).rowcount == 0
        assert borrowed.execute(update, [{"least": 4}, {"least": 5}]).rowcount == 3
        assert borrowed.exec_driver_sql("DELETE FROM notes WHERE id > 3").rowcount == 3
        assert borrowed.execute(sa.select(notes)).rowcount == -1


def test_columns_are_named_also_without_rows(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        result = borrowed.execute(sa.text("SELECT id, text AS words FROM notes WHERE 0"))
        assert list(result.keys()) == ["id", "words"]
        assert result.all() == []
        assert not borrowed.execute(sa.text("CREATE TABLE more (x)")).returns_rows


def test_rows_can_be_taken_in_parts(connection: Connection) -> None:
    numbers = sa.text("WITH n(x) AS (VALUES (1), (2), (3), (4), (5), (6)) SELECT x FROM n")
    with lend(connection, Budget(10), "test") as borrowed:
        result = borrowed.execute(numbers).scalars()
        parts = [result.fetchmany(2), result.fetchmany(3)]

        assert [*parts, result.all()] == [[1, 2], [3, 4, 5], [6]]


def test_no_statement_stays_unfinished(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        borrowed.execute(sa.insert(notes).values(text="second"))
        result = borrowed.execute(sa.select(notes))
        assert result.fetchone() is not None
        # SQLite refuses it while a statement reads the table.
        borrowed.execute(sa.text("DROP TABLE notes"))

        assert result.fetchone() is not None


def test_tables_can_be_reflected(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        found = sa.inspect(borrowed)

        assert found.get_table_names() == ["notes"]
        assert [column["name"] for column in found.get_columns("notes")] == notes.c.keys()


def test_an_orm_session_works(connection: Connection) -> None:
    with (
        lend(connection, Budget(10), "test") as borrowed,
        orm.Session(bind=borrowed) as session,
    ):
        session.add_all([Note(text="second"), Note(text="third", extra=[1])])
        session.flush()
        first = session.scalars(sa.select(Note).where(Note.text == "first")).one()
        first.text = "changed"
        session.delete(session.scalars(sa.select(Note).where(Note.text == "second")).one())
        session.commit()

    assert texts(connection) == ["changed", "third"]


# -- errors -------------------------------------------------------------------------------------


def test_a_broken_constraint_is_an_integrity_error(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        with pytest.raises(sa.exc.IntegrityError) as caught:
            borrowed.execute(sa.insert(notes).values(id=1, text="secret"))
        # The transaction goes on.
        borrowed.execute(sa.insert(notes).values(text="second"))

    cause = typed_cause(caught.value)
    assert isinstance(cause, ConstraintViolationError)
    assert cause.columns == ("notes.id",)
    assert cause.result_code == apsw.SQLITE_CONSTRAINT_PRIMARYKEY
    assert "secret" not in str(caught.value)
    assert texts(connection) == ["first", "second"]


def test_a_wrong_statement_is_an_operational_error(connection: Connection) -> None:
    with (
        lend(connection, Budget(10), "test") as borrowed,
        pytest.raises(sa.exc.OperationalError) as caught,
    ):
        borrowed.execute(sa.text("SELECT * FROM nowhere"))

    assert isinstance(typed_cause(caught.value), StatementError)


@pytest.mark.parametrize("parameters", [(), (1, 2), (object(),), (1 << 70,)])
def test_wrong_parameters_are_a_programming_error(
    connection: Connection, parameters: tuple[object, ...]
) -> None:
    with (
        lend(connection, Budget(10), "test") as borrowed,
        pytest.raises(sa.exc.ProgrammingError),
    ):
        borrowed.exec_driver_sql("SELECT ?", parameters)


def test_waiting_to_begin_ends_at_the_deadline(connection: Connection, open_file: Open) -> None:
    open_file().execute("BEGIN IMMEDIATE")

    with pytest.raises(DatabaseBusyError) as caught, lend(connection, Budget(0.01), "named"):
        pytest.fail("it must not begin")

    assert caught.value.phase == "begin"
    assert caught.value.operation == "named"


def test_a_statement_ends_at_the_deadline(connection: Connection) -> None:
    forever = sa.text(
        "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x FROM n) SELECT max(x) FROM n"
    )

    def count() -> None:
        with lend(connection, Budget(0.05), "test") as borrowed:
            borrowed.execute(sa.insert(notes).values(text="second"))
            with pytest.raises(sa.exc.OperationalError) as caught:
                borrowed.execute(forever)
            cause = typed_cause(caught.value)
            assert isinstance(cause, DatabaseBusyError)
            assert cause.phase == "body"
            # The next one does not begin.
            borrowed.execute(sa.select(notes))

    with pytest.raises(sa.exc.OperationalError):
        count()

    assert not connection.in_transaction()
    assert texts(connection) == ["first"]


def test_nothing_is_stored_after_sqlite_has_ended_the_transaction(
    connection: Connection,
) -> None:
    def go_on() -> None:
        with lend(connection, Budget(10), "test") as borrowed:
            borrowed.execute(sa.insert(notes).values(text="second"))
            with pytest.raises(sa.exc.IntegrityError):
                borrowed.execute(sa.text("INSERT OR ROLLBACK INTO notes (text) VALUES ('first')"))
            with pytest.raises(sa.exc.OperationalError) as caught:
                borrowed.execute(sa.insert(notes).values(text="third"))
            assert isinstance(typed_cause(caught.value), TransactionLostError)

    with pytest.raises(TransactionLostError):
        go_on()

    assert texts(connection) == ["first"]


def test_a_connection_closed_under_its_holder_says_so(connection: Connection) -> None:
    def work() -> None:
        with lend(connection, Budget(10), "test") as borrowed:
            connection.cancel()
            borrowed.execute(sa.select(notes))

    with pytest.raises(sa.exc.OperationalError) as caught:
        work()

    assert isinstance(typed_cause(caught.value), PoolClosedError)


# -- what may not be kept -----------------------------------------------------------------------


@pytest.mark.parametrize("url", ["mandrake:///x.sqlite", "sqlite+mandrake:///x.sqlite"])
def test_an_engine_is_refused(url: str) -> None:
    with pytest.raises(DatabaseOpenError, match="sqlalchemy"):
        sa.create_engine(url)


def test_nothing_of_sqlalchemy_closes_the_real_connection(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        borrowed.engine.dispose()
        borrowed.detach()
        borrowed.close()
    with (
        pytest.raises(sa.exc.PendingRollbackError),
        lend(connection, Budget(10), "test") as borrowed,
    ):
        borrowed.execute(sa.insert(notes).values(text="second"))
        borrowed.invalidate()

    assert texts(connection) == ["first"]


def test_a_lent_connection_cannot_be_used_after_its_scope(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        cursor = borrowed.connection.cursor()
        driver = borrowed.connection.dbapi_connection
        engine = borrowed.engine

    assert driver is not None
    with pytest.raises(sa.exc.ResourceClosedError):
        borrowed.execute(sa.select(notes))
    with pytest.raises(Exception, match="The scope has ended"):
        cursor.execute("SELECT 1")
    with pytest.raises(StatementError):
        driver.commit()
    with pytest.raises(StatementError):
        engine.connect()
    assert not connection.in_transaction()


def test_one_scope_has_one_connection(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed, pytest.raises(StatementError):
        borrowed.engine.connect()


def test_autocommit_is_refused(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        assert borrowed.get_isolation_level() == "SERIALIZABLE"
        with pytest.raises(sa.exc.InvalidRequestError):
            borrowed.execution_options(isolation_level="AUTOCOMMIT")


def test_the_dbapi_connection_names_the_connection_behind_it(connection: Connection) -> None:
    with lend(connection, Budget(10), "test") as borrowed:
        assert lent_connection(borrowed) is connection


def test_no_second_sqlite_is_loaded(tmp_path: Path) -> None:
    """In a process of its own: a test runner may have loaded it for itself."""
    code = f"""
import sys
import sqlalchemy as sa
from sqlalchemy import orm
from mandrake_sessions.database.migrations import head, migrate
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import real_path
from mandrake_sessions.database.connection.dialect import lend
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.options import DatabaseOptions
path = real_path({str(tmp_path / "db.sqlite")!r})
connection = open_connection(path, make_file(path), DatabaseOptions(), Budget(10))
head.bring_to_head(connection, Budget(10))
with lend(connection, Budget(10), "test") as borrowed, orm.Session(bind=borrowed) as session:
    assert session.scalar(sa.text("SELECT count(*) FROM sessions")) == 0
    sa.inspect(borrowed).get_table_names()
connection.close()
migrate.offline_sql("upgrade")
loaded = {{"sqlite3", "_sqlite3", "aiosqlite"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
