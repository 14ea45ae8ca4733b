"""Imports that wait until they are needed, and forks that wait for them."""

from __future__ import annotations

# First: who forks is asked to wait by the last one that registered, and while it waited for us
# with the lock of ``logging`` in its hand, what is imported could not get its logger.
import logging  # noqa: F401
import os
import threading
from typing import Final

late_import: Final = threading.RLock()
"""Held while one of our threads imports something late.

A child that is forked in the midst of an import would wait for ever for the thread that made it.
"""

_PATIENCE: Final = 2.0
"""Seconds that a fork waits: what is imported could want something that the forking thread has."""


class _Fork:
    """Waits for an import before a fork, and lets the next one go on after it."""

    def __init__(self) -> None:
        self._has_waited = False

    def before(self) -> None:
        self._has_waited = late_import.acquire(timeout=_PATIENCE)

    def after(self) -> None:
        if self._has_waited:
            late_import.release()

    def after_in_child(self) -> None:
        if self._has_waited:
            late_import.release()
        else:
            # Nobody here will release it: the thread that has it is the parent's. What it was
            # importing can be waited for in vain, but nothing else.
            late_import._at_fork_reinit()  # type: ignore[attr-defined]  # as logging does


if hasattr(os, "register_at_fork"):
    _fork = _Fork()
    os.register_at_fork(
        before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.after_in_child
    )
