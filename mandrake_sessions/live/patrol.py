"""The thread that finds turns whose process has died, in every file that this process has open.

A process that is killed leaves no note. Once a second the patrol reads the times of each file's
WAL. Only where they have changed does it query the owners of streaming turns, one short read of an
index with a few rows. Only where other processes stream does it test their claims.

Where a file has subscribers, it also checks whether the file itself is damaged.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Collection, Hashable
from typing import Final, Protocol

from mandrake_sessions.concurrency.fork import after_fork
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.errors import (
    DatabaseError,
    DatabaseMovedError,
    PoolClosedError,
    ThreadStartError,
)
from mandrake_sessions.log import get_logger
from mandrake_sessions.records.recovery import streaming_owners

INTERVAL: Final = 1.0
"""Seconds between two checks of a file."""

_PATIENCE: Final = 1.0
"""Seconds that the patrol waits for a busy file; the other files wait meanwhile."""

_SETTLING: Final = 8
"""Checks in a row that query after a write: the WAL's times change before its COMMIT is synced and
visible, and the times that a file system keeps are coarse."""


_FORK_PATIENCE: Final = 1.0
"""Seconds that a fork waits for the check under way: its file would be in use in the child. A check
takes a millisecond, and some tenths of a second on a machine under load."""


class LivenessCheck:
    """Finds dead owners in one open file; knows its last write and the owners in it.

    Args:
        file: the open file.
        interrupt_gone: ends the turns of those owners that are gone, within some seconds.
        end_if_damaged: ends the subscriptions if the file is damaged.
    """

    def __init__(
        self,
        file: Database,
        interrupt_gone: Callable[[Collection[str | None], float], object],
        end_if_damaged: Callable[[], None],
    ) -> None:
        self._file = file
        self._end_if_damaged = end_if_damaged
        self._interrupt_gone = interrupt_gone
        self._times: Hashable = None
        self._reads_left = 0
        self._owners: frozenset[str | None] = frozenset()
        self._has_failed = False

    def check(self) -> None:
        """End the turns of processes that have died; the next check repeats what fails."""
        try:
            self._end_if_damaged()
            self._refresh_owners()
            if self._owners:
                self._interrupt_gone(self._owners, _PATIENCE)
        except (PoolClosedError, DatabaseMovedError):
            # It closes, or it was displaced: the next opening checks.
            return
        except DatabaseError as error:
            if not self._has_failed:
                get_logger(__name__).warning(
                    "recovery_postponed", path=str(self._file.path), error=type(error).__name__
                )
            self._has_failed = True
        else:
            self._has_failed = False

    def _refresh_owners(self) -> None:
        """Query the owners of streaming turns, if the file may have been written since."""
        times = self._file.others.last_write()
        if times == self._times and not self._reads_left:
            return
        if times is None or self._file.others.is_elsewhere():
            # The caller that uses the file next finds out that it is gone.
            return
        reads_left = self._reads_left - 1 if times == self._times else _SETTLING
        owners = self._file.peek(streaming_owners(), "recover_interrupted", _PATIENCE)
        self._times, self._reads_left, self._owners = times, reads_left, frozenset(owners)


class Checked(Protocol):
    """An object that belongs to an open file and has a liveness check."""

    @property
    def liveness(self) -> LivenessCheck:
        """The check that the patrol runs."""


class Patrol:
    """Checks every open file of the process in turn, in a thread that lives while there is one.

    A file may close during its check; no caller waits for the thread.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        # Held during each check, and by a thread that forks.
        self._checking = threading.RLock()
        self._hubs: weakref.WeakSet[Checked] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, hub: Checked) -> None:
        """Check a file from now on."""
        with self._mutex:
            self._hubs.add(hub)
            self._start()

    def ensure_running(self) -> None:
        """Start the thread if it could not be started when a file was added.

        A file can be used without it, and every opening makes its own check.
        """
        # Every opening calls this, and most find the thread running.
        if self._is_running:
            return
        with self._mutex:
            if self._hubs:
                self._start()

    @property
    def _is_running(self) -> bool:
        # A thread that never started, after Ctrl-C or because the system has none, is replaced.
        thread = self._thread
        return thread is not None and thread.ident is not None

    def _start(self) -> None:
        if not self._is_running:
            self._thread = threading.Thread(target=self._run, name="mandrake-patrol", daemon=True)
            with contextlib.suppress(ThreadStartError):
                start(self._thread)

    def remove(self, hub: Checked) -> None:
        """Check a file no more."""
        with self._mutex:
            self._hubs.discard(hub)

    def pause_for_fork(self) -> None:
        """Wait until no check is under way."""
        self._checking.acquire(timeout=_FORK_PATIENCE)

    def resume_after_fork(self) -> None:
        """Resume the checks, in the parent."""
        # The lock is not held if the check took longer than the fork waited.
        with contextlib.suppress(RuntimeError):
            self._checking.release()

    def forget_after_fork(self) -> None:
        """Start anew in a child: the thread and the files are the parent's."""
        self._reset()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(INTERVAL)
            with self._mutex:
                if self._thread is not threading.current_thread():
                    return
                hubs = list(self._hubs)
                if not hubs:
                    self._thread = None
                    return
            for hub in hubs:
                try:
                    with self._checking:
                        hub.liveness.check()
                except Exception:  # noqa: BLE001  # one file must not end the checks of the others
                    get_logger(__name__).exception("patrol_failed")
            # A waiting thread keeps no reference to a hub that is closed meanwhile.
            del hub, hubs


patrol: Patrol = Patrol()
"""The patrol of this process."""

after_fork(patrol.forget_after_fork)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=patrol.pause_for_fork, after_in_parent=patrol.resume_after_fork)
