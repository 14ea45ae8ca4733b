"""The thread that looks for turns whose host has died, in every file that this process has open.

A host that dies leaves no word. Once a second the patrol looks at the times of each file's log;
only where they have changed it asks whose turns are streaming, one short read of an index with a
few rows; and only where other processes stream it tries their locks.

Where somebody watches, it asks as well whether the file itself has changed.
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
"""Seconds between two looks at a file."""

_PATIENCE: Final = 1.0
"""Seconds that a busy file is waited for; the other files wait meanwhile."""

_SETTLING: Final = 8
"""Looks in a row that read after a write: the log's times change before a COMMIT is synced and can
be seen, and times that a file system keeps are coarse."""


_FORK_PATIENCE: Final = 1.0
"""Seconds that a fork waits for the look under way: its file would be in use in the child. A look
takes a millisecond, and on a machine under load some tenths of a second."""


class Lookout:
    """What is known of one open file: when it was last written, and whose turns stream in it.

    Args:
        file: the open file.
        interrupt_gone: ends the turns of those owners that are gone, within some seconds.
        tell_damage: finds damage for those who only watch.
    """

    def __init__(
        self,
        file: Database,
        interrupt_gone: Callable[[Collection[str | None], float], object],
        tell_damage: Callable[[], None],
    ) -> None:
        self._file = file
        self._tell_damage = tell_damage
        self._interrupt_gone = interrupt_gone
        self._stamp: Hashable = None
        self._reads_left = 0
        self._owners: frozenset[str | None] = frozenset()
        self._has_failed = False

    def look(self) -> None:
        """End the turns of hosts that have died; what fails is tried again by the next look."""
        try:
            self._tell_damage()
            self._ask_for_owners()
            if self._owners:
                self._interrupt_gone(self._owners, _PATIENCE)
        except (PoolClosedError, DatabaseMovedError):
            # It closes, or is given up: the next opening looks.
            return
        except DatabaseError as error:
            if not self._has_failed:
                get_logger(__name__).warning(
                    "recovery_postponed", path=str(self._file.path), error=type(error).__name__
                )
            self._has_failed = True
        else:
            self._has_failed = False

    def _ask_for_owners(self) -> None:
        """Read whose turns are streaming, if the file was perhaps written since the last time."""
        stamp = self._file.others.last_write()
        if stamp == self._stamp and not self._reads_left:
            return
        if stamp is None or self._file.others.is_elsewhere():
            # To find out that a file went away is for the caller that uses it.
            return
        reads_left = self._reads_left - 1 if stamp == self._stamp else _SETTLING
        owners = self._file.peek(streaming_owners(), "recover_interrupted", _PATIENCE)
        self._stamp, self._reads_left, self._owners = stamp, reads_left, frozenset(owners)


class Looking(Protocol):
    """What hangs on an open file and has a lookout."""

    @property
    def lookout(self) -> Lookout:
        """What the patrol looks with."""


class Patrol:
    """Looks at every open file of the process in turn; its thread is there as long as there is one.

    A file may close while it is looked at; no caller waits for the thread.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        # Held for each look, and by a thread that forks.
        self._looking = threading.RLock()
        self._hubs: weakref.WeakSet[Looking] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, hub: Looking) -> None:
        """Look at a file from now on."""
        with self._mutex:
            self._hubs.add(hub)
            self._start()

    def go_on(self) -> None:
        """Start the thread if it could not be started when a file was added.

        A file can be used without it, and every opening looks by itself.
        """
        # Every opening asks, and most find it running.
        if self._is_running:
            return
        with self._mutex:
            if self._hubs:
                self._start()

    @property
    def _is_running(self) -> bool:
        # One that never started, after Ctrl-C or for want of threads, is replaced.
        thread = self._thread
        return thread is not None and thread.ident is not None

    def _start(self) -> None:
        if not self._is_running:
            self._thread = threading.Thread(target=self._run, name="mandrake-patrol", daemon=True)
            with contextlib.suppress(ThreadStartError):
                start(self._thread)

    def remove(self, hub: Looking) -> None:
        """Look at a file no more."""
        with self._mutex:
            self._hubs.discard(hub)

    def pause_for_fork(self) -> None:
        """Wait until no file is looked at."""
        self._looking.acquire(timeout=_FORK_PATIENCE)

    def go_on_after_fork(self) -> None:
        """Look again, in the parent."""
        # Not held where a look took too long.
        with contextlib.suppress(RuntimeError):
            self._looking.release()

    def forget_after_fork(self) -> None:
        """Begin anew in a child: the thread is the parent's, and so are the files."""
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
                    with self._looking:
                        hub.lookout.look()
                except Exception:  # noqa: BLE001  # one file must not end the watch over all
                    get_logger(__name__).exception("patrol_failed")
            # Whatever is closed meanwhile is not kept alive by a thread that waits.
            del hubs


patrol: Patrol = Patrol()
"""The process's own."""

after_fork(patrol.forget_after_fork)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=patrol.pause_for_fork, after_in_parent=patrol.go_on_after_fork)
