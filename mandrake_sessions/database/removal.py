"""Removes a database's files when nobody has it open, in this process or another."""

from __future__ import annotations

import contextlib
from pathlib import Path

import apsw

from mandrake_sessions.database import owner
from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.faults import translate, translate_os
from mandrake_sessions.database.paths import Identity, companions, identify
from mandrake_sessions.database.turnstile import turnstile_path
from mandrake_sessions.database.waiting import Budget, retry_busy
from mandrake_sessions.errors import DatabaseMovedError


def remove(path: Path, identity: Identity, budget: Budget) -> None:
    """Remove a database with the files beside it; nobody in this process has it open.

    Every open connection to a WAL database holds a shared lock on it. So whoever gets the
    exclusive lock is alone, and nobody can open the file until it is gone; one who opens it in
    that moment finds, when the lock is free, that the file has moved.

    Raises:
        DatabaseBusyError: another process has it open; nothing was removed.
        DatabaseError: the files cannot be removed.
    """
    try:
        raw = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error as error:
        raise translate(error, path, "delete") from error
    connection = Connection(raw, path, identity)
    try:
        connection.deadline = budget.deadline
        raw.set_busy_handler(connection.on_busy)
        retry_busy(lambda: _lock_out_everybody(connection), budget, path, "delete", "open")
        if identify(path) != identity:
            raise DatabaseMovedError(path=path, operation="delete")
        # Before the file: afterwards another process could make it anew, and claim it.
        owner.forget_all(path)
        with contextlib.suppress(OSError):
            turnstile_path(path).unlink()
        for name in (*companions(path), path):
            name.unlink(missing_ok=True)
    except OSError as error:
        raise translate_os(error, path) from error
    finally:
        with contextlib.suppress(apsw.Error):
            connection.close(abandon=True)


def _lock_out_everybody(connection: Connection) -> None:
    connection.query_all("PRAGMA locking_mode=EXCLUSIVE")
    # Leaving WAL needs the exclusive lock, and in this locking mode it is kept. Not for DELETE:
    # a process killed here would leave an empty -journal, which nobody would remove. What is
    # written are a few bytes of the first sector.
    connection.query_all("PRAGMA journal_mode=MEMORY")
    connection.query_all("BEGIN EXCLUSIVE")
    connection.query_all("ROLLBACK")
