"""SQLAlchemy over a connection that is lent for one scope, for Alembic and for hosts.

A host can keep no engine: an idle ORM session would hold the lease of the whole file. ``lend``
makes an engine for a block, over a connection that is open already and stays open.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, NoReturn, TypeAlias, cast

import apsw
import sqlalchemy
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.engine import URL, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPIModule
from sqlalchemy.pool import NullPool, PoolProxiedConnection

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.connection import begin_commit, damaged_text
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import primary_code, translate
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseError,
    DatabaseOpenError,
    PoolClosedError,
    StatementError,
    TransactionLostError,
)

_Row: TypeAlias = tuple[Any, ...]
_Column: TypeAlias = tuple[str, str | None, None, None, None, None, None]


class Driver:
    """The parts of a DBAPI module (PEP 249) that SQLAlchemy uses.

    SQLAlchemy wraps an error by the name of its class; the ``__cause__`` of each is the typed
    error of this library.
    """

    apilevel = "2.0"
    threadsafety = 0
    paramstyle = "qmark"
    sqlite_version_info: tuple[int, ...] = tuple(
        int(part) for part in apsw.sqlite_lib_version().split(".")
    )
    Binary = memoryview

    class Error(Exception):
        """A statement failed."""

    class InterfaceError(Error):
        """The connection was used outside its scope."""

    class DatabaseError(Error):
        """The file is damaged or is no database."""

    class DataError(DatabaseError):
        """A value is too large."""

    class OperationalError(DatabaseError):
        """SQLite could not run the statement, or the time was up."""

    class IntegrityError(DatabaseError):
        """A constraint would be broken."""

    class InternalError(DatabaseError):
        """SQLite reported an internal error."""

    class ProgrammingError(DatabaseError):
        """The parameters do not fit the statement."""

    class NotSupportedError(DatabaseError):
        """SQLite cannot do this."""

    @staticmethod
    def connect(*_: object, **__: object) -> NoReturn:
        """Raise DatabaseOpenError: connections are lent, not made."""
        raise _no_engine()


# By primary result code; a code that is missing here is an OperationalError.
_DBAPI_ERRORS: dict[int, type[Driver.Error]] = {
    # Raised by APSW itself: wrong number or type of parameters.
    0: Driver.ProgrammingError,
    apsw.SQLITE_MISUSE: Driver.ProgrammingError,
    apsw.SQLITE_RANGE: Driver.ProgrammingError,
    apsw.SQLITE_CONSTRAINT: Driver.IntegrityError,
    apsw.SQLITE_MISMATCH: Driver.IntegrityError,
    apsw.SQLITE_TOOBIG: Driver.DataError,
    apsw.SQLITE_INTERNAL: Driver.InternalError,
    apsw.SQLITE_CORRUPT: Driver.DatabaseError,
    apsw.SQLITE_NOTADB: Driver.DatabaseError,
}


def _no_engine() -> DatabaseOpenError:
    return DatabaseOpenError(
        "There is no engine for a mandrake database, because an idle session would hold the lease "
        "of the whole file; use `with handle.sqlalchemy() as connection:` instead.",
        operation="create_engine",
    )


class LentConnection:
    """A ``Connection`` with the interface of a DBAPI one, until its scope ends.

    ``close`` leaves the real connection open, because it belongs to the pool.

    Attributes:
        connection: the lent connection.
    """

    def __init__(self, connection: Connection, budget: Budget, operation: str) -> None:
        self.connection = connection
        self._budget = budget
        self._operation = operation
        self._ended = False
        self._is_lent = False
        self._is_reader = bool(connection.value("PRAGMA query_only"))

    def lend(self) -> DBAPIConnection:
        """Return this connection, once: a second transaction on it would join the first."""
        if self._ended or self._is_lent:
            raise StatementError(
                "A lent connection is one connection, for one scope.",
                path=self.connection.path,
                operation=self._operation,
            )
        self._is_lent = True
        return cast(DBAPIConnection, self)

    def begin(self) -> None:
        """Begin a transaction: IMMEDIATE, or a plain one on a connection that only reads."""
        if self._ended:
            raise self._stopped()
        connection = self.connection
        if not self._is_reader:
            begin_commit.begin_immediate(connection, self._budget, self._operation)
            return
        connection.deadline = self._budget.deadline
        connection.interruptible = True
        try:
            connection.execute("BEGIN")
        except apsw.Error as error:
            raise translate(error, connection.path, self._operation, raw=connection.raw) from error

    def commit(self) -> None:
        """Commit the open transaction; raise the errors of ``begin_commit.commit``."""
        if self._ended:
            raise self._stopped()
        begin_commit.commit(self.connection, self._operation)

    def rollback(self) -> None:
        """Undo the open transaction, if there is one."""
        if not self._ended:
            begin_commit.rollback(self.connection)

    def cursor(self) -> LentCursor:
        """Return a new cursor."""
        return LentCursor(self)

    def close(self) -> None:
        """Undo an open transaction; the real connection stays open."""
        self.rollback()

    def end(self) -> None:
        """End the scope: undo an open transaction, and refuse every further use."""
        if not self._ended:
            self.close()
        self._ended = True

    def require_usable(self) -> None:
        """Raise a Driver error unless a transaction is open and its time is not up.

        SQLite itself ends a transaction when the disk is full. Without one each statement would be
        committed by itself.
        """
        connection = self.connection
        in_time = not connection.is_cancelled and (
            not connection.interruptible or monotonic() < connection.deadline
        )
        if self._ended or not in_time or not connection.raw.in_transaction:
            error = self._stopped()
            kind = Driver.InterfaceError if self._ended else Driver.OperationalError
            raise kind(str(error)) from error

    def failed(self, error: apsw.Error) -> Driver.Error:
        """Return the DBAPI error for an error of APSW; its cause is the typed error."""
        code = primary_code(error)
        if code == apsw.SQLITE_INTERRUPT:
            typed = self._stopped()
        else:
            typed = translate(error, self.connection.path, self._operation, raw=self.connection.raw)
        typed.__cause__ = error
        found = _DBAPI_ERRORS.get(code, Driver.OperationalError)(str(typed))
        found.__cause__ = typed
        return found

    def _stopped(self) -> DatabaseError:
        path = self.connection.path
        if self._ended:
            return StatementError(
                "The scope has ended; use the connection inside its block only.",
                path=path,
                operation=self._operation,
            )
        if self.connection.is_cancelled:
            return PoolClosedError(path=path, operation=self._operation)
        if monotonic() >= self.connection.deadline:
            return self._budget.exceeded("body", path, self._operation)
        return TransactionLostError(path=path, operation=self._operation)


class LentCursor:
    """A DBAPI cursor whose rows are all fetched at once, so that no statement stays unfinished."""

    arraysize = 1

    def __init__(self, lent: LentConnection) -> None:
        self.connection = lent
        self.description: Sequence[_Column] | None = None
        self.rowcount: int = -1
        self.lastrowid: int | None = None
        self._columns: list[_Column] = []
        self._rows: Iterator[_Row] = iter(())
        self._is_readonly = True
        self._cursor = lent.connection.raw.cursor()
        # APSW gives the columns of a statement without rows only before it runs.
        self._cursor.exec_trace = self._about_to_run

    def _about_to_run(self, cursor: apsw.Cursor, *_: object) -> bool:
        self._is_readonly = cursor.is_readonly
        columns = cursor.get_description()
        self._columns = [(name, kind, None, None, None, None, None) for name, kind in columns]
        return True

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement and fetch its rows."""
        self.rowcount = self._run(sql, parameters)

    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each of the parameters; ``rowcount`` is the total."""
        self.rowcount = sum([self._run(sql, each) for each in parameters])

    def _run(self, sql: str, parameters: Sequence[Any]) -> int:
        """Run a statement; return how many rows it changed, or -1 if it changes none."""
        self.connection.require_usable()
        lent = self.connection.connection
        before = lent.raw.total_changes()
        try:
            self._rows = iter(damaged_text.fetched(self._cursor, sql, tuple(parameters), lent))
        except apsw.Error as error:
            failed = self.connection.failed(error)
            raise failed from failed.__cause__
        except (TypeError, ValueError, OverflowError) as error:
            # SQLite has no type for a parameter. Its value stays out of the message.
            raise Driver.ProgrammingError(f"A parameter cannot be stored: {error}") from error
        except Exception:
            raise
        except BaseException:
            # After a signal the statement may be unfinished, which would keep the transaction open.
            self._cursor.close(True)
            raise
        # None for a statement without columns, as PEP 249 says.
        self.description = self._columns or None
        self.lastrowid = lent.raw.last_insert_rowid()
        if self._is_readonly:
            return -1
        # SQLite keeps the last count if a statement changes no row.
        return lent.raw.changes() if lent.raw.total_changes() != before else 0

    def fetchone(self) -> _Row | None:
        """Return the next row, or None."""
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[_Row]:
        """Return at most ``size`` rows."""
        return list(itertools.islice(self._rows, size or self.arraysize))

    def fetchall(self) -> list[_Row]:
        """Return the remaining rows."""
        return list(self._rows)

    def setinputsizes(self, sizes: object) -> None:
        """Do nothing, as PEP 249 allows."""

    def setoutputsize(self, size: object, column: object = None) -> None:
        """Do nothing, as PEP 249 allows."""

    def close(self) -> None:
        """Drop the rows and close the cursor."""
        self._rows = iter(())
        self._cursor.exec_trace = None
        self._cursor.close(True)


class MandrakeDialect(SQLiteDialect):
    """SQLite through a lent connection.

    It compiles statements as ``sqlite`` does and never connects by itself: see ``lend``.
    """

    driver = "mandrake"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> DBAPIModule:
        """Return the driver."""
        return cast(DBAPIModule, Driver)

    def create_connect_args(self, url: URL) -> NoReturn:  # noqa: ARG002
        """Refuse ``create_engine``.

        Raises:
            DatabaseOpenError: always.
        """
        raise _no_engine()

    def get_isolation_level_values(self, _: DBAPIConnection) -> Sequence[Any]:
        """Return the only level; AUTOCOMMIT would split a migration."""
        return ("SERIALIZABLE",)

    def get_isolation_level(self, _: DBAPIConnection) -> Any:
        """Return the only level."""
        return "SERIALIZABLE"

    def set_isolation_level(self, dbapi_connection: DBAPIConnection, level: object) -> None:
        """Do nothing: there is only one level."""

    def do_begin(self, dbapi_connection: PoolProxiedConnection) -> None:
        """Begin a transaction; SQLAlchemy expects that most drivers do so themselves."""
        cast(LentConnection, dbapi_connection.dbapi_connection).begin()


@functools.cache
def _dialect() -> MandrakeDialect:
    dialect = MandrakeDialect(dbapi=MandrakeDialect.import_dbapi())
    # The values that create_engine would read from the first connection.
    dialect.server_version_info = Driver.sqlite_version_info
    dialect.default_schema_name = "main"
    dialect.default_isolation_level = "SERIALIZABLE"
    return dialect


@block
def lend(connection: Connection, budget: Budget, operation: str) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection to SQLAlchemy for one scope; begin at once, and commit at its end.

    Args:
        connection: without an open transaction; the caller must hold its lease.
        budget: for BEGIN and for each statement.
        operation: for errors.

    Yields:
        A SQLAlchemy connection, also for ``orm.Session(bind=...)``; closing it does not close the
        real one.

    Raises:
        DatabaseBusyError: the transaction could not begin within the budget.
        CommitOutcomeUnknownError: or another error of COMMIT. A statement raises SQLAlchemy's
            error; the ``__cause__`` of its ``orig`` is the typed one.
    """
    lent = LentConnection(connection, budget, operation)
    pool = NullPool(lent.lend, dialect=_dialect())
    url = URL.create("mandrake", database=str(connection.path))
    # No error carries the value of a parameter.
    engine = Engine(pool, _dialect(), url, hide_parameters=True)
    try:
        with engine.begin() as borrowed:
            yield borrowed
    finally:
        try:
            lent.end()
        finally:
            # signal-safe release: an open transaction would have the file retired.
            lent.end()


def lent_connection(borrowed: sqlalchemy.Connection) -> Connection:
    """Return the connection that SQLAlchemy borrows.

    Raises:
        DatabaseOpenError: SQLAlchemy made its connection itself, perhaps by a second SQLite
            library.
    """
    lent: object = borrowed.connection.dbapi_connection
    if not isinstance(lent, LentConnection):
        raise DatabaseOpenError(
            "The connection must be one that mandrake_sessions lends: another SQLite library in "
            "the process loses data."
        )
    return lent.connection


def typed_cause(error: BaseException) -> DatabaseError | None:
    """Return the typed error that is, or has caused, an error in a lent scope; None if none."""
    found: BaseException | None = error
    if isinstance(found, sqlalchemy.exc.DBAPIError):
        found = found.orig
    if isinstance(found, Driver.Error):
        found = found.__cause__
    return found if isinstance(found, DatabaseError) else None


# For a checkout that is on the path and not installed; an installed package has the entry point.
for _name in ("mandrake", "sqlite.mandrake"):
    registry.register(_name, __name__, MandrakeDialect.__name__)
