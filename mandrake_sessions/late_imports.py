"""Imports that wait until they are needed, and forks that wait for them."""

from __future__ import annotations

# First: a fork calls the handler that registered last before the others. If it waited for an import
# with the lock of ``logging`` held, the imported module could not get its logger.
import logging  # noqa: F401
import os
import threading
from typing import Final

late_import: Final = threading.RLock()
"""Held while a thread of this library imports a module late.

A child that is forked during an import would wait without end for the thread that made it.
"""

_PATIENCE: Final = 2.0
"""Seconds that a fork waits: the imported module could need a lock of the forking thread."""


class _Fork:
    """Waits for an import before a fork, and allows the next one after it."""

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
            # No thread here will release it: the thread that has it is the parent's. Only the
            # module that it was importing can be waited for in vain.
            late_import._at_fork_reinit()  # type: ignore[attr-defined]  # as logging does


if hasattr(os, "register_at_fork"):
    _fork = _Fork()
    os.register_at_fork(
        before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.after_in_child
    )
