"""Reads and locks a file's bytes by SQLite's own means, whatever stands in them.

Not by ``open()``: closing a descriptor drops every lock that this process holds on the file, those
of SQLite too. SQLite's file layer knows them, and keeps the descriptor until they are free.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Self

import apsw

from mandrake_sessions.database.faults import extended_code, primary_code, translate, translate_os
from mandrake_sessions.database.sidecars import beside
from mandrake_sessions.database.waiting import Budget, pace, pause

_BLOCK: Final = 1024 * 1024
# As SQLite's pager goes: each lock needs the one before.
_LADDER: Final = (apsw.SQLITE_LOCK_SHARED, apsw.SQLITE_LOCK_RESERVED, apsw.SQLITE_LOCK_EXCLUSIVE)


class RawFile:
    """An open file of bytes; it is never written.

    Args:
        path: the file; it must be there.
        lockable: whether it is a database that may be locked, so it must be writable.

    Attributes:
        size: its bytes when it was opened.

    Raises:
        apsw.Error: it cannot be opened.
    """

    def __init__(self, path: Path, *, lockable: bool = False) -> None:
        self.path = path
        mode = apsw.SQLITE_OPEN_READWRITE if lockable else apsw.SQLITE_OPEN_READONLY
        kind = apsw.SQLITE_OPEN_WAL if path.name.endswith("-wal") else apsw.SQLITE_OPEN_MAIN_DB
        self._file = apsw.VFSFile("", str(path), [mode | kind, 0])
        self.size = self._file.xFileSize()

    def read(self, offset: int, amount: int) -> bytes:
        """Return bytes, fewer at the file's end.

        Raises:
            apsw.Error: the disk did not give them.
        """
        # Never beyond the end: of a read that comes out short APSW drops the zeros at its end.
        left = self.size - offset
        return self._file.xRead(min(amount, left), offset) if left > 0 else b""

    def lock(self, budget: Budget, operation: str) -> None:
        """Take the exclusive lock, which is free when no connection to the database is in use.

        Raises:
            DatabaseBusyError: it was not free until the deadline.
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
        """Take a shared lock, and return whether nobody has the exclusive one.

        Raises:
            apsw.Error: the file system refuses.
        """
        try:
            self._file.xLock(apsw.SQLITE_LOCK_SHARED)
        except apsw.BusyError:
            return False
        return True

    def is_free(self) -> bool:
        """Take the exclusive lock if it is free this moment, and return if it was.

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
        """Close it, and free the lock."""
        with contextlib.suppress(apsw.Error):
            self._file.xUnlock(apsw.SQLITE_LOCK_NONE)
        self._file.xClose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_bytes(source: Path, target: Path) -> None:
    """Copy a file that may be in use into a new one, or over one that nobody has open.

    Raises:
        DatabaseError: either fails; each reason has its own subclass.
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
    """Copy a database with the log beside it; return whether both stayed as they were meanwhile.

    Args:
        source: the real path of the database.
        target: where the copy is made; its log gets the name that belongs to it.

    Raises:
        DatabaseError: either fails; each reason has its own subclass.
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
    """Return what changes when a database is written: of the file, its log and its journal."""
    states: dict[str, tuple[int, ...] | None] = {}
    for suffix in ("", "-wal", "-journal"):
        try:
            found = os.stat(beside(path, suffix))
        except FileNotFoundError:
            states[suffix] = None
        else:
            states[suffix] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return states
