"""Hands out one connection per database file, whoever asks, and closes it after the last one.

A slot is a file's place in the pool. What happens to slots is decided under the pool's lock; the
opening and closing happen outside it::

    OPENING ──► OPEN ──► CLOSING ──► (gone)
       └──► (gone, with the error for everyone who waited)
"""

from __future__ import annotations

import atexit
import copy
import enum
import os
import threading
import weakref
from collections import deque
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from mandrake_sessions.database.connection import Identity, identify, make_file, real_path
from mandrake_sessions.database.file import DatabaseFile, FileState, OnStuck
from mandrake_sessions.database.guard import after_fork, bury, caller_outside
from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.database.maintenance import Maintenance
from mandrake_sessions.database.removal import remove
from mandrake_sessions.database.stats import PoolStats, database_stats
from mandrake_sessions.database.waiting import Budget, pause
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseMissingError,
    DatabasePathError,
    MandrakeSessionsError,
    OptionsConflictError,
    PoolClosedError,
)
from mandrake_sessions.options import DatabaseOptions, PoolOptions

_IDLE = "close idle files"


class _SlotState(enum.Enum):
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


class _Slot:
    """A file's place in the pool, from the first acquire to its closing."""

    __slots__ = ("changed", "error", "file", "identity", "idle_since", "path", "refs", "state")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: Identity | None = None
        self.state = _SlotState.OPENING
        self.file: DatabaseFile | None = None
        self.error: MandrakeSessionsError | None = None
        self.refs = 0
        self.idle_since = 0.0
        # Set when it is open, has failed to open, or is closed.
        self.changed = threading.Event()


class ConnectionPool:
    """Maps database files to their one read-write connection, and counts who uses it.

    Args:
        options: how long files stay open, and how databases are opened by default.
    """

    def __init__(self, options: PoolOptions | None = None) -> None:
        self.options = options or PoolOptions()
        self._reset()
        _living.add(self)

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._slots: dict[Path, _Slot] = {}
        # Files that are not what their path names any more, until their last handle is gone.
        self._retired: set[_Slot] = set()
        # Handles that were collected without a release; __del__ must not take a lock.
        self._forgotten: deque[_Slot] = deque()
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
        real = real_path(path)
        place = caller_outside()
        self._reap_forgotten()
        while True:
            identity = identify(real)
            with self._mutex:
                self._require_open(real)
                slot = self._slots.get(real)
                if slot is None:
                    slot = self._slots[real] = _Slot(real)
                    break
                if slot.state is _SlotState.OPEN and slot.file is not None:
                    if slot.identity == identity and slot.file.state is FileState.OPEN:
                        self._require_same_options(slot.file, options)
                        slot.refs += 1
                        return self._handle(slot, slot.file, place)
                    stale = slot.file
                else:
                    stale = None
            if stale is not None:
                stale.retire("another file has taken its place")
                continue
            slot.changed.wait()
            if slot.error is not None:
                raise copy.copy(slot.error)
            # Otherwise it was opened, closed or given up: look again.
        return self._open(slot, options or self.options.database, create, place)

    def _open(
        self, slot: _Slot, options: DatabaseOptions, create: bool, place: str
    ) -> DatabaseHandle:
        """Open the file of a new slot; everybody else who wants it waits for ``changed``."""
        try:
            identity = make_file(slot.path) if create else identify(slot.path)
            if identity is None:
                raise DatabaseMissingError(path=slot.path, operation="open")
            with self._mutex:
                self._claim(slot, identity)
            file = DatabaseFile.open(
                slot.path, identity, options, self._maintenance, self._forget_retired
            )
        except BaseException as error:
            with self._mutex:
                self._slots.pop(slot.path, None)
                if isinstance(error, MandrakeSessionsError):
                    slot.error = error
            slot.changed.set()
            raise
        with self._mutex:
            slot.file = file
            slot.refs = 1
            slot.state = _SlotState.OPEN
            self._opened += 1
        slot.changed.set()
        return self._handle(slot, file, place)

    def _handle(self, slot: _Slot, file: DatabaseFile, place: str) -> DatabaseHandle:
        return DatabaseHandle(
            file, lambda: self._give_back(slot), lambda: self._forgotten.append(slot), place
        )

    def _claim(self, slot: _Slot, identity: Identity) -> None:
        """Make sure that no other name of the same file is open: each would have its own WAL."""
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

    def _give_back(self, slot: _Slot) -> None:
        """Count one handle less."""
        with self._mutex:
            slot.refs -= 1
            closing = self._choose_to_close(slot)
        self._close_slots(closing)

    def _choose_to_close(self, slot: _Slot) -> list[_Slot]:
        """Decide, under the lock, which files to close now that ``slot`` has one handle less."""
        if slot.refs or slot.state is not _SlotState.OPEN:
            return []
        if slot in self._retired:
            self._retired.discard(slot)
            self._begin_closing([slot])
            return [slot]
        slot.idle_since = monotonic()
        idle = [each for each in self._slots.values() if self._is_idle(each)]
        if self.options.linger == 0:
            closing = idle
        else:
            idle.sort(key=lambda each: each.idle_since)
            closing = idle[: max(0, len(idle) - self.options.max_idle)]
            self._maintenance.call_later(_IDLE, self.options.linger, self._close_idle)
        self._begin_closing(closing)
        return closing

    @staticmethod
    def _begin_closing(slots: list[_Slot]) -> None:
        """Whoever wants one of these files from now on waits until it is closed."""
        for slot in slots:
            slot.state = _SlotState.CLOSING
            slot.changed.clear()

    @staticmethod
    def _is_idle(slot: _Slot) -> bool:
        return slot.state is _SlotState.OPEN and slot.refs == 0

    def _close_idle(self) -> None:
        """Close what has lingered long enough, and come back for the rest."""
        self._reap_forgotten()
        now = monotonic()
        with self._mutex:
            idle = [slot for slot in self._slots.values() if self._is_idle(slot)]
            due = [slot for slot in idle if slot.idle_since + self.options.linger <= now]
            self._begin_closing(due)
            later = [slot.idle_since for slot in idle if slot.state is _SlotState.OPEN]
        if later:
            self._maintenance.call_later(
                _IDLE, min(later) + self.options.linger - now, self._close_idle
            )
        self._close_slots(due)

    def _close_slots(
        self, slots: list[_Slot], timeout: float | None = None, on_stuck: OnStuck = None
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

    def _forget_retired(self, file: DatabaseFile) -> None:
        """Let the next acquire open anew; called by a file that retires."""
        closing = []
        with self._mutex:
            for slot in list(self._slots.values()):
                if slot.file is file:
                    del self._slots[slot.path]
                    self._retired.add(slot)
                    # Nobody waits for a retired slot to change.
                    slot.changed.set()
                    if self._is_idle(slot):
                        closing = self._choose_to_close(slot)
        self._close_slots(closing)

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
        budget = Budget(seconds)
        slot = self._reserve(real, budget)
        try:
            identity = identify(real)
            if identity is not None:
                remove(real, identity, budget)
        finally:
            with self._mutex:
                del self._slots[real]
            slot.changed.set()

    def _reserve(self, real: Path, budget: Budget) -> _Slot:
        """Put a slot in the way of every acquire, once nobody has the file open."""
        while True:
            self._reap_forgotten()
            with self._mutex:
                self._require_open(real)
                slot = self._slots.get(real)
                if slot is None:
                    slot = self._slots[real] = _Slot(real)
                    return slot
                idle = self._is_idle(slot)
                if idle:
                    self._begin_closing([slot])
            if idle:
                self._close_slots([slot])
            elif not pause(budget.deadline):
                raise budget.exceeded("queue", real, "delete")

    # -- looking at it ----------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return figures of the pool and of each open database."""
        with self._mutex:
            slots = [slot for slot in self._slots.values() if slot.file is not None]
            opened, closed = self._opened, self._closed
            handles = sum(slot.refs for slot in slots)
            idle = sum(1 for slot in slots if self._is_idle(slot))
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
        deadline = monotonic() + (self.options.close_timeout if timeout is None else timeout)
        with self._mutex:
            self._is_closed = True
            slots = [*self._slots.values(), *self._retired]
            self._retired.clear()
        # One that is opening or closing this moment is somebody else's until it is done.
        failures: list[Exception] = [
            DatabaseBusyError(phase="open", path=slot.path, operation="close")
            for slot in slots
            if slot.state is not _SlotState.OPEN
            and not slot.changed.wait(max(0.0, deadline - monotonic()))
        ]
        with self._mutex:
            mine = [slot for slot in slots if slot.state is _SlotState.OPEN]
            self._begin_closing(mine)
        for slot in mine:
            if slot.file is not None:
                slot.file.refuse_new_work()
        self._maintenance.stop()
        for slot in mine:
            try:
                self._close_slots([slot], max(0.0, deadline - monotonic()), on_stuck)
            except ExceptionGroup as group:
                failures.extend(group.exceptions)
        if failures:
            raise ExceptionGroup("closing the pool failed", failures)

    @property
    def is_closed(self) -> bool:
        """Whether the pool takes no more work."""
        return self._is_closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- fork -------------------------------------------------------------------------------

    def _drop_after_fork(self) -> None:
        """Begin anew in a child: the parent's files are kept alive and never touched."""
        for slot in (*self._slots.values(), *self._retired):
            bury(slot)
            if slot.file is not None:
                slot.file.drop_after_fork()
        bury(self._maintenance)
        self._reset()


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
    for pool in tuple(_living):
        pool.close()


after_fork(_in_child)
atexit.register(_at_exit)
