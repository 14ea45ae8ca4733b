"""A queue of processes in front of SQLite's write lock, which has none.

A process that commits and begins again at once takes that lock before the waiting processes poll it
again. So a process that meets BUSY goes through a turnstile: a lock on a private file next to the
database, whose waiters the kernel serves in order. The process holds it until its transaction has
ended, and keeps the hold for further transactions that follow at once, up to a limit. A process
that writes without a pause checks now and then whether another one holds the turnstile::

    process A   BEGIN ─ work ─ COMMIT ─ checks: taken ─ waits ...................... holds it
    process B   BUSY ─ holds it ─ BUSY .......... BEGIN ─ work ─ COMMIT ─ …, releases it
    process C   BUSY ─ waits .......................................... holds it ─ BEGIN ─ work

It gives a fair order and nothing else. A process without the lock still writes safely. Its file
also has a note: the status in which a process has last seen the database with sound pages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import threading
import time
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Final

from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.files.flock import try_lock, unlock, wait_for_lock
from mandrake_sessions.database.files.lock_wait import LockWait, WaitingConnection
from mandrake_sessions.database.files.wal_index import WalIndex
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.database.sidecars import sidecar
from mandrake_sessions.errors import ThreadStartError

FileStatus = tuple[int, int, int, int, int]
"""The status of a file: device, inode, size, and the times of its last write and change."""

HOLD: Final = 0.007
"""Seconds for which a process may write without a pause before it checks for waiting processes."""

PATIENCE: Final = 0.25
"""Seconds after which a process passes a turnstile that stands still: its holder may be stopped."""

_UNUSED: Final = 0.0005
"""Seconds without a transaction after which a hold ends.

A process that begins later than this after its last transaction keeps no hold: a thread has to end
the hold, and in a process that computes, that thread may have to wait for the interpreter.
"""

_CHECK_FILE: Final = 0.01
_CHECK_CALL: Final = 0.01
_RETRY_FAILED: Final = 5.0
_IDLE: Final = 1.0
_ATTEMPTS: Final = 5
_COUNTER_BYTES: Final = 8
_NOTE: Final = struct.Struct("=QQqqq")
"""A status of the database, behind the counter."""
_FLAGS: Final = (
    os.O_RDWR
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)

# A writer without the turnstile polls the lock at its own times, and the lock must be free at some
# of them. Without this gap such a writer got the lock a third as often.
_GAP: Final = 0.0001
# Such a writer that begins again at once leaves some ten microseconds between two transactions, and
# polls with pauses hardly ever meet them. So after these seconds of polls the kernel waits
# (``lock_wait``), and for some seconds this process leaves no gap and lets the kernel wait at once.
_POLL_FOR: Final = 0.003
_NO_GAP_FOR: Final = 10.0
_SIGN_OF_LIFE: Final = PATIENCE / 4


# Threads whose file is closed but that still wait for a process, which may be stopped. A file that
# is opened and closed repeatedly must not leave one each time.
_left_behind: dict[Path, threading.Thread] = {}


def turnstile_path(database: Path) -> Path:
    """Return the path of the turnstile's file."""
    return sidecar(database, "-turnstile")


class Turnstile:
    """The turnstile of one open file; only the holder of its writer's lease goes through.

    A wait for a lock of the kernel has no deadline, so a thread waits for the lock and the call
    waits for the thread. The thread starts when another process is met, and ends when it was idle
    or the file is closed. The turnstile's file is also made only then, and removed at closing.

    Args:
        database: the real path.
        index: the index of its WAL; the write lock is in it.

    Attributes:
        checks_at: when the next check for waiting processes is due (``time.monotonic``).
        is_entered: whether a transaction has entered it, and has not left.
        is_held: whether this process holds the turnstile.
        failure: why there is no turnstile, None if it works.
        stalls: how often it did not move, and was passed.
    """

    def __init__(self, database: Path, index: WalIndex) -> None:
        self._database = database
        self.checks_at: float = 0.0
        self.is_entered: bool = False
        self.is_held: bool = False
        self.failure: OSError | None = None
        self.stalls: int = 0
        self._retry_at = 0.0
        self._since = 0.0
        self._left_at = self._hold_ends = 0.0
        self._gap_from = 0.0
        self._has_waited = self._is_through = False
        self._counts_at = 0.0
        self._lock_wait = LockWait(database, index)
        # Whether it began soon after the last one.
        self._is_following = False
        self._descriptor: int | None = None
        self._thread: threading.Thread | None = None
        # The thread waits for the lock, or is about to; then no other thread asks for it.
        self._is_asking = False
        # The hold continues without an open transaction; the thread ends it if none follows.
        self._is_hold_kept = False
        self._is_stalled = False
        self._is_closed = False
        self._taker: threading.Lock | None = None
        # Entered directly: a signal handler that raises while a Condition is entered leaves it
        # locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)

    @cached_property
    def path(self) -> Path:
        """The path of its file; cached and late, because most short uses never need it."""
        return turnstile_path(self._database)

    @property
    def has_met_others(self) -> bool:
        """Whether this process has met another writer since the file was opened."""
        return self._descriptor is not None or self.failure is not None

    # -- the note for other processes -------------------------------------------------------

    def note_sound(self, status: FileStatus) -> None:
        """Show the processes at this turnstile a status in which the database's pages are sound."""
        with self._mutex:
            if self._descriptor is not None:
                try:
                    os.pwrite(self._descriptor, _NOTE.pack(*status), _COUNTER_BYTES)
                except OSError as error:
                    pass_on_timeout(error)

    def is_noted_sound(self, status: FileStatus) -> bool:
        """Return whether the noted status is this one; one that is half written is another."""
        with self._mutex:
            try:
                file, at = self._descriptor, _COUNTER_BYTES
                return file is not None and os.pread(file, _NOTE.size, at) == _NOTE.pack(*status)
            except OSError as error:
                pass_on_timeout(error)
                return False

    # -- the holder of the lease ------------------------------------------------------------

    def give_way(self, connection: WaitingConnection) -> None:
        """Let waiting processes go first, unless this one still has its hold."""
        now = monotonic()
        if self.is_held and self._continue_hold(now):
            return
        if self._descriptor is None and (now < self._retry_at or not os.access(self.path, os.F_OK)):
            self.checks_at = now + _CHECK_FILE
        else:
            self.enter(connection)

    def enter(self, connection: WaitingConnection) -> bool:
        """Take the turnstile; wait as long as it moves, up to the connection's deadline.

        Returns:
            Whether it is held; if not, the caller writes without it.
        """
        self._is_following = monotonic() - self._left_at < _UNUSED
        self.is_entered = True
        taker = self._ask(connection)
        if taker is not None:
            self._has_waited = True
            connection.busy_waits += 1
            self._wait(taker, connection)
            if self.is_held and monotonic() >= self._gap_from:
                time.sleep(_GAP)
        self._since = monotonic()
        self._hold_ends = self.checks_at = self._since + HOLD
        self._is_through = self.is_held
        return self.is_held

    def _continue_hold(self, now: float) -> bool:
        """Begin another transaction in the present hold; False if the thread has ended it."""
        with self._mutex:
            if not self.is_held:
                return False
            self.is_entered = self._is_through = self._is_following = True
        self._since = now
        return True

    def pause(self, connection: WaitingConnection) -> bool:
        """Wait until the write lock should be polled again; False once the deadline is over."""
        now = monotonic()
        if now >= connection.deadline:
            return False
        self._has_waited = self._has_waited or self._is_through
        if now - self._since >= _POLL_FOR or now < self._gap_from:
            self._gap_from = now + _NO_GAP_FOR
            if self._lock_wait.wait(connection, self._show_life):
                return True
        self._show_life()
        return pause(connection.deadline, pace(self._since))

    def _show_life(self) -> None:
        """Show the processes that wait behind this one that it is not stopped."""
        now = monotonic()
        if self.is_held and now >= self._counts_at:
            self._counts_at = now + _SIGN_OF_LIFE
            try:
                self._count()
            except OSError as error:
                pass_on_timeout(error)

    def leave(self) -> None:
        """End the transaction, and let the next process in if the hold is over."""
        if not self.is_entered:
            # A transaction without the turnstile counts too, for whether the next follows at once.
            if self.has_met_others:
                self._left_at = monotonic()
            return
        with self._mutex:
            self._is_through = False
            self._left_at = now = monotonic()
            # Another transaction of this length must fit into the hold.
            fits = now + (now - self._since) < self._hold_ends
            if not (self.is_held and self._is_following and fits and self._keep_hold()):
                self._end_hold()
            # Last: a thread that a signal has interrupted leaves again.
            self.is_entered = False

    def _keep_hold(self) -> bool:
        """Keep the hold for the next transaction; False if no thread can end it without one."""
        if not self._is_hold_kept and not self._is_closed:
            self._is_hold_kept = True
            self._start_or_wake()
        return self._thread is not None and not self._is_closed

    def _end_hold(self) -> None:
        self._is_hold_kept = False
        # A signal handler may have raised before the wait for the thread began.
        self._taker = None
        was_held = self.is_held
        # Unlocked even if not held: a signal may have come between the lock and its attribute. The
        # thread that asks for the lock releases it itself.
        if self._descriptor is not None and (was_held or not self._is_asking):
            with contextlib.suppress(OSError):
                if self._has_waited:
                    self._count()
            with contextlib.suppress(OSError):
                unlock(self._descriptor)
        # After the release: a signal in between must not leave other processes waiting.
        self.is_held = self._has_waited = False
        if was_held and self._is_closed:
            self._drop()

    def _ask(self, connection: WaitingConnection) -> threading.Lock | None:
        """Take the turnstile at once, or let the thread ask for it.

        Returns:
            A lock that is released when the thread has the turnstile; None if there is no wait.
        """
        with self._mutex:
            if self._is_closed or self.is_held or (self._is_asking and self._is_stalled):
                return None
            # If the thread still asks for a call that gave up, this call takes over its place.
            if not self._is_asking:
                self.is_held = self._take_now()
                if self.is_held or self.failure is not None:
                    return None
            if monotonic() >= connection.deadline:
                return None
            if not self._is_asking and self._was_left_behind():
                return None
            self._is_asking = True
            # Also if the thread was asked already: a signal may have come before it started.
            self._start_or_wake()
            if not self._is_asking:
                return None
            self._taker = threading.Lock()
            self._taker.acquire()
            return self._taker

    def _wait(self, taker: threading.Lock, connection: WaitingConnection) -> None:
        """Wait until the thread has the turnstile, the call must end, or nothing moves."""
        is_stalled = False
        try:
            passes, since = self._passes(), monotonic()
            while not is_stalled:
                left = connection.deadline - monotonic()
                # Read each time: a shutdown and ``give_up`` change them.
                if connection.is_cancelled or left <= 0:
                    break
                if taker.acquire(timeout=min(left, _CHECK_CALL)):
                    break
                if monotonic() - since >= PATIENCE:
                    last, passes, since = passes, self._passes(), monotonic()
                    is_stalled = passes == last
        finally:
            # Also if a signal handler raises.
            with self._mutex:
                if self._taker is taker:
                    self._taker = None
                    self._is_stalled = is_stalled
                    self.stalls += is_stalled

    # -- the thread that waits --------------------------------------------------------------

    def _was_left_behind(self) -> bool:
        """Return whether a thread still waits since the file was closed; a second would too."""
        thread = _left_behind.get(self.path)
        if thread is None:
            return False
        if not thread.is_alive():
            _left_behind.pop(self.path, None)
        return thread.is_alive()

    def _start_or_wake(self) -> None:
        if self._thread is not None:
            self._changed.notify()
            return
        thread = threading.Thread(target=self._run, name="mandrake-turnstile", daemon=True)
        self._thread = thread
        try:
            start(thread)
        except BaseException as error:
            # After Ctrl-C the thread may run or not; it counts once it has begun.
            if thread.ident is None:
                self._thread = None
                self._is_asking = self._is_hold_kept = False
            if not isinstance(error, ThreadStartError):
                raise
            self._fail(OSError(errno.EAGAIN, str(error)))

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                if self._thread is not me:
                    return
                if not self._is_wanted():
                    self._thread = None
                    return
                descriptor = self._descriptor
            error: OSError | None = None
            try:
                if descriptor is not None:
                    wait_for_lock(descriptor)
            except OSError as refused:
                error = refused
            self._answer(error)

    def _is_wanted(self) -> bool:
        """Wait until a call asks for the lock, and end holds meanwhile; False if none asks."""
        while not self._is_asking:
            if self._is_hold_kept:
                # A hold past its time ends with the transaction, by the transaction's own thread.
                is_over = self.is_entered and monotonic() >= self._hold_ends
                self._changed.wait(_IDLE if is_over else _UNUSED)
                if not self.is_entered and monotonic() - self._left_at >= _UNUSED:
                    self._end_hold()
            elif self._is_closed or not self._changed.wait(_IDLE):
                return self._is_asking
        return True

    def _answer(self, error: OSError | None) -> None:
        """Pass the lock to the call that waits; if none does, let the next process in."""
        with self._mutex:
            if error is not None:
                self._fail(error)
            elif self._is_gone() and not self._is_closed:
                # The process that closed last removed the file, and later ones use another file.
                self._drop()
                self._open()
                if self._descriptor is not None:
                    return
            self._is_asking = self._is_stalled = False
            taker, self._taker = self._taker, None
            if taker is not None:
                self.is_held = self._descriptor is not None and not self._is_closed
                taker.release()
            if self._is_closed:
                self._remove_and_drop()
            elif self._descriptor is not None and not self.is_held:
                with contextlib.suppress(OSError):
                    unlock(self._descriptor)

    # -- the file ---------------------------------------------------------------------------

    def _take_now(self) -> bool:
        """Take the lock if it is free; False if a process has it or there is a ``failure``."""
        for _ in range(_ATTEMPTS):
            if self._descriptor is None and monotonic() >= self._retry_at:
                self._open()
            if self._descriptor is None:
                return False
            try:
                if not try_lock(self._descriptor):
                    return False
            except OSError as error:
                pass_on_timeout(error)
                self._fail(error)
                return False
            if not self._is_gone():
                return True
            self._drop()
        return False

    def _open(self) -> None:
        """Open the file; make it if it does not exist."""
        try:
            if sys.platform == "win32":
                raise OSError(errno.ENOTSUP, "no locks with a queue", str(self.path))
            descriptor = os.open(self.path, _FLAGS | os.O_CREAT, 0o600)
            if not self._is_trusted(os.fstat(descriptor)):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "not a file of this database", str(self.path))
        except OSError as error:
            pass_on_timeout(error)
            self._fail(error)
        else:
            self._descriptor, self.failure = descriptor, None

    def _is_trusted(self, found: os.stat_result) -> bool:
        """Return whether a file is a turnstile, not a file that another user has put there.

        The other user could hold it without end, and a write would change a second name's file.
        """
        if sys.platform == "win32" or not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return False
        if found.st_uid in (0, os.geteuid()):
            return True
        with contextlib.suppress(OSError):
            return os.stat(self._database).st_uid == found.st_uid
        return False

    def _is_gone(self) -> bool:
        """Return whether the open file was removed, so that other processes use another one."""
        try:
            return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0
        except OSError:
            return False

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self._retry_at = monotonic() + _RETRY_FAILED
        self._drop()

    def _passes(self) -> bytes:
        """Return the counter, which changes whenever a process that waited has gone through."""
        try:
            return b"" if (file := self._descriptor) is None else os.pread(file, _COUNTER_BYTES, 0)
        except OSError as error:
            pass_on_timeout(error)
            return b""

    def _count(self) -> None:
        """Raise the counter, which shows waiting processes that the turnstile moves."""
        number = (int.from_bytes(self._passes(), "little") + 1) % (1 << 8 * _COUNTER_BYTES)
        if self._descriptor is not None:
            os.pwrite(self._descriptor, number.to_bytes(_COUNTER_BYTES, "little"), 0)

    def _drop(self) -> None:
        """Close the file, and release the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                # Explicitly: a child that was just forked may still have the descriptor open.
                unlock(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Release the turnstile; remove the file unless a process is at it.

        A thread that waits for another process ends as soon as that one releases the lock.
        """
        with self._mutex:
            if not self.is_entered:
                self._end_hold()
            self._is_closed = True
            # A transaction that is still open ends its hold itself.
            self._is_hold_kept = False
            thread = None if self._is_asking else self._thread
            if self._is_asking and self._thread is not None:
                _left_behind[self.path] = self._thread
            self._changed.notify()
            if not self._is_asking and not self.is_held:
                self._remove_and_drop()
        if thread is not None:
            thread.join()
        self._lock_wait.close()

    def _remove_and_drop(self) -> None:
        """Remove the file under its lock: a process that locks it later sees that it is gone."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None and try_lock(self._descriptor):
                found = os.lstat(self.path)
                if os.path.samestat(found, os.fstat(self._descriptor)):
                    self.path.unlink()
        self._drop()

    def forget_after_fork(self) -> None:
        """Close the parent's file in a child; that does not release the parent's lock."""
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._is_closed = True
        self._lock_wait.forget_after_fork()
        self._thread = self._taker = None
        self.is_held = self.is_entered = self._is_asking = self._is_hold_kept = False
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
