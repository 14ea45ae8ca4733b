"""Opens a database that no process has open, and locks out all others for a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.database.files.paths import Identity, identify, refuse_planted
from mandrake_sessions.database.files.raw import RawFile
from mandrake_sessions.database.files.views import require_one_view
from mandrake_sessions.database.retry import retry_busy
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseIOError,
    DatabaseMovedError,
    NotADatabaseError,
    StatementError,
)

DAMAGE: Final = (CorruptDatabaseError, NotADatabaseError, DatabaseIOError, StatementError)
"""The errors of a file that cannot be opened any more; the last one for an unknown format."""


@block
def alone(
    path: Path, identity: Identity, budget: Budget, operation: str, *, journal: str | None = None
) -> Iterator[Connection]:
    """Lend the only connection to a database, which may write only through its WAL.

    Every open connection to a WAL database holds a shared lock on it. So a connection with the
    exclusive lock is the only one. A process that opens the file at the same time waits for the
    lock, and then checks whether the file has moved.

    Args:
        path: the real path of the database.
        identity: the identity of the file.
        budget: the time to wait for others.
        operation: for errors.
        journal: the journal mode to set; None leaves it unchanged.

    Raises:
        DatabaseBusyError: another process has it open.
        DatabaseNamesError: another process has it open by another mount.
        DatabaseMovedError: another file has the name now.
        DatabaseError: it cannot be opened or locked; each reason has its own subclass.
    """
    refuse_planted(path)
    require_one_view(path)
    try:
        raw = apsw.Connection(
            str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
    except apsw.Error as error:
        raise translate(error, path, operation) from error
    connection = Connection(raw, path, identity)

    def lock() -> None:
        connection.query_all("PRAGMA locking_mode=EXCLUSIVE")
        # The first read opens the WAL by its name, and in this locking mode keeps the exclusive
        # lock. The WAL must not be in a folder that has replaced this one.
        connection.require_in_place(operation)
        connection.query_all("SELECT count(*) FROM sqlite_schema")
        connection.require_in_place(operation)
        if journal is not None:
            connection.query_all(f"PRAGMA journal_mode={journal}")
        connection.query_all("BEGIN EXCLUSIVE")
        connection.query_all("ROLLBACK")

    try:
        connection.deadline = budget.deadline
        raw.set_busy_handler(connection.on_busy)
        retry_busy(lock, budget, path, operation, "open", raw=raw)
        # The connection is checked too, because its file was found by name.
        if connection.has_moved() or identify(path) != identity:
            raise DatabaseMovedError(path=path, operation=operation)
        yield connection
    finally:
        with contextlib.suppress(apsw.Error):
            connection.close(abandon=True)


@block
def alone_with_damaged(
    path: Path, identity: Identity, budget: Budget, operation: str
) -> Iterator[None]:
    """Lock a file that cannot be opened any more, as far as SQLite's file layer can.

    Raises:
        DatabaseBusyError: another process has it open.
        DatabaseMovedError: another file has the name now.
        DatabaseError: it cannot be locked; each reason has its own subclass.
    """
    try:
        file = RawFile(path, lockable=True)
    except apsw.Error as error:
        raise translate(error, path, operation) from error
    with file:
        file.lock(budget, operation)
        if identify(path) != identity:
            raise DatabaseMovedError(path=path, operation=operation)
        yield
