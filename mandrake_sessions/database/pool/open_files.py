"""Opens, parks and closes the files of a pool's slots, independently of handles.

Decisions about a slot are made under the mutex; files are opened and closed outside it.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from pathlib import Path
from threading import get_ident
from time import monotonic
from typing import Final, TypeVar

from mandrake_sessions.database.error_codes import lacks_descriptors, translate_os
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import Identity, identify, leads_elsewhere
from mandrake_sessions.database.maintenance import Maintenance
from mandrake_sessions.database.migrations.installing import image
from mandrake_sessions.database.open_file.closing import OnStuck
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.pool.parking import most_open
from mandrake_sessions.database.pool.slots import (
    Slot,
    Slots,
    SlotState,
    begin_closing,
    lingered_enough,
    next_to_close,
    too_many_idle,
)
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.database.sidecars import require_room
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseMissingError,
    DatabaseMovedError,
    DatabaseNamesError,
    ForkedPoolError,
    HandleReleasedError,
    MandrakeSessionsError,
    PoolClosedError,
)
from mandrake_sessions.log import get_logger
from mandrake_sessions.options import DatabaseOptions, PoolOptions

T = TypeVar("T")

_IDLE: Final = "close idle files"
_TOO_MANY: Final = "park files"

_NEXT_CHECK: Final = 0.2
"""Seconds until the next check while too many files are open and all are busy."""


class OpenFiles:
    """The slots of a pool, and the operations on their files.

    Args:
        options: the options of the pool.
        unusable: identities of files that this process, a forked child, must not open.

    Attributes:
        mutex: held for decisions about slots, never while a file is used.
        slots: by real path.
        maintenance: the pool's background thread.
        is_closed: whether further openings are refused.
        opened: files opened in all, also again.
        closed: files closed in all, also parked ones.
        parkings: files parked in all.
        reopenings: files opened again in all.
    """

    def __init__(self, options: PoolOptions, unusable: set[Identity]) -> None:
        self.mutex: threading.Lock = threading.Lock()
        self.slots: Slots = Slots()
        self.maintenance: Maintenance = Maintenance("mandrake-pool")
        self.is_closed: bool = False
        self.opened: int = 0
        self.closed: int = 0
        self.parkings: int = 0
        self.reopenings: int = 0
        self._options = options
        self._unusable = unusable
        _living.add(self)

    # -- opening ----------------------------------------------------------------------------

    def open_no_more(self) -> None:
        """Refuse every further opening, and leave the pools that openings check for other names.

        A closed pool lives until the garbage collector finds it.
        """
        self.is_closed = True
        _living.discard(self)

    def open_slot(self, slot: Slot, options: DatabaseOptions, *, create: bool) -> None:
        """Open the file of a new slot; every other thread that wants it waits for ``changed``.

        Raises:
            DatabaseOpenError: the file cannot be opened, and the slot is gone.
            PoolClosedError: the pool was closed meanwhile.
        """
        try:
            slot.file = self._with_room(
                slot.path, lambda: self._open_new(slot, options, create=create)
            )
        except BaseException as error:
            self._note_failure(slot, error, SlotState.GONE)
            raise
        self._note_open(slot, "acquire")

    def _open_new(self, slot: Slot, options: DatabaseOptions, *, create: bool) -> DatabaseFile:
        require_room(slot.path)
        makes = create and not options.read_only
        # A VFS of the host may store other bytes, so the file begins empty.
        content = None if options.vfs else partial(image, slot.path)
        identity = make_file(slot.path, content) if makes else identify(slot.path)
        # An empty file is no database yet, and must not become one without ``create``.
        if identity is None or (not makes and slot.path.stat().st_size == 0):
            raise DatabaseMissingError(path=slot.path, operation="open")
        self._claim(slot, identity)
        return DatabaseFile.open(
            slot.path, identity, options, self.maintenance, lambda: self.retire(slot)
        )

    def reopen(self, slot: Slot, budget: Budget, operation: str, key: object) -> DatabaseFile:
        """Return the open file of a slot, pinned; if it is parked, open it again.

        One thread opens it, the others wait, and get its error if it fails.

        Args:
            slot: of a handle that the caller has.
            budget: the budget of the call.
            operation: for errors.
            key: the key of the pin.

        Raises:
            DatabaseMovedError: the present file is not the one that was open.
            DatabaseOpenError: it cannot be opened now; the next call tries again.
            DatabaseBusyError: the budget was used up.
            PoolClosedError: the pool is closed.
        """
        try:
            return self._reopen(slot, budget, operation, key)
        except BaseException as error:
            self.finish_interrupted(error)
            raise

    def _reopen(self, slot: Slot, budget: Budget, operation: str, key: object) -> DatabaseFile:
        while True:
            with self.mutex:
                if self.is_closed:
                    raise PoolClosedError(path=slot.path, operation=operation)
                if slot.state is SlotState.OPEN and slot.file is not None:
                    slot.file.pin(key)
                    return slot.file
                if slot.state is SlotState.GONE:
                    kind = DatabaseMovedError if slot.refs else HandleReleasedError
                    raise kind(path=slot.path, operation=operation)
                if slot.state is SlotState.PARKED:
                    slot.worker, slot.error = get_ident(), None
                    slot.changed.clear()
                    self.slots.wake(slot)
                    slot.state = SlotState.OPENING
                    break
            if not slot.changed.wait(budget.left()):
                raise budget.exceeded("open", slot.path, operation)
            # A DatabaseBusyError belongs to the other thread's budget, so this one tries again.
            if slot.error is not None and not isinstance(slot.error, DatabaseBusyError):
                raise copy.copy(slot.error)
        try:
            file = self._with_room(slot.path, lambda: self._open_parked(slot, budget))
        except DatabaseMovedError as error:
            self._note_failure(slot, error, SlotState.GONE)
            raise
        file.pin(key)
        with self.mutex:
            self.reopenings += 1
        self._note_open(slot, operation)
        return file

    def _open_parked(self, slot: Slot, budget: Budget) -> DatabaseFile:
        """Open a file again, if it is still the one that was open.

        A system soon reuses the inode of a deleted file, so the stamp is compared too.
        """
        parked = slot.file
        assert parked is not None
        try:
            identity = identify(slot.path)
            if identity is None or identity != slot.identity or slot.path.stat().st_size == 0:
                raise DatabaseMovedError(path=slot.path, operation="open")
            self._claim(slot, identity)
            # Assigned at once: a signal must not leave an open file that no slot has.
            slot.file = DatabaseFile.open(
                slot.path,
                identity,
                parked.options,
                self.maintenance,
                lambda: self.retire(slot),
                stamp=parked.stamp,
                budget=budget,
            )
        except (DatabaseMissingError, FileNotFoundError) as error:
            raise DatabaseMovedError(path=slot.path, operation="open") from error
        slot.file.succeed(parked)
        return slot.file

    def finish_interrupted(self, error: BaseException | None = None) -> None:
        """Finish the steps that a signal has interrupted in this thread: others wait for them.

        Args:
            error: the error that this thread raises, for the threads that wait.
        """
        me = get_ident()
        for slot in tuple(self.slots.values()):
            if slot.worker != me:
                continue
            if slot.state is SlotState.OPENING:
                self._finish_opening(slot, error)
            elif slot.state is SlotState.CLOSING:
                self._finish_later(slot)

    def _finish_opening(self, slot: Slot, error: BaseException | None) -> None:
        if slot.file is None:
            self._note_failure(slot, error, SlotState.GONE)
        elif slot.file.is_parked:
            self._note_failure(slot, error, SlotState.PARKED)
        else:
            # It is open; the reference of a handle that no caller got is dropped elsewhere.
            with contextlib.suppress(PoolClosedError, ExceptionGroup):
                self._note_open(slot, "open")

    def _with_room(self, path: Path, attempt: Callable[[], T]) -> T:
        """Make room and open a file; try once more if descriptors run out nevertheless."""
        self.make_room()
        try:
            try:
                return attempt()
            except (DatabaseError, OSError):
                if not lacks_descriptors() or not self._close_one_more():
                    raise
            return attempt()
        except OSError as error:
            raise translate_os(error, path) from error

    def _claim(self, slot: Slot, identity: Identity) -> None:
        """Check that no other name of the same file is open: each would have its own WAL."""
        if identity in self._unusable:
            raise ForkedPoolError(
                "The parent was using this file when it forked; this process cannot open it.",
                path=slot.path,
                operation="open",
            )
        while (other := self._other_name(slot, identity)) is not None:
            if not _is_there(other):
                self.drop_moved(other)
            elif not leads_elsewhere(other.path, identity) or not self._is_closed_after_its_move(
                other
            ):
                raise DatabaseNamesError(
                    f"The file is open under another name, {other.path}.",
                    kind="hard link",
                    others=(other.path,),
                    path=slot.path,
                )

    def _is_closed_after_its_move(self, other: Slot) -> bool:
        """Retire a file that has lost its name, and wait until it is closed."""
        if other.file is not None:
            other.file.retire_moved()
        since = monotonic()
        while other.state is not SlotState.GONE:
            if not pause(since + self._options.close_timeout, pace(since)):
                return False
        return True

    def _other_name(self, slot: Slot, identity: Identity) -> Slot | None:
        with self.mutex:
            other = self.slots.of(identity)
            if other is not None and other is not slot:
                return other
            self.slots.identify(slot, identity)
        # After the identity is set: of two pools at the same time at least one sees the other.
        for files in tuple(_living):
            other = None if files is self or files.is_closed else files.slots.of(identity)
            if other is not None and other.path != slot.path and _is_there(other):
                return other
        return None

    def _note_failure(self, slot: Slot, error: BaseException | None, state: SlotState) -> None:
        with self.mutex:
            try:
                slot.error = error if isinstance(error, MandrakeSessionsError) else None
                if not slot.refs or state is SlotState.GONE:
                    self.slots.forget(slot)
                else:
                    slot.state = state
                    self.slots.rest(slot)
                # Under the mutex: later another thread could be opening it again, and a thread that
                # waits for that would poll without a pause.
                slot.changed.set()
            finally:
                # signal-safe release, here and below: no thread may be left waiting.
                slot.changed.set()

    def _note_open(self, slot: Slot, operation: str) -> None:
        with self.mutex:
            self.opened += 1
            is_late = self.is_closed
            if is_late:
                begin_closing([slot])
            else:
                try:
                    slot.state = SlotState.OPEN
                    self._note_idle(slot)
                    slot.changed.set()
                finally:
                    slot.changed.set()
        if is_late:
            # The pool was closed meanwhile, and may not have waited for this file.
            self.close([slot])
            raise PoolClosedError(path=slot.path, operation=operation)

    # -- parking ----------------------------------------------------------------------------

    def make_room(self) -> None:
        """Close quiet files until the limit of open files is kept.

        Busy files stay open, and are checked again later.
        """
        if not self._close_down_to(most_open(self._options)):
            self.maintenance.call_later(_TOO_MANY, _NEXT_CHECK, self.make_room)

    def _close_one_more(self) -> bool:
        """Close one file even below the limit; return whether there was one."""
        with self.mutex:
            count = len(self.slots.counted())
        return self._close_down_to(count - 1)

    def _close_down_to(self, most: int) -> bool:
        """Close idle and quiet files; return whether at most ``most`` files are open."""
        tried: set[Slot] = set()
        while True:
            with self.mutex:
                counted = self.slots.counted()
                if self.is_closed or len(counted) <= most:
                    return True
                slot = next_to_close(counted, tried)
                if slot is None:
                    return False
                was_idle = slot.is_idle
                begin_closing([slot], parks=not was_idle)
            tried.add(slot)
            if was_idle:
                self.close_and_log([slot])
            else:
                self._park(slot)

    def _park(self, slot: Slot) -> None:
        """Close a file whose handles will open it again; if it is not quiet it stays open."""
        file = slot.file
        assert file is not None
        try:
            file.park(self._options.close_timeout)
        except (MandrakeSessionsError, ExceptionGroup) as error:
            _log_failure(slot, error)
        with self.mutex:
            try:
                # Not by the result of park(), which may have raised.
                if file.is_parked:
                    self.parkings += 1
                    self.closed += 1
                    slot.state = SlotState.PARKED
                    self.slots.rest(slot)
                    if not slot.refs:
                        self.slots.forget(slot)
                else:
                    slot.state = SlotState.OPEN
                    self._note_idle(slot)
                slot.changed.set()
            finally:
                slot.changed.set()
        if file.state is FileState.RETIRED:
            self.retire(slot)

    def drop_moved(self, slot: Slot) -> None:
        """Remove a parked slot whose file is gone; its handles raise DatabaseMovedError."""
        with self.mutex:
            if slot.state is SlotState.PARKED:
                self.slots.forget(slot)

    # -- closing ----------------------------------------------------------------------------

    def note_released(self, slot: Slot, reference: Hashable) -> list[Slot]:
        """Count one handle less; mark and return the files to close now."""
        with self.mutex:
            slot.references.discard(reference)
            # The close() of a closed pool closes it, and can interrupt threads that use it.
            if slot.refs or self.is_closed:
                return []
            if slot.state is SlotState.PARKED:
                self.slots.forget(slot)
                return []
            if slot.state is not SlotState.OPEN:
                return []
            slot.idle_since = monotonic()
            closing = too_many_idle(self.slots.awake(), self._options)
            begin_closing(closing)
            # After the marks, so that no task is scheduled for a file that is closed at once.
            self._note_idle(slot)
            return closing

    def _note_idle(self, slot: Slot) -> None:
        """Schedule the closing of an open file without a handle. The mutex must be held."""
        if slot.is_idle:
            slot.idle_since = monotonic()
            self.maintenance.call_later(_IDLE, self._options.linger, self._close_idle)

    def _close_idle(self) -> None:
        """Close the files that have lingered long enough, and schedule the next closing."""
        with self.mutex:
            if self.is_closed:
                return
            due, seconds = lingered_enough(self.slots.awake(), self._options)
            begin_closing(due)
        if seconds is not None:
            self.maintenance.call_later(_IDLE, seconds, self._close_idle)
        self.close_and_log(due)

    def retire(self, slot: Slot) -> None:
        """Let the maintenance thread close a retired file; the next acquire waits, and opens anew.

        This thread may hold the file's lease, so it cannot close the file itself.
        """
        with self.mutex:
            if slot.state is SlotState.OPEN and not self.is_closed:
                self._finish_later(slot)
                begin_closing([slot])

    def _finish_later(self, slot: Slot) -> None:
        """Let the maintenance thread close a slot that this thread has marked."""
        self.maintenance.call_later(slot, 0.0, lambda: self._finish_closing(slot))

    def _finish_closing(self, slot: Slot) -> None:
        with self.mutex:
            if slot.state is not SlotState.CLOSING:
                return
            slot.worker = get_ident()
        if slot.is_parking:
            self._park(slot)
        else:
            self.close_and_log([slot])

    def close(
        self, slots: Iterable[Slot], timeout: float | None = None, on_stuck: OnStuck = None
    ) -> None:
        """Close files that no other thread can reach any more.

        Raises:
            ExceptionGroup: the errors of files that did not close.
        """
        seconds = self._options.close_timeout if timeout is None else timeout
        failures: list[Exception] = []
        for slot in slots:
            try:
                if slot.file is not None:
                    slot.file.close(seconds, on_stuck)
            except (MandrakeSessionsError, ExceptionGroup) as error:
                failures.append(error)
            # Skipped if a signal handler has raised: the maintenance thread closes the file then.
            with self.mutex:
                try:
                    self.slots.forget(slot)
                    self.closed += 1
                    slot.changed.set()
                finally:
                    slot.changed.set()
        if failures:
            raise ExceptionGroup("closing databases failed", failures)

    def close_and_log(self, slots: Iterable[Slot], timeout: float | None = None) -> None:
        """Close files, and log their errors, which do not concern the present caller."""
        for slot in slots:
            try:
                self.close([slot], timeout)
            except ExceptionGroup as group:
                _log_failure(slot, group.exceptions[0])

    def forget_parked(self) -> None:
        """Remove the slots of all parked files, which are closed already."""
        with self.mutex:
            for slot in tuple(self.slots.values()):
                if slot.state is SlotState.PARKED:
                    self.slots.forget(slot)


def _is_there(slot: Slot) -> bool:
    """Return whether a slot's file exists; the inode of a parked one may be another file's now."""
    return slot.state is not SlotState.PARKED or identify(slot.path) == slot.identity


# Of all pools, because SQLite finds a WAL by its name, in every pool.
_living: weakref.WeakSet[OpenFiles] = weakref.WeakSet()


def _log_failure(slot: Slot, error: Exception) -> None:
    get_logger(__name__).error(
        "database_not_closed", path=str(slot.path), error=type(error).__name__, detail=str(error)
    )
