"""What must never happen unseen: a second SQLite library, an unsafe SQLite, a fork."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import apsw

from mandrake_sessions.errors import ReentrantScopeError, UnsupportedSQLiteError
from mandrake_sessions.log import get_logger

_FIXED = (3, 51, 3)
_BACK_PORTS = {(3, 50): 7, (3, 44): 6}
_FIRST_WAL = (3, 7, 0)


def is_safe_sqlite(version: str) -> bool:
    """Return whether this SQLite is free of the WAL-reset bug, which loses committed data.

    The bug is in 3.7.0 to 3.51.2; 3.50.7 and 3.44.6 have the fix too.
    """
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    if (major, minor, patch) >= _FIXED or (major, minor, patch) < _FIRST_WAL:
        return True
    back_port = _BACK_PORTS.get((major, minor))
    return back_port is not None and patch >= back_port


def require_safe_sqlite(path: Path) -> None:
    """Raise UnsupportedSQLiteError where the SQLite that APSW carries can lose data."""
    version = apsw.sqlite_lib_version()
    if not is_safe_sqlite(version):
        raise UnsupportedSQLiteError(
            f"SQLite {version} can lose committed data (WAL-reset bug); install apsw 3.51.3 "
            "or newer.",
            path=path,
            operation="open",
        )


def second_sqlite() -> str | None:
    """Return where a second SQLite library is in this process, or None.

    Two libraries on one file lose data without an error: closing the one drops the other's locks.
    Where the system does not tell what is mapped (only Linux does), the standard library's module
    stands for it.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if "sqlite" in line}
    except OSError:
        module = sys.modules.get("_sqlite3")
        return None if module is None else str(getattr(module, "__file__", "_sqlite3"))
    for library in sorted(mapped):
        if Path(library).name.startswith(("libsqlite3", "_sqlite3")) and library != apsw.__file__:
            return library
    return None


def warn_of_second_sqlite(path: Path) -> None:
    """Say, once in a process, that the standard library's SQLite is loaded when a file is opened.

    Not refused: much that does no harm imports it, such as coverage and IPython, for files of its
    own. What does harm is to open one of ours with it.
    """
    module = sys.modules.get("_sqlite3")
    if module is not None and not _process.has_warned:
        _process.has_warned = True
        get_logger(__name__).warning(
            "second_sqlite", path=str(path), library=str(getattr(module, "__file__", "_sqlite3"))
        )


class _Process:
    """Which process this is, known without a system call."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.has_warned = False
        self.in_child: list[Callable[[], None]] = []
        self.graveyard: list[Any] = []
        self.inherited: list[Callable[[], None]] = []
        self.closing = threading.Lock()

    def forked(self) -> None:
        self.pid = os.getpid()
        self.closing = threading.Lock()
        for tell in self.in_child:
            tell()


_process = _Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)


def current_pid() -> int:
    """Return this process's id; about 40 ns where ``os.getpid`` takes 150."""
    return _process.pid


def after_fork(tell: Callable[[], None]) -> None:
    """Have ``tell`` called in a child right after a fork."""
    _process.in_child.append(tell)


def bury(connection: object) -> None:
    """Keep a parent's object alive for ever in a forked child, past the interpreter's end too.

    What it was doing at the fork is the parent's: closing it, or letting it be collected, would
    end a transaction in memory that both processes share.
    """
    _process.graveyard.append(connection)
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


_PACKAGE = str(Path(__file__).parent.parent) + os.sep


def caller_outside() -> str:
    """Return ``file:line`` of the nearest frame outside this package: where the host called."""
    return next(callers_outside())


def callers_outside() -> Iterator[str]:
    """Yield ``file:line`` of each place where the host called into this package, inner first."""
    frame: FrameType | None = sys._getframe(1)
    was_inside = True
    while frame is not None:
        name = frame.f_code.co_filename
        is_inside = name.startswith(_PACKAGE) or name.endswith(f"{os.sep}contextlib.py")
        if was_inside and not is_inside:
            yield f"{name}:{frame.f_lineno}"
        was_inside = is_inside
        frame = frame.f_back


def reentrant_error(inner: str, outer: str) -> ReentrantScopeError:
    """Return the error that names both places; the outer call is on this thread's own stack."""
    places = [*callers_outside(), "", ""]
    if " at " not in inner:
        inner = f"{inner} at {places[0]}"
    if " at " not in outer:
        outer = f"{outer} at {places[1]}"
    return ReentrantScopeError(
        f"{inner} needs the database, which this thread already holds for {outer}; "
        "pass the open transaction on."
    )
