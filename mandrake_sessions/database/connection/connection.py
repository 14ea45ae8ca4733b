"""One APSW connection to one file, with its deadline; only the holder of its lease uses it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import apsw

from mandrake_sessions.database.connection.unshared import (
    Unshared,
)
from mandrake_sessions.database.files.paths import (
    Identity,
    leads_elsewhere,
)
from mandrake_sessions.database.files.turnstile import Turnstile
from mandrake_sessions.database.retry import PACE, pace, pause
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseMovedError,
)

_NONE = apsw.SQLITE_TXN_NONE
_HEADER_PATIENCE = 0.25
"""Seconds to read the header of the WAL index between two COMMITs of other processes."""


class TransactionMark(Protocol):
    """Writes a mark in some transactions of a connection; see ``wal_marking``.

    Attributes:
        is_due: whether the transaction that begins writes the mark.
        is_noting: whether ``committed`` must be called after a COMMIT.
        on_copied: called with the connection after its WAL checkpoint has written into the file.
        last: the number at ``finish``; None before, and if it is not known.
    """

    is_due: bool
    is_noting: bool
    on_copied: Callable[[Connection], object] | None
    last: int | None

    def prepare(self, budget: Budget, operation: str, turnstile: Turnstile | None) -> None:
        """Determine, before BEGIN, whether the mark is due."""

    def write(self) -> bool:
        """Write the mark; return whether the transaction may store anything."""

    def committed(self) -> None:
        """Record that the transaction was committed."""

    def grow(self, budget: Budget, turnstile: Turnstile, *, even_copied: bool) -> None:
        """Raise the number before the WAL is copied into the file."""

    def finish(self, budget: Budget, *, is_parking: bool) -> None:
        """Write the last mark before the connection closes."""


class Connection:
    """One SQLite connection; only the holder of its lease may use it.

    Attributes:
        path: the real path of the file.
        identity: its device and inode at opening.
        deadline: when the work of the present holder must be done (``time.monotonic``); the busy
            handler and every statement check it.
        interruptible: whether a statement may be interrupted when the deadline passes. It is false
            in a shared transaction, which SQLite would end for all its units.
        is_cancelled: whether the connection is being closed while a holder may use it.
        is_forked: whether it is a parent's connection in a forked child.
        busy_waits: how often it polled a lock of another process.
        owner: the id under which this process has claimed the file, None before the claim.
        turnstile: the one that BEGIN enters before it waits; None while no transaction begins.
        wal_mark: writes the mark in its transactions; None for a connection that only reads.
        unshared: reads the file without a shared WAL index; None where the index is shared.
        had_wal: whether a WAL existed before this connection could make one.
        had_index: whether a WAL index existed before.
        has_schema: whether the file itself, read past its WAL, was seen to have the schema.
    """

    def __init__(
        self,
        raw: apsw.Connection,
        path: Path,
        identity: Identity,
        unshared: Unshared | None = None,
    ) -> None:
        self.raw = raw
        self.unshared = unshared
        self.path = path
        self.identity = identity
        self.deadline: float = 0.0
        self.interruptible = True
        self.is_cancelled: bool = False
        self.is_forked: bool = False
        self.busy_waits: int = 0
        self._busy_since = 0.0
        self.owner: str | None = None
        self.turnstile: Turnstile | None = None
        self.wal_mark: TransactionMark | None = None
        self.had_wal = self.had_index = self.has_schema = False
        self._moved = ctypes.c_int(0)
        self._cursor = raw.cursor()
        # Bound once: these run for every statement, or every lease.
        self._ask_moved = partial(
            raw.file_control, "main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(self._moved)
        )
        self.execute: Callable[..., apsw.Cursor] = self._cursor.execute
        self.txn_state: Callable[[], int] = raw.txn_state

    # -- called by SQLite -------------------------------------------------------------------

    def on_busy(self, attempt: int) -> bool:
        """Wait one pace for a lock of another process; return False to give up."""
        self.busy_waits += 1
        if not attempt:
            self._busy_since = monotonic()
        if self.is_cancelled:
            return False
        turnstile = self.turnstile
        if turnstile is None:
            return pause(self.deadline, pace(self._busy_since))
        if not turnstile.is_entered and turnstile.enter(self):
            return True
        return turnstile.pause(self)

    def on_progress(self) -> bool:
        """Return whether the running statement must stop."""
        return self.is_cancelled or (self.interruptible and monotonic() >= self.deadline)

    # -- called by the database layer -------------------------------------------------------

    def has_moved(self) -> bool:
        """Return whether the file was unlinked, renamed or replaced since it was opened."""
        self._ask_moved()
        # SQLite reports a file that it cannot examine as moved.
        return self._moved.value != 0 and leads_elsewhere(self.path, self.identity)

    def require_in_place(self, operation: str = "open") -> None:
        """Raise DatabaseMovedError if the path no longer leads to the open file."""
        if self.has_moved():
            raise DatabaseMovedError(path=self.path, operation=operation)

    def in_transaction(self) -> bool:
        """Return whether a transaction is open, also one that an unfinished SELECT keeps open."""
        return self.txn_state() != _NONE

    def has_broken_references(self) -> bool:
        """Return whether a deferred foreign key would make the COMMIT fail."""
        return self.raw.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0] != 0

    def recent_sql(self) -> list[str]:
        """Return the last statements, without their values, for the log of a failure."""
        entries: Any = self.raw.cache_stats(include_entries=True)["entries"]
        return [entry["query"] for entry in entries[-3:]]

    def value(self, sql: str) -> Any:
        """Return the first column of the first row, or None."""
        rows = self.execute(sql).fetchall()
        return rows[0][0] if rows else None

    def query_all(self, sql: str) -> list[tuple[Any, ...]]:
        """Return all rows of a statement without parameters."""
        return self.execute(sql).fetchall()

    def header(self) -> bytes:
        """Return the file's first 100 bytes as they are on disk, not as the cache shows them."""
        return self.head(100)

    def head(self, amount: int) -> bytes:
        """Return the file's first bytes as they are on disk, not as the cache shows them."""
        return self.raw.read("main", 0, 0, amount)[1]

    def pages_written(self) -> int:
        """Return how many pages this connection has written to the WAL since it was opened."""
        return self.raw.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]

    def wal_backlog(self) -> tuple[int, int]:
        """Return the frames in the WAL and how many of them are in the database already."""
        since = monotonic()
        while True:
            try:
                return self.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP)
            except apsw.BusyError:
                # Another process was writing the header of the index for its COMMIT.
                if not pause(since + _HEADER_PATIENCE, PACE):
                    raise

    def cancel(self) -> None:
        """Make the present holder's statements fail; the only call that other threads may make."""
        self.is_cancelled = True
        self.raw.interrupt()

    def forget_after_fork(self) -> None:
        """Make every use in a forked child fail, because the connection belongs to its parent."""
        self.is_forked = True
        self.deadline = 0.0

    def close(self, *, abandon: bool = False) -> None:
        """Close the connection.

        Args:
            abandon: whether the file is never written again, not even by a WAL checkpoint, because
                it is another one or its content is in doubt.
        """
        if abandon:
            self.raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._cursor.close(True)
        if self.unshared is not None:
            self.unshared.close(self.raw)
        else:
            self.raw.close(True)
