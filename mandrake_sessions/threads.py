"""Starting a thread, where the system may have none left."""

from __future__ import annotations

import threading

from mandrake_sessions.errors import ThreadStartError


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        ThreadStartError: the system has none left for this process, or the interpreter ends.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise ThreadStartError from error
