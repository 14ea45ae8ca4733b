"""Hands out one connection per database file, whoever asks, and closes it after the last one.

What happens to a slot is decided under the pool's lock; the opening and closing happen outside it.
"""

from __future__ import annotations

import atexit
import copy
import os
import threading
import weakref
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Self

from mandrake_sessions import arguments
from mandrake_sessions.database.closing import OnStuck
from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.guard import after_fork, bury, caller_outside
from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.database.maintenance import Maintenance
from mandrake_sessions.database.paths import Identity, identify, make_file, real_path
from mandrake_sessions.database.removal import remove
from mandrake_sessions.database.slots import (
    Slot,
    SlotState,
    begin_closing,
    lingered_enough,
    too_many_idle,
)
from mandrake_sessions.database.stats import PoolStats, database_stats
from mandrake_sessions.database.waiting import Budget, pause
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseMissingError,
    DatabasePathError,
    ForkedPoolError,
    MandrakeSessionsError,
    OptionsConflictError,
    PoolClosedError,
)
from mandrake_sessions.options import DatabaseOptions, PoolOptions

_IDLE = "close idle files"
_FORGOTTEN = "count forgotten handles"


class ConnectionPool:
    """Maps database files to their one read-write connection, and counts who uses it.

    Args:
        options: how long files stay open, and how databases are opened by default.
    """

    def __init__(self, options: PoolOptions | None = None) -> None:
        arguments.optional_instance("options", options, PoolOptions)
        self.options = options or PoolOptions()
        self._reset()
        _living.add(self)

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._slots: dict[Path, Slot] = {}
        # Handles that were collected without a release.
        self._forgotten: deque[Slot] = deque()
        self._maintenance = Maintenance("mandrake-pool")
        self._is_closed = False
        self._opened = 0
        self._closed = 0

    # -- acquire and release ----------------------------------------------------------------

    def acquire(
        self,
        path: str | os.PathLike[str],
        *,
        options: DatabaseOptions | None = None,
        create: bool = True,
    ) -> DatabaseHandle:
        """Return a handle on the database at ``path``, opening it if nobody has it open.

        Args:
            path: of the database file; its folder is made if missing.
            options: how to open it; None for the pool's. If it is open, they must be the same.
            create: whether a file that is not there is made.

        Returns:
            One claim on the open file; ``release()`` it, or use it as a context manager.

        Raises:
            PoolClosedError: the pool is closed.
            DatabaseOpenError: the file cannot be opened; each reason has its own subclass.
            MigrationError: its schema cannot be brought to this version's.
            DatabaseBusyError: other processes held it until the deadline.
        """
        arguments.optional_instance("options", options, DatabaseOptions)
        arguments.flag("create", create)
        real = real_path(path)
        place = caller_outside()
        budget = Budget((options or self.options.database).busy_timeout)
        self._reap_forgotten()
        while True:
            identity = identify(real)
            with self._mutex:
                self._require_open(real)
                slot = self._slots.get(real)
                if slot is None:
                    slot = self._slots[real] = Slot(real)
                    break
                stale = None
                if slot.state is SlotState.OPEN and slot.file is not None:
                    if slot.identity == identity:
                        self._require_same_options(slot.file, options)
                        slot.refs += 1
                        return self._handle(slot, slot.file, place)
                    stale = slot.file
            if stale is not None:
                if identify(real) == stale.identity:
                    # The look was older than the file: it was made, or made anew, meanwhile.
                    continue
                stale.retire_moved()
            if not slot.changed.wait(budget.left()):
                raise budget.exceeded("open", real, "acquire")
            if slot.error is not None:
                raise copy.copy(slot.error)
            # Otherwise it was opened, closed or given up: look again.
        return self._open(slot, options or self.options.database, create, place)

    def _open(
        self, slot: Slot, options: DatabaseOptions, create: bool, place: str
    ) -> DatabaseHandle:
        """Open the file of a new slot; everybody else who wants it waits for ``changed``."""
        try:
            identity = make_file(slot.path) if create else identify(slot.path)
            # An empty file is no database yet, and must not become one where none may be made.
            if identity is None or (not create and slot.path.stat().st_size == 0):
                raise DatabaseMissingError(path=slot.path, operation="open")
            with self._mutex:
                self._claim(slot, identity)
            self._maintenance.start()
            file = DatabaseFile.open(
                slot.path, identity, options, self._maintenance, lambda: self._retire(slot)
            )
            slot.file = file
        except BaseException as error:
            with self._mutex:
                self._slots.pop(slot.path, None)
                if isinstance(error, MandrakeSessionsError):
                    slot.error = error
            slot.changed.set()
            raise
        with self._mutex:
            self._opened += 1
            is_late = self._is_closed
            if is_late:
                begin_closing([slot])
            else:
                slot.refs = 1
                slot.state = SlotState.OPEN
        if is_late:
            # The pool was closed meanwhile, and has perhaps not waited for this file.
            self._close_slots([slot])
            raise PoolClosedError(path=slot.path, operation="acquire")
        slot.changed.set()
        return self._handle(slot, file, place)

    def _handle(self, slot: Slot, file: DatabaseFile, place: str) -> DatabaseHandle:
        return DatabaseHandle(
            file, lambda: self._give_back(slot), lambda: self._note_forgotten(slot), place
        )

    def _claim(self, slot: Slot, identity: Identity) -> None:
        """Make sure that no other name of the same file is open: each would have its own WAL."""
        if identity in _unusable_in_child:
            raise ForkedPoolError(
                "The parent was using this file when it forked; this process cannot open it.",
                path=slot.path,
                operation="open",
            )
        for other in self._slots.values():
            if other is not slot and other.identity == identity:
                raise DatabasePathError(
                    f"The file is open under another name, {other.path}.", path=slot.path
                )
        slot.identity = identity

    def _require_open(self, path: Path) -> None:
        if self._is_closed:
            raise PoolClosedError(path=path, operation="acquire")

    def _require_same_options(self, file: DatabaseFile, options: DatabaseOptions | None) -> None:
        if options is not None and options != file.options:
            raise OptionsConflictError(path=file.path, operation="acquire")

    def _give_back(self, slot: Slot) -> None:
        """Count one handle less."""
        with self._mutex:
            slot.refs -= 1
            if self._is_closed:
                # close() closes it, and knows how to interrupt who is in the way.
                return
            closing = self._choose_to_close(slot)
        self._close_slots(closing)

    def _choose_to_close(self, slot: Slot) -> list[Slot]:
        """Decide, under the lock, which files to close now that ``slot`` has one handle less."""
        if slot.refs or slot.state is not SlotState.OPEN:
            return []
        slot.idle_since = monotonic()
        self._maintenance.call_later(_IDLE, self.options.linger, self._close_idle)
        closing = too_many_idle(self._slots.values(), self.options)
        begin_closing(closing)
        return closing

    def _close_idle(self) -> None:
        """Close what has lingered long enough, and come back for the rest."""
        self._reap_forgotten()
        with self._mutex:
            if self._is_closed:
                return
            due, seconds = lingered_enough(self._slots.values(), self.options)
            begin_closing(due)
        if seconds is not None:
            self._maintenance.call_later(_IDLE, seconds, self._close_idle)
        self._close_slots(due)

    def _close_slots(
        self, slots: list[Slot], timeout: float | None = None, on_stuck: OnStuck = None
    ) -> None:
        """Close files that nobody else can reach any more.

        Raises:
            ExceptionGroup: some did not close.
        """
        failures: list[Exception] = []
        for slot in slots:
            try:
                if slot.file is not None:
                    slot.file.close(
                        self.options.close_timeout if timeout is None else timeout, on_stuck
                    )
            except (MandrakeSessionsError, ExceptionGroup) as error:
                failures.append(error)
            finally:
                with self._mutex:
                    if self._slots.get(slot.path) is slot:
                        del self._slots[slot.path]
                    self._closed += 1
                slot.changed.set()
        if failures:
            raise ExceptionGroup("closing databases failed", failures)

    def _retire(self, slot: Slot) -> None:
        """Close a file that must not be used any more; the next acquire waits, and opens anew.

        Not here: this thread may hold the file's lease.
        """
        with self._mutex:
            if slot.state is SlotState.OPEN and not self._is_closed:
                begin_closing([slot])
                self._maintenance.call_later(slot, 0.0, lambda: self._close_slots([slot]))

    def _note_forgotten(self, slot: Slot) -> None:
        """Count a handle that was collected later: a finalizer must not take a lock."""
        self._forgotten.append(slot)
        self._maintenance.call_later(_FORGOTTEN, 0.0, self._reap_forgotten)

    def _reap_forgotten(self) -> None:
        while self._forgotten:
            self._give_back(self._forgotten.popleft())

    def remove(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> None:
        """Remove a database's files; a file that is not there is no error.

        Closes what this process keeps open without a handle, and waits for handles to be released
        and for other processes to close it. Who acquires it meanwhile waits, and then finds it
        gone.

        Args:
            path: of the database file.
            timeout: seconds; None for the ``busy_timeout``.

        Raises:
            DatabaseBusyError: it was in use until the deadline; nothing was removed.
        """
        real = real_path(path)
        seconds = self.options.database.busy_timeout if timeout is None else timeout
        budget = Budget(arguments.seconds("timeout", seconds))
        slot = self._reserve(real, budget)
        try:
            identity = identify(real)
            if identity is not None:
                remove(real, identity, budget)
        finally:
            with self._mutex:
                del self._slots[real]
            slot.changed.set()

    def _reserve(self, real: Path, budget: Budget) -> Slot:
        """Put a slot in the way of every acquire, once nobody has the file open."""
        while True:
            self._reap_forgotten()
            with self._mutex:
                self._require_open(real)
                slot = self._slots.get(real)
                if slot is None:
                    slot = self._slots[real] = Slot(real)
                    return slot
                was_idle = slot.is_idle
                if was_idle:
                    begin_closing([slot])
            if was_idle:
                self._close_slots([slot], budget.left())
            elif not pause(budget.deadline):
                raise budget.exceeded("queue", real, "delete")

    # -- looking at it ----------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return figures of the pool and of each open database."""
        with self._mutex:
            slots = [slot for slot in self._slots.values() if slot.file is not None]
            opened, closed = self._opened, self._closed
            handles = sum(slot.refs for slot in slots)
            idle = sum(1 for slot in slots if slot.is_idle)
        return PoolStats(
            opened=opened,
            closed=closed,
            handles=handles,
            idle=idle,
            databases=tuple(database_stats(slot.file) for slot in slots if slot.file is not None),
        )

    # -- closing ----------------------------------------------------------------------------

    def refuse_new_work(self) -> None:
        """Refuse every acquire and every new lease from now on; takes no lock that can be held.

        It may be called in a signal handler: what is under way goes on.
        """
        self._is_closed = True
        for slot in tuple(self._slots.values()):
            if slot.file is not None:
                slot.file.is_refusing = True

    def close(self, timeout: float | None = None, *, on_stuck: OnStuck = None) -> None:
        """Close every file: wait for work under way, interrupt what does not end.

        It may be called again; a closed pool stays closed.

        Args:
            timeout: seconds in all; None for the pool's ``close_timeout``. Work under way gets
                half of it to end by itself.
            on_stuck: told the thread that still holds a lease when it is interrupted.

        Raises:
            ExceptionGroup: what failed; everything else is closed all the same.
        """
        seconds = self.options.close_timeout if timeout is None else timeout
        deadline = monotonic() + arguments.seconds("timeout", seconds)
        with self._mutex:
            self._is_closed = True
            slots = list(self._slots.values())
        # One that is opening or closing this moment is somebody else's until it is done.
        failures: list[Exception] = [
            DatabaseBusyError(phase="open", path=slot.path, operation="close")
            for slot in slots
            if slot.state is not SlotState.OPEN
            and not slot.changed.wait(max(0.0, deadline - monotonic()))
        ]
        with self._mutex:
            mine = [slot for slot in slots if slot.state is SlotState.OPEN]
            begin_closing(mine)
        for slot in mine:
            if slot.file is not None:
                slot.file.refuse_new_work()
        for slot in mine:
            try:
                self._close_slots([slot], max(0.0, deadline - monotonic()), on_stuck)
            except ExceptionGroup as group:
                failures.extend(group.exceptions)
        self._maintenance.stop(max(0.0, deadline - monotonic()))
        if failures:
            raise ExceptionGroup("closing the pool failed", failures)

    @property
    def is_closed(self) -> bool:
        """Whether the pool takes no more work."""
        return self._is_closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- fork -------------------------------------------------------------------------------

    def _drop_after_fork(self) -> None:
        """Begin anew in a child; a file that was in use at the fork cannot be opened in it."""
        for slot in self._slots.values():
            bury(slot)
            was_dropped = slot.file is not None and slot.file.drop_after_fork()
            if not was_dropped and slot.identity is not None:
                _unusable_in_child.add(slot.identity)
        bury(self._maintenance)
        self._reset()


# What a parent was using at the fork: SQLite's own state of it is the parent's, for ever.
_unusable_in_child: set[Identity] = set()
_living: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
_default_mutex = threading.Lock()
_default: ConnectionPool | None = None


def default_pool() -> ConnectionPool:
    """Return the process's own pool; a closed one is replaced by a new one."""
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
