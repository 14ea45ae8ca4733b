"""Waits for another thread without a lock that Ctrl-C could leave held.

``threading.Event`` and ``concurrent.futures.Future`` take a lock in Python. A signal's handler that
raises when it has just been taken leaves it taken, and the thread that sets the event or the result
never gets it. Here each waiting thread has its own lock, which other threads only release.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import Final

_POLL: Final = 1.0
"""Seconds after which a waiting thread checks by itself: a second signal may have come while the
thread that opened the gate was waking the others."""


class Gate:
    """A gate at which threads wait until it is open; like ``threading.Event``, without its lock."""

    __slots__ = ("__weakref__", "_is_open", "_sleepers")

    def __init__(self) -> None:
        self._is_open = False
        # A list: appending, removing and copying are one step each.
        self._sleepers: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return whether it is open."""
        return self._is_open

    def set(self) -> None:
        """Open it and wake the waiting threads; takes no lock, so a finalizer may call it."""
        self._is_open = True
        for sleeper in self._sleepers[:]:
            with contextlib.suppress(RuntimeError):
                sleeper.release()

    def clear(self) -> None:
        """Close it again."""
        self._is_open = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is open; return whether it is.

        Args:
            timeout: seconds; None for no limit.
        """
        if self._is_open:
            return True
        sleeper = threading.Lock()
        sleeper.acquire()
        until = None if timeout is None else monotonic() + timeout
        try:
            self._sleepers.append(sleeper)
            while not self.is_set():
                left = _POLL if until is None else min(_POLL, until - monotonic())
                if left <= 0 or sleeper.acquire(timeout=left):
                    # Opened; it may be closed again by now.
                    return left > 0
        finally:
            with contextlib.suppress(ValueError):
                self._sleepers.remove(sleeper)
        return True
