"""The id of this process, and what a forked child does with the objects it has inherited."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any


class _Process:
    """The id of this process, known without a system call, and its actions after a fork."""

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
    """Keep a parent's object alive in a forked child, even past the interpreter's end.

    Its transaction is the parent's: closing or collecting the object would end that transaction in
    memory that both processes share.
    """
    _process.kept_alive.append(connection)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def close_later(close: Callable[[], None]) -> None:
    """Have ``close`` called before a forked child uses SQLite for the first time.

    Not at the fork: another thread of the parent may have held one of SQLite's own locks, which no
    thread of the child releases. A child that never uses a database must not wait for it.
    """
    _process.inherited.append(close)


def close_inherited() -> None:
    """Close the inherited objects; to be called before this process uses SQLite."""
    if _process.inherited:
        with _process.closing:
            while _process.inherited:
                _process.inherited[-1]()
                _process.inherited.pop()
