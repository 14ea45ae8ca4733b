"""One open database file: its reads, writes and WAL checkpoints, its attachment and claim."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.callers import caller_outside
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.mutex import Mutex
from mandrake_sessions.database.connection.checkpoint import Checkpointer
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.transaction import ReadTransaction, WriteTransaction
from mandrake_sessions.database.connection.wal_marking import WalMark
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.database.files.names import require_home
from mandrake_sessions.database.files.paths import Identity, leads_elsewhere
from mandrake_sessions.database.files.wal_mark import read_mark
from mandrake_sessions.database.leasing.leased import LeasedConnection
from mandrake_sessions.database.maintenance import Maintenance
from mandrake_sessions.database.migrations.head import bring_to_head, require_head
from mandrake_sessions.database.open_file.attachments import C
from mandrake_sessions.database.open_file.displacement import FileCondition
from mandrake_sessions.database.open_file.lifecycle import FileLifecycle, FileState
from mandrake_sessions.database.open_file.others import OtherProcesses
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.database.sidecars import wal_of
from mandrake_sessions.database.sqlite_library import warn_of_second_sqlite
from mandrake_sessions.engine.attachment import Attachment
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.transaction import ReadUnit, WriteUnit
from mandrake_sessions.engine.waiters import BatchSource
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseMovedError,
    PoolClosedError,
    TooManyFilesError,
)
from mandrake_sessions.log import get_logger
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")

_CHECKPOINT_BUDGET = 5.0
# Seconds. Only the pool's one thread waits this long, for a queue that moves or a process that
# continues to write. Writers wait no longer than for the same queue or process without it, and
# reads do not wait.
_FINISH_BUDGET = 0.25
# Seconds after which a short read opens its own connection during a WAL checkpoint. Opening one
# takes about a millisecond, and most WAL checkpoints have ended by then; a slow disk may take
# seconds to sync.
_CHECKPOINT_PATIENCE = 0.02
# Seconds during which no process writes while the last WAL checkpoint waits for a present read.
_FINISH_PAUSE = 0.005
# Seconds between two checks of a WAL that is too long because of a reader: at first, and at most. A
# check waits for ``_CUT_BUDGET`` for a read of this process that has the connection.
_CUT_PAUSE = 0.1
_LONGEST_CUT_PAUSE = 2.0
_CUT_BUDGET = 0.05


class DatabaseFile(FileLifecycle):
    """The one read-write connection of a file, and the auxiliary one that only reads.

    Args:
        main: the open read-write connection.
        options: the options of the file.
        maintenance: runs its WAL checkpoints.
        on_retired: called when the file must be closed, perhaps by a holder of the lease.

    Attributes:
        checkpointer: decides when the WAL is copied into the database.
        was_locked: whether a health check has seen the lock that SQLite keeps on the file.
        others: the other processes that use the file.
    """

    def __init__(
        self,
        main: Connection,
        options: DatabaseOptions,
        maintenance: Maintenance,
        on_retired: Callable[[], None],
    ) -> None:
        super().__init__(main, options, on_retired)
        self.was_locked = False
        self.others: OtherProcesses = OtherProcesses(self.path, self.identity)
        # Cleared while a WAL checkpoint has the auxiliary connection, or waits for it.
        self._no_checkpoint = Gate()
        self._no_checkpoint.set()
        # Held by the one short read that runs at the same time on a connection of its own.
        self._apart = Mutex()
        self._maintenance = maintenance
        self._make_attachment: Callable[[DatabaseFile], Attachment] | None = None
        self.checkpointer: Checkpointer = Checkpointer(
            options,
            main.wal_backlog,
            lambda: maintenance.call_later(("checkpoint", self), 0.0, self.checkpoint),
        )
        if self.logs.size > options.wal_limit_bytes and not options.read_only:
            self._cut_later(_CUT_PAUSE)

    @classmethod
    def open(
        cls,
        path: Path,
        identity: Identity,
        options: DatabaseOptions,
        maintenance: Maintenance,
        on_retired: Callable[[], None],
        *,
        stamp: int | None = None,
        budget: Budget | None = None,
    ) -> DatabaseFile:
        """Open the file and bring its schema to the newest revision.

        Args:
            path: as ``real_path`` gave it.
            identity: the identity that the file must still have when it is open.
            options: the options of the file.
            maintenance: runs its WAL checkpoints.
            on_retired: called when the file must be closed.
            stamp: the stamp that a file that was open before must have.
            budget: the time it may take; None for the ``busy_timeout``.
        """
        budget = budget or FileBudget(options.busy_timeout)
        warn_of_second_sqlite(path)
        if stamp is None:
            # For a file that was open here before, opening another name of it is refused elsewhere.
            require_home(path, options)
        main = open_connection(path, identity, options, budget)
        has_wal = main.had_wal or main.had_index
        try:
            if stamp is not None and main.value("PRAGMA user_version") != stamp:
                raise DatabaseMovedError(path=path, operation="open")
            if options.read_only:
                require_head(main)
            else:
                bring_to_head(main, budget)
                main.wal_mark = WalMark(main)
            file = cls(main, options, maintenance, on_retired)
            file.keeps_wal = options.read_only and has_wal
            return file
        except BaseException as error:
            with contextlib.suppress(apsw.Error):
                # A WAL that existed is not copied into a file that cannot be opened.
                main.close(abandon=has_wal)
            if isinstance(error, apsw.Error | OSError | DatabaseError) and leads_elsewhere(
                path, identity
            ):
                raise DatabaseMovedError(path=path, operation="open") from error
            if isinstance(error, apsw.Error | OSError):
                # The reads after the migration can fail too.
                raise translate(error, path, "open") from error
            raise

    # -- work -------------------------------------------------------------------------------

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now."""
        budget = FileBudget(
            self.options.busy_timeout if timeout is None else arguments.seconds("timeout", timeout)
        )
        self.used_at: float = budget.started
        return budget

    def fetch(
        self,
        work: ReadUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        even_refused: bool = False,
    ) -> T:
        """Run a short read, on the main connection if it is free.

        A free connection has no open transaction, so the read never sees uncommitted changes.

        Args:
            work: called with a transaction that reads.
            operation: for errors.
            timeout: seconds; None for the ``busy_timeout``.
            even_refused: also while new work is refused, for the last reads of the attachment.
        """
        self._admit(operation, even_refused=even_refused)
        budget = self.budget(timeout)
        was_run, result = self._main.fetch(
            work, budget, operation, waits=False, even_refused=even_refused
        )
        if not was_run:
            result = self._fetch_waiting(work, budget, operation, even_refused=even_refused)
        if self._is_unshared:
            self._require_still()
        return result  # type: ignore[return-value]  # T itself may be None

    def peek(self, work: ReadUnit[T], operation: str, timeout: float) -> T:
        """Run a short read that does not count as a use of the file for parking."""
        self._admit(operation)
        budget = FileBudget(timeout)
        was_run, result = self._main.fetch(work, budget, operation, waits=False)
        if not was_run:
            result = self._fetch_waiting(work, budget, operation)
        return result  # type: ignore[return-value]  # T itself may be None

    def _fetch_waiting(
        self, work: ReadUnit[T], budget: Budget, operation: str, *, even_refused: bool = False
    ) -> T | None:
        """Run a short read while the main connection is in use."""
        leased = self._reading_connection(budget)
        patience = min(_CHECKPOINT_PATIENCE, budget.left())
        waits = even_refused or self._no_checkpoint.wait(patience)
        was_run, result = leased.fetch(
            work, budget, operation, waits=waits, even_refused=even_refused
        )
        return result if was_run else self._fetch_apart(work, budget, operation)

    def _fetch_apart(self, work: ReadUnit[T], budget: Budget, operation: str) -> T:
        """Run a short read on a new connection while a WAL checkpoint has the auxiliary one."""
        with self._apart.held(budget.left()) as is_held:
            if not is_held:
                raise budget.exceeded("queue", self.path, operation)
            lend = self.inspections.connection
            with lend(budget, self._closed_error, operation=operation) as connection:
                tx = ReadTransaction(connection, budget, operation)
                try:
                    return work(tx)
                except DatabaseError as error:
                    self._note_fault(error)
                    raise
                finally:
                    tx.end()

    def read(self, work: ReadUnit[T], operation: str, timeout: float | None = None) -> T:
        """Run a long read in one snapshot on the auxiliary connection; no writer waits for it."""
        self._admit(operation)
        budget = self.budget(timeout)
        with self._reading_connection(budget).snapshot(budget, operation) as tx:
            result = work(tx)
        if self._is_unshared:
            self._require_still()
        return result

    def _reading_connection(self, budget: Budget) -> LeasedConnection:
        """Return the auxiliary connection, or the writer if no descriptor is left to open it."""
        try:
            return self._auxiliary_connection(budget)
        except TooManyFilesError:
            return self._main

    def transact(
        self,
        work: WriteUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        delegable: bool = True,
        even_refused: bool = False,
        batch: BatchSource | None = None,
    ) -> T:
        """Run a unit of writing work, which may share its COMMIT with others.

        Args:
            work: the unit.
            operation: for errors.
            timeout: seconds; None for the ``busy_timeout``.
            delegable: whether the thread that holds the lease may run it for this one.
            even_refused: also while new work is refused, for the last writes of the attachment.
            batch: gives further units for the same COMMIT.
        """
        budget = self._admit_write(operation, timeout, even_refused=even_refused)
        return self._main.transact(
            work,
            budget,
            operation,
            delegable=delegable,
            even_refused=even_refused,
            batch=batch,
        )

    @block
    def read_scope(self, timeout: float | None = None) -> Iterator[ReadTransaction]:
        """Lend a snapshot for a block."""
        operation = f"read() at {caller_outside()}"
        self._admit(operation)
        budget = self.budget(timeout)
        with self._reading_connection(budget).snapshot(budget, operation) as tx:
            yield tx
        if self._is_unshared:
            self._require_still()

    @block
    def write_scope(self, timeout: float | None = None) -> Iterator[WriteTransaction]:
        """Lend a write transaction for a block."""
        operation = f"write() at {caller_outside()}"
        budget = self._admit_write(operation, timeout)
        with self._main.scope(budget, operation) as tx:
            yield tx

    def _admit_write(
        self, operation: str, timeout: float | None, *, even_refused: bool = False
    ) -> Budget:
        """Admit a writing call, and return its budget."""
        self._admit(operation, even_refused=even_refused)
        self.refusal.require_writable()
        budget = self.budget(timeout)
        if self.checkpointer.is_outrun:
            self.checkpointer.hold(budget.left())
        return budget

    @block
    def exclusive(self, operation: str, budget: Budget) -> Iterator[Connection]:
        """Lend the main connection without an open transaction."""
        self._admit(operation)
        self.refusal.require_writable()
        with self._main.exclusive(budget, operation) as connection:
            self._check_write(connection, operation, budget)
            try:
                yield connection
            finally:
                # Commits on a lent connection are not noticed one by one.
                self._attached.committed()

    @block
    def exclusive_auxiliary(self, operation: str, budget: Budget) -> Iterator[Connection]:
        """Lend the auxiliary connection without an open transaction."""
        self._admit(operation)
        with self._auxiliary_connection(budget).exclusive(budget, operation) as connection:
            yield connection

    # -- for checks -------------------------------------------------------------------------

    def is_lease_free(self, operation: str) -> bool:
        """Take and release the writer's lease, with its checks, if it is free; return if it was.

        Raises:
            DatabaseMovedError: or another error of these checks.
        """
        self._admit(operation)
        was_free, _ = self._main.fetch(lambda _: None, FileBudget(0.0), operation, waits=False)
        return was_free

    @property
    def has_auxiliary(self) -> bool:
        """Whether the auxiliary connection is open."""
        return self._auxiliary is not None

    @block
    def probing(self, operation: str, budget: Budget) -> Iterator[Connection]:
        """Lend the main connection for checks, also while writes are refused."""
        self._admit(operation)
        with self._main.exclusive(budget, operation) as connection:
            yield connection

    def inspecting(self, budget: Budget) -> contextlib.AbstractContextManager[Connection]:
        """Lend a new connection, which only reads; no other thread waits for it."""
        self._admit("health")
        return self.inspections.connection(budget, self._closed_error)

    # -- WAL checkpoints --------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Copy the WAL into the database as far as readers allow; no caller waits for it."""
        if self.options.read_only:
            return
        try:
            self._grow_number()
            budget = FileBudget(_CHECKPOINT_BUDGET)
            self._no_checkpoint.clear()
            with self.exclusive_auxiliary("checkpoint", budget) as connection:
                if not self.may_checkpoint(connection, budget):
                    return
                # A connection that was opened while the file was read-only stays read-only.
                is_readonly = connection.raw.readonly("main")
                is_shared = self._main.turnstile.has_met_others
                if not is_readonly:
                    self.checkpointer.run(connection, budget.deadline, is_shared=is_shared)
                    self.witness.refresh_after_copy(connection)
                is_pieced, is_held = self.checkpointer.is_pieced, self.checkpointer.is_held_back
                is_to_finish = is_pieced or self.checkpointer.is_worth_finishing
            # This thread must not hold the auxiliary lease while it waits for the writer: reads
            # would have no connection.
            if is_readonly:
                budget = FileBudget(_FINISH_BUDGET)
                with self._main.exclusive(budget, "checkpoint") as main:
                    self.checkpointer.run(main, budget.deadline)
                    self.witness.refresh_after_copy(main)
            elif is_to_finish:
                if not is_held:
                    self._grow_number(even_copied=is_pieced)
                self._finish_checkpoint(is_shared=is_shared)
        except DatabaseError as error:
            # Readers have the connection, it cannot be opened, or the file is closing: the next
            # commit requests the WAL checkpoint again.
            if not isinstance(error, DatabaseBusyError | DatabaseMovedError | PoolClosedError):
                self.checkpointer.failure = error.result_code or 0
            self.checkpointer.postpone()
        except BaseException:
            self.checkpointer.postpone()
            raise
        finally:
            self._no_checkpoint.set()
            self._cut_later(_CUT_PAUSE)

    def _grow_number(self, *, even_copied: bool = False) -> None:
        """Raise the number of the mark before more of the WAL is copied.

        If a long transaction prevents that, the WAL is copied nevertheless.
        """
        mark = self._main.connection.wal_mark
        if mark is None or self.refusal.reason is not None:
            return
        budget = FileBudget(_FINISH_BUDGET)
        with (
            contextlib.suppress(DatabaseError, PoolClosedError),
            self._main.exclusive(budget, "checkpoint") as connection,
        ):
            mark.grow(budget, self._main.turnstile, even_copied=even_copied)
            self.checkpointer.written = connection.pages_written()

    def _cut_later(self, seconds: float) -> None:
        """Schedule another check of a long WAL: its reader may end without a later write."""
        if self.state is FileState.OPEN and self._has_long_wal():
            self._maintenance.call_later(("cut", self), seconds, partial(self._cut, seconds))

    def _cut(self, paused: float) -> None:
        if self.state is not FileState.OPEN or not self._has_long_wal():
            return
        try:
            if self._copying_at_rest(self.checkpointer.copy):
                # The reader has ended, and the frames that it held back were copied in two pieces.
                self._grow_number(even_copied=True)
                self._copying_at_rest(self.checkpointer.cut)
        except DatabaseError:
            # A reader of this process has the connection, or the file is closing.
            pass
        self._cut_later(min(2 * paused, _LONGEST_CUT_PAUSE))

    def _copying_at_rest(self, step: Callable[[Connection], bool]) -> bool:
        """Run one step of truncating the WAL, if the file may be written and no read is running."""
        budget = FileBudget(_CUT_BUDGET)
        with self.exclusive_auxiliary("checkpoint", budget) as connection:
            if not self.may_checkpoint(connection, budget) or connection.raw.readonly("main"):
                return False
            is_done = step(connection)
            self.witness.refresh(connection)
            return is_done

    def _has_long_wal(self) -> bool:
        try:
            size = os.stat(wal_of(self.path)).st_size
        except OSError:
            return False
        return size > self.options.wal_limit_bytes

    def _finish_checkpoint(self, *, is_shared: bool) -> None:
        """Copy the frames that were written during a WAL checkpoint, while no process writes.

        These frames would keep SQLite from restarting the WAL.
        """
        with self._main.alone(FileBudget(_FINISH_BUDGET), "checkpoint"):
            pause = FileBudget(_FINISH_PAUSE)
            with self._auxiliary_connection(pause).exclusive(pause, "checkpoint") as connection:
                self.checkpointer.run(
                    connection, pause.deadline, finishes=True, is_shared=is_shared
                )
                self.witness.refresh_after_copy(connection)

    def may_checkpoint(self, connection: Connection, budget: Budget) -> bool:
        """Return whether the WAL may be copied: the file is the opened one, and not damaged.

        Only a WAL checkpoint writes into the file itself; commits go to the WAL.

        Args:
            connection: an open connection to the file; the caller must hold its lease.
            budget: the time it may take.
        """
        condition = self.witness.examine(connection, self._inspect, budget)
        if condition is not FileCondition.OURS:
            self.retire_as(condition)
        return condition is FileCondition.OURS and self.refusal.damage is None

    def require_writable(self) -> None:
        """Raise the typed error if the file is known to take no writes."""
        self.refusal.require_writable()

    # -- attachment and claim ----------------------------------------------------------------

    @property
    def attachment(self) -> Attachment | None:
        """The object of the layers above that lives with the file; None until it is made."""
        return self._attached.attachment

    def attach(self, make: Callable[[DatabaseFile], C]) -> C:
        """Return the file's attachment; make it if there is none.

        Args:
            make: called once in the life of the open file; it must take no lease.

        Raises:
            PoolClosedError: there is none, and the file is closed or closing.
            DatabaseMovedError: there is none, and the file takes no more work.
        """
        attachment = self._attached.attach(lambda: make(self), self._require_usable)
        self._make_attachment = make
        return attachment

    def succeed(self, parked: DatabaseFile) -> None:
        """Take over from a parked file: make an attachment of the same kind.

        Writes into the file meanwhile are no damage if another process of this library has had it
        open, which has raised the number of the mark.
        """
        rested, mark = parked.witness.at_rest, parked._main.connection.wal_mark
        if rested is not None and mark is not None and rested != self.witness.seen:
            is_explained = mark.last is not None and mark.last != self._number()
            self.witness.wake(rested, is_explained=is_explained)
        if parked._make_attachment is not None:
            self.attach(parked._make_attachment)

    def _number(self) -> int | None:
        """Return the number of the mark; None if there is none, or it cannot be read."""
        budget = FileBudget(self.options.busy_timeout)
        with (
            contextlib.suppress(apsw.Error, DatabaseError),
            self._main.exclusive(budget, "open") as connection,
        ):
            mark = read_mark(connection.execute)
            return None if mark is None else mark.number
        return None

    def claim(self) -> str:
        """Return the id of this process's claim on the file; the first call makes the claim.

        It may make a file, so a thread calls it before it takes a lease.

        Raises:
            PoolClosedError: the file is closed.
            ReadOnlyDatabaseError: the file was opened to be read only.
            DatabaseError: the owner's file cannot be made.
        """
        if self.options.read_only:
            self.refusal.require_writable()
        # Also while the file closes, because a present transaction may need the claim.
        id = self._attached.claimed(self._require_open)
        for leased in self.leased_connections():
            leased.connection.owner = id
        return id

    def release_claim(self) -> None:
        """Let the claim end with the file: no turn of this process is still streaming in it.

        Otherwise the claim stays until the process ends, so that no process recovers these turns.
        """
        self._attached.is_claim_over = True

    def _note_commit(self) -> None:
        """Count towards the next WAL checkpoint; an error is logged: the COMMIT has succeeded."""
        try:
            self.checkpointer.note(self._main.connection.pages_written())
        except Exception:  # noqa: BLE001  # as the docstring says
            get_logger(__name__).exception("checkpoint_not_asked_for")
        if self.refusal.obstacle is not None:
            self.refusal.note_success()
        self._attached.committed()
