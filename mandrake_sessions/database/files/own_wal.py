"""Checks that the WAL next to a file belongs to it, and that a file has the WAL that it needs.

The file is read twice: without its WAL, and as SQLite reads it. Nothing is written.
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

from mandrake_sessions.concurrency.blocks import block, closing
from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.file_format import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from mandrake_sessions.database.files.paths import Identity, identify
from mandrake_sessions.database.files.wal_mark import USED, Mark, has_content, read_mark
from mandrake_sessions.database.retry import retry_busy
from mandrake_sessions.database.sidecars import SHM, WAL, shm_of, wal_of
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import DatabaseError, LostLogError, StaleLogError
from mandrake_sessions.tables import APPLICATION_ID

UNCHANGED: Final = "Nothing was changed."
"""Separates the finding from the advice in a message."""

_OPEN: Final = "open"
_READINGS: Final = 3
_PAUSE: Final = 0.002
_FOREIGN: Final = (apsw.CorruptError, apsw.NotADBError)
_HAS_CHANGES: Final = "SELECT 1 FROM changes LIMIT 1"
_NEWEST_CHANGE: Final = "SELECT seq, op FROM changes ORDER BY seq DESC LIMIT 1"
_OPS: Final = frozenset({"create", "update", "delete"})
_STAMP: Final = "SELECT value FROM meta WHERE key = 'stamp'"


class State(NamedTuple):
    """The stored identity of a database, and how far its changes have come.

    Attributes:
        in_header: the part of the stamp that the header carries.
        stamp: the whole stamp; empty if it is not known.
        mark: the mark of the database's WAL; None for a database without a mark.
        change: the number of the newest change, which grows within one WAL too; 0 if there is
            none, None if it is not known.
    """

    in_header: int
    stamp: str
    mark: Mark | None
    change: int | None = None


def state_of(execute: Callable[..., Any]) -> State | None:
    """Return the state of a database, or None for a database of another program.

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
        # The table does not exist: the migrations were reverted.
        return State(in_header, "", None)


def _newest_change(execute: Callable[..., Any]) -> int | None:
    """Return the number of the newest change, 0 if there is none, None if it is not valid.

    After an interrupted WAL checkpoint a page may still have the content of another table.
    """
    try:
        rows = execute(_NEWEST_CHANGE).fetchall()
    except (apsw.SQLError, apsw.CorruptError, UnicodeDecodeError):
        return None
    if not rows:
        return 0
    seq, op = rows[0]
    return seq if op in _OPS else None


def state_in_file(path: Path, vfs: str | None = None) -> State | None:
    """Return the state of a file without its WAL; None if that is not a database of this library.

    Args:
        path: the real path of the database.
        vfs: by which it is opened; None for SQLite's own.
    """
    name = f"file:{quote(str(path))}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    # An interrupted WAL checkpoint leaves pages of two moments, which may not fit together.
    try:
        raw = apsw.Connection(name, flags=flags, vfs=vfs)
    except apsw.Error:
        return None
    with closing(raw), contextlib.suppress(apsw.Error):
        return state_of(raw.execute)
    return None


def mismatch(in_file: State | None, through: State | None) -> str | None:
    """Return why a WAL is not that of its file, for people, or None if it may be.

    Args:
        in_file: the state of the file without the WAL.
        through: its state with the WAL; None for a database of another program.
    """
    if in_file is None:
        return None
    if through is None or _are_two(in_file, through):
        return "it is of another database"
    if in_file.mark is not None and through.mark is not None:
        if through.mark.number < in_file.mark.number:
            return "it is older than the file"
        if through.mark.base > in_file.mark.number:
            return "the file is older than it"
    if in_file.change is None or through.change is None or in_file.change <= through.change:
        return None
    # Each change in the file was in its WAL before, and a number is never taken back.
    return "it is older than the file"


def _are_two(in_file: State, through: State) -> bool:
    if in_file.in_header != through.in_header:
        return True
    return bool(in_file.stamp and through.stamp) and in_file.stamp != through.stamp


def has_wal(path: Path) -> bool:
    """Return whether a database has a WAL that is not empty."""
    try:
        return os.stat(f"{path}{WAL}").st_size > 0
    except OSError as error:
        pass_on_timeout(error)
        return False


def has_index(path: Path) -> bool:
    """Return whether a database has a WAL index."""
    return os.path.lexists(f"{path}{SHM}")


def require_wal(
    path: Path, execute: Callable[..., Any], budget: Budget, vfs: str | None = None
) -> None:
    """Check that a file that is being opened has its own WAL, or needs none.

    Args:
        path: the real path of the database.
        execute: reads through the WAL, for the first time.
        budget: limits the wait for other processes.
        vfs: by which the file is opened; None for SQLite's own.

    Raises:
        StaleLogError: the WAL next to the file is not its own. Nothing was written.
        LostLogError: its WAL is missing. Nothing was written.
        DatabaseBusyError: other processes held the file until the deadline.
        DatabaseError: it cannot be read; each reason has its own subclass.
    """

    def check() -> None:
        if has_wal(path):
            require_own_wal(path, execute, _OPEN, vfs=vfs)
        require_needed_wal(path, execute, _OPEN)

    retry_busy(check, budget, path, _OPEN, "open")


def require_own_wal(
    path: Path, execute: Callable[..., Any], operation: str, *, vfs: str | None = None
) -> None:
    """Check that the WAL next to a file is its own, before any other read through it.

    Args:
        path: the real path of the database.
        execute: reads through the WAL.
        operation: for errors.
        vfs: by which the file is opened; None for SQLite's own.

    Raises:
        StaleLogError: it is not. Nothing was written.
        apsw.Error: it cannot be read.
    """
    for reading in range(_READINGS):
        if reading:
            # A living process may have restarted the WAL, or copied it into the file.
            sleep(_PAUSE)
        # First: the number grows, so the one that is read through the WAL cannot be less.
        in_file = state_in_file(path, vfs)
        try:
            reason = mismatch(in_file, state_of(execute))
        except _FOREIGN:
            # The WAL has pages of another file. If the file itself cannot be read either, a later
            # check reports it.
            if in_file is None:
                return
            reason = "the file cannot be read through it"
        if reason is None:
            return
    wal = wal_of(path)
    error = StaleLogError(
        f"{wal.name} is not the WAL that belongs to this file: {reason}. {UNCHANGED} "
        f"{stale_advice(path)}",
        path=path,
        operation=operation,
    )
    error.log = wal
    raise error


def stale_advice(path: Path) -> str:
    """Return the advice for a WAL that is not the file's own."""
    wal = wal_of(path)
    return (
        f"To open the file as it is without it, move it away: mv {wal.name} {wal.name}.old; or "
        "restore a backup."
    )


def require_needed_wal(path: Path, execute: Callable[..., Any], operation: str) -> None:
    """Check that a file that was used and is empty has its WAL.

    Args:
        path: the real path of the database.
        execute: reads it.
        operation: for errors.

    Raises:
        LostLogError: all stored rows were in a WAL that is missing. Nothing was written.
        apsw.Error: it cannot be read.
    """
    # The size of the WAL is checked last, because most files need no WAL.
    if not is_wal_lost(execute) or _has_room_for_frame(path, execute):
        return
    wal = wal_of(path)
    is_cut = has_wal(path)
    error = LostLogError(
        f"The file is empty, but rows were stored in {wal.name}, which "
        f"{'was cut off' if is_cut else 'is missing'}. "
        f"{UNCHANGED} {lost_advice(path)}",
        path=path,
        operation=operation,
    )
    error.log = wal
    raise error


def _has_room_for_frame(path: Path, execute: Callable[..., Any]) -> bool:
    """Return whether a WAL has the length of a header and a frame, as each used one has.

    It need not contain a valid frame: a process that restarts the WAL has none for a moment, and
    frames that were not synced may be lost in a power cut. But the WAL had this length on the disk
    before the file was marked as used.
    """
    page_size = int(execute("PRAGMA page_size").fetchall()[0][0])
    try:
        return os.stat(wal_of(path)).st_size >= WAL_HEADER_BYTES + FRAME_HEADER_BYTES + page_size
    except OSError as error:
        pass_on_timeout(error)
        return False


def is_wal_lost(execute: Callable[..., Any]) -> bool:
    """Return whether a database without a WAL must have had one.

    Raises:
        apsw.Error: it cannot be read.
    """
    try:
        # Most files have content, and the shortest statement finds it.
        if execute(_HAS_CHANGES).fetchall():
            return False
        mark = read_mark(execute)
        return mark is not None and mark.use == USED and not has_content(execute)
    except (apsw.SQLError, apsw.CorruptError):
        # The table is missing at another revision; or the file is damaged, which a later read of
        # the damaged page reports.
        return False


def lost_advice(path: Path) -> str:
    """Return the advice for a missing WAL."""
    wal = wal_of(path)
    return (
        f"Put {wal.name} back into its place, or restore a backup; to begin anew, delete "
        f"{path.name}."
    )


def find_stale_wal(path: Path, operation: str) -> None:
    """Check the WAL of a file that no process uses; skip a file in use and an unreadable one.

    Raises:
        StaleLogError: the WAL is not its own. Nothing was written.
    """
    if not has_wal(path):
        return
    with contextlib.suppress(apsw.Error), _unshared(path) as raw:
        require_own_wal(path, raw.execute, operation)


def drop_index(path: Path, identity: Identity) -> None:
    """Remove the WAL index that a failed opening has made, if no process uses it."""
    with contextlib.suppress(apsw.Error, OSError, DatabaseError), _unshared(path) as raw:
        # In this mode a read takes the lock that every other connection needs, and keeps it, even
        # if the read fails.
        with contextlib.suppress(*_FOREIGN):
            raw.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        if identify(path) == identity:
            shm_of(path).unlink(missing_ok=True)


@block
def _unshared(path: Path) -> Iterator[apsw.Connection]:
    """Open a database that no other connection has open, with its WAL index in memory."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    with closing(apsw.Connection(str(path), flags=flags)) as raw:
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        raw.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        yield raw
