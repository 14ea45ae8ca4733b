"""The transactions that units use: they read, or read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.connection import damaged_text
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import (
    primary_code,
    translate,
)
from mandrake_sessions.database.retry import retry_busy
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.statement import Bound, Row, Statement, Values
from mandrake_sessions.engine.transaction import NO_VALUES
from mandrake_sessions.errors import (
    ConstraintViolationError,
    DatabaseError,
    ForkedPoolError,
    PoolClosedError,
    StatementError,
    TransactionLostError,
)

T = TypeVar("T")


class ReadTransaction:
    """Runs reading statements until its scope ends; all rows are fetched at once."""

    __slots__ = ("_budget", "_connection", "_ended", "operation")

    def __init__(self, connection: Connection, budget: Budget, operation: str) -> None:
        self._connection = connection
        self._budget = budget
        self._ended = False
        self.operation: str = operation

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the file, None before the claim."""
        return self._connection.owner

    def rows(self, statement: Statement, values: Values = NO_VALUES) -> list[Row]:
        """Run a statement and return its rows.

        Raises:
            DatabaseBusyError: the budget of the scope is used up.
            StatementError: SQLite refused it, or it would write in a read scope.
        """
        self._require_usable(statement)
        try:
            return self._connection.execute(statement.sql, statement.bind(values)).fetchall()
        except apsw.Error as error:
            if self._may_retry(error):
                return retry_busy(
                    lambda: self._rows_again(statement, values),
                    self._budget,
                    self._connection.path,
                    self.operation,
                    "body",
                    raw=self._connection.raw,
                )
            raise self._failed(error) from error
        except UnicodeDecodeError:
            # Read below: this exception holds the text, and would become the context of another.
            pass
        return self._damaged_rows(statement, values)

    def _rows_again(self, statement: Statement, values: Values) -> list[Row]:
        try:
            return self._connection.execute(statement.sql, statement.bind(values)).fetchall()
        except UnicodeDecodeError:
            pass
        return self._damaged_rows(statement, values)

    def _damaged_rows(self, statement: Statement, values: Values) -> list[Row]:
        """Return the rows of a statement that has run and returned a text that is not UTF-8."""
        try:
            return damaged_text.rows_of(self._connection, statement, values)
        except apsw.Error as error:
            raise self._failed(error) from error

    def row(self, statement: Statement, values: Values = NO_VALUES) -> Row | None:
        """Run a statement and return its first row, or None; raise the errors of ``rows``."""
        rows = self.rows(statement, values)
        return rows[0] if rows else None

    def end(self) -> None:
        """End the scope: refuse every further statement."""
        self._ended = True

    def _require_usable(self, statement: Statement | None = None) -> None:
        if statement is None or not statement.is_read:
            raise StatementError(
                "A read scope does not write.",
                path=self._connection.path,
                operation=self.operation,
            )
        if self._ended or self._connection.is_cancelled or monotonic() >= self._connection.deadline:
            raise self._stopped()

    def _may_retry(self, error: apsw.Error) -> bool:
        """Return whether a read that met BUSY has neither yielded rows nor taken its snapshot."""
        return primary_code(error) == apsw.SQLITE_BUSY and not self._connection.in_transaction()

    def _stopped(self) -> DatabaseError:
        path = self._connection.path
        if self._ended:
            return StatementError(
                "The scope has ended; use the transaction inside its block only.",
                path=path,
                operation=self.operation,
            )
        if self._connection.is_forked:
            return ForkedPoolError(path=path, operation=self.operation)
        if self._connection.is_cancelled:
            return PoolClosedError(path=path, operation=self.operation)
        return self._budget.exceeded("body", path, self.operation)

    def _failed(self, error: apsw.Error) -> DatabaseError:
        if primary_code(error) == apsw.SQLITE_INTERRUPT:
            return self._stopped()
        return translate(error, self._connection.path, self.operation, raw=self._connection.raw)


class WriteTransaction(ReadTransaction):
    """Runs reading and writing statements; all changes are stored, or none."""

    __slots__ = ("_depth", "_lost")

    def __init__(self, connection: Connection, budget: Budget, operation: str) -> None:
        # Not through super(): this runs for every call.
        self._connection = connection
        self._budget = budget
        self._ended = False
        self.operation = operation
        self._lost = False
        self._depth = 0

    def run(self, statement: Statement, values: Values = NO_VALUES) -> int:
        """Run a statement that returns no rows; return how many it changed.

        Raises:
            ConstraintViolationError: it would break a constraint of the schema.
            StorageFullError: the disk is full; the whole transaction is gone.
        """
        self._require_usable(statement)
        try:
            self._connection.execute(statement.sql, statement.bind(values))
        except apsw.Error as error:
            raise self._failed(error) from error
        return self._connection.raw.changes()

    def run_all(self, bound: Iterable[Bound]) -> int:
        """Run several bound statements; raise the errors of ``run``.

        A ConstraintViolationError has the position of the statement that failed.

        Returns:
            The number of the row that was inserted last.
        """
        self._require_usable()
        execute = self._connection.execute
        position = 0
        try:
            for position, (statement, row) in enumerate(bound):  # noqa: B007 - read where one fails
                execute(statement.sql, row)
        except apsw.Error as error:
            failed = self._failed(error)
            if isinstance(failed, ConstraintViolationError):
                failed.position = position
            raise failed from error
        return self._connection.raw.last_insert_rowid()

    @block
    def savepoint(self) -> Iterator[None]:
        """Undo the changes of the block, and only these, if it raises."""
        # Each level has its own name: a signal at the beginning may leave an inner one open.
        name = f"nested_{self._depth}"
        self._depth += 1
        try:
            self._control(f"SAVEPOINT {name}")
            try:
                yield
                self._control(f"RELEASE {name}")
            except BaseException:
                if self._connection.raw.in_transaction:
                    self._undo_to(name)
                raise
        finally:
            self._depth -= 1

    def _undo_to(self, name: str) -> None:
        if self._ended or self._lost:
            raise self._stopped()
        try:
            self._connection.execute(f"ROLLBACK TO {name}")
            self._connection.execute(f"RELEASE {name}")
        except apsw.SQLError:
            # A signal came after the RELEASE: the savepoint is gone, and its changes stay.
            return
        except apsw.Error as error:
            raise self._failed(error) from error

    def _control(self, sql: str) -> None:
        if self._ended or self._lost:
            raise self._stopped()
        try:
            self._connection.execute(sql)
        except apsw.Error as error:
            raise self._failed(error) from error

    def _require_usable(self, _statement: Statement | None = None) -> None:
        connection = self._connection
        if (
            self._ended
            or self._lost
            or connection.is_cancelled
            or monotonic() >= connection.deadline
        ):
            raise self._stopped()

    def _may_retry(self, _error: apsw.Error) -> bool:
        return False

    def _stopped(self) -> DatabaseError:
        if self._lost and not self._ended:
            return TransactionLostError(path=self._connection.path, operation=self.operation)
        return super()._stopped()

    def _failed(self, error: apsw.Error) -> DatabaseError:
        # Without a transaction the next statement would be committed by itself, so all are refused.
        self._lost = not self._connection.raw.in_transaction
        return super()._failed(error)
