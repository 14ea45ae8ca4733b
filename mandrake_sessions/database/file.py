"""One open database file: its two connections, the checks at each lease, and its end."""

from __future__ import annotations

import contextlib
import copy
import enum
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import get_ident
from typing import TypeVar

import apsw
import structlog

from mandrake_sessions import arguments
from mandrake_sessions.database import migrate
from mandrake_sessions.database.checkpoint import Checkpointer
from mandrake_sessions.database.closing import (
    OnStuck,
    close_lane,
    save_moved_file,
    take_for_closing,
)
from mandrake_sessions.database.companion import Attached, C, Companion
from mandrake_sessions.database.connection import Connection, open_connection
from mandrake_sessions.database.guard import bury, caller_outside, reentrant_error
from mandrake_sessions.database.lease import Bring, MakeError
from mandrake_sessions.database.maintenance import Maintenance
from mandrake_sessions.database.paths import Identity, companions, identify
from mandrake_sessions.database.scope import Lane, WriteLane
from mandrake_sessions.database.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseMovedError,
    ForkedPoolError,
    MandrakeSessionsError,
    NotADatabaseError,
    PoolClosedError,
)
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")

_CHECKPOINT_BUDGET = 5.0
# Finishing costs the writers one or two milliseconds: rarer, a lone writer gained 25 %.
_FINISH_ABOVE = 4_000


class FileState(enum.Enum):
    """Where an open file stands; it moves down only."""

    OPEN = "open"
    RETIRED = "retired"
    CLOSED = "closed"


class DatabaseFile:
    """The one read-write connection of a file, and the auxiliary one that only reads.

    Args:
        main: the open read-write connection.
        options: how the file is used.
        maintenance: runs its checkpoints.
        on_retired: told, perhaps by a holder of the lease, that it must be closed.

    Attributes:
        state: whether new work is taken.
        is_refusing: set, without any lock, by a signal's handler: no new call is let in.
        stamp: the random number in the file's header that tells it from other databases.
        damage: the first sign that the file is corrupt; writing is refused from then on.
    """

    def __init__(
        self,
        main: Connection,
        options: DatabaseOptions,
        maintenance: Maintenance,
        on_retired: Callable[[], None],
    ) -> None:
        self.path: Path = main.path
        self.identity: Identity = main.identity
        self.options = options
        self.state = FileState.OPEN
        self.damage: DatabaseError | None = None
        self.is_refusing = False
        self.stamp = int(main.value("PRAGMA user_version"))
        self._is_moved = False
        self._is_closing = False
        self._is_ending = False
        # SQLite makes them when it opens the file and keeps them as long as that is open.
        self._logs = [(log, identify(log)) for log in companions(main.path)]
        self._on_retired = on_retired
        self._refusal: MakeError | None = None
        self._main = WriteLane(
            main,
            options,
            check=self._check,
            on_unclean=self.retire,
            on_corrupt=self._latch_damage,
            on_commit=self._note_commit,
        )
        self._auxiliary: Lane | None = None
        self._auxiliary_mutex = threading.Lock()
        self._attached = Attached(main.path)
        self.checkpointer = Checkpointer(
            options.checkpoint_frames,
            options.wal_limit_bytes,
            lambda: maintenance.call_later(("checkpoint", self), 0.0, self.checkpoint),
        )

    @classmethod
    def open(
        cls,
        path: Path,
        identity: Identity,
        options: DatabaseOptions,
        maintenance: Maintenance,
        on_retired: Callable[[], None],
    ) -> DatabaseFile:
        """Open the file and bring its schema to the newest revision."""
        budget = Budget(options.busy_timeout)
        main = open_connection(path, identity, options, budget)
        try:
            migrate.bring_to_head(main, budget)
            return cls(main, options, maintenance, on_retired)
        except BaseException:
            with contextlib.suppress(apsw.Error):
                main.close()
            raise

    # -- work -------------------------------------------------------------------------------

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now."""
        if timeout is None:
            return Budget(self.options.busy_timeout)
        return Budget(arguments.seconds("timeout", timeout))

    def fetch(
        self,
        work: ReadUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        even_refused: bool = False,
    ) -> T:
        """Run a short read: on the main connection if it is free this moment.

        A connection that is free has no transaction open, so nothing uncommitted is ever seen.

        Args:
            work: called with a transaction that reads.
            operation: for errors.
            timeout: seconds; None for the ``busy_timeout``.
            even_refused: for the last look of what closes with the file.
        """
        self._admit(operation, even_refused=even_refused)
        budget = self.budget(timeout)
        was_free, result = self._main.fetch_now(work, budget, operation, even_refused=even_refused)
        if was_free:
            return result  # type: ignore[return-value]  # T itself may be None
        lane = self._auxiliary_lane(budget)
        return lane.fetch(work, budget, operation, even_refused=even_refused)

    def read(self, work: ReadUnit[T], operation: str, timeout: float | None = None) -> T:
        """Run a long read in one snapshot on the auxiliary connection; no writer waits for it."""
        self._admit(operation)
        budget = self.budget(timeout)
        with self._auxiliary_lane(budget).snapshot(budget, operation) as tx:
            return work(tx)

    def transact(
        self,
        work: WriteUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        delegable: bool = True,
        even_refused: bool = False,
        bring: Bring | None = None,
    ) -> T:
        """Run a unit of writing work, which may share its COMMIT with others.

        Args:
            work: the unit.
            operation: for errors.
            timeout: seconds; None for the ``busy_timeout``.
            delegable: whether the thread that holds the lease may run it for this one.
            even_refused: for the last writes of what closes with the file.
            bring: gives further work of this thread's callers for the same COMMIT.
        """
        self._admit(operation, even_refused=even_refused)
        self._refuse_if_damaged()
        budget = self.budget(timeout)
        if self.checkpointer.is_outrun:
            self.checkpointer.hold(budget.left())
        return self._main.transact(
            work,
            budget,
            operation,
            delegable=delegable,
            even_refused=even_refused,
            bring=bring,
        )

    @contextlib.contextmanager
    def read_scope(self, timeout: float | None = None) -> Iterator[ReadTransaction]:
        """Lend a snapshot for a block."""
        operation = f"read() at {caller_outside()}"
        self._admit(operation)
        budget = self.budget(timeout)
        with self._auxiliary_lane(budget).snapshot(budget, operation) as tx:
            yield tx

    @contextlib.contextmanager
    def write_scope(self, timeout: float | None = None) -> Iterator[WriteTransaction]:
        """Lend a write transaction for a block."""
        operation = f"write() at {caller_outside()}"
        self._admit(operation)
        self._refuse_if_damaged()
        budget = self.budget(timeout)
        if self.checkpointer.is_outrun:
            self.checkpointer.hold(budget.left())
        with self._main.scope(budget, operation) as tx:
            yield tx

    @contextlib.contextmanager
    def exclusive(self, operation: str, budget: Budget) -> Iterator[Connection]:
        """Lend the main connection with no transaction open."""
        self._admit(operation)
        self._refuse_if_damaged()
        with self._main.exclusive(budget, operation) as connection:
            try:
                yield connection
            finally:
                # What is committed with a lent connection is not seen one by one.
                self._attached.committed()

    @contextlib.contextmanager
    def exclusive_auxiliary(self, operation: str, budget: Budget) -> Iterator[Connection]:
        """Lend the auxiliary connection with no transaction open."""
        self._admit(operation)
        with self._auxiliary_lane(budget).exclusive(budget, operation) as connection:
            yield connection

    def checkpoint(self) -> None:
        """Copy the WAL into the database as far as readers allow; nobody waits for it."""
        try:
            budget = Budget(_CHECKPOINT_BUDGET)
            with self.exclusive_auxiliary("checkpoint", budget) as connection:
                self.checkpointer.run(connection, budget.deadline)
                if self.checkpointer.wal_frames >= _FINISH_ABOVE:
                    # Frames that came meanwhile keep the WAL from beginning anew, and in a file
                    # that grows each fsync is about twice as dear: finish while nobody writes.
                    with self._main.exclusive(budget, "checkpoint"):
                        self.checkpointer.run(connection, budget.deadline)
        except DatabaseError as error:
            # Readers need the connection, it cannot be opened, or it is going away: the next
            # commit asks again.
            if not isinstance(error, DatabaseBusyError | DatabaseMovedError | PoolClosedError):
                self.checkpointer.failure = error.result_code or 0
            self.checkpointer.postpone()
        except BaseException:
            self.checkpointer.postpone()
            raise

    def lanes(self) -> list[Lane]:
        """Return the lanes that exist."""
        return [self._main] if self._auxiliary is None else [self._main, self._auxiliary]

    @property
    def writer(self) -> WriteLane:
        """The lane of the read-write connection, for its figures."""
        return self._main

    # -- companion and claim ----------------------------------------------------------------

    @property
    def companion(self) -> Companion | None:
        """What the layers above keep with the open file; None until it is made."""
        return self._attached.companion

    def companion_of(self, make: Callable[[DatabaseFile], C]) -> C:
        """Return the file's companion, made now if it has none.

        Args:
            make: called once in the life of the open file; it takes no lease.

        Raises:
            PoolClosedError: there is none, and the file is closed or closing.
            DatabaseMovedError: there is none, and the file takes no more work.
        """
        return self._attached.companion_of(lambda: make(self), self._require_usable)

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the file, None before it has."""
        claim = self._attached.claim
        return None if claim is None else claim.id

    def claim(self) -> str:
        """Return the id of this process's claim on the file, which is made the first time.

        It may make a file, so it is called before a lease is taken.

        Raises:
            PoolClosedError: the file is closed.
            DatabaseError: the owner's file cannot be made.
        """
        # Also while the file closes: a transaction under way goes on.
        id = self._attached.claimed(self._require_open)
        for lane in self.lanes():
            lane.connection.owner = id
        return id

    def release_claim(self) -> None:
        """Let the claim end with the file: no turn of this process is streaming in it any more.

        Otherwise it stays until the process ends, so that nobody takes those turns for dead.
        """
        self._attached.is_claim_over = True

    def require_no_lease(self, operation: str) -> None:
        """Make sure that this thread can wait for the file: not while it holds its lease.

        Raises:
            ReentrantScopeError: it does.
        """
        me = get_ident()
        for lane in self.lanes():
            if lane.queue.holder == me:
                raise reentrant_error(operation, lane.queue.operation)

    # -- checks -----------------------------------------------------------------------------

    def _check(self, connection: Connection, operation: str) -> None:
        """Make sure, at every lease, that this is still our file, and open.

        A live connection does not notice a dead file: with the file gone, INSERT still succeeded.
        """
        if self._refusal is not None:
            raise self._refusal()
        if connection.has_moved():
            self.retire_moved()
            raise DatabaseMovedError(path=self.path, operation=operation)

    def _note_commit(self) -> None:
        """Count towards the next checkpoint; the COMMIT has succeeded whatever happens here."""
        try:
            self.checkpointer.note(self._main.connection.pages_written())
        except Exception:  # noqa: BLE001  # as the docstring says
            structlog.get_logger(__name__).exception("checkpoint_not_asked_for")
        self._attached.committed()

    def _require_open(self) -> None:
        if self.state is FileState.CLOSED:
            raise self._closed_error()

    def _require_usable(self) -> None:
        self._require_open()
        if self.is_refusing or self._is_ending:
            raise self._closed_error()
        if self._refusal is not None:
            raise self._refusal()

    def _admit(self, operation: str, *, even_refused: bool = False) -> None:
        """Let a new call in, unless it can only wait for itself."""
        if (self.is_refusing and not even_refused) or self.state is FileState.CLOSED:
            raise self._closed_error()
        me = get_ident()
        if self._main.queue.holder == me:
            raise reentrant_error(operation, self._main.queue.operation)
        if self._auxiliary is not None and self._auxiliary.queue.holder == me:
            raise reentrant_error(operation, self._auxiliary.queue.operation)

    def _refuse_if_damaged(self) -> None:
        if self.damage is not None:
            raise copy.copy(self.damage)

    def _latch_damage(self, error: DatabaseError) -> None:
        if self.damage is None:
            self.damage = copy.copy(error)
            structlog.get_logger(__name__).error(
                "database_corrupt", path=str(self.path), result_code=error.result_code
            )

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
        if self._refusal is not None:
            raise self._refusal()
        if self._is_closing:
            raise self._closed_error()
        try:
            connection = open_connection(
                self.path, self.identity, self.options, budget, auxiliary=True
            )
        except DatabaseMovedError:
            self.retire_moved()
            raise
        except (CorruptDatabaseError, NotADatabaseError) as error:
            self._latch_damage(error)
            raise
        return Lane(
            connection,
            check=self._check,
            on_unclean=self.retire,
            on_corrupt=self._latch_damage,
        )

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
        message = f"The open database is not used any more: {reason}; open it again."
        self._refuse(lambda: DatabaseMovedError(message, path=self.path), waiters_too=True)
        self._attached.retired()
        self._on_retired()
        structlog.get_logger(__name__).warning(
            "database_retired", path=str(self.path), reason=reason, **details
        )

    def retire_moved(self) -> None:
        """Retire because the path does not name the open file any more."""
        self._is_moved = True
        self.retire("the file was moved, replaced or deleted")

    def _refuse(self, make_error: MakeError, *, waiters_too: bool) -> None:
        self._refusal = make_error
        for lane in self.lanes():
            lane.queue.refuse(make_error, waiters_too=waiters_too)

    def refuse_new_work(self) -> None:
        """Refuse who comes from now on; who waits or works already goes on."""
        if self.state is FileState.OPEN:
            for lane in self.lanes():
                lane.queue.refuse(self._closed_error, waiters_too=False)

    def _closed_error(self) -> MandrakeSessionsError:
        return PoolClosedError(path=self.path)

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
        for lane in reversed(self.lanes()):
            try:
                take_for_closing(lane, half, whole, self._closed_error, on_stuck)
                if self._is_moved and lane is self._main:
                    save_moved_file(lane.connection, self._logs, whole)
                close_lane(lane, whole, abandon=self._is_moved)
            except MandrakeSessionsError as error:
                failures.append(error)
        self._attached.end(self._note_closed, is_moved=self._is_moved)
        self._refusal = self._closed_error
        if len(failures) == 1 and isinstance(failures[0], MandrakeSessionsError):
            raise failures[0]
        if failures:
            raise ExceptionGroup(f"closing {self.path} failed", failures)

    def _note_closed(self) -> None:
        self.state = FileState.CLOSED

    def drop_after_fork(self) -> bool:
        """Let go of the parent's connections in a child; return whether all could be closed.

        SQLite knows open files by inode, with the locks it believes to hold. A file opened anew
        beside an inherited connection would join that entry and take no lock of its own: so what
        nobody used at the fork is closed, which drops none of the parent's locks. What somebody
        used is kept alive and untouched, because its state is that of the parent's transaction.
        """
        self.state = FileState.CLOSED
        self._attached.forget_after_fork()
        # Held: another thread was just opening the auxiliary connection.
        is_clean = not self._auxiliary_mutex.locked()
        for lane in self.lanes():
            lane.connection.forget_after_fork()
            try:
                if lane.queue.holder:
                    raise ForkedPoolError(path=self.path)
                lane.connection.close(abandon=True)
            except (ForkedPoolError, apsw.Error):
                bury(lane)
                is_clean = False
        return is_clean
