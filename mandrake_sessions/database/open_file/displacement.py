"""What became of the file under an open connection, and so how its log must end.

SQLite finds a log by its name: it would replay ours into whatever file is there by then.
"""

from __future__ import annotations

import contextlib
import enum
import os
from pathlib import Path

import apsw

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.transaction import begin_unmarked, rollback
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
"""Seconds for others that write into a file that was moved, or copy its log as well."""


class FileCondition(enum.Enum):
    """What became of an open file; the value says it to people."""

    OURS = "it is the file that was opened"
    MOVED = "the file was moved, replaced or deleted"
    OVERWRITTEN = "other bytes were copied over the file"
    LOG_LOST = "the file's -wal or -shm was deleted or replaced"
    LOCKS_LOST = "the locks of this process on the file were dropped"


class Logs:
    """The ``-wal`` and ``-shm`` that SQLite has open for a file, which it keeps to the end.

    Args:
        path: of a database file that is open.

    Attributes:
        size: bytes of the ``-wal`` when the file was opened.
        index: the identity of the ``-shm``, None if there was none.
    """

    def __init__(self, path: Path) -> None:
        # Names and not paths, which take longer to make than a look.
        self._known: list[tuple[str, Identity]] = []
        self.size: int = 0
        self.index: Identity | None = None
        log, index = f"{path}{WAL}", f"{path}{SHM}"
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(log)
            self.size = found.st_size
            self._known.append((log, (found.st_dev, found.st_ino)))
        self.index = identify(index)
        if self.index is not None:
            self._known.append((index, self.index))

    def lost(self) -> list[Path]:
        """Return those whose name is not theirs any more."""
        return [Path(log) for log, identity in self._known if _look(log, identity) is not True]

    def ours(self) -> list[Path]:
        """Return those that still have their names."""
        return [Path(log) for log, identity in self._known if _look(log, identity) is True]

    def are_replaced(self) -> bool:
        """Return whether another file has the name of one of them."""
        return any(_look(log, identity) is False for log, identity in self._known)

    def save_copy(self) -> Path | None:
        """Copy the log that lost its name to a new file beside; None if it has nothing.

        Read through SQLite's own descriptor: to open and close one more would drop its locks.
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


def _look(log: str, identity: Identity) -> bool | None:
    """Return whether a name is still that of a file; None if it names nothing."""
    try:
        found = os.stat(log)
    except FileNotFoundError:
        return None
    except OSError:
        # What cannot be looked at is not judged.
        return True
    return (found.st_dev, found.st_ino) == identity


def is_emptied(path: Path) -> bool:
    """Return whether a database file that is open has no bytes any more."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def end_wal(
    connection: Connection, logs: Logs, condition: FileCondition, budget: Budget, *, may_copy: bool
) -> None:
    """Bring what the log holds to where it belongs, and keep it from every other file.

    Args:
        connection: the last one on the file; its lease is the caller's.
        logs: that the file was opened with.
        condition: what became of the file; not ``OURS``.
        budget: the time it may take.
        may_copy: whether the log may go into the file: not into one that is damaged.
    """
    path = connection.path
    connection.deadline = budget.deadline
    if condition is FileCondition.LOG_LOST:
        # Where another log has begun, pages of ours would undo what it says of the file.
        is_saved = may_copy and not logs.are_replaced() and _copy_into_file(connection, budget)
        try:
            aside = None if is_saved else logs.save_copy()
        except OSError as error:
            raise translate_os(error, path) from error
        if aside is not None:
            log_set_aside(path, aside)
        return
    is_saved = may_copy and condition is FileCondition.MOVED and _copy_into_file(connection, budget)
    # Between a look and what follows from it nobody may make a new file, whose log it would be.
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
    """Checkpoint into the file that is open, whatever its name; return whether all of it is in.

    Other processes have it open too. What one of them has begun is waited for, so that it is not
    stored in a log which is gone; and each of them copies, perhaps at the same moment.
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
