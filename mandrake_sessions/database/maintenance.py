"""The pool's one background thread: what was asked for runs when its time has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from time import monotonic

import structlog

Task = Callable[[], None]


class Maintenance:
    """Runs tasks later, one after the other, in a thread that starts when it is first needed.

    A task has a key; asking again for the same key keeps the earlier time. A task that raises is
    logged and harms no other.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._tasks: dict[Hashable, tuple[float, Task]] = {}
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def call_later(self, key: Hashable, seconds: float, task: Task) -> None:
        """Have ``task`` run in ``seconds``; does nothing once the thread was stopped."""
        due = monotonic() + seconds
        with self._condition:
            if self._is_stopping:
                return
            known = self._tasks.get(key)
            if known is None or due < known[0]:
                self._tasks[key] = (due, task)
                self._condition.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Drop what has not begun, and wait for the task under way."""
        with self._condition:
            self._is_stopping = True
            self._tasks.clear()
            self._condition.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except Exception:  # noqa: BLE001  # one task must not end the thread of all
                structlog.get_logger(__name__).exception("maintenance_failed")

    def _next(self) -> Task | None:
        """Wait for the next task that is due; None when the thread shall end."""
        with self._condition:
            while not self._is_stopping:
                if not self._tasks:
                    self._condition.wait()
                    continue
                key, (due, task) = min(self._tasks.items(), key=lambda item: item[1][0])
                pause = due - monotonic()
                if pause <= 0:
                    del self._tasks[key]
                    return task
                self._condition.wait(pause)
            return None
