"""Writes the mark of the log in a connection's transactions: when it is due, and at the end.

The first of them writes down as well which name the file has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

import apsw

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.transaction import begin_unmarked, commit, rollback
from mandrake_sessions.database.files.names import renew_home
from mandrake_sessions.database.files.turnstile import Turnstile
from mandrake_sessions.database.files.wal_mark import (
    NEW,
    USED,
    Mark,
    end_mark,
    has_content,
    raise_number,
    read_mark,
    store_mark,
)
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import DatabaseError

_NORMAL: Final = 1
_CHECKPOINT: Final = "checkpoint"
_PATIENCE: Final = 0.05
"""Seconds for reads that are under way when a new file is put into use."""


class LogMark:
    """Writes the mark in the transactions of one connection; for the holder of its lease.

    Args:
        connection: the read-write one of an open file.

    Attributes:
        is_due: whether the transaction that is about to begin, or has just begun, writes it.
        is_noting: whether ``committed`` must be called after a COMMIT.
        on_copied: called with the connection when a checkpoint of it has written into the file.
        last: the number when ``finish`` was called; None before, and where it is not known.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_due: bool = False
        self.is_noting: bool = True
        self.on_copied: Callable[[Connection], object] | None = None
        self.last: int | None = None
        # Bound once: it runs for every transaction.
        self._backlog = partial(connection.raw.wal_checkpoint, "main", apsw.SQLITE_CHECKPOINT_NOOP)
        self._is_first = True
        # As of the last mark; a process that closes an empty file makes it new again.
        self._is_empty = True
        self._frames = -1
        self._base: int | None = None
        self._is_written = False

    # -- what a transaction calls -------------------------------------------------------------

    def prepare(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        """Find out, before BEGIN, whether the mark is due; put a new file into use.

        Raises:
            DatabaseBusyError: another process held the write lock until the deadline.
            DatabaseError: the file cannot be put into use; each reason has its own subclass.
            apsw.Error: it cannot be read.
        """
        self._is_written = False
        frames, done = self._backlog()
        # All of the log is in the file: the next transaction may begin it anew.
        self.is_due = (
            self._is_first or frames == done or (self._is_empty and frames != self._frames)
        )
        self.is_noting = self.is_due or self._is_empty
        if self.is_due:
            self._connection.deadline = budget.deadline
            self._look(budget, operation, turnstile)

    def _look(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        execute = self._connection.execute
        mark = read_mark(execute)
        if mark is not None and mark.use == NEW and not has_content(execute):
            self._put_into_use(budget, operation, turnstile)
            mark = read_mark(execute)
        frames, done = self._connection.wal_backlog()
        # Asked after the number was read: so that is in the file.
        self._base = mark.number if mark is not None and frames == done else None

    def write(self) -> bool:
        """Write the mark in the transaction that has just begun.

        Returns:
            Whether the transaction may store anything: not if the file is new again.

        Raises:
            apsw.Error: it cannot be written.
        """
        execute = self._connection.execute
        self._is_empty = not has_content(execute)
        mark = read_mark(execute) or Mark(0, 0, USED)
        if mark.use == NEW and self._is_empty:
            return False
        base = mark.base if self._base is None else self._base
        store_mark(execute, Mark(base, mark.number + 1, USED))
        if self._is_first:
            renew_home(self._connection.path, execute)
        self._is_written = True
        return True

    def committed(self) -> None:
        """Take note that the transaction was committed, if that ``is_noting``."""
        if self._is_written:
            self._is_first = self._is_written = False
        if self._is_empty:
            self._frames = -1
            # The COMMIT has succeeded, whatever is said of an unfinished SELECT.
            with contextlib.suppress(apsw.Error):
                self._frames, _ = self._connection.wal_backlog()

    def _put_into_use(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        """Say in the file itself that it is used, before anything is stored in it.

        A read that was under way keeps it in the log, and holds no writer up for long.
        """
        connection = self._connection
        begin_unmarked(connection, budget, operation, turnstile)
        try:
            mark = read_mark(connection.execute)
            if mark is not None and mark.use == NEW:
                store_mark(connection.execute, Mark(mark.base, mark.number + 1, USED))
                commit(connection, operation)
        finally:
            rollback(connection)
        since = monotonic()
        deadline = min(budget.deadline, since + _PATIENCE)
        while True:
            with contextlib.suppress(apsw.BusyError):
                connection.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
            frames, done = connection.wal_backlog()
            if frames == done or not pause(deadline, pace(since)):
                break
        if self.on_copied is not None:
            self.on_copied(connection)

    # -- what copies the log ------------------------------------------------------------------

    def grow(self, budget: Budget, turnstile: Turnstile, *, even_copied: bool) -> None:
        """Raise the number before the log is copied into the file.

        So what a copy of the file has of the log, from an earlier checkpoint, makes it older than
        the log that begins when all is copied. What fails keeps nothing from being copied.

        Args:
            budget: for other processes that write.
            turnstile: where processes stand in line.
            even_copied: whether to raise it also where there is nothing to copy.
        """
        connection = self._connection
        with contextlib.suppress(apsw.Error, DatabaseError):
            frames, done = connection.wal_backlog()
            if frames == done and not even_copied:
                return
            try:
                begin_unmarked(connection, budget, _CHECKPOINT, turnstile)
                raise_number(connection.execute)
                connection.execute("COMMIT")
            finally:
                rollback(connection)
                turnstile.leave()

    # -- the end ------------------------------------------------------------------------------

    def finish(self, budget: Budget) -> None:
        """Raise the number before the connection closes, which may copy the log into the file.

        What fails does not keep the file from being closed.

        Args:
            budget: for other processes that write.
        """
        connection = self._connection
        with contextlib.suppress(apsw.LockedError):
            # Not known of a connection whose SELECT is unfinished.
            if connection.wal_backlog()[0] <= 0:
                self._note_last()
                return
        with contextlib.suppress(apsw.Error, DatabaseError):
            # The checkpoint that follows syncs the log; if another process makes it, later.
            connection.query_all(f"PRAGMA synchronous={_NORMAL}")
            begin_unmarked(connection, budget, "close")
            try:
                end_mark(connection.execute)
                connection.execute("COMMIT")
            finally:
                rollback(connection)
            self._note_last()

    def _note_last(self) -> None:
        with contextlib.suppress(apsw.Error):
            mark = read_mark(self._connection.execute)
            self.last = None if mark is None else mark.number
