"""A thread that was started before it is needed.

Python 3.12 starts no thread once the main thread has ended, although other threads and the
functions of ``atexit`` still run (seen with 3.12.1; 3.11.7 and 3.13.0 do). The system may also have
no thread left.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.concurrency.threads import start


class SpareThread:
    """A daemon thread that runs the functions it is given, one after the other.

    Args:
        name: the name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._given: queue.SimpleQueue[tuple[Callable[[], object], Gate] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start it; after Ctrl-C it may run all the same, until ``end``.

        Raises:
            ThreadStartError: no thread can be started.
        """
        start(self._thread)

    def run(self, function: Callable[[], object], seconds: float) -> bool:
        """Have the thread run a function; return whether the function ended in time.

        Args:
            function: raises nothing.
            seconds: how long to wait for its end. It goes on after that.
        """
        has_ended = Gate()
        self._given.put((function, has_ended))
        return has_ended.wait(max(0.0, seconds))

    def end(self) -> None:
        """End the thread after the given functions; takes no lock and does not wait."""
        self._given.put(None)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _run(self) -> None:
        while (given := self._given.get()) is not None:
            function, has_ended = given
            try:
                function()
            finally:
                has_ended.set()
