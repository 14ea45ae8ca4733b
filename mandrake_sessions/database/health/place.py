"""Where a file lies, under how many names, and whether it is a database of ours at all."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.database.health.checks import found
from mandrake_sessions.database.health.report import HealthCheck, HealthStatus
from mandrake_sessions.database.mounts import mount_of
from mandrake_sessions.database.names import require_home
from mandrake_sessions.database.raw import RawFile
from mandrake_sessions.database.views import require_one_view
from mandrake_sessions.errors import DatabaseNamesError
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.tables import APPLICATION_ID

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_LOOKED_AT: Final = 1024 * 1024
# Stands in the schema of every database of ours, which is on its first pages or in its log.
_MARKS: Final = (b"CREATE TABLE turn_chunks", b"CREATE TABLE alembic_version")
_ID_AT: Final = slice(68, 72)
# What these checks say holds for a file of any program.
_ABOUT_ANY: Final = ("sqlite", "disk", "locks", "journal", "file_system")
_NOT_OURS: Final = "Check the path: this is not known to be a database of mandrake_sessions."


def check_file_system(path: Path) -> HealthCheck:
    """Whether the file system is one of those that share no memory maps or locks."""
    mount = mount_of(path)
    if mount is None or not mount.is_unshared:
        return found("file_system", OK, "" if mount is None else mount.kind)
    detail = (
        f"{mount.kind} at {mount.point}: such a file system may share neither memory maps nor "
        "locks, without which two users of the file lose each other's writes"
    )
    return found("file_system", DEGRADED, detail)


def check_place(path: Path) -> list[HealthCheck]:
    """Make both checks of where a file lies."""
    return [check_file_system(path), _check_names(path)]


def _check_names(path: Path) -> HealthCheck:
    """Whether the file would be refused because it has another name."""
    try:
        require_home(path, DatabaseOptions(), tidying=False)
        require_one_view(path)
    except DatabaseNamesError as error:
        others = ", ".join(str(other) for other in error.others)
        return HealthCheck(
            "names",
            FAILED,
            f"{error.kind}; also {others}" if others else error.kind,
            error.message,
        )
    return HealthCheck("names", OK)


def _is_ours(path: Path) -> bool:
    """Return whether a file is, or has been, a database of this library.

    The mark in its header says so; where that is damaged, the texts of its schema do.
    """
    for each in (path, Path(f"{path}-wal")):
        try:
            with RawFile(each) as file:
                content = file.read(0, _LOOKED_AT)
        except apsw.Error:
            continue
        if content[_ID_AT] == APPLICATION_ID.to_bytes(4, "big"):
            return True
        if any(mark in content for mark in _MARKS):
            return True
    return False


def advised(checks: list[HealthCheck], path: Path) -> list[HealthCheck]:
    """Return checks of a file without the advice to change or replace one that is not ours."""
    if not path.is_file() or _is_ours(path):
        return checks
    return [
        check
        if check.status is OK or check.name in _ABOUT_ANY
        else HealthCheck(check.name, check.status, check.detail, _NOT_OURS)
        for check in checks
    ]
