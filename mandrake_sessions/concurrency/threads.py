"""Starting a thread, where the system may have none left and Ctrl-C may come at any moment."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from threading import get_ident

from mandrake_sessions.errors import ThreadStartError


def start(thread: threading.Thread) -> None:
    """Start a thread; after Ctrl-C in the midst of it, it starts all the same.

    ``Thread.start`` waits, in Python, for the thread to say that it runs. A signal's handler that
    raises meanwhile could leave the lock held by which it says so, and it would wait there. So in
    the main thread, the only one that gets signals, another one is asked to do it.

    Raises:
        ThreadStartError: the system has none left for this process, or the interpreter ends.
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
