"""The pool's one background thread, which runs each task when it is due."""

from __future__ import annotations

import _thread
import contextlib
import queue
import threading
from collections.abc import Callable, Hashable
from time import monotonic

from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.errors import ThreadStartError
from mandrake_sessions.log import get_logger

Task = Callable[[], None]


class Maintenance:
    """Runs tasks later, one after the other, in a thread of its own.

    A task has a key; a second call for the same key keeps the earlier time. A task that raises is
    logged and stops no other. The thread starts with the first task, because to start and to join
    it took a fifth of the time that a pool took to open and close one file. If the thread ends
    before it is stopped, the next task starts another one, which continues with the waiting tasks.

    Args:
        name: the name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._asked: queue.SimpleQueue[tuple[Hashable, float, Task] | None] = queue.SimpleQueue()
        # Only the thread uses it.
        self._waiting: dict[Hashable, tuple[float, Task]] = {}

    def call_later(self, key: Hashable, seconds: float, task: Task) -> None:
        """Let the thread run ``task`` in ``seconds``; no task runs after ``stop``."""
        self._asked.put((key, monotonic() + seconds, task))
        if self._thread is None:
            self._start()

    def call_for_finalizer(self, key: Hashable, task: Task) -> None:
        """Let the thread run ``task`` soon, without a lock: the caller may hold any."""
        self._asked.put((key, monotonic(), task))
        if self._thread is None:
            # threading.Thread takes locks of the interpreter when it starts.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self._start, ())

    def _start(self) -> None:
        """Start the thread if it does not run; if the system has none left, the next task tries."""
        with self._mutex, contextlib.suppress(ThreadStartError):
            if self._thread is None and not self._is_stopping:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                start(thread)
                self._thread = thread

    def stop(self, timeout: float) -> None:
        """Drop the waiting tasks, and wait up to ``timeout`` seconds for the running one."""
        with self._mutex:
            self._is_stopping = True
            thread = self._thread
        self._asked.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        me = threading.current_thread()
        with self._mutex:
            # A signal may have interrupted the start of this one, and another may have started.
            if self._is_stopping or self._thread not in (None, me):
                return
            self._thread = me
        try:
            self._run_tasks(self._waiting)
        finally:
            self._thread = None

    def _run_tasks(self, waiting: dict[Hashable, tuple[float, Task]]) -> None:
        while True:
            try:
                asked = self._asked.get(timeout=_until_next(waiting))
            except queue.Empty:
                _run_due(waiting)
                continue
            if asked is None or self._is_stopping:
                return
            key, due, task = asked
            if key not in waiting or due < waiting[key][0]:
                waiting[key] = (due, task)


def _until_next(waiting: dict[Hashable, tuple[float, Task]]) -> float | None:
    """Return the seconds until the next task is due; None if there is none."""
    if not waiting:
        return None
    return max(0.0, min(due for due, _ in waiting.values()) - monotonic())


def _run_due(waiting: dict[Hashable, tuple[float, Task]]) -> None:
    now = monotonic()
    for key in [key for key, (due, _) in waiting.items() if due <= now]:
        _, task = waiting.pop(key)
        try:
            task()
        except Exception:  # noqa: BLE001  # one task must not end the thread that all share
            get_logger(__name__).exception("maintenance_failed")
