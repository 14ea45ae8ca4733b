"""The condition of the file of an open connection, and the end of its WAL.

SQLite finds a WAL by its name. It would replay this file's WAL into another file of the name.
"""

from __future__ import annotations

import contextlib
import enum
import os
from pathlib import Path

import apsw

from mandrake_sessions.database.connection.begin_commit import begin_unmarked, rollback
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import translate_os
from mandrake_sessions.database.files.creation import folder_lock
from mandrake_sessions.database.files.paths import (
    Identity,
    aside_of,
    descriptors_on,
    identify,
    log_set_aside,
    set_aside,
)
from mandrake_sessions.database.files.wal_mark import end_mark
from mandrake_sessions.database.retry import FileBudget, pace, pause
from mandrake_sessions.database.sidecars import SHM, WAL
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import DatabaseBusyError, DatabaseError

_BLOCK = 1024 * 1024
_COPYING = 1.0
"""Seconds to wait for processes that write into a moved file, or copy its WAL too."""


class FileCondition(enum.Enum):
    """The condition of an open file; the value is a sentence for people."""

    OURS = "it is the file that was opened"
    MOVED = "the file was moved, replaced or deleted"
    OVERWRITTEN = "other bytes were copied over the file"
    LOG_LOST = "the file's -wal or -shm was deleted or replaced"
    LOCKS_LOST = "the locks of this process on the file were dropped"


class Logs:
    """The ``-wal`` and ``-shm`` that SQLite has open for a file, which it keeps to the end.

    Args:
        path: the path of a database file that is open.

    Attributes:
        size: bytes of the ``-wal`` when the file was opened.
        index: the identity of the ``-shm``, None if there was none.
    """

    def __init__(self, path: Path) -> None:
        # Texts, because making a Path takes longer than a check.
        self._known: list[tuple[str, Identity]] = []
        self.size: int = 0
        self.index: Identity | None = None
        wal, index = f"{path}{WAL}", f"{path}{SHM}"
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(wal)
            self.size = found.st_size
            self._known.append((wal, (found.st_dev, found.st_ino)))
        self.index = identify(index)
        if self.index is not None:
            self._known.append((index, self.index))

    def lost(self) -> list[Path]:
        """Return the files that have lost their names."""
        return [Path(log) for log, identity in self._known if _has_name(log, identity) is not True]

    def ours(self) -> list[Path]:
        """Return the files that still have their names."""
        return [Path(log) for log, identity in self._known if _has_name(log, identity) is True]

    def are_replaced(self) -> bool:
        """Return whether another file has the name of one of them."""
        return any(_has_name(log, identity) is False for log, identity in self._known)

    def save_copy(self) -> Path | None:
        """Copy the WAL that has lost its name to a new file next to it; None if it is empty.

        It is read through SQLite's own descriptor: opening and closing another one would drop the
        locks.
        """
        log, identity = self._known[0]
        descriptors = descriptors_on((identity,))
        if not descriptors or os.fstat(descriptors[0]).st_size == 0:
            return None
        aside = aside_of(Path(log))
        target = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            offset = 0
            while block := os.pread(descriptors[0], _BLOCK, offset):
                offset += os.write(target, block)
            os.fsync(target)
        finally:
            os.close(target)
        return aside


def _has_name(log: str, identity: Identity) -> bool | None:
    """Return whether a file still has a name; None if no file has it."""
    try:
        found = os.stat(log)
    except FileNotFoundError:
        return None
    except OSError:
        # A name that the system cannot examine counts as unchanged.
        return True
    return (found.st_dev, found.st_ino) == identity


def is_emptied(path: Path) -> bool:
    """Return whether an open database file was emptied."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def end_wal(
    connection: Connection, logs: Logs, condition: FileCondition, budget: Budget, *, may_copy: bool
) -> None:
    """Save the commits of the WAL, in their file or aside, and keep the WAL from other files.

    Args:
        connection: the last one on the file; the caller must hold its lease.
        logs: the sidecars with which the file was opened.
        condition: the condition of the file; not ``OURS``.
        budget: the time it may take.
        may_copy: whether the WAL may be copied into the file, which must not be damaged.
    """
    path = connection.path
    connection.deadline = budget.deadline
    if condition is FileCondition.LOG_LOST:
        # If another WAL has begun, copying this one would undo changes that the other builds on.
        is_saved = may_copy and not logs.are_replaced() and _copy_into_file(connection, budget)
        try:
            aside = None if is_saved else logs.save_copy()
        except OSError as error:
            raise translate_os(error, path) from error
        if aside is not None:
            log_set_aside(path, aside)
        return
    is_saved = may_copy and condition is FileCondition.MOVED and _copy_into_file(connection, budget)
    # No process may make a new file between a check and its consequence: the WAL would be its WAL.
    with folder_lock(path.parent):
        for log in logs.ours():
            if is_saved:
                with contextlib.suppress(OSError):
                    log.unlink()
                continue
            aside = aside_of(log)
            try:
                is_kept = set_aside(log, aside)
            except OSError as error:
                raise translate_os(error, log) from error
            if is_kept:
                log_set_aside(path, aside)


def _copy_into_file(connection: Connection, budget: Budget) -> bool:
    """Copy the WAL into the open file, whatever its name; return whether all of it was copied.

    Other processes have the file open too. The thread waits for a transaction that one of them has
    begun, so that it is not stored in a WAL that is gone. Each of them copies, perhaps at once.
    """
    within = FileBudget(min(budget.left(), _COPYING))
    while True:
        try:
            begin_unmarked(connection, within, "close")
            try:
                end_mark(connection.execute)
                connection.execute("COMMIT")
            finally:
                rollback(connection)
            connection.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
            frames, done = connection.wal_backlog()
        except (apsw.BusyError, DatabaseBusyError):
            frames, done = 1, 0
        except (apsw.Error, DatabaseError):
            return False
        if frames == done:
            return True
        if not pause(within.deadline, pace(within.started)):
            return False
