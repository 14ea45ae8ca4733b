"""Reads and locks a file's bytes through SQLite's file layer, whatever the content.

Not by ``open()``: closing a descriptor drops every lock that this process holds on the file, those
of SQLite too. SQLite's file layer knows the locks, and keeps the descriptor until they are free.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Self

import apsw

from mandrake_sessions.database.error_codes import (
    extended_code,
    primary_code,
    translate,
    translate_os,
)
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.database.sidecars import JOURNAL, WAL, sidecar
from mandrake_sessions.engine.budget import Budget

_BLOCK: Final = 1024 * 1024
# The order of SQLite's pager: each lock needs the one before.
_LADDER: Final = (apsw.SQLITE_LOCK_SHARED, apsw.SQLITE_LOCK_RESERVED, apsw.SQLITE_LOCK_EXCLUSIVE)


class RawFile:
    """An open file of bytes; it is never written.

    Args:
        path: the file, which must exist.
        lockable: whether it is a database that may be locked, so it must be writable.

    Attributes:
        size: its bytes when it was opened.

    Raises:
        apsw.Error: it cannot be opened.
    """

    def __init__(self, path: Path, *, lockable: bool = False) -> None:
        self.path = path
        mode = apsw.SQLITE_OPEN_READWRITE if lockable else apsw.SQLITE_OPEN_READONLY
        kind = apsw.SQLITE_OPEN_WAL if path.name.endswith(WAL) else apsw.SQLITE_OPEN_MAIN_DB
        self._file = apsw.VFSFile("", str(path), [mode | kind, 0])
        self.size: int = self._file.xFileSize()

    def read(self, offset: int, amount: int) -> bytes:
        """Return bytes, fewer at the file's end.

        Raises:
            apsw.Error: the disk could not read them.
        """
        # Never past the end: APSW drops the zeros at the end of a short read.
        left = self.size - offset
        return self._file.xRead(min(amount, left), offset) if left > 0 else b""

    def lock(self, budget: Budget, operation: str) -> None:
        """Take the exclusive lock, which is free while no connection uses the database.

        Raises:
            DatabaseBusyError: the lock was not free until the deadline.
            DatabaseError: the file system refuses.
        """
        for level in _LADDER:
            while True:
                try:
                    self._file.xLock(level)
                    break
                except apsw.Error as error:
                    if primary_code(error) != apsw.SQLITE_BUSY:
                        raise translate(error, self.path, operation) from error
                    if not pause(budget.deadline, pace(budget.started)):
                        code = extended_code(error)
                        raise budget.exceeded("open", self.path, operation, code=code) from error

    def share(self) -> bool:
        """Take a shared lock, and return whether no other connection has the exclusive one.

        Raises:
            apsw.Error: the file system refuses.
        """
        try:
            self._file.xLock(apsw.SQLITE_LOCK_SHARED)
        except apsw.BusyError:
            return False
        return True

    def is_free(self) -> bool:
        """Take the exclusive lock if it is free, and return whether it was.

        Raises:
            apsw.Error: the file system refuses.
        """
        try:
            for level in _LADDER:
                self._file.xLock(level)
        except apsw.BusyError:
            return False
        return True

    def close(self) -> None:
        """Close it, and release the lock."""
        with contextlib.suppress(apsw.Error):
            self._file.xUnlock(apsw.SQLITE_LOCK_NONE)
        self._file.xClose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_bytes(source: Path, target: Path) -> None:
    """Copy a file that may be in use into a new one, or over one that no process has open.

    Raises:
        DatabaseError: a read or a write fails; each reason has its own subclass.
    """
    try:
        with RawFile(source) as file:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(target, flags, 0o600)
            try:
                at = 0
                while block := file.read(at, _BLOCK):
                    at += len(block)
                    left = memoryview(block)
                    while left:
                        left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except apsw.Error as error:
        raise translate(error, source, "copy") from error
    except OSError as error:
        raise translate_os(error, target) from error


def copy_database(source: Path, target: Path) -> bool:
    """Copy a database with its WAL; return whether neither changed meanwhile.

    Args:
        source: the real path of the database.
        target: the path of the copy; its WAL gets the name that belongs to it.

    Raises:
        DatabaseError: a read or a write fails; each reason has its own subclass.
    """
    try:
        before = states_of(source)
    except OSError as error:
        raise translate_os(error, source) from error
    for suffix, state in before.items():
        copy = Path(f"{target}{suffix}")
        if state is not None:
            with contextlib.suppress(FileNotFoundError):
                copy_bytes(Path(f"{source}{suffix}"), copy)
        elif suffix:
            copy.unlink(missing_ok=True)
    try:
        return before == states_of(source)
    except OSError as error:
        raise translate_os(error, source) from error


def states_of(path: Path) -> dict[str, tuple[int, ...] | None]:
    """Return identity, size and time of the file, its WAL and its journal: a write changes one."""
    states: dict[str, tuple[int, ...] | None] = {}
    for suffix in ("", WAL, JOURNAL):
        try:
            found = os.stat(sidecar(path, suffix))
        except FileNotFoundError:
            states[suffix] = None
        else:
            states[suffix] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return states
