"""Imports that wait until they are needed, and forks that wait for them."""

from __future__ import annotations

# First: a fork calls the handler that registered last before the others. If it waited for an import
# with the lock of ``logging`` held, the imported module could not get its logger.
import logging  # noqa: F401
import os
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

late_import: Final = threading.RLock()
"""Held while a thread of this library imports a module late.

A child that is forked during an import would wait without end for the thread that made it.
"""

_PATIENCE: Final = 2.0
"""Seconds that a fork waits: the imported module could need a lock of the forking thread."""


def late_names(namespace: dict[str, Any], modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package, some of whose names are imported at their first use.

    Args:
        namespace: of the package, which keeps each name from then on.
        modules: the full name of the module of each name.
    """

    def get(name: str) -> Any:
        module = modules.get(name)
        if module is None:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        with late_import:
            found = getattr(import_module(module), name)
        return namespace.setdefault(name, found)

    return get


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
