"""Hands out handles on one connection per database file, and closes it after the last handle.

The pool decides about a slot under its lock; ``open_files`` opens and closes files outside it.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.callers import caller_outside
from mandrake_sessions.concurrency.fork import after_fork, close_inherited, close_later, keep_alive
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.inherited import part_from_parent
from mandrake_sessions.concurrency.reentry import do_elsewhere, is_unforeseen, refuse_unforeseen
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.database.files.atomic import tidy
from mandrake_sessions.database.files.paths import Identity, identify, real_path, unlinked_path
from mandrake_sessions.database.files.wal_index import WalIndex
from mandrake_sessions.database.open_file.closing import OnStuck
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.stats import database_stats
from mandrake_sessions.database.pool.file_handle import FileHandle
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.late_parts import importing
from mandrake_sessions.database.pool.open_files import OpenFiles
from mandrake_sessions.database.pool.slots import Slot, SlotState, begin_closing
from mandrake_sessions.database.retry import FileBudget, pace, pause
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.health import HealthLevel, HealthReport, level_of
from mandrake_sessions.engine.stats import PoolStats
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseMovedError,
    OptionsConflictError,
    PoolClosedError,
)
from mandrake_sessions.options import DatabaseOptions, PoolOptions

_FORGOTTEN = "count forgotten handles"
_TIDY_SHARE = 100


class ConnectionPool(Resource):
    """Maps database files to their one read-write connection, and counts its handles.

    Args:
        options: how long files stay open, and how databases are opened by default.
    """

    _only_reads = False

    def __init__(self, options: PoolOptions | None = None) -> None:
        super().__init__()
        arguments.optional_instance("options", options, PoolOptions)
        self.options: PoolOptions = options or PoolOptions()
        self._reading: _ReadingPool | None = None
        self._reset()
        _living.add(self)

    def _reset(self) -> None:
        self._files = OpenFiles(self.options, _unusable_in_child)
        self._mutex = self._files.mutex
        self._slots = self._files.slots
        # Handles that were collected without a release.
        self._forgotten: deque[tuple[Slot, Hashable]] = deque()
        self._waiting_for_end: weakref.WeakSet[Gate] = weakref.WeakSet()

    def _readers(self) -> _ReadingPool:
        """Return the pool of the files that are only read; the first call makes it."""
        with self._mutex:
            self._require_open(None)
            if self._reading is None:
                # Closing such a file ends no WAL, so it need not linger.
                self._reading = _ReadingPool(msgspec.structs.replace(self.options, linger=0.0))
            return self._reading

    # -- acquire and release ----------------------------------------------------------------

    def acquire(
        self,
        path: str | os.PathLike[str],
        *,
        options: DatabaseOptions | None = None,
        create: bool = True,
        follow_links: bool = True,
    ) -> DatabaseHandle:
        """Return a handle on the database at ``path``; open the file if it is not open.

        Args:
            path: the path of the database file; its folder is made if missing.
            options: how to open it; None for the pool's. If the file has a handle, None accepts its
                present options. A file that only lingers, with other options, is closed and opened
                with these.
            create: whether a missing file is made.
            follow_links: whether a symbolic link at ``path``, or on its way, is followed; if not,
                it is a ``DatabasePathError``.

        Returns:
            A handle on the open file; ``release()`` it, or use it as a context manager.

        Raises:
            PoolClosedError: the pool is closed.
            OptionsConflictError: another handle has it open with other options.
            DatabaseOpenError: the file cannot be opened; each reason has its own subclass.
            MigrationError: its schema cannot be brought to this version's.
            DatabaseBusyError: other processes held it until the deadline.
        """
        arguments.optional_instance("options", options, DatabaseOptions)
        arguments.flag("create", create)
        close_inherited()
        if (options or self.options.database).read_only and not self._only_reads:
            return self._readers().acquire(path, options=options, follow_links=follow_links)
        real = _named(path, follow_links=follow_links)
        refuse_unforeseen("acquire")
        place = caller_outside()
        budget = FileBudget((options or self.options.database).busy_timeout)
        self._reap_forgotten()
        if not self._only_reads:
            self._tidy(real)
        references: list[threading.Lock] = []
        try:
            return self._acquire(real, options, budget, place, references, create=create)
        except BaseException as error:
            # After a signal between its steps no thread may wait for this one.
            self._files.finish_interrupted(error)
            self._take_back(real, references)
            raise

    def _acquire(
        self,
        real: Path,
        options: DatabaseOptions | None,
        budget: Budget,
        place: str,
        references: list[threading.Lock],
        *,
        create: bool,
    ) -> DatabaseHandle:
        while True:
            self._close_other(real, options or self.options.database, budget)
            identity = identify(real)
            with self._mutex:
                self._require_open(real)
                slot = self._slots.get(real)
                if slot is None:
                    slot = self._slots[real] = Slot(real)
                    handle = self._handle(slot, place, references)
                    break
                state = slot.state
                is_same = slot.file is not None and slot.identity == identity
                if is_same and state is not SlotState.CLOSING:
                    self._require_same_options(slot, options)
                    handle = self._handle(slot, place, references)
                    if state is SlotState.OPEN:
                        return handle
            if is_same and state is not SlotState.CLOSING:
                if self._bring_back(slot, handle, budget):
                    return handle
            elif state in (SlotState.OPEN, SlotState.PARKED) and identify(real) == slot.identity:
                # The file was made, or made anew, since its identity was read.
                continue
            elif state is SlotState.PARKED:
                self._files.drop_moved(slot)
            else:
                if state is SlotState.OPEN and slot.file is not None:
                    slot.file.retire_moved()
                if not slot.changed.wait(budget.left()):
                    raise budget.exceeded("open", real, "acquire")
                if slot.error is not None:
                    raise copy.copy(slot.error)
            # Another thread has opened or closed it, or has failed: check again.
        self._files.open_slot(slot, options or self.options.database, create=create)
        return handle

    def _tidy(self, real: Path) -> None:
        """Remove the leftovers of killed processes next to a file.

        For an open file this takes at most a hundredth of the time, also in a large folder.
        """
        now = monotonic()
        slot = self._slots.get(real)
        if slot is not None and now < slot.tidy_at:
            return
        tidy(real)
        if slot is not None:
            then = monotonic()
            slot.tidy_at = then + _TIDY_SHARE * (then - now)

    def _bring_back(self, slot: Slot, handle: DatabaseHandle, budget: Budget) -> bool:
        """Open a parked file for another handle; False if it is not the file that was open."""
        try:
            self._files.reopen(slot, budget, "acquire", handle).unpin(handle)
        except DatabaseMovedError:
            handle.release()
            return False
        except BaseException:
            handle.release()
            raise
        return True

    def _handle(self, slot: Slot, place: str, references: list[threading.Lock]) -> FileHandle:
        """Return a new handle; the mutex must be held."""
        references.append(threading.Lock())
        return FileHandle(
            slot,
            self._give_back,
            self._note_forgotten,
            self._files.reopen,
            at=place,
            reference=references[-1],
        )

    def _take_back(self, real: Path, references: list[threading.Lock]) -> None:
        """Drop the references of handles that no caller got: a traceback may keep them for long."""
        slot = self._slots.get(real)
        if slot is None:
            return
        for reference in references:
            if reference in slot.references and reference.acquire(blocking=False):
                slot.references.discard(reference)
                self._note_forgotten(slot, reference)

    def _require_open(self, path: Path | None) -> None:
        if self._files.is_closed:
            raise PoolClosedError(path=path, operation="acquire")

    def _close_other(self, real: Path, options: DatabaseOptions, budget: Budget) -> None:
        """Close a file without a handle, if it is open with other options.

        The options of a file must not depend on the time since its last handle was released.
        """
        with self._mutex:
            slot = self._slots.get(real)
            if slot is None or slot.file is None or slot.file.options == options:
                return
            if self._files.is_closed or not slot.is_idle:
                return
            begin_closing([slot])
        self._files.close_and_log([slot], min(self.options.close_timeout, budget.left()))

    def _require_same_options(self, slot: Slot, options: DatabaseOptions | None) -> None:
        if options is not None and slot.file is not None and options != slot.file.options:
            present = slot.file.options
            differing = ", ".join(
                name
                for name in options.__struct_fields__
                if getattr(options, name) != getattr(present, name)
            )
            raise OptionsConflictError(
                f"The database is open with other options than those asked for: {differing}.",
                path=slot.path,
                operation="acquire",
            )

    def _give_back(self, slot: Slot, reference: Hashable) -> None:
        """Count one handle less; raise for the handle's own file, log errors of other files."""
        try:
            closing = self._files.note_released(slot, reference)
            self._files.close_and_log(each for each in closing if each is not slot)
            self._files.close(each for each in closing if each is slot)
        except BaseException as error:
            self._files.finish_interrupted(error)
            raise

    def _note_forgotten(self, slot: Slot, reference: Hashable) -> None:
        """Count a collected handle less, later: a finalizer must not take a lock."""
        self._forgotten.append((slot, reference))
        self._files.maintenance.call_for_finalizer(_FORGOTTEN, self._reap_forgotten)

    def _reap_forgotten(self) -> None:
        while True:
            try:
                slot, reference = self._forgotten.popleft()
            except IndexError:
                # Another thread may have taken the last one.
                return
            # The present caller did not use these files, so their errors are only logged.
            self._files.close_and_log(self._files.note_released(slot, reference))

    def remove(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        follow_links: bool = True,
        even_damaged: bool = False,
    ) -> None:
        """Remove a database's files; a missing file is no error.

        Closes the file if it lingers in this process, and waits for handles to be released and for
        other processes to close it. A thread that acquires it meanwhile waits, and then finds it
        missing.

        Args:
            path: the path of the database file.
            timeout: seconds; None for the ``busy_timeout`` of the pool's ``database``.
            follow_links: as for ``acquire``.
            even_damaged: for a name that is known to be a database's: whether a file that is no
                longer a database is removed too, and the sidecars of a missing one.

        Raises:
            DatabaseBusyError: it was in use until the deadline; nothing was removed.
            UnrecognizedDatabaseError: it is another program's; nothing was removed.
        """
        real = _named(path, follow_links=follow_links)
        arguments.flag("even_damaged", even_damaged)
        seconds = self.options.database.busy_timeout if timeout is None else timeout
        budget = FileBudget(arguments.seconds("timeout", seconds))
        with importing(real):
            from mandrake_sessions.database.offline.removal import remove

        close_inherited()
        with self._reserved(real, budget, "delete"):
            remove(real, budget, even_damaged=even_damaged)

    def restore(
        self,
        backup: str | os.PathLike[str],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
        follow_links: bool = True,
    ) -> Path:
        """Replace a database with a backup, completely or not at all.

        The backup is copied and the copy checked first. It may be of an older version, which is
        migrated at its opening. A thread that acquires the database meanwhile waits.

        Args:
            backup: the file to restore; it stays unchanged.
            path: the path of the database; its folders are made if they are missing.
            overwrite: whether an existing file is replaced. A damaged one is kept as
                ``<name>.damaged-…``, with its WAL.
            timeout: seconds to wait for handles to be released, and then for other processes to
                close it; None for the ``busy_timeout`` of the pool's ``database``.
            follow_links: as for ``acquire``, for ``path``.

        Returns:
            The real path of the database.

        Raises:
            DatabaseMissingError: there is no backup.
            RestoreError: the file exists, or the backup is damaged or in use.
            NotADatabaseError: the backup is not a SQLite database.
            UnrecognizedDatabaseError: it is another program's.
            SchemaTooNewError: it was written by a newer version.
            DatabaseBusyError: the database was in use until the deadline.
        """
        backup = arguments.path("backup", backup)
        arguments.flag("overwrite", overwrite)
        seconds = self.options.database.busy_timeout if timeout is None else timeout
        seconds = arguments.seconds("timeout", seconds)
        real = _named(path, follow_links=follow_links)
        with importing(real):
            from mandrake_sessions.database.offline.restore import require_backup, restore

        close_inherited()
        source = require_backup(backup, real)
        with self._reserved(real, FileBudget(seconds), "restore"):
            restore(source, real, seconds, overwrite=overwrite)
        return real

    @block
    def _reserved(self, real: Path, budget: Budget, operation: str) -> Iterator[None]:
        """Block every acquire of a file for a block of code, after all its handles are released."""
        try:
            self._reserve(real, budget, operation)
            yield
        finally:
            try:
                self._files.finish_interrupted()
            finally:
                # signal-safe release: the slot must not stay reserved.
                self._files.finish_interrupted()

    def _reserve(self, real: Path, budget: Budget, operation: str) -> None:
        while True:
            self._reap_forgotten()
            with self._mutex:
                self._require_open(real)
                slot = self._slots.get(real)
                if slot is None:
                    self._slots[real] = Slot(real)
                    return
                was_idle = slot.is_idle
                handles = slot.refs
                if was_idle:
                    begin_closing([slot])
            if was_idle:
                self._files.close([slot], budget.left())
            elif not pause(budget.deadline, pace(budget.started)):
                busy = budget.exceeded("queue", real, operation)
                busy.args = (f"Handles of this process that are not released: {handles}.",)
                raise busy

    # -- figures and checks -----------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return figures of the pool and of each open database."""
        files = self._files
        with self._mutex:
            slots = [slot for slot in self._slots.values() if slot.file is not None]
            is_parked = [slot.state is SlotState.PARKED for slot in slots]
            figures = {
                "opened": files.opened,
                "closed": files.closed,
                "handles": sum(slot.refs for slot in slots),
                "idle": sum(slot.is_idle for slot in slots),
                "parked": sum(is_parked),
                "parkings": files.parkings,
                "reopenings": files.reopenings,
            }
        databases = tuple(
            database_stats(slot.file)
            for slot, parked in zip(slots, is_parked, strict=True)
            if slot.file is not None and not parked
        )
        if self._reading is not None:
            reading = self._reading.stats()
            databases += reading.databases
            figures = {name: count + getattr(reading, name) for name, count in figures.items()}
        return PoolStats(databases=databases, **figures)

    def health(
        self, level: HealthLevel = HealthLevel.QUICK, timeout: float | None = None
    ) -> tuple[HealthReport, ...]:
        """Check every open database without changing it; parked ones stay closed.

        Args:
            level: the checks to run.
            timeout: seconds that the long checks of each may take; None for ten minutes.

        Returns:
            One report for each database; none for one that closes meanwhile.

        Raises:
            PoolClosedError: the pool is closed.
        """
        seconds = None if timeout is None else arguments.seconds("timeout", timeout)
        found = level_of(level)
        reports = []
        for file in self._open_files():
            with importing(file.path):
                from mandrake_sessions.database.health.levels import check_health

            with contextlib.suppress(PoolClosedError):
                reports.append(check_health(file, found, seconds))
        return tuple(reports)

    def _open_files(self) -> list[DatabaseFile]:
        """Return the files that are open at the moment.

        Raises:
            PoolClosedError: the pool is closed.
        """
        if self._files.is_closed:
            raise PoolClosedError(operation="health")
        with self._mutex:
            slots = [slot for slot in self._slots.values() if slot.state is SlotState.OPEN]
        files = [slot.file for slot in slots if slot.file is not None]
        return files if self._reading is None else files + self._reading._open_files()

    def _wake_when_closed(self, event: Gate) -> None:
        """Set an event when the pool closes; the pool does not keep the event alive."""
        self._waiting_for_end.add(event)
        if self._files.is_closed:
            event.set()

    # -- closing ----------------------------------------------------------------------------

    def refuse_new_work(self) -> None:
        """Refuse every further acquire and lease; present work continues.

        It takes no lock that another thread can hold, so a signal handler may call it.
        """
        self._files.is_closed = True
        for slot in tuple(self._slots.values()):
            if slot.file is not None:
                slot.file.is_refusing = True
        if self._reading is not None:
            self._reading.refuse_new_work()

    def close(self, timeout: float | None = None, *, on_stuck: OnStuck = None) -> None:
        """Close every file: wait for present work, and interrupt work that does not end.

        It may be called again; a closed pool stays closed.

        Args:
            timeout: seconds in all; None for the pool's ``close_timeout``. Present work gets half
                of it to end by itself.
            on_stuck: called with the thread that still holds a lease when it is interrupted.

        Raises:
            ExceptionGroup: the errors of files; all other files are closed nevertheless.
        """
        seconds = self.options.close_timeout if timeout is None else timeout
        deadline = monotonic() + arguments.seconds("timeout", seconds)
        if is_unforeseen():
            self.refuse_new_work()
            do_elsewhere(partial(self.close, timeout))
            return
        try:
            self._close(deadline, on_stuck)
        finally:
            # After a signal between its steps the maintenance thread closes the remaining files.
            self._files.finish_interrupted()

    def _close(self, deadline: float, on_stuck: OnStuck) -> None:
        with self._mutex:
            self._files.open_no_more()
            slots = list(self._slots.values())
        for event in tuple(self._waiting_for_end):
            event.set()
        # Another thread is opening or closing such a slot, so this one waits for it.
        failures: list[Exception] = [
            DatabaseBusyError(phase="open", path=slot.path, operation="close")
            for slot in slots
            if slot.state in (SlotState.OPENING, SlotState.CLOSING)
            and not slot.changed.wait(max(0.0, deadline - monotonic()))
        ]
        if self._reading is not None:
            try:
                self._reading.close(max(0.0, deadline - monotonic()), on_stuck=on_stuck)
            except ExceptionGroup as group:
                failures.extend(group.exceptions)
        with self._mutex:
            mine = [slot for slot in slots if slot.state is SlotState.OPEN]
            begin_closing(mine)
        self._files.forget_parked()
        for slot in mine:
            if slot.file is not None:
                slot.file.refuse_new_work()
        for slot in mine:
            try:
                self._files.close([slot], max(0.0, deadline - monotonic()), on_stuck)
            except ExceptionGroup as group:
                failures.extend(group.exceptions)
        self._files.maintenance.stop(max(0.0, deadline - monotonic()))
        if failures:
            raise ExceptionGroup("closing the pool failed", failures)

    @property
    def is_closed(self) -> bool:
        """Whether the pool takes no more work."""
        return self._files.is_closed

    def _on_left(self) -> None:
        self.close()

    # -- fork -------------------------------------------------------------------------------

    def _drop_after_fork(self) -> None:
        """Begin anew in a child; a file that was in use at the fork cannot be opened in it."""
        indexes: list[WalIndex] = []
        for slot in self._slots.values():
            if slot.state is SlotState.PARKED:
                # The parent has no connection to it.
                continue
            keep_alive(slot)
            if slot.file is not None:
                indexes.append(slot.file.witness.index)
            if slot.file is not None and slot.file.drop_after_fork():
                close_later(partial(_close_inherited, slot))
            elif slot.identity is not None:
                _unusable_in_child.add(slot.identity)
        self._slots.clear()
        keep_alive(self._files.maintenance)
        descriptors = [index.descriptor_after_fork() for index in indexes]
        part_from_parent(each for each in descriptors if each is not None)
        self._reset()


def _close_inherited(slot: Slot) -> None:
    assert slot.file is not None
    if not slot.file.close_inherited() and slot.identity is not None:
        _unusable_in_child.add(slot.identity)


class _ReadingPool(ConnectionPool):
    """The files of a pool that are only read: each has connections of its own.

    A manager that writes and one that only reads may have the same file open in one process. The
    writing one makes, migrates and recovers; the reading one must not.
    """

    _only_reads = True


def _named(path: str | os.PathLike[str], *, follow_links: bool) -> Path:
    """Return the one spelling of a path, which is the key of its slot."""
    return real_path(path) if arguments.flag("follow_links", follow_links) else unlinked_path(path)


# The files that the parent was using at the fork: SQLite's state of them stays the parent's.
_unusable_in_child: set[Identity] = set()
_living: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
_default_mutex = threading.Lock()
_default: ConnectionPool | None = None


def default_pool() -> ConnectionPool:
    """Return the default pool of the process; a new one replaces a closed one."""
    global _default  # noqa: PLW0603  # the one process-wide instance is the point
    with _default_mutex:
        if _default is None or _default.is_closed:
            _default = ConnectionPool()
        return _default


def _in_child() -> None:
    global _default_mutex  # noqa: PLW0603  # another thread of the parent may have held it
    _default_mutex = threading.Lock()
    for pool in tuple(_living):
        pool._drop_after_fork()


def _at_exit() -> None:
    failures: list[Exception] = []
    for pool in tuple(_living):
        try:
            pool.close()
        except ExceptionGroup as group:
            failures.extend(group.exceptions)
    if failures:
        raise ExceptionGroup("closing the pools at exit failed", failures)


after_fork(_in_child)
atexit.register(_at_exit)
