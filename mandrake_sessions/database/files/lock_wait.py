"""Waits in the kernel for SQLite's write lock, which no pause between two looks can do.

A program that commits and begins again at once leaves some ten microseconds between two
transactions. A thread that waits in the kernel takes no time of a core meanwhile, and one time in
two it has the lock before the program does; while the call wakes up, the program finds it taken::

    program   BEGIN ............ COMMIT ─ BEGIN: busy ─ pauses ......................... BEGIN
    thread    waits ................... has it ─ wakes the call
    call      waits for the thread ............................ frees it ─ BEGIN ─ COMMIT

The lock of the thread is not SQLite's own, but on the same byte: it keeps other processes out for
that moment, and nothing depends on it. The thread asks for it through SQLite's own descriptor. If
the file is closed and the number becomes another file's, the thread locks that for a moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.database.files.wal_index import WalIndex, release_write_lock
from mandrake_sessions.database.retry import PACE
from mandrake_sessions.errors import ThreadStartError

_THREADS: Final = 2
"""One is woken on an idle core, which takes longer than the program leaves; then another one is
woken on the program's own core, and goes first there."""

_LOOK_AT_CALL: Final = 0.05
_IDLE: Final = 1.0
_RETRY_FAILED: Final = 5.0

_UNFREED: Final = 0.05
"""Seconds after which a thread frees the lock of a call: a signal may have ended that call."""

# Threads whose file is closed but that still wait for a process, which may be stopped. A file that
# is opened and closed repeatedly must not leave some each time.
_left_behind: dict[Path, list[threading.Thread]] = {}


class WaitingConnection(Protocol):
    """The connection whose BEGIN waits.

    Attributes:
        deadline: when the wait ends (``time.monotonic``).
        is_cancelled: whether the connection is being closed.
        busy_waits: how often it waited for another process.
    """

    deadline: float
    is_cancelled: bool
    busy_waits: int


class LockWait:
    """Waits for the write lock of one open file, for one call at a time.

    The kernel's wait has no deadline: threads wait, and the call waits for the first of them. If
    the call has ended when a thread gets the lock, the thread frees it at once.

    Args:
        database: the real path.
        index: the index of its WAL.
    """

    def __init__(self, database: Path, index: WalIndex) -> None:
        self._database = database
        self._index = index
        self._retry_at = self._began_at = 0.0
        self._threads: list[threading.Thread] = []
        # Calls so far that have asked for the lock; each thread answers the newest it knows of.
        self._calls = 0
        # Threads that wait in the kernel, or are about to.
        self._asking = 0
        self._is_closed = False
        self._taker: threading.Lock | None = None
        # By which the lock is held for the call that has ``_taker``.
        self._held: int | None = None
        # Entered directly: a signal handler that raises while a Condition is entered leaves it
        # locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)

    def wait(self, connection: WaitingConnection, on_look: Callable[[], None]) -> bool:
        """Wait until the lock is free, so that SQLite should look at once.

        Args:
            connection: for its deadline, and whether its call was cancelled.
            on_look: called again and again meanwhile.

        Returns:
            False where the kernel cannot wait, or has just done so in vain: pause instead.
        """
        now = monotonic()
        # The last wait was over sooner, and in vain: SQLite waits for something else.
        if now < max(self._began_at + PACE, self._retry_at):
            return False
        self._began_at = now
        taker = self._ask()
        if taker is None:
            return False
        try:
            # Read each time: a shutdown and ``give_up`` change them.
            while not connection.is_cancelled:
                left = connection.deadline - monotonic()
                if left <= 0 or taker.acquire(timeout=min(left, _LOOK_AT_CALL)):
                    break
                on_look()
        finally:
            with self._mutex:
                if self._taker is taker:
                    self._free()
        return monotonic() >= self._retry_at

    def _ask(self) -> threading.Lock | None:
        """Have the threads wait.

        Returns:
            A lock that is released when a thread has the write lock, or failed; None if none waits.
        """
        with self._mutex:
            if self._is_closed or self._were_left_behind():
                return None
            # For a call before this one, which a signal has ended.
            self._free()
            self._calls += 1
            self._changed.notify_all()
            try:
                while len(self._threads) < _THREADS:
                    self._start()
            except ThreadStartError:
                if not self._threads:
                    self._retry_at = monotonic() + _RETRY_FAILED
                    return None
            self._taker = threading.Lock()
            self._taker.acquire()
            return self._taker

    def _free(self) -> None:
        """Free the lock of a call, and note that the call has ended."""
        self._taker = None
        if self._held is not None:
            release_write_lock(self._held)
            self._held = None

    def _were_left_behind(self) -> bool:
        """Return whether threads still wait since the file was closed; more would too."""
        if any(each.is_alive() for each in _left_behind.get(self._database, ())):
            return True
        _left_behind.pop(self._database, None)
        return False

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="mandrake-lock-wait", daemon=True)
        try:
            # Inside: Ctrl-C may come when the call of ``append`` returns.
            self._threads.append(thread)
            start(thread)
        except BaseException:
            # After Ctrl-C the thread may run or not; it counts once it has begun.
            if thread.ident is None and thread in self._threads:
                self._threads.remove(thread)
            raise

    # -- the threads ------------------------------------------------------------------------

    def _run(self) -> None:
        answered = 0
        while self._is_wanted(answered):
            held: int | None = None
            try:
                held = self._index.wait_for_write_lock()
            except OSError:
                self._retry_at = monotonic() + _RETRY_FAILED
            answered = self._answer(held)

    def _is_wanted(self, answered: int) -> bool:
        """Wait until a call asks for the lock and has no answer yet; False if none asks."""
        me = threading.current_thread()
        with self._changed:
            if self._held is not None and self._calls == answered:
                self._changed.wait(_UNFREED)
                if self._calls == answered:
                    self._free()
            if self._calls == answered and not self._is_closed:
                self._changed.wait(_IDLE)
            # A thread that Ctrl-C met at its start is not in the list, and another one is.
            is_wanted = self._calls != answered and not self._is_closed and me in self._threads
            if is_wanted:
                self._asking += 1
            elif me in self._threads:
                self._threads.remove(me)
            return is_wanted

    def _answer(self, held: int | None) -> int:
        """Give the lock to the call that waits, or free it; return the number of the call."""
        with self._mutex:
            self._asking -= 1
            if self._held is None:
                # Otherwise another thread has given the lock already.
                self._held = held
                if self._taker is None:
                    self._free()
                elif self._taker.locked():
                    self._taker.release()
            return self._calls

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """End the threads; one that waits for another process ends when that frees the lock."""
        with self._mutex:
            self._is_closed = True
            self._free()
            threads = list(self._threads)
            if self._asking:
                _left_behind[self._database] = threads
                threads = []
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    def forget_after_fork(self) -> None:
        """Forget, in a forked child, the threads of the parent."""
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._is_closed = True
        self._threads = []
        self._asking = 0
        self._taker = self._held = None
