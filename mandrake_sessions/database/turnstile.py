"""Which process writes next: a queue in front of SQLite's write lock, which has none.

Who commits and begins again at once takes that lock before those who wait have looked. So who meets
BUSY goes through a turnstile: a lock on a private file beside the database, whose waiters the
kernel serves in order. It is held until the transaction has ended, if that begins soon, and as long
as others follow it at once, for the time of a turn. And a process that writes on and on looks now
and then whether somebody is there::

    process A   BEGIN ─ work ─ COMMIT ─ looks: taken ─ waits ....................... holds it
    process B   BUSY ─ holds it ─ BUSY .......... BEGIN ─ work ─ COMMIT ─ …, lets go
    process C   BUSY ─ waits .......................................... holds it ─ BEGIN ─ work

It makes processes take turns and nothing else: who cannot have it goes without, and is safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
import time
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from mandrake_sessions.database.faults import pass_on_timeout
from mandrake_sessions.database.lock_wait import LockWait
from mandrake_sessions.database.sidecars import beside
from mandrake_sessions.database.waiting import pace, pause
from mandrake_sessions.errors import ThreadStartError
from mandrake_sessions.threads import start

if TYPE_CHECKING:
    from mandrake_sessions.database.connection import Connection
    from mandrake_sessions.database.log_index import LogIndex

if sys.platform != "win32":
    import fcntl

TURN: Final = 0.007
"""Seconds a process may write on and on before it looks whether others wait."""

PATIENCE: Final = 0.25
"""Seconds after which a turnstile that does not move is passed by: its holder may be stopped."""

_UNUSED: Final = 0.0005
"""Seconds after which a turn ends in which nobody writes any more.

Who comes later after the last transaction than that keeps no turn: a thread has to end it, and in a
process that computes it may have to wait for the interpreter.
"""

_LOOK_FOR_FILE: Final = 0.01
_LOOK_AT_CALL: Final = 0.01
_RETRY_FAILED: Final = 5.0
_IDLE: Final = 1.0
_ATTEMPTS: Final = 5
_COUNTER_BYTES: Final = 8
_FLAGS: Final = (
    os.O_RDWR
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)

# Who knows nothing of the turnstile looks at the lock at moments of its own: in some of them it
# must be free. Without this gap such a writer got in a third as often.
_BREATH: Final = 0.0001
# If it begins again at once, it leaves some ten microseconds between two transactions: pauses
# hardly ever meet them. So after these looks the kernel waits (``lock_wait``), and for some seconds
# we leave no gap, and have the kernel wait at once.
_LOOKS: Final = 0.003
_BREATHLESS: Final = 10.0
_SIGN_OF_LIFE: Final = PATIENCE / 4


# Threads that wait for a process that is perhaps stopped, though their file is closed. A file that
# is opened and closed on and on must not leave one each time.
_left_behind: dict[Path, threading.Thread] = {}


def turnstile_path(database: Path) -> Path:
    """Return the name of the turnstile's file."""
    return beside(database, "-turnstile")


class Turnstile:
    """The turnstile of one open file; only the holder of its writer's lease goes through.

    Waiting for a lock of the kernel's has no deadline, so a thread waits in its place and the call
    waits for the thread. It starts when another process is met, and ends when it was idle or the
    file is closed. The turnstile's file, too, is made only then, and removed at closing.

    Args:
        database: the real path.
        index: of its log; the write lock is in it.

    Attributes:
        looks_at: from when on a process that need not wait looks (``time.monotonic``).
        is_entered: whether a transaction has entered it, and has not left.
        is_held: whether the turnstile is ours now.
        failure: why there is no turnstile, None while nothing is wrong with it.
        stalls: how often it did not move, and was passed by.
    """

    def __init__(self, database: Path, index: LogIndex) -> None:
        self._database = database
        self.looks_at = 0.0
        self.is_entered = False
        self.is_held = False
        self.failure: OSError | None = None
        self.stalls = 0
        self._retry_at = 0.0
        self._since = 0.0
        self._left_at = self._turn_ends = 0.0
        self._breathes_at = 0.0
        self._has_waited = self._is_through = False
        self._counts_at = 0.0
        self._lock_wait = LockWait(database, index)
        # Whether it began soon after the last one.
        self._is_following = False
        self._descriptor: int | None = None
        self._thread: threading.Thread | None = None
        # The thread waits for the lock, or is about to; then nobody else asks for it.
        self._is_asking = False
        # Our turn goes on though no transaction is open; the thread ends it if none follows.
        self._is_turn_kept = False
        self._is_stalled = False
        self._is_closed = False
        self._taker: threading.Lock | None = None
        # Taken by itself: a signal's handler that raises while a condition is entered keeps it.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)

    @cached_property
    def path(self) -> Path:
        """The name of its file; most files that are only opened and closed never need it."""
        return turnstile_path(self._database)

    @property
    def has_met_others(self) -> bool:
        """Whether other processes have written to the file since it was opened, as far as seen."""
        return self._descriptor is not None or self.failure is not None

    # -- the holder of the lease ------------------------------------------------------------

    def look(self, connection: Connection) -> None:
        """Let those go first who wait already, unless it is our turn still."""
        now = monotonic()
        if self.is_held and self._go_on(now):
            return
        if self._descriptor is None and (now < self._retry_at or not os.access(self.path, os.F_OK)):
            self.looks_at = now + _LOOK_FOR_FILE
        else:
            self.enter(connection)

    def enter(self, connection: Connection) -> bool:
        """Take the turnstile, waiting as long as it moves and the connection's deadline allows.

        Returns:
            Whether it is held; otherwise go without.
        """
        self._is_following = monotonic() - self._left_at < _UNUSED
        self.is_entered = True
        taker = self._ask(connection)
        if taker is not None:
            self._has_waited = True
            connection.busy_waits += 1
            self._wait(taker, connection)
            if self.is_held and monotonic() >= self._breathes_at:
                time.sleep(_BREATH)
        self._since = monotonic()
        self._turn_ends = self.looks_at = self._since + TURN
        self._is_through = self.is_held
        return self.is_held

    def _go_on(self, now: float) -> bool:
        """Begin another transaction in our turn; False if the thread has ended it."""
        with self._mutex:
            if not self.is_held:
                return False
            self.is_entered = self._is_through = self._is_following = True
        self._since = now
        return True

    def pause(self, connection: Connection) -> bool:
        """Wait until the write lock should be looked at again; False once the deadline is over."""
        now = monotonic()
        if now >= connection.deadline:
            return False
        self._has_waited = self._has_waited or self._is_through
        if now - self._since >= _LOOKS or now < self._breathes_at:
            self._breathes_at = now + _BREATHLESS
            if self._lock_wait.wait(connection, self._show_life):
                return True
        self._show_life()
        return pause(connection.deadline, pace(self._since))

    def _show_life(self) -> None:
        """Show those who wait behind us that we are not the one that is stopped."""
        now = monotonic()
        if self.is_held and now >= self._counts_at:
            self._counts_at = now + _SIGN_OF_LIFE
            try:
                self._count()
            except OSError as error:
                pass_on_timeout(error)

    def leave(self) -> None:
        """Let the next one in, at the end of our turn: the transaction has ended."""
        if not self.is_entered:
            # It went without: whether the next one follows at once is to be known all the same.
            if self.has_met_others:
                self._left_at = monotonic()
            return
        with self._mutex:
            self._is_through = False
            self._left_at = now = monotonic()
            # Another one like this must fit into the turn.
            fits = now + (now - self._since) < self._turn_ends
            if not (self.is_held and self._is_following and fits and self._keep_turn()):
                self._end_turn()
            # Last: whom a signal has interrupted leaves again.
            self.is_entered = False

    def _keep_turn(self) -> bool:
        """Keep it for our next transaction; False if there is nobody to end it without one."""
        if not self._is_turn_kept and not self._is_closed:
            self._is_turn_kept = True
            self._start_or_wake()
        return self._thread is not None and not self._is_closed

    def _end_turn(self) -> None:
        self._is_turn_kept = False
        # A signal's handler may have raised before the thread was waited for.
        self._taker = None
        was_held = self.is_held
        # Perhaps it was taken, and a signal came before that was noted. The thread that asks for it
        # lets go by itself.
        if self._descriptor is not None and (was_held or not self._is_asking):
            with contextlib.suppress(OSError):
                if self._has_waited:
                    self._count()
            with contextlib.suppress(OSError):
                _unlock(self._descriptor)
        # After it was let go: a signal in between must not leave others waiting.
        self.is_held = self._has_waited = False
        if was_held and self._is_closed:
            self._drop()

    def _ask(self, connection: Connection) -> threading.Lock | None:
        """Take it now, or have the thread ask for it; what is returned is released when it has."""
        with self._mutex:
            if self._is_closed or self.is_held or (self._is_asking and self._is_stalled):
                return None
            # If the thread still asks for a call that gave up, its place is ours.
            if not self._is_asking:
                self.is_held = self._take_now()
                if self.is_held or self.failure is not None:
                    return None
            if monotonic() >= connection.deadline:
                return None
            if not self._is_asking and self._was_left_behind():
                return None
            self._is_asking = True
            # Also if it was asked already: a signal may have come before it began.
            self._start_or_wake()
            if not self._is_asking:
                return None
            self._taker = threading.Lock()
            self._taker.acquire()
            return self._taker

    def _wait(self, taker: threading.Lock, connection: Connection) -> None:
        """Wait for the thread to have it; give up if the call must end or nothing moves."""
        is_stalled = False
        try:
            passes, since = self._passes(), monotonic()
            while not is_stalled:
                left = connection.deadline - monotonic()
                # Looked at again and again: a shutdown and ``give_up`` change them.
                if connection.is_cancelled or left <= 0:
                    break
                if taker.acquire(timeout=min(left, _LOOK_AT_CALL)):
                    break
                if monotonic() - since >= PATIENCE:
                    last, passes, since = passes, self._passes(), monotonic()
                    is_stalled = passes == last
        finally:
            # Also when a signal's handler raises.
            with self._mutex:
                if self._taker is taker:
                    self._taker = None
                    self._is_stalled = is_stalled
                    self.stalls += is_stalled

    # -- the thread that waits --------------------------------------------------------------

    def _was_left_behind(self) -> bool:
        """Whether a thread waits here still since the file was closed; another one would too."""
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
            # After Ctrl-C it may run all the same, or not: one that has not begun is not counted.
            if thread.ident is None:
                self._thread = None
                self._is_asking = self._is_turn_kept = False
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
                if descriptor is not None and sys.platform != "win32":
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as refused:
                error = refused
            self._answer(error)

    def _is_wanted(self) -> bool:
        """Wait until a call asks for the lock, ending our turns meanwhile; False if none does."""
        while not self._is_asking:
            if self._is_turn_kept:
                # Over its time it ends with the transaction, which sees to it itself.
                is_over = self.is_entered and monotonic() >= self._turn_ends
                self._changed.wait(_IDLE if is_over else _UNUSED)
                if not self.is_entered and monotonic() - self._left_at >= _UNUSED:
                    self._end_turn()
            elif self._is_closed or not self._changed.wait(_IDLE):
                return self._is_asking
        return True

    def _answer(self, error: OSError | None) -> None:
        """Give what the kernel gave to the call that waits; if none does, let the next one in."""
        with self._mutex:
            if error is not None:
                self._fail(error)
            elif self._is_gone() and not self._is_closed:
                # Who closed last removed the file: those who came later are at another one.
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
                    _unlock(self._descriptor)

    # -- the file ---------------------------------------------------------------------------

    def _take_now(self) -> bool:
        """Take it if nobody has it; False if somebody has, and if there is a ``failure``."""
        for _ in range(_ATTEMPTS):
            if self._descriptor is None and monotonic() >= self._retry_at:
                self._open()
            if self._descriptor is None:
                return False
            try:
                if not _lock_now(self._descriptor):
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
        """Open the file, making it if it is not there."""
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
        """Whether a file is a turnstile, and not what another user has put in its place.

        Its maker could hold it without end, and a file with a second name is written as that, too.
        """
        if sys.platform == "win32" or not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return False
        if found.st_uid in (0, os.geteuid()):
            return True
        with contextlib.suppress(OSError):
            return os.stat(self._database).st_uid == found.st_uid
        return False

    def _is_gone(self) -> bool:
        """Whether the file we have open was removed, so that others queue up elsewhere."""
        try:
            return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0
        except OSError:
            return False

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self._retry_at = monotonic() + _RETRY_FAILED
        self._drop()

    def _passes(self) -> bytes:
        """Return what changes whenever somebody who waited has gone through."""
        try:
            return b"" if (file := self._descriptor) is None else os.pread(file, _COUNTER_BYTES, 0)
        except OSError as error:
            pass_on_timeout(error)
            return b""

    def _count(self) -> None:
        """Show those who wait that the turnstile moves."""
        number = (int.from_bytes(self._passes(), "little") + 1) % (1 << 8 * _COUNTER_BYTES)
        if self._descriptor is not None:
            os.pwrite(self._descriptor, number.to_bytes(_COUNTER_BYTES, "little"), 0)

    def _drop(self) -> None:
        """Close the file, and free the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                # A child that was forked this moment may have it open still.
                _unlock(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Let go; the file is removed unless somebody is at the turnstile.

        A thread that waits for another process ends as soon as that lets go.
        """
        with self._mutex:
            if not self.is_entered:
                self._end_turn()
            self._is_closed = True
            # A transaction that is still open ends it itself.
            self._is_turn_kept = False
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
        """Remove the file while it is locked: who comes to it afterwards sees that it is gone."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None and _lock_now(self._descriptor):
                found = os.lstat(self.path)
                if os.path.samestat(found, os.fstat(self._descriptor)):
                    self.path.unlink()
        self._drop()

    def forget_after_fork(self) -> None:
        """Let go of the parent's file in a child; closing it frees nothing of the parent's."""
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._is_closed = True
        self._lock_wait.forget_after_fork()
        self._thread = self._taker = None
        self.is_held = self.is_entered = self._is_asking = self._is_turn_kept = False
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _lock_now(descriptor: int) -> bool:
    """Take the lock if it is free; False if somebody has it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)
