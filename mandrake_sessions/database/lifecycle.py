"""The connections of one open file: opened, checked at each lease, retired, parked and closed."""

from __future__ import annotations

import abc
import contextlib
import enum
import sys
import threading
from collections.abc import Callable
from functools import partial
from os import stat
from pathlib import Path
from threading import get_ident
from time import monotonic

import apsw

from mandrake_sessions.database.blocks import end_what_was_left
from mandrake_sessions.database.closing import OnStuck, close_lane, take_for_closing
from mandrake_sessions.database.companion import Attached
from mandrake_sessions.database.connection import Connection, open_connection
from mandrake_sessions.database.fate import Fate, Logs, end_log, is_emptied
from mandrake_sessions.database.guard import reentrant_error
from mandrake_sessions.database.health.inspection import Inspections
from mandrake_sessions.database.lane import Lane
from mandrake_sessions.database.lease import MakeError
from mandrake_sessions.database.parking import FileParkedError
from mandrake_sessions.database.paths import Identity, leads_elsewhere
from mandrake_sessions.database.refusal import Refusal
from mandrake_sessions.database.scope import WriteLane
from mandrake_sessions.database.transaction import rollback
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.database.witness import Witness
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
"""Seconds between two reads that look for more than that the file was moved: half a microsecond."""
_LOOKING = 10.0
"""Seconds for a look that no call waits for; half of them for every page, as for a write."""


class FileState(enum.Enum):
    """Where an open file stands; it moves down only."""

    OPEN = "open"
    RETIRED = "retired"
    CLOSED = "closed"


class FileLifecycle(abc.ABC):
    """The connections of an open file: each lease is checked, and in the end they are closed.

    ::

        OPEN ─► RETIRED (moved, overwritten, its log lost, not given back clean) ─► CLOSED
          └───► CLOSED (no handle any more, parked, or the pool is closing)

    Args:
        main: the open read-write connection.
        options: how the file is used.
        on_retired: told, perhaps by a holder of the lease, that it must be closed.

    Attributes:
        state: whether new work is taken.
        is_refusing: set, without any lock, by a signal's handler: no new call is let in.
        stamp: the random number in the file's header that tells it from other databases.
        refusal: why writes are refused, if they are.
        logs: the files that SQLite keeps beside this one.
        fate: what has become of it, as far as that was noticed.
        witness: knows how it was when it was last whole.
        inspections: further connections that only look.
        used_at: when the last call began (``time.monotonic``).
        keeps_log: whether the log is left as it is when the file closes.
        is_parked: whether it is closed, or about to be, only because too many files are open.
    """

    def __init__(
        self, main: Connection, options: DatabaseOptions, on_retired: Callable[[], None]
    ) -> None:
        self.path: Path = main.path
        self.identity: Identity = main.identity
        self.options = options
        self.state = FileState.OPEN
        self.refusal = Refusal(main.path, is_read_only=options.read_only)
        self.keeps_log = False
        self._is_unshared = main.unshared is not None
        self.is_refusing = False
        self.used_at = monotonic()
        self.is_parked = False
        self.stamp = int(main.value("PRAGMA user_version"))
        self.logs = Logs(main.path)
        self.witness = Witness(
            main, self.stamp, self.logs, self.refusal, has_vfs=options.vfs is not None
        )
        if main.log_mark is not None:
            main.log_mark.on_copied = self.witness.look
        if self.witness.look(main) is Fate.MOVED:
            # Moved since it was opened, and what has these names may be another file's.
            raise DatabaseMovedError(path=main.path, operation="open")
        self.inspections = Inspections(main.path, main.identity, options)
        self.fate = Fate.OURS
        self._name = str(main.path)
        self._compare_at = 0.0
        self._retirement: MakeError | None = None
        self._closed_with: MakeError | None = None
        self._is_closing = False
        self._is_ending = False
        self._on_retired = on_retired
        self._main = WriteLane(
            main,
            options,
            self.witness.index,
            check=self._check,
            check_write=self._check_write,
            on_unclean=self.retire,
            on_fault=self._note_fault,
            on_commit=self._note_commit,
        )
        self._auxiliary: Lane | None = None
        self._auxiliary_mutex = threading.Lock()
        self._attached = Attached(main.path)

    @abc.abstractmethod
    def _note_commit(self) -> None:
        """Take note of a COMMIT that has succeeded; the lease is still held."""

    # -- lanes ------------------------------------------------------------------------------

    def lanes(self) -> list[Lane]:
        """Return the lanes that exist."""
        return [self._main] if self._auxiliary is None else [self._main, self._auxiliary]

    @property
    def writer(self) -> WriteLane:
        """The lane of the read-write connection, for its figures."""
        return self._main

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the file, None before it has."""
        claim = self._attached.claim
        return None if claim is None else claim.id

    def _auxiliary_lane(self, budget: Budget) -> Lane:
        """Return the auxiliary lane, opening its connection when it is first needed."""
        if self._auxiliary is None:
            if not self._auxiliary_mutex.acquire(timeout=budget.left()):
                raise budget.exceeded("open", self.path, "open")
            try:
                if self._auxiliary is None:
                    lane = self._open_auxiliary(budget)
                    if self._is_closing:
                        lane.connection.close(abandon=True)
                        raise self._closed_error()
                    self._auxiliary = lane
                    lane.connection.owner = self.owner
            finally:
                self._auxiliary_mutex.release()
        return self._auxiliary

    def _open_auxiliary(self, budget: Budget) -> Lane:
        if self._closed_with is not None:
            raise self._closed_with()
        if self._is_closing:
            raise self._closed_error()
        if leads_elsewhere(self.path, self.identity):
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation="open")
        if self.options.vfs is None and is_emptied(self.path):
            # SQLite would take it for a new database, and delete the log of the old one.
            self.retire_as(Fate.OVERWRITTEN)
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
        return Lane(
            connection,
            check=self._check,
            on_unclean=self.retire,
            on_fault=self._note_fault,
        )

    # -- checks -----------------------------------------------------------------------------

    def _note_fault(self, error: DatabaseError) -> None:
        """Take note of a fault that a lane has met."""
        if error.result_code == apsw.SQLITE_IOERR_CORRUPTFS:
            # Its connection cannot tell damage from it any more; another one looks.
            self.witness.is_doubted = True
        self.refusal.note(error)

    def _check(self, connection: Connection, operation: str) -> None:
        """Make sure, at every lease, that this is still our file, and open.

        A live connection does not notice a dead file: with the file gone, INSERT still succeeded.
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
            self._require_log()

    def _check_write(self, connection: Connection, operation: str, budget: Budget) -> None:
        """Make sure, at every lease for writing, that what is written will be found again."""
        if self._closed_with is not None:
            raise self._closed_with()
        self._compare(connection, operation, budget.started)
        if "_sqlite3" in _modules:
            self._require_log()
        if self.witness.is_doubted or self.refusal.damage is not None:
            self.witness.require_whole(self._inspect, budget)

    def _require_log(self) -> None:
        # Closing the file, the standard library's SQLite removes the log that ours writes to.
        if self.logs.lost():
            self.retire_as(Fate.LOG_LOST)
            raise self._closed_error()

    def _compare(self, connection: Connection, operation: str, now: float) -> None:
        """Look at the file if its path says anything else of it than before.

        Reads do it now and then, so that little is to be explained when a write comes.
        """
        after_pause = now >= self._compare_at
        self._compare_at = now + _COMPARE_EVERY
        seen = self.witness.seen
        try:
            found = stat(self._name)
        except OSError:
            self.require_ours(connection, operation, after_pause=after_pause)
            return
        # Written out, for it is done at every write: whatever changes a file changes one of these.
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
        """Find out what has changed the file, and give it up if it is not ours any more.

        Args:
            connection: one on the file; its lease is the caller's.
            operation: for errors.
            after_pause: whether it was not compared for a while.

        Raises:
            DatabaseMovedError: it is not.
        """
        fate = self.witness.look(connection, after_pause=after_pause)
        if fate is Fate.MOVED:
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation=operation)
        if fate is not Fate.OURS:
            self.retire_as(fate)
            raise self._closed_error()

    def find_damage(self) -> DatabaseError | None:
        """Look at the file though no call uses it, and return the damage that is known by then.

        That is one ``stat`` while nothing has changed it; after a change it is what a write does.

        Raises:
            DatabaseMovedError: it is not ours any more.
            PoolClosedError: it closes.
        """
        is_due = self.witness.is_doubted or self.witness.has_changed()
        if self.refusal.damage is None and is_due and not self.options.read_only:
            budget = Budget(_LOOKING)
            known = (DatabaseBusyError, CorruptDatabaseError, NotADatabaseError)
            with (
                contextlib.suppress(*known),
                self._main.exclusive(budget, "look") as connection,
            ):
                self._check_write(connection, "look", budget)
        return self.refusal.damage

    def _inspect(self) -> Inspections:
        return self.inspections

    def _require_still(self) -> None:
        """Make sure that a file which is read without the shared index has not changed."""
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
        """Let a new call in, unless it can only wait for itself."""
        if (self.is_refusing and not even_refused) or self.state is FileState.CLOSED:
            raise self._closed_error()
        me = get_ident()
        if self._main.queue.holder == me or (
            self._auxiliary is not None and self._auxiliary.queue.holder == me
        ):
            self.require_no_lease(operation)

    def require_no_lease(self, operation: str) -> None:
        """Make sure that this thread can wait for the file: not while it holds its lease.

        Raises:
            ReentrantScopeError: it does.
        """
        me = get_ident()
        for lane in self.lanes():
            # Perhaps it has left the block, interrupted at its end.
            if lane.queue.holder == me and not (end_what_was_left() and lane.queue.holder != me):
                raise reentrant_error(operation, lane.queue.operation)

    # -- the end ----------------------------------------------------------------------------

    def retire(self, reason: str, **details: object) -> None:
        """Take no more work: the next acquire opens the file that is there then.

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
        for lane in self.lanes():
            lane.queue.refuse(self._retirement, waiters_too=True)
        self._attached.retired()
        self._on_retired()
        get_logger(__name__).warning(
            "database_retired", path=str(self.path), reason=reason, **details
        )

    def retire_moved(self) -> None:
        """Retire because the path does not name the open file any more."""
        self.retire_as(Fate.MOVED)

    def retire_as(self, fate: Fate) -> None:
        """Retire because of what became of the file."""
        self.fate = fate
        self.retire(fate.value)

    def refuse_new_work(self) -> None:
        """Refuse who comes from now on; who waits or works already goes on."""
        if self.state is FileState.OPEN:
            for lane in self.lanes():
                lane.queue.refuse(self._closed_error, waiters_too=False)

    def _closed_error(self) -> MandrakeSessionsError:
        if self._retirement is not None:
            return self._retirement()
        if self.is_parked:
            return FileParkedError(path=self.path)
        return PoolClosedError(path=self.path)

    # -- parking ----------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether nobody does anything with it this moment; no lock is taken for the answer."""
        return self._attached.is_quiet and all(lane.queue.is_quiet for lane in self.lanes())

    def pin(self, key: object) -> None:
        """Keep the file from being parked until ``unpin``; any number may do so at once.

        Args:
            key: for ``unpin``.

        Raises:
            FileParkedError: it is parked, or about to be.
            DatabaseError: why else it takes no more work.
        """
        self._main.queue.pin(key)

    def unpin(self, key: object) -> None:
        """Undo a ``pin``; it may have been undone before."""
        self._main.queue.unpin(key)

    def park(self, timeout: float) -> bool:
        """Close the file if nobody does anything with it, so that it can be opened again.

        Args:
            timeout: seconds that closing may take.

        Returns:
            Whether it is closed; what comes from now on gets ``FileParkedError``.

        Raises:
            DatabaseError: it is closed, and not cleanly.
            ExceptionGroup: several parts failed.
        """
        # Ending: a signal's handler raised in the midst of it.
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
            # A lease like any other: it tells whether this is still our file.
            self._main.fetch(lambda _: None, Budget(timeout), "park", even_refused=True)
            # What takes no writes can still be read, and could perhaps not be opened again. It is
            # asked first: whoever can rest has let its claim go.
            can_rest = self.refusal.reason is None and self._attached.can_rest()
        except DatabaseError:
            can_rest = False
        except BaseException:
            self._unshut()
            raise
        if not can_rest:
            # Not asked again at once: others have waited as long.
            self.used_at = monotonic()
            self._unshut()
        return can_rest

    def _shut(self) -> bool:
        """Refuse new work if nothing is under way, nobody waits and nobody has pinned the file."""
        if self.is_parked:
            # A signal's handler raised when it was shut.
            self._unshut()
        if self.state is not FileState.OPEN or self.is_refusing or self._is_closing:
            return False
        # Held: somebody opens the auxiliary connection this moment.
        if not self._auxiliary_mutex.acquire(blocking=False):
            return False
        try:
            self.is_parked = True
            if all(lane.queue.shut(self._closed_error) for lane in self.lanes()):
                self._is_closing = True
                return True
        finally:
            self._auxiliary_mutex.release()
        self._unshut()
        return False

    def _unshut(self) -> None:
        self._is_closing = False
        for lane in self.lanes():
            lane.queue.unshut(self._closed_error)
        self.is_parked = False

    def close(self, timeout: float, on_stuck: OnStuck = None) -> None:
        """Let what is under way end, interrupt what does not, and close both connections.

        Args:
            timeout: seconds; the first half is for the work to end by itself.
            on_stuck: told the thread that holds a lease when it is interrupted.

        Raises:
            DatabaseBusyError: a holder did not let go; its connection is left open.
            ExceptionGroup: several parts failed.
        """
        if self.state is FileState.CLOSED:
            return
        self.refuse_new_work()
        failures: list[Exception] = []
        half = Budget(timeout / 2)
        whole = Budget(timeout)
        # First: it stores what is in memory, and its threads would be in the way.
        self._is_ending = True
        failures.extend(self._attached.close_companion(half.deadline))
        # Whoever opens the auxiliary connection this moment is waited for, or closes it again.
        was_opened = self._auxiliary_mutex.acquire(timeout=half.left())
        self._is_closing = True
        if was_opened:
            self._auxiliary_mutex.release()
        # Also the auxiliary lane that came since the first time.
        self.refuse_new_work()
        self.inspections.end(half.left())
        # All of them, unless a signal's handler has raised in an earlier call.
        for lane in [lane for lane in reversed(self.lanes()) if not lane.is_closed]:
            try:
                take_for_closing(lane, half, whole, self._closed_error, on_stuck)
                if lane is self._main and not self.options.read_only:
                    self._end_log(lane.connection, whole)
                abandon = self._is_log_kept or self._has_foreign_log(lane.connection)
                close_lane(lane, whole, self.options, abandon=abandon)
                lane.is_closed = True
            except MandrakeSessionsError as error:
                failures.append(error)
            except apsw.ConnectionClosedError:
                # A signal's handler raised in an earlier call, when it had just been closed.
                lane.is_closed = True
            except BaseException:
                # Whoever closes the file instead needs the lease, and others the write lock.
                if lane.queue.holder == get_ident():
                    with contextlib.suppress(apsw.ConnectionClosedError):
                        rollback(lane.connection)
                    lane.queue.release()
                raise
        self._main.turnstile.close()
        is_gone = self.fate in (Fate.MOVED, Fate.OVERWRITTEN)
        self._attached.end(self._note_closed, is_moved=is_gone)
        self._closed_with = self._closed_error
        if len(failures) == 1 and isinstance(failures[0], MandrakeSessionsError):
            raise failures[0]
        if failures:
            raise ExceptionGroup(f"closing {self.path} failed", failures)

    @property
    def _is_log_kept(self) -> bool:
        """Whether the log must not go into the file when it closes."""
        if self.keeps_log:
            return True
        return self.fate not in (Fate.OURS, Fate.LOCKS_LOST) or self.refusal.damage is not None

    def _has_foreign_log(self, connection: Connection) -> bool:
        """Whether a file that was only read has a log, which other processes have written."""
        if not self.options.read_only:
            return False
        try:
            return connection.wal_backlog()[0] > 0
        except apsw.ReadOnlyError:
            # This user may not write the log, so it is another's.
            return True

    def _end_log(self, connection: Connection, budget: Budget) -> None:
        """Keep the log from a file that is not ours; nobody may have noticed until now."""
        if self.fate in (Fate.OURS, Fate.LOCKS_LOST, Fate.LOG_LOST):
            # Those that there were have ended.
            inspections = partial(Inspections, self.path, self.identity, self.options)
            self.fate = self.witness.examine(connection, inspections, budget)
        if self.fate is not Fate.OURS:
            is_whole = self.refusal.damage is None and not self.witness.is_doubted
            end_log(connection, self.logs, self.fate, budget, may_copy=is_whole)

    def _note_closed(self) -> None:
        self.state = FileState.CLOSED

    def drop_after_fork(self) -> bool:
        """Let go of the parent's connections in a child; return whether they can be closed there.

        SQLite knows open files by inode, with the locks it believes to hold. A file opened anew
        beside an inherited connection would join that entry and take no lock of its own: so what
        no thread used at the fork is closed before that, by ``close_inherited``, which drops none
        of the parent's locks. What was in use is kept alive and untouched, because its state is
        that of the parent's transaction.
        """
        self.state = FileState.CLOSED
        self._main.turnstile.forget_after_fork()
        self._attached.forget_after_fork()
        # Held: another thread was just opening the auxiliary connection.
        is_clean = not self._auxiliary_mutex.locked() and not self.inspections.is_used
        for lane in self.lanes():
            lane.connection.forget_after_fork()
            is_clean = is_clean and not lane.queue.holder
        return is_clean

    def close_inherited(self) -> bool:
        """Close the parent's connections in a child; return whether all of them could be."""
        try:
            for lane in self.lanes():
                lane.connection.close(abandon=True)
        except apsw.Error:
            return False
        return True
