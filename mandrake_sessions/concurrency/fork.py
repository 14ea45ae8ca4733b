"""Which process this is, and what a forked child does with what it inherited."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any


class _Process:
    """Which process this is, known without a system call."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.actions: list[Callable[[], None]] = []
        self.kept_alive: list[Any] = []
        self.inherited: list[Callable[[], None]] = []
        self.closing = threading.Lock()

    def forked(self) -> None:
        self.pid = os.getpid()
        self.closing = threading.Lock()
        for action in self.actions:
            action()


_process = _Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)


def current_pid() -> int:
    """Return this process's id; about 40 ns where ``os.getpid`` takes 150."""
    return _process.pid


def after_fork(action: Callable[[], None]) -> None:
    """Have ``action`` called in a child right after a fork."""
    _process.actions.append(action)


def keep_alive(connection: object) -> None:
    """Keep a parent's object alive in a forked child, past the interpreter's end too.

    Its transaction is the parent's: closing the object, or letting it be collected, would end that
    in memory that both processes share.
    """
    _process.kept_alive.append(connection)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def close_later(close: Callable[[], None]) -> None:
    """Have ``close`` called before a forked child uses SQLite for the first time.

    Not at the fork: another thread of the parent may have had one of SQLite's own locks, which
    nothing in the child releases. A child that never uses a database must not wait for it.
    """
    _process.inherited.append(close)


def close_inherited() -> None:
    """Close what this process has inherited; to be called before SQLite opens any file."""
    if _process.inherited:
        with _process.closing:
            while _process.inherited:
                _process.inherited[-1]()
                _process.inherited.pop()
