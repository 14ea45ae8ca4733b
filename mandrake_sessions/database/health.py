"""Looks at a database without changing it, and says what it found.

A probe never writes, never retries and never opens the file directly. Busy is degraded, not
broken.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import apsw
import msgspec

from mandrake_sessions import schema
from mandrake_sessions.database import migrate
from mandrake_sessions.database.connection import Connection, lost_settings
from mandrake_sessions.database.faults import free_bytes, primary_code, translate
from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.guard import second_sqlite
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import DatabaseBusyError, DatabaseError

_PATIENCE = 0.25
_LOW_DISK = 64 * 1024 * 1024
_BACKLOG_FACTOR = 10
_MAGIC = b"SQLite format 3\0"


class HealthStatus(enum.StrEnum):
    """How a check came out, from good to bad."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


class HealthCheck(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: stable, for machines.
        status: how it came out.
        detail: what was found, for people.
    """

    name: str
    status: HealthStatus
    detail: str = ""


class HealthReport(msgspec.Struct, frozen=True):
    """What a look at one database found."""

    path: Path
    checks: tuple[HealthCheck, ...]

    @property
    def status(self) -> HealthStatus:
        """The worst of the checks."""
        order = list(HealthStatus)
        return max((check.status for check in self.checks), key=order.index)

    @property
    def is_usable(self) -> bool:
        """Whether reading and writing can be expected to work."""
        return self.status is not HealthStatus.FAILED


def check_health(file: DatabaseFile) -> HealthReport:
    """Look at an open database; see the checks below for what is looked at."""
    checks = [_check_sqlite(), _check_disk(file), _check_checkpoints(file), _check_damage(file)]
    try:
        with file.exclusive_auxiliary("health", Budget(_PATIENCE)) as connection:
            looks: dict[str, Callable[[Connection], HealthCheck]] = {
                "header": partial(_check_header, file.stamp),
                "size": _check_size,
                "schema": _check_schema,
            }
            checks += [_guarded(name, look, connection) for name, look in looks.items()]
            checks.append(_check_settings(connection, file, auxiliary=True))
    except DatabaseError as error:
        checks.append(_unavailable("reading", error))
    try:
        with file.exclusive("health", Budget(_PATIENCE)) as connection:
            checks.append(_check_settings(connection, file, auxiliary=False))
            checks.append(_check_write_lock(connection))
    except DatabaseError as error:
        checks.append(_unavailable("writing", error))
    return HealthReport(file.path, tuple(checks))


def _unavailable(name: str, error: DatabaseError) -> HealthCheck:
    busy = isinstance(error, DatabaseBusyError)
    return HealthCheck(
        name, HealthStatus.DEGRADED if busy else HealthStatus.FAILED, f"{type(error).__name__}"
    )


def _guarded(
    name: str, look: Callable[[Connection], HealthCheck], connection: Connection
) -> HealthCheck:
    try:
        return look(connection)
    except apsw.Error as error:
        return _unavailable(name, translate(error, connection.path, "health"))


def _check_sqlite() -> HealthCheck:
    """Whether a second SQLite library is in the process, which could lose data silently."""
    found = second_sqlite()
    if found is None:
        return HealthCheck("sqlite", HealthStatus.OK, apsw.sqlite_lib_version())
    return HealthCheck(
        "sqlite", HealthStatus.DEGRADED, f"a second SQLite library is loaded: {found}"
    )


def _check_disk(file: DatabaseFile) -> HealthCheck:
    free = free_bytes(file.path)
    if free is None:
        return HealthCheck("disk", HealthStatus.DEGRADED, "the file system does not answer")
    status = HealthStatus.OK if free >= _LOW_DISK else HealthStatus.DEGRADED
    return HealthCheck("disk", status, f"{free} bytes free")


def _check_checkpoints(file: DatabaseFile) -> HealthCheck:
    pointer = file.checkpointer
    if pointer.failure is not None:
        return HealthCheck(
            "checkpoints", HealthStatus.DEGRADED, f"failed with result code {pointer.failure}"
        )
    many = _BACKLOG_FACTOR * file.options.checkpoint_frames
    status = HealthStatus.OK if pointer.backlog < many else HealthStatus.DEGRADED
    return HealthCheck("checkpoints", status, f"{pointer.backlog} frames behind")


def _check_damage(file: DatabaseFile) -> HealthCheck:
    if file.damage is None:
        return HealthCheck("damage", HealthStatus.OK)
    return HealthCheck(
        "damage", HealthStatus.FAILED, f"SQLite reported result code {file.damage.result_code}"
    )


def _check_header(expected: int, connection: Connection) -> HealthCheck:
    """Whether the file on disk, not the cached pages, is still the database that was opened."""
    header = connection.header()
    application = int.from_bytes(header[68:72], "big")
    if header[:16] != _MAGIC:
        return HealthCheck("header", HealthStatus.FAILED, "the file is no SQLite database any more")
    if application not in (0, schema.APPLICATION_ID):
        return HealthCheck("header", HealthStatus.FAILED, "another program's database is there")
    stamp = int.from_bytes(header[60:64], "big")
    # 0: the page that carries it has not been checkpointed into the file yet.
    if stamp not in (0, expected):
        return HealthCheck("header", HealthStatus.FAILED, "another database was copied over it")
    return HealthCheck("header", HealthStatus.OK)


def _check_size(connection: Connection) -> HealthCheck:
    """Whether the file has the pages it should have once the WAL is in it."""
    pages = int.from_bytes(connection.header()[28:32], "big")
    page_size = connection.value("PRAGMA page_size")
    size = connection.path.stat().st_size
    if size < pages * page_size:
        return HealthCheck(
            "size", HealthStatus.FAILED, f"{size} bytes, but {pages} pages of {page_size}"
        )
    return HealthCheck("size", HealthStatus.OK, f"{size} bytes")


def _check_schema(connection: Connection) -> HealthCheck:
    revision = migrate.current(connection)
    status = HealthStatus.OK if revision == schema.HEAD else HealthStatus.FAILED
    return HealthCheck("schema", status, f"revision {revision}")


def _check_settings(connection: Connection, file: DatabaseFile, *, auxiliary: bool) -> HealthCheck:
    lost = lost_settings(connection, file.options, auxiliary=auxiliary)
    name = "settings_auxiliary" if auxiliary else "settings"
    if lost:
        return HealthCheck(name, HealthStatus.FAILED, f"lost: {', '.join(lost)}")
    return HealthCheck(name, HealthStatus.OK)


def _check_write_lock(connection: Connection) -> HealthCheck:
    """Whether a write could begin now: BEGIN IMMEDIATE and ROLLBACK."""
    connection.deadline = Budget(_PATIENCE).deadline
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except apsw.Error as error:
        busy = primary_code(error) == apsw.SQLITE_BUSY
        return HealthCheck(
            "writing",
            HealthStatus.DEGRADED if busy else HealthStatus.FAILED,
            "another process holds the write lock" if busy else type(error).__name__,
        )
    writable = os.access(connection.path, os.W_OK)
    return HealthCheck("writing", HealthStatus.OK if writable else HealthStatus.FAILED)
