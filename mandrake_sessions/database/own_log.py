"""Whether the log that lies at a file is the file's own, and whether it has the log it needs.

The file is read twice: by itself, past its log, and as SQLite reads it. Nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import apsw

from mandrake_sessions.database.blocks import block, closing
from mandrake_sessions.database.faults import pass_on_timeout
from mandrake_sessions.database.log_frames import FRAME_HEADER, LOG_HEADER
from mandrake_sessions.database.mark import USED, Mark, has_content, read_mark
from mandrake_sessions.database.paths import Identity, companions, identify
from mandrake_sessions.database.waiting import Budget, retry_busy
from mandrake_sessions.errors import DatabaseError, LostLogError, StaleLogError
from mandrake_sessions.tables import APPLICATION_ID

UNCHANGED: Final = "Nothing was changed."
"""Stands in a message between the finding and the advice."""

_OPEN: Final = "open"
_LOOKS: Final = 3
_PAUSE: Final = 0.002
_FOREIGN: Final = (apsw.CorruptError, apsw.NotADBError)
_HAS_CHANGES: Final = "SELECT 1 FROM changes LIMIT 1"
_NEWEST_CHANGE: Final = "SELECT seq, op FROM changes ORDER BY seq DESC LIMIT 1"
_OPS: Final = frozenset({"create", "update", "delete"})
_STAMP: Final = "SELECT value FROM meta WHERE key = 'stamp'"


class State(NamedTuple):
    """What a database says of itself.

    Attributes:
        in_header: the part of its stamp that the header has.
        stamp: the whole of it; empty if it is not known.
        mark: of its log; None for one that has none.
        change: the number of the newest change, which grows within one log too; 0 if there is
            none, None if it is not known.
    """

    in_header: int
    stamp: str
    mark: Mark | None
    change: int | None = None


def state_of(execute: Callable[..., Any]) -> State | None:
    """Return what a database says of itself, or None for one that is not ours.

    Raises:
        apsw.Error: it cannot be read.
    """
    if execute("PRAGMA application_id").fetchall() != [(APPLICATION_ID,)]:
        return None
    in_header = int(execute("PRAGMA user_version").fetchall()[0][0])
    try:
        rows = execute(_STAMP).fetchall()
        stamp = str(rows[0][0]) if rows else ""
        return State(in_header, stamp, read_mark(execute), _newest_change(execute))
    except apsw.SQLError:
        # No such table: its migrations were taken back.
        return State(in_header, "", None)


def _newest_change(execute: Callable[..., Any]) -> int | None:
    """Return the number of the newest change, 0 if there is none; None if what is found is none.

    Where a checkpoint was broken off, a page may still be what it was for another table.
    """
    try:
        rows = execute(_NEWEST_CHANGE).fetchall()
    except (apsw.SQLError, apsw.CorruptError, UnicodeDecodeError):
        return None
    if not rows:
        return 0
    seq, op = rows[0]
    return seq if op in _OPS else None


def state_alone(path: Path, vfs: str | None = None) -> State | None:
    """Return what a file says of itself without its log, or None if it is not ours by itself.

    Args:
        path: the real path of the database.
        vfs: by which it is opened; None for SQLite's own.
    """
    name = f"file:{quote(str(path))}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    # A checkpoint that was broken off has left pages of two moments, which may not fit together.
    try:
        raw = apsw.Connection(name, flags=flags, vfs=vfs)
    except apsw.Error:
        return None
    with closing(raw), contextlib.suppress(apsw.Error):
        return state_of(raw.execute)
    return None


def mismatch(alone: State | None, through: State | None) -> str | None:
    """Return why a log is not that of its file, for people, or None if it may be.

    Args:
        alone: what the file says without the log.
        through: what it says with the log; None for a database that is not ours.
    """
    if alone is None:
        return None
    if through is None or _are_two(alone, through):
        return "it is of another database"
    if alone.mark is not None and through.mark is not None:
        if through.mark.number < alone.mark.number:
            return "it is older than the file"
        if through.mark.base > alone.mark.number:
            return "the file is older than it"
    if alone.change is None or through.change is None or alone.change <= through.change:
        return None
    # What was copied into the file was in the log before, and no change is ever taken back.
    return "it is older than the file"


def _are_two(alone: State, through: State) -> bool:
    if alone.in_header != through.in_header:
        return True
    return bool(alone.stamp and through.stamp) and alone.stamp != through.stamp


def has_log(path: Path) -> bool:
    """Return whether a database has a log with something in it."""
    try:
        return os.stat(f"{path}-wal").st_size > 0
    except OSError as error:
        pass_on_timeout(error)
        return False


def has_index(path: Path) -> bool:
    """Return whether a database has an index of its log."""
    return os.path.lexists(f"{path}-shm")


def require_log(
    path: Path, execute: Callable[..., Any], budget: Budget, vfs: str | None = None
) -> None:
    """Make sure that a file which is opened has its own log, or needs none.

    Args:
        path: the real path of the database.
        execute: reads through the log, for the first time.
        budget: for other processes that keep it busy.
        vfs: by which the file is opened; None for SQLite's own.

    Raises:
        StaleLogError: the log at the file is not its own. Nothing was written.
        LostLogError: its log is missing. Nothing was written.
        DatabaseBusyError: other processes held it until the deadline.
        DatabaseError: it cannot be read; each reason has its own subclass.
    """

    def look() -> None:
        if has_log(path):
            require_own_log(path, execute, _OPEN, vfs=vfs)
        require_needed_log(path, execute, _OPEN)

    retry_busy(look, budget, path, _OPEN, "open")


def require_own_log(
    path: Path, execute: Callable[..., Any], operation: str, *, vfs: str | None = None
) -> None:
    """Make sure that the log at a file is its own; before anything else is read through it.

    Args:
        path: the real path of the database.
        execute: reads through the log.
        operation: for errors.
        vfs: by which the file is opened; None for SQLite's own.

    Raises:
        StaleLogError: it is not. Nothing was written.
        apsw.Error: it cannot be read.
    """
    for look in range(_LOOKS):
        if look:
            # A living process may have begun the log anew, or copied it into the file.
            sleep(_PAUSE)
        # First: the number grows, so the one that is read through the log cannot be less.
        alone = state_alone(path, vfs)
        try:
            reason = mismatch(alone, state_of(execute))
        except _FOREIGN:
            # Other pages than those of this file; if these cannot be read alone, others judge.
            if alone is None:
                return
            reason = "the file cannot be read through it"
        if reason is None:
            return
    log = companions(path)[0]
    error = StaleLogError(
        f"{log.name} is not the log that belongs to this file: {reason}. {UNCHANGED} "
        f"{stale_advice(path)}",
        path=path,
        operation=operation,
    )
    error.log = log
    raise error


def stale_advice(path: Path) -> str:
    """Return what a person can do about a log that is not the file's own."""
    log = companions(path)[0]
    return (
        f"To open the file as it is without it, move it away: mv {log.name} {log.name}.old; or "
        "restore a backup."
    )


def require_needed_log(path: Path, execute: Callable[..., Any], operation: str) -> None:
    """Make sure that a file which was used and is empty has its log.

    Args:
        path: the real path of the database.
        execute: reads it.
        operation: for errors.

    Raises:
        LostLogError: everything that was stored was in a log that is missing. Nothing was written.
        apsw.Error: it cannot be read.
    """
    # Asked last, for most files have no need of one.
    if not is_log_lost(execute) or _has_room_for_frame(path, execute):
        return
    log = companions(path)[0]
    is_cut = has_log(path)
    error = LostLogError(
        f"The file is empty, but something was stored in it: in {log.name}, which "
        f"{'was cut off' if is_cut else 'is missing'}. "
        f"{UNCHANGED} {lost_advice(path)}",
        path=path,
        operation=operation,
    )
    error.log = log
    raise error


def _has_room_for_frame(path: Path, execute: Callable[..., Any]) -> bool:
    """Return whether a log is as long as one that was ever written to.

    Not whether it has a frame: a process that begins it anew has none for a moment, and one that
    did not wait for the disk may have lost them in a power cut. But the log was so long, and on the
    disk, before the file was marked as used.
    """
    page_size = int(execute("PRAGMA page_size").fetchall()[0][0])
    try:
        return os.stat(f"{path}-wal").st_size >= LOG_HEADER + FRAME_HEADER + page_size
    except OSError as error:
        pass_on_timeout(error)
        return False


def is_log_lost(execute: Callable[..., Any]) -> bool:
    """Return whether a database without a log must have had one.

    Raises:
        apsw.Error: it cannot be read.
    """
    try:
        # Most files have content, which is found by the shortest statement.
        if execute(_HAS_CHANGES).fetchall():
            return False
        mark = read_mark(execute)
        return mark is not None and mark.use == USED and not has_content(execute)
    except (apsw.SQLError, apsw.CorruptError):
        # No such table, at another revision; or damage, which is found when it is in the way.
        return False


def lost_advice(path: Path) -> str:
    """Return what a person can do about a log that is missing."""
    log = companions(path)[0]
    return (
        f"Bring {log.name} back to where it was, or restore a backup; to begin anew, delete "
        f"{path.name}."
    )


def find_stale_log(path: Path, operation: str) -> None:
    """Look at a file that no process has open; one that is in use, or cannot be read, passes.

    Raises:
        StaleLogError: its log is not its own. Nothing was written.
    """
    if not has_log(path):
        return
    with contextlib.suppress(apsw.Error), _unshared(path) as raw:
        require_own_log(path, raw.execute, operation)


def drop_index(path: Path, identity: Identity) -> None:
    """Remove the index of a log, which a failed opening has made, if no process uses it."""
    with contextlib.suppress(apsw.Error, OSError, DatabaseError), _unshared(path) as raw:
        # In this mode a read takes the lock that every other connection needs, and keeps it,
        # whatever it finds then.
        with contextlib.suppress(*_FOREIGN):
            raw.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        if identify(path) == identity:
            companions(path)[1].unlink(missing_ok=True)


@block
def _unshared(path: Path) -> Iterator[apsw.Connection]:
    """Open a database that no other connection has open, with the index of its log in memory."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    with closing(apsw.Connection(str(path), flags=flags)) as raw:
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        raw.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        yield raw
