"""The checks of a look at a database, one function each. A check never writes and never retries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions import tables
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.header import difference
from mandrake_sessions.database.connection.length import measure
from mandrake_sessions.database.connection.settings import lost_settings
from mandrake_sessions.database.error_codes import free_bytes, primary_code, translate, translate_os
from mandrake_sessions.database.files.paths import descriptors_on, identify, may_write
from mandrake_sessions.database.health.wording import (
    LOW_DISK,
    ORPHANS,
    counted,
    listed,
    orphans,
    readable_size,
)
from mandrake_sessions.database.lock_holder import write_lock_holder
from mandrake_sessions.database.migrations import head
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.openers import has_lock, other_connections_on
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.database.sqlite_library import second_sqlite
from mandrake_sessions.engine.health import HealthCheck, HealthStatus
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseIOError,
    DatabaseMovedError,
    ForkedPoolError,
    HandleReleasedError,
    NotADatabaseError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    StorageFullError,
)

PATIENCE: Final = 0.25
_BACKLOG_FACTOR = 10

DAMAGED: Final = (CorruptDatabaseError, NotADatabaseError)
DAMAGE: Final = ("size", "pages", "integrity")
"""Checks that fail only for damage: once one has failed, the file takes no writes any more."""

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPEN_AGAIN = "Close the manager or handle and open it again."
_RESCUE = "Restore a backup, or rescue what can be read: mandrake-sessions salvage FILE NEW."
_MOVED: Final = f"Find out what moved or replaced it. {_OPEN_AGAIN}"
_MAKE_SPACE: Final = "Free space on the file system."
_ADVICE: Final = {
    "file": _MOVED,
    "lease": "Wait; if it stays so, find the call that holds it for long.",
    "log": f"Let nothing delete or copy a -wal or -shm. {_OPEN_AGAIN}",
    "locks": f"Find what in this process opens and closes the file. {_OPEN_AGAIN}",
    "second_opener": "Use this file through mandrake_sessions only, never through sqlite3.",
    "sqlite": "It may stay for other files; never let it open one of these.",
    "disk": _MAKE_SPACE,
    "file_system": "Move it to a disk of this machine, or use it from here only, by one mount.",
    "checkpoints": "Find the reader that stays open for long; see that the disk has space.",
    "damage": _RESCUE,
    "header": f"Find out what wrote over it, and restore a backup. {_OPEN_AGAIN}",
    "size": _RESCUE,
    "schema": "Use one version of the package for every process; open the file again.",
    "settings": "Set no pragma on a lent connection; a HealthMonitor sets them again.",
    "settings_auxiliary": "Set no pragma on a lent connection; a HealthMonitor sets them again.",
    "turnstile": "Look at the permissions of the folder; waiting processes are served less evenly.",
    "reading": f"If it stays so: {_OPEN_AGAIN[0].lower()}{_OPEN_AGAIN[1:]}",
    "writing": "Wait; if it stays so, find who writes: mandrake-sessions doctor FILE.",
    "pages": _RESCUE,
    "references": f"{ORPHANS}.",
    "integrity": _RESCUE,
}
# Of an error that kept a check from being made, its cause says what helps.
_ADVICE_ON: Final[tuple[tuple[type[DatabaseError], str], ...]] = (
    (DatabaseMovedError, _MOVED),
    (CorruptDatabaseError, _RESCUE),
    (NotADatabaseError, _RESCUE),
    (StorageFullError, _MAKE_SPACE),
    (ReadOnlyDatabaseError, "Let the file be written again: look at its mode and owner."),
    (DatabaseBusyError, "Wait; if it stays so, find the call that holds it for long."),
    (DatabaseIOError, "Check the disk."),
)


def found(name: str, status: HealthStatus, detail: str = "") -> HealthCheck:
    """Return a check with the advice that goes with it."""
    return HealthCheck(name, status, detail, "" if status is OK else _ADVICE[name])


def found_error(name: str, status: HealthStatus, error: DatabaseError) -> HealthCheck:
    """Return a check that an error decides, with the advice that goes with the error."""
    detail = f"{type(error).__name__}: {error.message}"
    causes = (advice for kind, advice in _ADVICE_ON if isinstance(error, kind))
    return HealthCheck(name, status, detail, next(causes, _ADVICE[name]))


def guarded(
    name: str, look: Callable[[], HealthCheck], path: Path, raw: apsw.Connection | None = None
) -> HealthCheck:
    """Make one check; what it raises is its outcome.

    Args:
        name: of the check.
        look: makes it.
        path: of the database.
        raw: the connection that it asks, if it asks one.

    Raises:
        PoolClosedError: the file is being closed, or is parked: there is nothing to look at.
    """
    try:
        return look()
    except apsw.InterruptError:
        return found(name, DEGRADED, "not finished in time")
    except apsw.Error as error:
        return failed(name, translate(error, path, "health", raw=raw))
    except DatabaseError as error:
        return failed(name, error)
    except OSError as error:
        return failed(name, translate_os(error, path))


def failed(name: str, error: DatabaseError) -> HealthCheck:
    """Return a check that could not be made; busy is degraded, not failed."""
    if isinstance(error, PoolClosedError | HandleReleasedError | ForkedPoolError):
        raise error
    status = DEGRADED if isinstance(error, DatabaseBusyError) else FAILED
    if name in DAMAGE and status is FAILED and not isinstance(error, DAMAGED):
        # No descriptor is left, or the disk did not answer: that says nothing of the file.
        name = "reading"
    return found_error(name, status, error)


# -- from outside: no connection is used ----------------------------------------------------------


def check_file(file: DatabaseFile) -> HealthCheck:
    """Whether the path still names the file that was opened, and it is in use."""
    identity = identify(file.path)
    if identity is None:
        return found("file", FAILED, "it was deleted or renamed")
    if identity != file.identity:
        return found("file", FAILED, "it was replaced by another file")
    if file.state is not FileState.OPEN:
        return found("file", FAILED, "the open database is not used any more")
    return found("file", OK)


def check_wal(file: DatabaseFile) -> HealthCheck:
    """Whether the log that SQLite writes to is the one that others find beside the file."""
    lost = file.logs.lost()
    if lost:
        names = ", ".join(each.name for each in lost)
        return found("log", FAILED, f"deleted or replaced: {names}")
    return found("log", OK)


def check_locks(file: DatabaseFile) -> HealthCheck:
    """Whether other processes still see that this one has the file open."""
    if file.options.vfs is not None:
        return found("locks", OK, "the locks of another VFS are not known")
    has = has_lock(file.path)
    if has:
        file.was_locked = True
    if has is not False:
        return found("locks", OK, "" if has else "the system does not show them")
    if identify(file.path) != file.identity:
        # Found by its name: what has that now is another file, or none.
        return found("locks", OK, "the file was moved or replaced")
    if file.was_locked:
        return found("locks", FAILED, "the file was opened and closed beside SQLite, here")
    # Perhaps it is the file system that shows other numbers than it lists.
    return found("locks", DEGRADED, "no lock of this process is seen")


def check_second_opener(file: DatabaseFile) -> HealthCheck:
    """Whether something in this process has the file open beside our SQLite."""
    descriptors = descriptors_on((file.identity,))
    if descriptors is None:
        return found("second_opener", OK, "the system does not show descriptors")
    # SQLite keeps a descriptor of a closed connection while another one has the file locked.
    ours = [leased.connection.raw for leased in file.leased_connections()]
    others = len(descriptors) - len(ours) - file.inspections.most
    library = second_sqlite() if others > 0 else None
    if library is not None and others > other_connections_on(file.path, ours):
        detail = f"{others} descriptors beside ours, and {library} is loaded"
        return found("second_opener", FAILED, detail)
    return found("second_opener", OK)


def check_sqlite() -> HealthCheck:
    """Whether a second SQLite library is in the process, which could lose data silently."""
    library = second_sqlite()
    if library is None:
        return found("sqlite", OK, apsw.sqlite_lib_version())
    return found("sqlite", DEGRADED, f"a second SQLite library is loaded: {library}")


def check_disk(file: DatabaseFile) -> HealthCheck:
    """Whether there is space for what comes."""
    free = free_bytes(file.path)
    if free is None:
        return found("disk", DEGRADED, "the file system does not answer")
    return found("disk", OK if free >= LOW_DISK else DEGRADED, f"{readable_size(free)} free")


def check_checkpoints(file: DatabaseFile) -> HealthCheck:
    """Whether the file keeps up with its log."""
    pointer = file.checkpointer
    if pointer.failure is not None:
        return found("checkpoints", DEGRADED, f"failed with result code {pointer.failure}")
    many = _BACKLOG_FACTOR * file.options.checkpoint_frames
    status = OK if pointer.backlog < many else DEGRADED
    return found("checkpoints", status, f"{counted(pointer.backlog, 'frame')} behind")


def check_damage(file: DatabaseFile) -> HealthCheck:
    """Whether SQLite has met damage since the file was opened."""
    damage = file.refusal.damage
    if damage is None:
        return found("damage", OK)
    return found("damage", FAILED, f"{damage.message} (result code {damage.result_code})")


def check_turnstile(file: DatabaseFile) -> HealthCheck:
    """Whether processes that write take turns."""
    turnstile = file.writer.turnstile
    if turnstile.failure is not None:
        return found("turnstile", DEGRADED, os.strerror(turnstile.failure.errno or 0))
    # A process that is stopped holds it up; passing it by is what there is to do.
    passed_by = f"passed by, as it did not move: {turnstile.stalls}" if turnstile.stalls else ""
    return found("turnstile", OK, passed_by)


# -- through a connection whose lease is ours -----------------------------------------------------


def check_header(connection: Connection, stamp: int) -> HealthCheck:
    """Whether the file on disk, not the cached pages, is still the database that was opened."""
    strange = difference(connection.header(), stamp)
    return found("header", OK) if strange is None else found("header", FAILED, strange)


def check_size(connection: Connection) -> HealthCheck:
    """Whether the file has the pages it should have, or its log does."""
    length = measure(connection, connection.deadline)
    if length.is_cut is None:
        return found("size", DEGRADED, "not finished in time")
    if length.is_cut:
        return found("size", FAILED, str(length))
    size = readable_size(length.size)
    if length.lacking:
        return found("size", OK, f"{size}; the log holds {counted(length.lacking, 'page')} more")
    return found("size", OK, size)


def check_schema(connection: Connection) -> HealthCheck:
    """Whether the database has the schema of this version."""
    revision = head.current(connection)
    if revision != tables.HEAD:
        return found("schema", FAILED, f"revision {revision}")
    there = {name for (name,) in connection.query_all("SELECT name FROM sqlite_schema")}
    missing = sorted(tables.TABLES.keys() - there)
    if missing:
        return found("schema", FAILED, f"revision {revision}, without {', '.join(missing)}")
    return found("schema", OK, f"revision {revision}")


def check_settings(connection: Connection, file: DatabaseFile, *, auxiliary: bool) -> HealthCheck:
    """Whether a connection has the settings it was opened with."""
    lost = lost_settings(connection, file.options, auxiliary=auxiliary)
    name = "settings_auxiliary" if auxiliary else "settings"
    return found(name, FAILED, f"lost: {', '.join(lost)}") if lost else found(name, OK)


def check_writing(connection: Connection, file: DatabaseFile) -> HealthCheck:
    """Whether a write could begin now: BEGIN IMMEDIATE and ROLLBACK."""
    if file.options.read_only:
        return found("writing", OK, "not asked: the file was opened to be read only")
    reason = file.refusal.reason
    if reason is not None:
        return found_error("writing", FAILED, reason)
    connection.deadline = FileBudget(PATIENCE).deadline
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except apsw.Error as error:
        if primary_code(error) != apsw.SQLITE_BUSY:
            raise
        holder = write_lock_holder(connection.path)
        if holder is None:
            return found("writing", DEGRADED, "another process holds the write lock")
        return HealthCheck("writing", DEGRADED, holder.deed, holder.advice)
    # What is open could still be written, and must not be.
    if not may_write(connection.path):
        refused = ReadOnlyDatabaseError(path=connection.path, operation="write")
        return found_error("writing", FAILED, refused)
    return found("writing", OK)


# -- through a connection of its own, and for long ------------------------------------------------


def check_pages(connection: Connection) -> HealthCheck:
    """Whether every page is what it should be, as far as SQLite's quick check looks."""
    problems = [str(row[0]) for row in connection.query_all("PRAGMA quick_check")]
    if problems != ["ok"]:
        return found("pages", FAILED, listed(problems, "; "))
    return found("pages", OK)


def check_references(connection: Connection) -> HealthCheck:
    """Whether every row refers to rows that are there."""
    broken = connection.query_all("PRAGMA foreign_key_check")
    if broken:
        return found("references", DEGRADED, orphans(broken))
    return found("references", OK)
