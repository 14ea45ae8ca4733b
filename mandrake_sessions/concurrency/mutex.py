"""A lock that a thread waits for with a deadline, and that Ctrl-C leaves free.

The ``with`` statement takes a plain lock in one step, but without a deadline. After ``acquire()``
with a deadline, a signal's handler may raise before the ``try`` that would release the lock, and no
thread gets it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from mandrake_sessions.concurrency.blocks import block


class Mutex:
    """A lock that one block holds at a time."""

    def __init__(self) -> None:
        # It knows its thread, so that a block knows what to release, wherever it was interrupted.
        self._lock = threading.RLock()
        self._is_mine: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    @property
    def is_free(self) -> bool:
        """Whether no block holds it at the moment."""
        if self._is_mine() or not self._lock.acquire(blocking=False):
            return False
        self._lock.release()
        return True

    @block
    def held(self, seconds: float) -> Iterator[bool]:
        """Hold it for a block of code, and lend whether it is held.

        Args:
            seconds: how long to wait for another thread. The thread that holds it already does not
                wait and does not get it.
        """
        if self._is_mine():
            yield False
            return
        try:
            yield self._lock.acquire(timeout=seconds)
        finally:
            try:
                if self._is_mine():
                    self._lock.release()
            finally:
                # signal-safe release
                if self._is_mine():
                    self._lock.release()
