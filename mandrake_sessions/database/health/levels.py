"""Runs the health checks of a level without changing the database, and returns a report.

A check never writes, never retries and never opens the file directly. Busy is degraded, not broken.
An error of a check becomes its result, so that there is a report as long as the file is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import apsw

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.database.connection.backup import check_copy
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.inspection import observe
from mandrake_sessions.database.error_codes import free_bytes
from mandrake_sessions.database.health import checks
from mandrake_sessions.database.health.checks import PATIENCE, found, guarded
from mandrake_sessions.database.health.place import check_file_system
from mandrake_sessions.database.health.wording import LOW_DISK, readable_size
from mandrake_sessions.database.open_file.displacement import FileCondition
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.open_file.lifecycle import FileState
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.health import HealthCheck, HealthLevel, HealthReport, HealthStatus
from mandrake_sessions.errors import (
    BackupError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
)

_LONG = 600.0
"""Seconds that a check of all pages may take."""

Check = Callable[[], HealthCheck]


def check_health(
    file: DatabaseFile,
    level: HealthLevel = HealthLevel.QUICK,
    timeout: float | None = None,
    stop: Gate | None = None,
) -> HealthReport:
    """Check an open database.

    Args:
        file: the open file.
        level: the checks to run.
        timeout: seconds that the long checks may take; None for ten minutes.
        stop: interrupts the checks of ``THOROUGH`` when it is set.

    Raises:
        PoolClosedError: it is closed, or closing.
        ReentrantScopeError: this thread holds its lease.
    """
    report = _run_checks(file, level, FileBudget(_LONG if timeout is None else timeout), stop)
    _note_damage(file, report)
    return report


def _run_checks(
    file: DatabaseFile, level: HealthLevel, budget: Budget, stop: Gate | None
) -> HealthReport:
    named = [("file", partial(checks.check_file, file))]
    if level is HealthLevel.LEASE:
        named.append(("lease", partial(_check_lease, file)))
    made = [guarded(name, check, file.path) for name, check in named]
    if level is not HealthLevel.LEASE:
        made += _quick(file)
    if level in (HealthLevel.THOROUGH, HealthLevel.FULL) and _is_other(made):
        # Opening an emptied file deletes its WAL, and a file without its WAL gets another one.
        return HealthReport(file.path, tuple(made), level)
    if level is HealthLevel.THOROUGH:
        made += _thorough(file, budget, stop)
    elif level is HealthLevel.FULL:
        made.append(guarded("integrity", partial(_check_integrity, file, budget), file.path))
    return HealthReport(file.path, tuple(made), level)


def _note_damage(file: DatabaseFile, report: HealthReport) -> None:
    """Refuse further writes to a file that was found damaged."""
    for check in report.checks:
        if check.name in checks.DAMAGE and check.status is HealthStatus.FAILED:
            file.refusal.note(
                CorruptDatabaseError(
                    f"The database file is damaged ({check.name}: {check.detail}).",
                    path=file.path,
                    operation="health",
                    result_code=apsw.SQLITE_CORRUPT,
                )
            )


def _is_other(made: list[HealthCheck]) -> bool:
    """Return whether a new connection would see another content than the open ones."""
    failed = {check.name for check in made if check.status is HealthStatus.FAILED}
    return bool(failed & {"file", "log", "header"})


def _check_lease(file: DatabaseFile) -> HealthCheck:
    """Check that the lease is free, and run the checks of a lease."""
    if file.is_lease_free("health"):
        return found("lease", HealthStatus.OK)
    return found("lease", HealthStatus.DEGRADED, f"held for {file.writer.queue.operation}")


def _quick(file: DatabaseFile) -> list[HealthCheck]:
    named: dict[str, Check] = {}
    if file.state is FileState.OPEN:
        # A closed file has neither sidecars nor locks of SQLite.
        named = {
            "log": partial(checks.check_wal, file),
            "locks": partial(checks.check_locks, file),
            "second_opener": partial(checks.check_second_opener, file),
        }
    named |= {
        "sqlite": checks.check_sqlite,
        "disk": partial(checks.check_disk, file),
        "file_system": partial(check_file_system, file.path),
        "checkpoints": partial(checks.check_checkpoints, file),
        "damage": partial(checks.check_damage, file),
        "turnstile": partial(checks.check_turnstile, file),
    }
    made = [guarded(name, check, file.path) for name, check in named.items()]
    # A check does not open the auxiliary connection, which an idle file does not need.
    if file.has_auxiliary:
        with (
            _noting(file, made, "reading"),
            file.exclusive_auxiliary("health", FileBudget(PATIENCE)) as lent,
        ):
            made += _read(file, lent)
            made.append(_settings(file, lent, auxiliary=True))
    else:
        made.append(found("settings_auxiliary", HealthStatus.OK, "not open"))
    with _noting(file, made, "writing"), file.probing("health", FileBudget(PATIENCE)) as lent:
        if not file.has_auxiliary:
            made += _read(file, lent)
        made.append(_settings(file, lent, auxiliary=False))
        made.append(
            guarded("writing", partial(checks.check_writing, lent, file), file.path, lent.raw)
        )
    return made


def _read(file: DatabaseFile, connection: Connection) -> list[HealthCheck]:
    file.require_ours(connection, "health")
    connection.deadline = FileBudget(PATIENCE).deadline
    header = guarded(
        "header", partial(checks.check_header, connection, file.stamp), file.path, connection.raw
    )
    if header.status is HealthStatus.FAILED:
        # Its size, and the schema in the cache, mean nothing then.
        return [header]
    named: dict[str, Check] = {
        "size": partial(checks.check_size, connection),
        "schema": partial(checks.check_schema, connection),
    }
    made = (guarded(name, check, file.path, connection.raw) for name, check in named.items())
    return [header, *made]


def _settings(file: DatabaseFile, connection: Connection, *, auxiliary: bool) -> HealthCheck:
    name = "settings_auxiliary" if auxiliary else "settings"
    check = partial(checks.check_settings, connection, file, auxiliary=auxiliary)
    return guarded(name, check, file.path, connection.raw)


@contextlib.contextmanager
def _noting(file: DatabaseFile, made: list[HealthCheck], name: str) -> Iterator[None]:
    """Turn the error of a connection that cannot be leased or opened into a result."""
    try:
        yield
    except DatabaseError as error:
        check = checks.failed(name, error)
        if file.condition is FileCondition.OVERWRITTEN:
            # The check of the lease has found the problem before the check of the header.
            check = found("header", HealthStatus.FAILED, FileCondition.OVERWRITTEN.value)
        if check not in made:
            made.append(check)


def _thorough(file: DatabaseFile, budget: Budget, stop: Gate | None) -> list[HealthCheck]:
    made: list[HealthCheck] = []
    with _noting(file, made, "pages"), file.inspecting(budget) as connection:
        if stop is not None:
            observe(connection, stop)
        for name, check in {
            "pages": checks.check_pages,
            "references": checks.check_references,
        }.items():
            made.append(guarded(name, partial(check, connection), file.path, connection.raw))
    return made


def _check_integrity(file: DatabaseFile, budget: Budget) -> HealthCheck:
    """Check a temporary copy of the database by SQLite's integrity check."""
    free = free_bytes(file.path)
    size = file.path.stat().st_size
    if free is not None and free < size + LOW_DISK:
        detail = (
            f"not checked: a copy of {readable_size(size)} needs more than the "
            f"{readable_size(free)} that are free"
        )
        return found("integrity", HealthStatus.DEGRADED, detail)
    try:
        with file.inspecting(budget) as connection:
            check_copy(connection, budget)
    except BackupError as error:
        cause = error.__cause__
        if isinstance(cause, DatabaseBusyError):
            return found("integrity", HealthStatus.DEGRADED, "not finished in time")
        if isinstance(cause, DatabaseError) and not isinstance(cause, checks.DAMAGED):
            # The copy failed, not the database: no space, no permission, no descriptor.
            return found("integrity", HealthStatus.DEGRADED, f"not checked: {error.message}")
        if error.result_code == apsw.SQLITE_CONSTRAINT_FOREIGNKEY:
            # The pages are sound; a row without its parent is no damage.
            return found("references", HealthStatus.DEGRADED, error.message)
        return found("integrity", HealthStatus.FAILED, error.message)
    return found("integrity", HealthStatus.OK)
