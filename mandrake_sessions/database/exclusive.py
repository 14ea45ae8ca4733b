"""Opens a database that nobody else has open, and keeps everybody away from it for a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.database.blocks import block
from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.faults import translate
from mandrake_sessions.database.paths import Identity, identify, refuse_planted
from mandrake_sessions.database.raw import RawFile
from mandrake_sessions.database.views import require_one_view
from mandrake_sessions.database.waiting import Budget, retry_busy
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseIOError,
    DatabaseMovedError,
    NotADatabaseError,
    StatementError,
)

DAMAGE: Final = (CorruptDatabaseError, NotADatabaseError, DatabaseIOError, StatementError)
"""What a file that cannot be opened any more answers; the last to a format that SQLite has not."""


@block
def alone(
    path: Path, identity: Identity, budget: Budget, operation: str, *, journal: str | None = None
) -> Iterator[Connection]:
    """Lend the only connection there is to a database; it must not write but by its log.

    Every open connection to a WAL database holds a shared lock on it. So whoever gets the
    exclusive lock is alone; one who opens the file in that moment finds, when the lock is free,
    whether it has moved.

    Args:
        path: the real path of the database.
        identity: of the file that is meant.
        budget: the time to wait for others.
        operation: what an error says was being done.
        journal: the journal mode that it is brought into; None leaves it as it is.

    Raises:
        DatabaseBusyError: another process has it open.
        DatabaseNamesError: another process has it open by another mount.
        DatabaseMovedError: another file is there by now.
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
        # The first read opens the log by its name, and in this locking mode keeps the exclusive
        # lock. The log must not be that of a folder which has come into this one's place.
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
        # Asked of the connection too: its file was found by name.
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
        DatabaseMovedError: another file is there by now.
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
