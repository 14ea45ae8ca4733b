"""Waiting for something that another thread does, without a lock that Ctrl-C could leave held.

``threading.Event`` and ``concurrent.futures.Future`` keep a lock that is taken in Python: a
signal's handler that raises when it has just been taken leaves it taken, and the thread that sets
the event or the result never gets it. Here each thread that waits has a lock of its own, which
others only release.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import Final

_LOOK: Final = 1.0
"""Seconds after which a thread that waits looks by itself: a second signal may have come when the
one that opened the gate woke the others."""


class Gate:
    """A gate that threads wait at until it is open; like ``threading.Event``, without its lock."""

    __slots__ = ("__weakref__", "_is_open", "_sleepers")

    def __init__(self) -> None:
        self._is_open = False
        # A list: to append, remove and copy is one step each.
        self._sleepers: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return whether it is open."""
        return self._is_open

    def set(self) -> None:
        """Open it, and wake who waits; takes no lock, so a finalizer may call it."""
        self._is_open = True
        for sleeper in self._sleepers[:]:
            with contextlib.suppress(RuntimeError):
                sleeper.release()

    def clear(self) -> None:
        """Shut it again."""
        self._is_open = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is open; return whether it is.

        Args:
            timeout: seconds; None to wait for as long as it takes.
        """
        if self._is_open:
            return True
        sleeper = threading.Lock()
        sleeper.acquire()
        until = None if timeout is None else monotonic() + timeout
        try:
            self._sleepers.append(sleeper)
            while not self.is_set():
                left = _LOOK if until is None else min(_LOOK, until - monotonic())
                if left <= 0 or sleeper.acquire(timeout=left):
                    # Opened; perhaps shut again by now.
                    return left > 0
        finally:
            with contextlib.suppress(ValueError):
                self._sleepers.remove(sleeper)
        return True
