"""Checks this process's SQLite: its version is safe, and there is no second SQLite library."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import apsw

from mandrake_sessions.errors import UnsupportedSQLiteError
from mandrake_sessions.log import get_logger

_FIXED = (3, 51, 3)
_BACK_PORTS = {(3, 50): 7, (3, 44): 6}
_FIRST_WAL = (3, 7, 0)

_warned_of: list[Path] = []


@functools.lru_cache(maxsize=1)
def is_safe_sqlite(version: str) -> bool:
    """Return whether a SQLite is free of the WAL-reset bug, which loses committed data.

    The bug is in 3.7.0 to 3.51.2; 3.50.7 and 3.44.6 have the fix too.
    """
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    if (major, minor, patch) >= _FIXED or (major, minor, patch) < _FIRST_WAL:
        return True
    back_port = _BACK_PORTS.get((major, minor))
    return back_port is not None and patch >= back_port


def require_safe_sqlite(path: Path) -> None:
    """Raise UnsupportedSQLiteError if the SQLite in APSW can lose data."""
    version = apsw.sqlite_lib_version()
    if not is_safe_sqlite(version):
        raise UnsupportedSQLiteError(
            f"SQLite {version} can lose committed data (WAL-reset bug); install apsw 3.51.3 "
            "or newer.",
            path=path,
            operation="open",
        )


def second_sqlite() -> str | None:
    """Return the path of a second SQLite library in this process, or None.

    Two libraries on one file lose data without an error: closing it in one drops the locks of the
    other. Only Linux shows the libraries of a process; elsewhere the result depends on the standard
    library's module alone.
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
    """Log, once in a process, that the standard library's SQLite is loaded when a file is opened.

    This is no error: harmless tools such as coverage and IPython import it for their own files. It
    does harm only if it opens a database of this library.
    """
    module = sys.modules.get("_sqlite3")
    if module is not None and not _warned_of:
        _warned_of.append(path)
        get_logger(__name__).warning(
            "second_sqlite", path=str(path), library=str(getattr(module, "__file__", "_sqlite3"))
        )
