"""Starts threads, although the system may have none left and Ctrl-C may come at any moment."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable
from threading import get_ident

from mandrake_sessions.errors import ThreadStartError


def has_begun(thread: threading.Thread | None) -> bool:
    """Return whether a recorded thread has begun.

    Ctrl-C between the record and the start leaves one that never will: another one replaces it.
    """
    return thread is not None and thread.ident is not None


def start_or_undo(thread: threading.Thread, undo: Callable[[], object]) -> None:
    """Start a thread that the caller has recorded; undo the record if the thread has not begun.

    After Ctrl-C the thread may begin all the same, also after that. It must then end, or harm
    nothing.

    Args:
        thread: the thread.
        undo: removes the record; called before the error is raised.

    Raises:
        ThreadStartError: the system has no thread left for this process, or the interpreter ends.
    """
    try:
        start(thread)
    except BaseException:
        if thread.ident is None:
            undo()
        raise


def start(thread: threading.Thread) -> None:
    """Start a thread; if Ctrl-C interrupts the call, the thread starts all the same.

    ``Thread.start`` waits, in Python, until the thread signals that it runs. A signal's handler
    that raises meanwhile could leave the lock held that the thread needs for this, and the thread
    would wait there. So in the main thread, the only one that gets signals, another thread makes
    the call.

    Raises:
        ThreadStartError: the system has no thread left for this process, or the interpreter ends.
    """
    try:
        if get_ident() == threading.main_thread().ident:
            _start_elsewhere(thread)
        else:
            thread.start()
    except RuntimeError as error:
        raise ThreadStartError from error


def _start_elsewhere(thread: threading.Thread) -> None:
    failures: list[RuntimeError] = []
    is_started = threading.Lock()
    is_started.acquire()

    def begin() -> None:
        try:
            thread.start()
        except RuntimeError as error:
            failures.append(error)
        finally:
            is_started.release()

    start_new_thread(begin, ())
    is_started.acquire()
    if failures:
        raise failures[0]
