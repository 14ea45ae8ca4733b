"""The health checks, one function each. A check never writes and never retries."""

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
"""Checks that fail only for damage: after a failure the file takes no more writes."""

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPEN_AGAIN = "Close the manager or handle and open it again."
_RESCUE = "Restore a backup, or rescue the readable rows: mandrake-sessions salvage FILE NEW."
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
    "turnstile": "Check the permissions of the folder; waiting processes are served less evenly.",
    "reading": f"If it stays so: {_OPEN_AGAIN[0].lower()}{_OPEN_AGAIN[1:]}",
    "writing": "Wait; if it stays so, find who writes: mandrake-sessions doctor FILE.",
    "pages": _RESCUE,
    "references": f"{ORPHANS}.",
    "integrity": _RESCUE,
}
# The advice for an error that prevented a check.
_ADVICE_ON: Final[tuple[tuple[type[DatabaseError], str], ...]] = (
    (DatabaseMovedError, _MOVED),
    (CorruptDatabaseError, _RESCUE),
    (NotADatabaseError, _RESCUE),
    (StorageFullError, _MAKE_SPACE),
    (ReadOnlyDatabaseError, "Make the file writable again: check its mode and owner."),
    (DatabaseBusyError, "Wait; if it stays so, find the call that holds it for long."),
    (DatabaseIOError, "Check the disk."),
)


def found(name: str, status: HealthStatus, detail: str = "") -> HealthCheck:
    """Return a result with the advice of its check."""
    return HealthCheck(name, status, detail, "" if status is OK else _ADVICE[name])


def found_error(name: str, status: HealthStatus, error: DatabaseError) -> HealthCheck:
    """Return the result for an error, with the advice for that error."""
    detail = f"{type(error).__name__}: {error.message}"
    causes = (advice for kind, advice in _ADVICE_ON if isinstance(error, kind))
    return HealthCheck(name, status, detail, next(causes, _ADVICE[name]))


def guarded(
    name: str, check: Callable[[], HealthCheck], path: Path, raw: apsw.Connection | None = None
) -> HealthCheck:
    """Run one check; an error of it becomes its result.

    Args:
        name: the name of the check.
        check: runs it.
        path: the path of the database.
        raw: the connection that it uses, if any.

    Raises:
        PoolClosedError: the file is being closed, or is parked.
    """
    try:
        return check()
    except apsw.InterruptError:
        return found(name, DEGRADED, "not finished in time")
    except apsw.Error as error:
        return failed(name, translate(error, path, "health", raw=raw))
    except DatabaseError as error:
        return failed(name, error)
    except OSError as error:
        return failed(name, translate_os(error, path))


def failed(name: str, error: DatabaseError) -> HealthCheck:
    """Return the result of a check that raised an error; busy is degraded, not failed."""
    if isinstance(error, PoolClosedError | HandleReleasedError | ForkedPoolError):
        raise error
    status = DEGRADED if isinstance(error, DatabaseBusyError) else FAILED
    if name in DAMAGE and status is FAILED and not isinstance(error, DAMAGED):
        # No descriptor is left, or the disk did not answer, which shows no damage of the file.
        name = "reading"
    return found_error(name, status, error)


# -- from outside: no connection is used ----------------------------------------------------------


def check_file(file: DatabaseFile) -> HealthCheck:
    """Check that the path still names the open file, and that the file is not retired."""
    identity = identify(file.path)
    if identity is None:
        return found("file", FAILED, "it was deleted or renamed")
    if identity != file.identity:
        return found("file", FAILED, "it was replaced by another file")
    if file.state is not FileState.OPEN:
        return found("file", FAILED, "the open database is not used any more")
    return found("file", OK)


def check_wal(file: DatabaseFile) -> HealthCheck:
    """Check that the WAL that SQLite writes still has its name, where other processes find it."""
    lost = file.logs.lost()
    if lost:
        names = ", ".join(each.name for each in lost)
        return found("log", FAILED, f"deleted or replaced: {names}")
    return found("log", OK)


def check_locks(file: DatabaseFile) -> HealthCheck:
    """Check that other processes still see this one's lock on the file."""
    if file.options.vfs is not None:
        return found("locks", OK, "the locks of another VFS are not known")
    has = has_lock(file.path)
    if has:
        file.was_locked = True
    if has is not False:
        return found("locks", OK, "" if has else "the system does not show them")
    if identify(file.path) != file.identity:
        # The check finds the file by its name, which another file or none has now.
        return found("locks", OK, "the file was moved or replaced")
    if file.was_locked:
        return found("locks", FAILED, "this process has opened and closed the file without SQLite")
    # The file system may list other inodes than it shows.
    return found("locks", DEGRADED, "no lock of this process is seen")


def check_second_opener(file: DatabaseFile) -> HealthCheck:
    """Check that no second SQLite library in this process has the file open."""
    descriptors = descriptors_on((file.identity,))
    if descriptors is None:
        return found("second_opener", OK, "the system does not show descriptors")
    # SQLite keeps a descriptor of a closed connection while another one has the file locked.
    ours = [leased.connection.raw for leased in file.leased_connections()]
    others = len(descriptors) - len(ours) - file.inspections.most
    library = second_sqlite() if others > 0 else None
    if library is not None and others > other_connections_on(file.path, ours):
        detail = f"{others} descriptors besides SQLite's, and {library} is loaded"
        return found("second_opener", FAILED, detail)
    return found("second_opener", OK)


def check_sqlite() -> HealthCheck:
    """Check that the process has no second SQLite library, which could lose data silently."""
    library = second_sqlite()
    if library is None:
        return found("sqlite", OK, apsw.sqlite_lib_version())
    return found("sqlite", DEGRADED, f"a second SQLite library is loaded: {library}")


def check_disk(file: DatabaseFile) -> HealthCheck:
    """Check that the disk has space for further writes."""
    free = free_bytes(file.path)
    if free is None:
        return found("disk", DEGRADED, "the file system does not answer")
    return found("disk", OK if free >= LOW_DISK else DEGRADED, f"{readable_size(free)} free")


def check_checkpoints(file: DatabaseFile) -> HealthCheck:
    """Check that WAL checkpoints succeed and leave few frames behind."""
    pointer = file.checkpointer
    if pointer.failure is not None:
        return found("checkpoints", DEGRADED, f"failed with result code {pointer.failure}")
    many = _BACKLOG_FACTOR * file.options.checkpoint_frames
    status = OK if pointer.backlog < many else DEGRADED
    return found("checkpoints", status, f"{counted(pointer.backlog, 'frame')} behind")


def check_damage(file: DatabaseFile) -> HealthCheck:
    """Check that SQLite has met no damage since the file was opened."""
    damage = file.refusal.damage
    if damage is None:
        return found("damage", OK)
    return found("damage", FAILED, f"{damage.message} (result code {damage.result_code})")


def check_turnstile(file: DatabaseFile) -> HealthCheck:
    """Check that the turnstile works."""
    turnstile = file.writer.turnstile
    if turnstile.failure is not None:
        return found("turnstile", DEGRADED, os.strerror(turnstile.failure.errno or 0))
    # A stopped process blocks it; passing it is the right reaction.
    passed = f"passed, as it did not move: {turnstile.stalls}" if turnstile.stalls else ""
    return found("turnstile", OK, passed)


# -- through a leased connection ------------------------------------------------------------------


def check_header(connection: Connection, stamp: int) -> HealthCheck:
    """Check that the file on disk, not in the cache, is still the database that was opened."""
    strange = difference(connection.header(), stamp)
    return found("header", OK) if strange is None else found("header", FAILED, strange)


def check_size(connection: Connection) -> HealthCheck:
    """Check that the file or its WAL has all pages."""
    length = measure(connection, connection.deadline)
    if length.is_cut is None:
        return found("size", DEGRADED, "not finished in time")
    if length.is_cut:
        return found("size", FAILED, str(length))
    size = readable_size(length.size)
    if length.lacking:
        return found("size", OK, f"{size}; the WAL has {counted(length.lacking, 'page')} more")
    return found("size", OK, size)


def check_schema(connection: Connection) -> HealthCheck:
    """Check that the database has the schema of this version."""
    revision = head.current(connection)
    if revision != tables.HEAD:
        return found("schema", FAILED, f"revision {revision}")
    there = {name for (name,) in connection.query_all("SELECT name FROM sqlite_schema")}
    missing = sorted(tables.TABLES.keys() - there)
    if missing:
        return found("schema", FAILED, f"revision {revision}, without {', '.join(missing)}")
    return found("schema", OK, f"revision {revision}")


def check_settings(connection: Connection, file: DatabaseFile, *, auxiliary: bool) -> HealthCheck:
    """Check that a connection still has its settings."""
    lost = lost_settings(connection, file.options, auxiliary=auxiliary)
    name = "settings_auxiliary" if auxiliary else "settings"
    return found(name, FAILED, f"lost: {', '.join(lost)}") if lost else found(name, OK)


def check_writing(connection: Connection, file: DatabaseFile) -> HealthCheck:
    """Check that a write could begin: BEGIN IMMEDIATE and ROLLBACK."""
    if file.options.read_only:
        return found("writing", OK, "not checked: the file was opened with read_only")
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
    # The open descriptor could still write a file that this user must not write.
    if not may_write(connection.path):
        refused = ReadOnlyDatabaseError(path=connection.path, operation="write")
        return found_error("writing", FAILED, refused)
    return found("writing", OK)


# -- through a connection of its own: may take long -----------------------------------------------


def check_pages(connection: Connection) -> HealthCheck:
    """Check all pages by SQLite's quick check."""
    problems = [str(row[0]) for row in connection.query_all("PRAGMA quick_check")]
    if problems != ["ok"]:
        return found("pages", FAILED, listed(problems, "; "))
    return found("pages", OK)


def check_references(connection: Connection) -> HealthCheck:
    """Check that every reference leads to an existing row."""
    broken = connection.query_all("PRAGMA foreign_key_check")
    if broken:
        return found("references", DEGRADED, orphans(broken))
    return found("references", OK)
