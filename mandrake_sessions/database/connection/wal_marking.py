"""Writes the mark of the WAL in a connection's transactions, when it is due and at the end.

The first of them also stores the name of the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

import apsw

from mandrake_sessions.database.connection.begin_commit import begin_unmarked, commit, rollback
from mandrake_sessions.database.connection.connection import Connection
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
"""Seconds to wait for present reads when a new file becomes used."""


class WalMark:
    """Writes the mark in the transactions of one connection; for the holder of its lease.

    Args:
        connection: the writer of an open file.

    Attributes:
        is_due: whether the transaction that is about to begin, or has just begun, writes it.
        is_noting: whether ``committed`` must be called after a COMMIT.
        on_copied: called with the connection after its WAL checkpoint has written into the file.
        last: the number at ``finish``; None before, and if it is not known.
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
        # As of the last mark: a process that closes an empty file makes it new again.
        self._is_empty = True
        self._frames = -1
        self._base: int | None = None
        self._is_written = False

    # -- called by a transaction --------------------------------------------------------------

    def prepare(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        """Determine, before BEGIN, whether the mark is due; mark a new file as used.

        Raises:
            DatabaseBusyError: another process held the write lock until the deadline.
            DatabaseError: the file cannot be marked as used; each reason has its own subclass.
            apsw.Error: it cannot be read.
        """
        self._is_written = False
        frames, done = self._backlog()
        # If the whole WAL is in the file, the next transaction may restart the WAL.
        self.is_due = (
            self._is_first or frames == done or (self._is_empty and frames != self._frames)
        )
        self.is_noting = self.is_due or self._is_empty
        if self.is_due:
            self._connection.deadline = budget.deadline
            self._prepare_mark(budget, operation, turnstile)

    def _prepare_mark(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        execute = self._connection.execute
        mark = read_mark(execute)
        if mark is not None and mark.use == NEW and not has_content(execute):
            self._put_into_use(budget, operation, turnstile)
            mark = read_mark(execute)
        frames, done = self._connection.wal_backlog()
        # Measured after the number was read, so that the number is in the file.
        self._base = mark.number if mark is not None and frames == done else None

    def write(self) -> bool:
        """Write the mark in the transaction that has just begun.

        Returns:
            Whether the transaction may store rows; False if the file is new again.

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
        """Record that the transaction was committed; called if ``is_noting``."""
        if self._is_written:
            self._is_first = self._is_written = False
        if self._is_empty:
            self._frames = -1
            # The COMMIT has succeeded, so an error for an unfinished SELECT does not matter.
            with contextlib.suppress(apsw.Error):
                self._frames, _ = self._connection.wal_backlog()

    def _put_into_use(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        """Mark the file as used, in the file itself, before rows are stored in it.

        A present read may keep the mark in the WAL, because a writer does not wait long for it.
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

    # -- called before the WAL is copied ------------------------------------------------------

    def grow(self, budget: Budget, turnstile: Turnstile, *, even_copied: bool) -> None:
        """Raise the number before the WAL is copied into the file.

        So a copy of the file that has frames of an earlier WAL checkpoint counts as older than the
        WAL that begins when all is copied. A failure does not prevent the WAL checkpoint.

        Args:
            budget: limits the wait for other processes that write.
            turnstile: gives processes a fair order.
            even_copied: whether to raise the number also if no frame is left to copy.
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

    def finish(self, budget: Budget, *, is_parking: bool) -> None:
        """Raise the number before the connection closes, which may copy the WAL into the file.

        A failure does not keep the file from being closed.

        Args:
            budget: limits the wait for other processes that write.
            is_parking: whether the file will be opened again, which compares the last number.
        """
        connection = self._connection
        with contextlib.suppress(apsw.LockedError):
            # A connection with an unfinished SELECT raises LockedError here.
            if connection.wal_backlog()[0] <= 0:
                if is_parking:
                    self._note_last()
                return
        with contextlib.suppress(apsw.Error, DatabaseError):
            # The WAL checkpoint that follows syncs the WAL; another process may make it, later.
            connection.query_all(f"PRAGMA synchronous={_NORMAL}")
            begin_unmarked(connection, budget, "close")
            try:
                end_mark(connection.execute)
                connection.execute("COMMIT")
            finally:
                rollback(connection)
            if is_parking:
                self._note_last()

    def _note_last(self) -> None:
        with contextlib.suppress(apsw.Error):
            mark = read_mark(self._connection.execute)
            self.last = None if mark is None else mark.number
