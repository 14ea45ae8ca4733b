"""Opens one file: pragmas set and read back, identity taken, nothing left behind on failure."""

from __future__ import annotations

import contextlib
import ctypes
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import apsw

from mandrake_sessions.database.faults import extended_code, primary_code, translate
from mandrake_sessions.database.guard import require_safe_sqlite
from mandrake_sessions.database.header import require_ours
from mandrake_sessions.database.own_log import drop_index, has_index, require_log
from mandrake_sessions.database.paths import Identity, identify, leads_elsewhere, refuse_planted
from mandrake_sessions.database.settings import apply_settings
from mandrake_sessions.database.turnstile import Turnstile
from mandrake_sessions.database.unshared import Unshared, may_read_unshared, must_read_unshared
from mandrake_sessions.database.views import require_one_view
from mandrake_sessions.database.waiting import PACE, Budget, pace, pause, retry_busy
from mandrake_sessions.errors import (
    DatabaseError,
    DatabaseMissingError,
    DatabaseMovedError,
    DatabaseOpenError,
    LostLogError,
    ReadOnlyDatabaseError,
    StaleLogError,
    StatementError,
    UnrecognizedDatabaseError,
)
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.tables import APPLICATION_ID

if TYPE_CHECKING:
    from mandrake_sessions.database.log_mark import LogMark

_PROGRESS_STEPS = 20_000
_NONE = apsw.SQLITE_TXN_NONE
_HEADER_PATIENCE = 0.25
"""Seconds to read the index's header between two COMMITs of other processes."""


class Connection:
    """One SQLite connection, to be used by the holder of its lease and nobody else.

    Attributes:
        path: the real path of the file.
        identity: its device and inode at opening.
        deadline: when the work of the present holder must be done (``time.monotonic``); the busy
            handler and every statement look at it.
        interruptible: whether a statement may be interrupted when the deadline passes. It is not
            inside a shared transaction: SQLite would end that for everyone.
        is_cancelled: whether the connection is being closed under its holder.
        is_forked: whether it is a parent's connection in a forked child.
        busy_waits: how often it looked at a lock of another process.
        owner: the id under which this process has claimed the file, None before it has.
        turnstile: what BEGIN goes through before it waits; None while nothing begins.
        log_mark: what ties the log to the file in its transactions; None for one that reads.
        unshared: how it is read without the index that processes share; None where it is shared.
        had_log: whether there was a log before this connection could make one.
        had_index: whether there was an index of it.
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
        self.deadline = 0.0
        self.interruptible = True
        self.is_cancelled = False
        self.is_forked = False
        self.busy_waits, self._busy_since = 0, 0.0
        self.owner: str | None = None
        self.turnstile: Turnstile | None = None
        self.log_mark: LogMark | None = None
        self.had_log = self.had_index = False
        self._moved = ctypes.c_int(0)
        self._cursor = raw.cursor()
        # Bound once: these run for every statement, or every lease.
        self._ask_moved = partial(
            raw.file_control, "main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(self._moved)
        )
        self.execute = self._cursor.execute
        self.txn_state = raw.txn_state

    # -- what SQLite calls back -------------------------------------------------------------

    def on_busy(self, attempt: int) -> bool:
        """Wait one pace for another process's lock; False gives up."""
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

    # -- what the layer asks ----------------------------------------------------------------

    def has_moved(self) -> bool:
        """Return whether the file was unlinked, renamed or replaced since it was opened."""
        self._ask_moved()
        # SQLite takes one that it cannot look at for one that was moved.
        return self._moved.value != 0 and leads_elsewhere(self.path, self.identity)

    def require_in_place(self, operation: str = "open") -> None:
        """Raise DatabaseMovedError if the path does not lead to the open file any more."""
        if self.has_moved():
            raise DatabaseMovedError(path=self.path, operation=operation)

    def in_transaction(self) -> bool:
        """Return whether a transaction is open, also one that an unfinished SELECT keeps open."""
        return self.txn_state() != _NONE

    def has_broken_references(self) -> bool:
        """Return whether a deferred foreign key would make the COMMIT fail."""
        return self.raw.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0] != 0

    def recent_sql(self) -> list[str]:
        """Return the last statements, without their values, for the log of a fault."""
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
                # Another process that commits was just writing the header of the index.
                if not pause(since + _HEADER_PATIENCE, PACE):
                    raise

    def cancel(self) -> None:
        """Make the present holder's statements fail; the one call another thread may make."""
        self.is_cancelled = True
        self.raw.interrupt()

    def forget_after_fork(self) -> None:
        """Make every use in a forked child fail: the connection is its parent's."""
        self.is_forked = True
        self.deadline = 0.0

    def close(self, *, abandon: bool = False) -> None:
        """Close the connection.

        Args:
            abandon: never write to the file again, not even a checkpoint: it is not ours any more.
        """
        if abandon:
            self.raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._cursor.close(True)
        if self.unshared is not None:
            self.unshared.close(self.raw)
        else:
            self.raw.close(True)


def open_connection(
    path: Path,
    identity: Identity,
    options: DatabaseOptions,
    budget: Budget,
    *,
    auxiliary: bool = False,
) -> Connection:
    """Open the file, set what the rules ask for, and read it back.

    Args:
        path: as ``real_path`` gave it.
        identity: what the file must still be when it is open.
        options: durability and sizes.
        budget: the time it may take, waiting for other processes.
        auxiliary: a second connection, which only reads.

    Raises:
        DatabaseOpenError: one of its kinds; the file is as it was.
        DatabaseNamesError: a process has it open by another mount.
        DatabaseBusyError: another process held it until the deadline.
    """
    require_safe_sqlite(path)
    if not auxiliary and not options.allow_other_names:
        require_one_view(path)
    if not options.read_only:
        return _open(path, identity, options, budget, auxiliary=auxiliary)
    if options.vfs is not None:
        return _open(path, identity, options, budget, auxiliary=True)
    if not must_read_unshared(path):
        try:
            return _open(path, identity, options, budget, auxiliary=True)
        except DatabaseError as error:
            if not may_read_unshared(path, error):
                raise
    return _open(path, identity, options, budget, auxiliary=True, shares=False)


def _open(
    path: Path,
    identity: Identity,
    options: DatabaseOptions,
    budget: Budget,
    *,
    auxiliary: bool,
    shares: bool = True,
) -> Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    refuse_planted(path)
    unshared = None if shares else Unshared(path, identity)
    try:
        if unshared is None:
            raw = apsw.Connection(str(path), flags=flags, vfs=options.vfs)
        else:
            raw = unshared.connect()
    except apsw.Error as error:
        raise _opening_error(error, path) from error
    connection = Connection(raw, path, identity, unshared)
    try:
        connection.deadline = budget.deadline
        _configure(connection, options, budget, auxiliary=auxiliary)
        if connection.has_moved() or identify(path) != identity:
            raise DatabaseMovedError(path=path, operation="open")
    except BaseException as error:
        found = _opening_error(error, path, raw)
        is_not_own = isinstance(error, StaleLogError | LostLogError) and connection.had_log
        with contextlib.suppress(apsw.Error):
            # A log that was there stays as it is; an empty one of ours goes away again.
            has_log = is_not_own or connection.has_moved() or connection.wal_backlog()[0] > 0
            connection.close(abandon=has_log)
        with contextlib.suppress(apsw.Error):
            connection.close(abandon=True)
        if is_not_own and not connection.had_index:
            drop_index(path, identity)
        if isinstance(found, DatabaseError) and leads_elsewhere(path, identity):
            # What it found by its name was that of the file which came in its place.
            raise DatabaseMovedError(path=path, operation="open") from error
        if found is not error:
            raise found from error
        raise
    return connection


def _opening_error(
    error: BaseException, path: Path, raw: apsw.Connection | None = None
) -> BaseException:
    """Return what a failed opening means; nothing is ever reset or repaired because of it."""
    if not isinstance(error, apsw.Error | OSError):
        return error
    if primary_code(error) == apsw.SQLITE_CANTOPEN and identify(path) is None:
        return DatabaseMissingError(path=path, operation="open", result_code=extended_code(error))
    found = translate(error, path, "open", raw=raw)
    if isinstance(found, StatementError):
        # Not a statement of anybody's: an unknown VFS, a file system without what WAL needs.
        return DatabaseOpenError(
            found.message, path=path, operation="open", result_code=found.result_code
        )
    return found


def _configure(
    connection: Connection, options: DatabaseOptions, budget: Budget, *, auxiliary: bool
) -> None:
    raw, path = connection.raw, connection.path
    raw.set_busy_handler(connection.on_busy)
    # Before the first read of a WAL database, which makes a -wal and a -shm beside it.
    connection.had_index = has_index(path)
    connection.had_log = require_ours(connection)
    # The auxiliary one only reads: that goes on in a file that has become read-only.
    if raw.readonly("main") and not auxiliary:
        # SQLite opens an unwritable file without complaint and would fail at the first write.
        raise ReadOnlyDatabaseError(path=path, operation="open")
    # The first read opens the log by its name. A folder that was swapped for another one since the
    # file was opened would give that one's log: before anything is written this is found out.
    connection.require_in_place()
    if not auxiliary or options.read_only:
        require_log(path, connection.execute, budget, options.vfs)
    # Reads the header: here a file that is no database is told from one that is.
    is_ours = retry_busy(lambda: _is_ours(connection), budget, path, "open", "open", raw=raw)
    connection.require_in_place()
    # Before anything is set: another program's database must stay as it is. Asked twice, because
    # another process may be making ours this moment.
    if (
        not is_ours
        and connection.value("SELECT count(*) FROM sqlite_schema")
        and not _is_ours(connection)
    ):
        raise UnrecognizedDatabaseError(path=path, operation="open")
    # The busy handler is not asked while the journal mode changes (3 of 48 openings failed). A
    # backup that was never opened has another mode, in which it can be read.
    mode = options.read_only or retry_busy(
        lambda: connection.value("PRAGMA journal_mode=wal"), budget, path, "open", "open", raw=raw
    )
    if mode not in (True, "wal"):
        raise DatabaseOpenError(
            f"The file system does not allow WAL (journal mode {mode}).", path=path
        )
    lost = apply_settings(connection, options, auxiliary=auxiliary)
    if lost:
        raise DatabaseOpenError(f"SQLite did not accept: {', '.join(lost)}.", path=path)
    raw.set_progress_handler(connection.on_progress, _PROGRESS_STEPS)


def _is_ours(connection: Connection) -> bool:
    return bool(connection.value("PRAGMA application_id") == APPLICATION_ID)
