"""The connections of one open file: opened, checked at each lease, retired, parked and closed."""

from __future__ import annotations

import abc
import contextlib
import enum
import sys
from collections.abc import Callable
from functools import partial
from os import stat
from pathlib import Path
from threading import get_ident
from time import monotonic

import apsw

from mandrake_sessions.concurrency.blocks import end_what_was_left
from mandrake_sessions.concurrency.callers import reentrant_error
from mandrake_sessions.concurrency.mutex import Mutex
from mandrake_sessions.database.connection.begin_commit import rollback
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.inspection import Inspections
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.paths import Identity, leads_elsewhere
from mandrake_sessions.database.leasing.leased import LeasedConnection
from mandrake_sessions.database.leasing.writer import WriterConnection
from mandrake_sessions.database.open_file.attachments import Attached
from mandrake_sessions.database.open_file.closing import OnStuck, close_leased, take_for_closing
from mandrake_sessions.database.open_file.displacement import (
    FileCondition,
    Logs,
    end_wal,
    is_emptied,
)
from mandrake_sessions.database.open_file.refusal import Refusal
from mandrake_sessions.database.open_file.witness import Witness
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.protocols import FileParkedError
from mandrake_sessions.engine.waiters import MakeError
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseMissingError,
    DatabaseMovedError,
    MandrakeSessionsError,
    NotADatabaseError,
    PoolClosedError,
)
from mandrake_sessions.log import get_logger
from mandrake_sessions.options import DatabaseOptions

_modules = sys.modules
_COMPARE_EVERY = 0.1
"""Seconds between two reads that compare the file's status; others check only for a move."""
_CHECK_BUDGET = 10.0
"""Seconds for a check that no call waits for; half of them for all pages, as for a write."""


class FileState(enum.Enum):
    """The state of an open file; it never goes back to an earlier one."""

    OPEN = "open"
    RETIRED = "retired"
    CLOSED = "closed"


class FileLifecycle(abc.ABC):
    """The connections of an open file: opened, checked at each lease, and closed.

    ::

        OPEN ─► RETIRED (moved, overwritten, WAL lost, lease not released clean) ─► CLOSED
          └───► CLOSED (without a handle, parked, or the pool is closing)

    Args:
        main: the open read-write connection.
        options: the options of the file.
        on_retired: called when the file must be closed, perhaps by a holder of the lease.

    Attributes:
        state: whether new work is taken.
        is_refusing: set by a signal handler, without a lock: new calls are refused.
        stamp: the random number in the file's header that distinguishes it from other databases.
        refusal: decides whether writes are refused.
        logs: the sidecars that SQLite has open.
        condition: the condition of the file, as far as a check has noticed it.
        witness: judges changes of the file.
        inspections: additional connections for checks.
        used_at: when the last call began (``time.monotonic``).
        keeps_wal: whether the WAL stays unchanged when the file closes.
        is_parked: whether it is closed, or being closed, only because too many files are open.
    """

    def __init__(
        self, main: Connection, options: DatabaseOptions, on_retired: Callable[[], None]
    ) -> None:
        self.path: Path = main.path
        self.identity: Identity = main.identity
        self.options = options
        self.state: FileState = FileState.OPEN
        self.refusal: Refusal = Refusal(main.path, is_read_only=options.read_only)
        self.keeps_wal = False
        self._is_unshared = main.unshared is not None
        self.is_refusing = False
        self.used_at: float = monotonic()
        self.is_parked: bool = False
        self.stamp: int = int(main.value("PRAGMA user_version"))
        self.logs: Logs = Logs(main.path)
        self.witness: Witness = Witness(
            main, self.stamp, self.logs, self.refusal, has_vfs=options.vfs is not None
        )
        if main.wal_mark is not None:
            main.wal_mark.on_copied = self.witness.refresh
        if self.witness.refresh(main) is FileCondition.MOVED:
            # The file was moved since it was opened, so its sidecars may be another file's.
            raise DatabaseMovedError(path=main.path, operation="open")
        self.inspections: Inspections = Inspections(main.path, main.identity, options)
        self.condition: FileCondition = FileCondition.OURS
        self._name = str(main.path)
        self._compare_at = 0.0
        self._retirement: MakeError | None = None
        self._closed_with: MakeError | None = None
        self._is_closing = False
        self._is_ending = False
        self._on_retired = on_retired
        self._main = WriterConnection(
            main,
            options,
            self.witness.index,
            check=self._check,
            check_write=self._check_write,
            on_unclean=self.retire,
            on_fault=self._note_fault,
            on_commit=self._note_commit,
        )
        self.witness.turnstile = self._main.turnstile
        self._auxiliary: LeasedConnection | None = None
        self._auxiliary_mutex = Mutex()
        self._attached = Attached(main.path)

    @abc.abstractmethod
    def _note_commit(self) -> None:
        """Record a COMMIT that has succeeded; the lease is still held."""

    # -- connections ------------------------------------------------------------------------------

    def leased_connections(self) -> list[LeasedConnection]:
        """Return the connections that exist."""
        return [self._main] if self._auxiliary is None else [self._main, self._auxiliary]

    @property
    def writer(self) -> WriterConnection:
        """The read-write connection, for its figures."""
        return self._main

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the file, None before the claim."""
        claim = self._attached.claim
        return None if claim is None else claim.id

    def _auxiliary_connection(self, budget: Budget) -> LeasedConnection:
        """Return the auxiliary connection; open it at the first use."""
        if self._auxiliary is None:
            with self._auxiliary_mutex.held(budget.left()) as is_held:
                if not is_held:
                    raise budget.exceeded("open", self.path, "open")
                if self._auxiliary is None:
                    leased = self._open_auxiliary(budget)
                    if self._is_closing:
                        leased.connection.close(abandon=True)
                        raise self._closed_error()
                    self._auxiliary = leased
                    leased.connection.owner = self.owner
        return self._auxiliary

    def _open_auxiliary(self, budget: Budget) -> LeasedConnection:
        if self._closed_with is not None:
            raise self._closed_with()
        if self._is_closing:
            raise self._closed_error()
        if leads_elsewhere(self.path, self.identity):
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation="open")
        if self.options.vfs is None and is_emptied(self.path):
            # SQLite would treat it as a new database, and delete the WAL of the old one.
            self.retire_as(FileCondition.OVERWRITTEN)
            raise self._closed_error()
        try:
            connection = open_connection(
                self.path, self.identity, self.options, budget, auxiliary=True
            )
        except (DatabaseMovedError, DatabaseMissingError) as error:
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation="open") from error
        except (CorruptDatabaseError, NotADatabaseError) as error:
            self.refusal.note(error)
            raise
        return LeasedConnection(
            connection,
            check=self._check,
            on_unclean=self.retire,
            on_fault=self._note_fault,
        )

    # -- checks -----------------------------------------------------------------------------

    def _note_fault(self, error: DatabaseError) -> None:
        """Record an error that a connection has met."""
        if error.result_code == apsw.SQLITE_IOERR_CORRUPTFS:
            # The connection cannot distinguish damage from it any more, so another one checks.
            self.witness.is_doubted = True
        self.refusal.note(error)

    def _check(self, connection: Connection, operation: str) -> None:
        """Check, at every lease, that the path still leads to the open file.

        A connection itself does not notice that: INSERT succeeded in a file that was removed.
        """
        if self._closed_with is not None:
            raise self._closed_with()
        now = monotonic()
        if now >= self._compare_at:
            self._compare(connection, operation, now)
        elif connection.has_moved():
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation=operation)
        if connection.unshared is not None:
            self._require_still()
        if "_sqlite3" in _modules:
            self._require_wal()

    def _check_write(self, connection: Connection, operation: str, budget: Budget) -> None:
        """Check, at every lease for writing, that the changes will be found again."""
        if self._closed_with is not None:
            raise self._closed_with()
        self._compare(connection, operation, budget.started)
        if "_sqlite3" in _modules:
            self._require_wal()
        if self.witness.is_doubted or self.refusal.damage is not None:
            self.witness.require_whole(self._inspect, budget)

    def _require_wal(self) -> None:
        # When the standard library's SQLite closes the file, it removes the WAL that is in use.
        if self.logs.lost():
            self.retire_as(FileCondition.LOG_LOST)
            raise self._closed_error()

    def _compare(self, connection: Connection, operation: str, now: float) -> None:
        """Examine the file if its status has changed.

        Reads do it now and then, so that a later write has few changes to explain.
        """
        after_pause = now >= self._compare_at
        self._compare_at = now + _COMPARE_EVERY
        seen = self.witness.seen
        try:
            found = stat(self._name)
        except OSError:
            self.require_ours(connection, operation, after_pause=after_pause)
            return
        # Written inline, because each write runs it: every change of a file changes one of these.
        if (
            found.st_ctime_ns != seen[4]
            or found.st_mtime_ns != seen[3]
            or found.st_size != seen[2]
            or found.st_ino != seen[1]
        ):
            self.require_ours(connection, operation, after_pause=after_pause)

    def require_ours(
        self, connection: Connection, operation: str, *, after_pause: bool = False
    ) -> None:
        """Find out what has changed the file, and retire it if it is another file now.

        Args:
            connection: an open connection to the file; the caller must hold its lease.
            operation: for errors.
            after_pause: whether the file was not compared for a while.

        Raises:
            DatabaseMovedError: it is another file now.
        """
        condition = self.witness.refresh(connection, after_pause=after_pause)
        if condition is FileCondition.MOVED:
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation=operation)
        if condition is not FileCondition.OURS:
            self.retire_as(condition)
            raise self._closed_error()

    def find_damage(self) -> DatabaseError | None:
        """Check the file while no call uses it, and return its known damage.

        Without a change that is one ``stat``; after a change it is the check of a write.

        Raises:
            DatabaseMovedError: the path leads to another file.
            PoolClosedError: the file is being closed.
        """
        is_due = self.witness.is_doubted or self.witness.has_changed()
        if self.refusal.damage is None and is_due and not self.options.read_only:
            budget = FileBudget(_CHECK_BUDGET)
            known = (DatabaseBusyError, CorruptDatabaseError, NotADatabaseError)
            with (
                contextlib.suppress(*known),
                self._main.exclusive(budget, "check") as connection,
            ):
                self._check_write(connection, "check", budget)
        return self.refusal.damage

    def _inspect(self) -> Inspections:
        return self.inspections

    def _require_still(self) -> None:
        """Check that a file that is read without a shared index has not changed."""
        unshared = self._main.connection.unshared
        if unshared is not None and unshared.has_changed():
            self.retire(
                "a process has begun to write to a file that was read without the shared index"
            )
            raise self._closed_error()

    def _require_open(self) -> None:
        if self.state is FileState.CLOSED:
            raise self._closed_error()

    def _require_usable(self) -> None:
        self._require_open()
        if self.is_refusing or self._is_ending:
            raise self._closed_error()
        if self._closed_with is not None:
            raise self._closed_with()

    def _admit(self, operation: str, *, even_refused: bool = False) -> None:
        """Admit a new call, unless it would wait for a lease of its own thread."""
        if (self.is_refusing and not even_refused) or self.state is FileState.CLOSED:
            raise self._closed_error()
        me = get_ident()
        if self._main.queue.holder == me or (
            self._auxiliary is not None and self._auxiliary.queue.holder == me
        ):
            self.require_no_lease(operation)

    def require_no_lease(self, operation: str) -> None:
        """Check that this thread holds no lease of the file, so that it can wait for one.

        Raises:
            ReentrantScopeError: it holds a lease.
        """
        me = get_ident()
        for leased in self.leased_connections():
            # A signal may have interrupted the end of a block that the thread has left.
            if leased.queue.holder == me and not (
                end_what_was_left() and leased.queue.holder != me
            ):
                raise reentrant_error(operation, leased.queue.operation)

    # -- the end ----------------------------------------------------------------------------

    def retire(self, reason: str, **details: object) -> None:
        """Refuse all further work; the next acquire opens the file that the path then names.

        Args:
            reason: for people.
            details: for the log.
        """
        if self.state is not FileState.OPEN:
            return
        self.state = FileState.RETIRED
        message = f"The open database is not used any more: {reason}; close and open it again."
        self._retirement = lambda: DatabaseMovedError(message, path=self.path)
        self._closed_with = self._retirement
        for leased in self.leased_connections():
            leased.queue.refuse(self._retirement, waiters_too=True)
        self._attached.retired()
        self._on_retired()
        get_logger(__name__).warning(
            "database_retired", path=str(self.path), reason=reason, **details
        )

    def retire_moved(self) -> None:
        """Retire because the path no longer names the open file."""
        self.retire_as(FileCondition.MOVED)

    def retire_as(self, condition: FileCondition) -> None:
        """Retire because of the file's condition."""
        self.condition = condition
        self.retire(condition.value)

    def refuse_new_work(self) -> None:
        """Refuse new calls; present and waiting ones continue."""
        if self.state is FileState.OPEN:
            for leased in self.leased_connections():
                leased.queue.refuse(self._closed_error, waiters_too=False)

    def _closed_error(self) -> MandrakeSessionsError:
        if self._retirement is not None:
            return self._retirement()
        if self.is_parked:
            return FileParkedError(path=self.path)
        return PoolClosedError(path=self.path)

    # -- parking ----------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether no thread uses the file at the moment; it takes no lock."""
        return self._attached.is_quiet and all(
            leased.queue.is_quiet for leased in self.leased_connections()
        )

    def pin(self, key: object) -> None:
        """Keep the file from being parked until ``unpin``; any number may do so at once.

        Args:
            key: for ``unpin``.

        Raises:
            FileParkedError: the file is parked, or being parked.
            DatabaseError: another reason why the file takes no more work.
        """
        self._main.queue.pin(key)

    def unpin(self, key: object) -> None:
        """Undo a ``pin``, which may have been undone before."""
        self._main.queue.unpin(key)

    def park(self, timeout: float) -> bool:
        """Close the file if no thread uses it, so that it can be opened again.

        Args:
            timeout: seconds that closing may take.

        Returns:
            Whether it is closed; later calls get ``FileParkedError``.

        Raises:
            DatabaseError: it is closed, and not cleanly.
            ExceptionGroup: several parts failed.
        """
        # If it is ending already, a signal handler has raised during an earlier call.
        if not self._is_ending and not self._shut_to_rest(timeout):
            return False
        self.close(timeout)
        self.witness.rest()
        return True

    def _shut_to_rest(self, timeout: float) -> bool:
        """Refuse new work if the file may be closed for a while; return whether it may."""
        if not self._shut():
            return False
        try:
            # A lease checks that the path still leads to the open file.
            self._main.fetch(lambda _: None, FileBudget(timeout), "park", even_refused=True)
            # A file that takes no writes can still be read, and could perhaps not be opened again.
            # This comes first, because the attachment releases its claim when it can rest.
            can_rest = self.refusal.reason is None and self._attached.can_rest()
        except DatabaseError:
            can_rest = False
        except BaseException:
            self._unshut()
            raise
        if not can_rest:
            # Other files come first then, because they have been idle as long.
            self.used_at = monotonic()
            self._unshut()
        return can_rest

    def _shut(self) -> bool:
        """Refuse new work if no call runs or waits and the file is not pinned."""
        if self.is_parked:
            # A signal handler has raised after an earlier call had shut the file.
            self._unshut()
        if self.state is not FileState.OPEN or self.is_refusing or self._is_closing:
            return False
        with self._auxiliary_mutex.held(0.0) as is_held:
            if not is_held:
                # A thread is opening the auxiliary connection.
                return False
            self.is_parked = True
            if all(leased.queue.shut(self._closed_error) for leased in self.leased_connections()):
                self._is_closing = True
                return True
        self._unshut()
        return False

    def _unshut(self) -> None:
        self._is_closing = False
        for leased in self.leased_connections():
            leased.queue.unshut(self._closed_error)
        self.is_parked = False

    def close(self, timeout: float, on_stuck: OnStuck = None) -> None:
        """Wait for the present work, interrupt it after a time, and close both connections.

        Args:
            timeout: seconds; the first half is for the work to end by itself.
            on_stuck: called with the thread that holds a lease when its work is interrupted.

        Raises:
            DatabaseBusyError: a holder did not release its lease; its connection stays open.
            ExceptionGroup: several parts failed.
        """
        if self.state is FileState.CLOSED:
            return
        self.refuse_new_work()
        failures: list[Exception] = []
        half = FileBudget(timeout / 2)
        whole = FileBudget(timeout)
        # The attachment first: it stores its texts in memory, and its threads use the connections.
        self._is_ending = True
        failures.extend(self._attached.close_attachment(half.deadline))
        # Wait for a thread that is opening the auxiliary connection; if it is late, that thread
        # closes the connection itself.
        with self._auxiliary_mutex.held(half.left()):
            self._is_closing = True
        # Again, for an auxiliary connection that was opened since the first call.
        self.refuse_new_work()
        self.inspections.end(half.left())
        # Some may be closed already, if a signal handler has raised in an earlier call.
        for leased in [
            leased for leased in reversed(self.leased_connections()) if not leased.is_closed
        ]:
            try:
                take_for_closing(leased, half, whole, self._closed_error, on_stuck)
                if leased is self._main and not self.options.read_only:
                    self._end_wal(leased.connection, whole)
                abandon = self._is_wal_kept or self._has_foreign_wal(leased.connection)
                close_leased(
                    leased, whole, self.options, abandon=abandon, is_parking=self.is_parked
                )
                leased.is_closed = True
            except MandrakeSessionsError as error:
                failures.append(error)
            except apsw.ConnectionClosedError:
                # A signal handler raised in an earlier call, just after the connection was closed.
                leased.is_closed = True
            except BaseException:
                # Another thread that closes the file needs the lease, and processes the write lock.
                if leased.queue.holder == get_ident():
                    with contextlib.suppress(apsw.ConnectionClosedError):
                        rollback(leased.connection)
                    leased.queue.release()
                raise
        self._main.turnstile.close()
        is_gone = self.condition in (FileCondition.MOVED, FileCondition.OVERWRITTEN)
        self._attached.end(self._note_closed, is_moved=is_gone)
        self._closed_with = self._closed_error
        if len(failures) == 1 and isinstance(failures[0], MandrakeSessionsError):
            raise failures[0]
        if failures:
            raise ExceptionGroup(f"closing {self.path} failed", failures)

    @property
    def _is_wal_kept(self) -> bool:
        """Whether the WAL must not be copied into the file when it closes."""
        if self.keeps_wal:
            return True
        return (
            self.condition not in (FileCondition.OURS, FileCondition.LOCKS_LOST)
            or self.refusal.damage is not None
        )

    def _has_foreign_wal(self, connection: Connection) -> bool:
        """Whether a file that was only read has a WAL, which other processes have written."""
        if not self.options.read_only:
            return False
        try:
            return connection.wal_backlog()[0] > 0
        except apsw.ReadOnlyError:
            # This user may not write the WAL, so another user's process has written it.
            return True

    def _end_wal(self, connection: Connection, budget: Budget) -> None:
        """Check the file a last time, and keep its WAL from another file of its name."""
        if self.condition in (FileCondition.OURS, FileCondition.LOCKS_LOST, FileCondition.LOG_LOST):
            # New inspections, because the file's own have ended.
            inspections = partial(Inspections, self.path, self.identity, self.options)
            self.condition = self.witness.examine(connection, inspections, budget)
        if self.condition is not FileCondition.OURS:
            is_whole = self.refusal.damage is None and not self.witness.is_doubted
            end_wal(connection, self.logs, self.condition, budget, may_copy=is_whole)

    def _note_closed(self) -> None:
        self.state = FileState.CLOSED

    def drop_after_fork(self) -> bool:
        """Make the parent's connections unusable in a child; return whether it can close them.

        SQLite keeps open files by inode, with the locks that it believes to hold. A new connection
        next to an inherited one would share that entry and take no lock of its own. So
        ``close_inherited`` closes the connections that no thread used at the fork before the child
        opens a file; that releases none of the parent's locks. A connection in use stays alive and
        untouched, because its state is that of the parent's transaction.
        """
        self.state = FileState.CLOSED
        self._main.turnstile.forget_after_fork()
        self._attached.forget_after_fork()
        # If the mutex is held, another thread was opening the auxiliary connection.
        is_clean = self._auxiliary_mutex.is_free and not self.inspections.is_used
        for leased in self.leased_connections():
            leased.connection.forget_after_fork()
            is_clean = is_clean and not leased.queue.holder
        return is_clean

    def close_inherited(self) -> bool:
        """Close the parent's connections in a child; return whether all of them could be."""
        try:
            for leased in self.leased_connections():
                leased.connection.close(abandon=True)
        except apsw.Error:
            return False
        return True
