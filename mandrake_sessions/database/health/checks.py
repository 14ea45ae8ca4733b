"""The checks of a look at a database, one function each. A check never writes and never retries."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions import schema
from mandrake_sessions.database import migrate
from mandrake_sessions.database.connection import Connection, lost_settings
from mandrake_sessions.database.faults import (
    free_bytes,
    primary_code,
    translate,
    translate_os,
)
from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.guard import second_sqlite
from mandrake_sessions.database.header import strangeness
from mandrake_sessions.database.health.openers import descriptors_on, has_lock, other_connections_on
from mandrake_sessions.database.health.report import HealthCheck, HealthStatus
from mandrake_sessions.database.lifecycle import FileState
from mandrake_sessions.database.paths import identify, may_write
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    ForkedPoolError,
    HandleReleasedError,
    NotADatabaseError,
    PoolClosedError,
)

PATIENCE: Final = 0.25
LOW_DISK: Final = 64 * 1024 * 1024
_BACKLOG_FACTOR = 10
_MOST_PROBLEMS = 3
_LOOKS = 3
_PAUSE = 0.002

DAMAGED: Final = (CorruptDatabaseError, NotADatabaseError)
DAMAGE: Final = ("size", "pages", "integrity")
"""Checks that fail only for damage; a monitor takes no writes any more because of them."""

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPEN_AGAIN = "Close the manager or handle and open it again."
_RESCUE = "Restore a backup, or rescue what can be read: mandrake-sessions salvage FILE NEW."
_ADVICE: Final = {
    "file": f"Find out what moved or replaced it. {_OPEN_AGAIN}",
    "lease": "Wait; if it stays so, find the call that holds it for long.",
    "log": f"Let nothing delete or copy a -wal or -shm. {_OPEN_AGAIN}",
    "locks": f"Find what in this process opens and closes the file. {_OPEN_AGAIN}",
    "second_opener": "Use this file through mandrake_sessions only, never through sqlite3.",
    "sqlite": "It may stay for other files; never let it open one of these.",
    "disk": "Free space on the file system.",
    "checkpoints": "Find the reader that stays open for long; see that the disk has space.",
    "damage": _RESCUE,
    "header": f"Find out what wrote over it, and restore a backup. {_OPEN_AGAIN}",
    "size": _RESCUE,
    "schema": "Use one version of the package for every process; open the file again.",
    "settings": "Set no pragma on a lent connection; a HealthMonitor sets them again.",
    "settings_auxiliary": "Set no pragma on a lent connection; a HealthMonitor sets them again.",
    "turnstile": "Look at the permissions of the folder; waiting processes are served less evenly.",
    "reading": "If it is busy, wait; else the error says what to do: docs/howto/errors.md.",
    "writing": "If it is busy, wait; else the error says what to do: docs/howto/errors.md.",
    "pages": _RESCUE,
    "references": "Something wrote with foreign keys off; delete the rows that are named.",
    "integrity": _RESCUE,
}


def found(name: str, status: HealthStatus, detail: str = "") -> HealthCheck:
    """Return a check with the advice that goes with it."""
    return HealthCheck(name, status, detail, "" if status is OK else _ADVICE[name])


def guarded(name: str, look: Callable[[], HealthCheck], path: Path) -> HealthCheck:
    """Make one check; what it raises is its outcome.

    Raises:
        PoolClosedError: the file is being closed, or is parked: there is nothing to look at.
    """
    try:
        return look()
    except apsw.InterruptError:
        return found(name, DEGRADED, "not finished in time")
    except apsw.Error as error:
        return failed(name, translate(error, path, "health"))
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
    return found(name, status, f"{type(error).__name__}: {error.message}")


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


def check_log(file: DatabaseFile) -> HealthCheck:
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
    if file.was_locked:
        return found("locks", FAILED, "the file was opened and closed beside SQLite, here")
    # Perhaps it is the file system that shows other numbers than it lists.
    return found("locks", DEGRADED, "no lock of this process is seen")


def check_second_opener(file: DatabaseFile) -> HealthCheck:
    """Whether something in this process has the file open beside our SQLite."""
    descriptors = descriptors_on(file.identity)
    if descriptors is None:
        return found("second_opener", OK, "the system does not show descriptors")
    # SQLite keeps a descriptor of a closed connection while another one has the file locked.
    ours = [lane.connection.raw for lane in file.lanes()]
    others = descriptors - len(ours) - file.inspections.most
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
    return found("disk", OK if free >= LOW_DISK else DEGRADED, f"{free} bytes free")


def check_checkpoints(file: DatabaseFile) -> HealthCheck:
    """Whether the file keeps up with its log."""
    pointer = file.checkpointer
    if pointer.failure is not None:
        return found("checkpoints", DEGRADED, f"failed with result code {pointer.failure}")
    many = _BACKLOG_FACTOR * file.options.checkpoint_frames
    status = OK if pointer.backlog < many else DEGRADED
    return found("checkpoints", status, f"{pointer.backlog} frames behind")


def check_damage(file: DatabaseFile) -> HealthCheck:
    """Whether SQLite has met damage since the file was opened."""
    damage = file.refusal.damage
    if damage is None:
        return found("damage", OK)
    return found("damage", FAILED, f"{damage.message} (result code {damage.result_code})")


def check_turnstile(file: DatabaseFile) -> HealthCheck:
    """Whether processes that write take turns."""
    failure = file.writer.turnstile.failure
    if failure is None:
        return found("turnstile", OK)
    return found("turnstile", DEGRADED, os.strerror(failure.errno or 0))


# -- through a connection whose lease is ours -----------------------------------------------------


def check_header(connection: Connection, stamp: int) -> HealthCheck:
    """Whether the file on disk, not the cached pages, is still the database that was opened."""
    strange = strangeness(connection.header(), stamp)
    return found("header", OK) if strange is None else found("header", FAILED, strange)


def check_size(connection: Connection) -> HealthCheck:
    """Whether the file has the pages it should have.

    A checkpoint, also one of another process, writes the first page before the last ones: as long
    as there is something left to copy, the log may hold what the file lacks.
    """
    page_size = connection.value("PRAGMA page_size")
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        pages = max(1, int.from_bytes(connection.header()[28:32], "big"))
        size = connection.path.stat().st_size
        missing = pages - size // page_size
        if missing <= 0:
            return found("size", OK, f"{size} bytes")
        frames, done = connection.wal_backlog()
        if done < frames and missing <= frames:
            return found("size", OK, f"{size} bytes; the log holds {missing} pages more")
    return found("size", FAILED, f"{size} bytes, but {pages} pages of {page_size}")


def check_schema(connection: Connection) -> HealthCheck:
    """Whether the database has the schema of this version."""
    revision = migrate.current(connection)
    return found("schema", OK if revision == schema.HEAD else FAILED, f"revision {revision}")


def check_settings(connection: Connection, file: DatabaseFile, *, auxiliary: bool) -> HealthCheck:
    """Whether a connection has the settings it was opened with."""
    lost = lost_settings(connection, file.options, auxiliary=auxiliary)
    name = "settings_auxiliary" if auxiliary else "settings"
    return found(name, FAILED, f"lost: {', '.join(lost)}") if lost else found(name, OK)


def check_writing(connection: Connection, file: DatabaseFile) -> HealthCheck:
    """Whether a write could begin now: BEGIN IMMEDIATE and ROLLBACK."""
    reason = file.refusal.reason
    if reason is not None:
        return found("writing", FAILED, f"{type(reason).__name__}: {reason.message}")
    connection.deadline = Budget(PATIENCE).deadline
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except apsw.Error as error:
        if primary_code(error) != apsw.SQLITE_BUSY:
            raise
        return found("writing", DEGRADED, "another process holds the write lock")
    # What is open could still be written, and must not be.
    if not may_write(connection.path):
        return found("writing", FAILED, "the file is read-only")
    return found("writing", OK)


# -- through a connection of its own, and for long ------------------------------------------------


def check_pages(connection: Connection) -> HealthCheck:
    """Whether every page is what it should be, as far as SQLite's quick check looks."""
    problems = [str(row[0]) for row in connection.query_all("PRAGMA quick_check")]
    if problems != ["ok"]:
        return found("pages", FAILED, "; ".join(problems[:_MOST_PROBLEMS]))
    return found("pages", OK)


def check_references(connection: Connection) -> HealthCheck:
    """Whether every row refers to rows that are there."""
    broken = connection.query_all("PRAGMA foreign_key_check")
    if broken:
        told = "; ".join(
            f"row {rowid} of {table} refers to a row of {parent} that is not there"
            for table, rowid, parent, _ in broken[:_MOST_PROBLEMS]
        )
        return found("references", DEGRADED, told)
    return found("references", OK)
