"""The findings of a health check, as frozen records."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final

import msgspec

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.json_text.plain_forms import as_str


class HealthStatus(enum.StrEnum):
    """The result of a check, from good to bad."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


class HealthLevel(enum.StrEnum):
    """How thorough a health check is; each level but the first includes ``QUICK``."""

    LEASE = "lease"
    """The checks of every lease: open, free, and still the file that was opened. Microseconds."""
    QUICK = "quick"
    """About a millisecond: the file from outside, both connections, the write lock."""
    THOROUGH = "thorough"
    """Also SQLite's quick check and every foreign key; takes as long as reading the file."""
    FULL = "full"
    """Also SQLite's integrity check, on a copy: as long as reading the file twice, and as large."""


class HealthCheck(msgspec.Struct, frozen=True):
    """One check.

    Attributes:
        name: stable, for programs.
        status: its result.
        detail: the finding, in words for users.
        advice: what a user can do about it; empty when it is ok.
    """

    name: str
    status: HealthStatus
    detail: str = ""
    advice: str = ""


class HealthReport(msgspec.Struct, frozen=True):
    """The findings of a health check of one database.

    Attributes:
        path: the real path of the file.
        checks: in the order they were made.
        level: how thorough the check was.
    """

    path: Path
    checks: tuple[HealthCheck, ...]
    level: HealthLevel = HealthLevel.QUICK

    @property
    def status(self) -> HealthStatus:
        """The worst status of the checks."""
        order = list(HealthStatus)
        return max((check.status for check in self.checks), key=order.index)

    @property
    def is_usable(self) -> bool:
        """Whether reading and writing can be expected to work."""
        return self.status is not HealthStatus.FAILED


_LEVELS: Final[dict[str, HealthLevel]] = {level.value: level for level in HealthLevel}


def level_of(value: object) -> HealthLevel:
    """Return a level, given as the enum or as its value.

    Raises:
        InvalidArgumentError: it is not a level.
    """
    text = as_str(value)
    level = None if text is None else _LEVELS.get(text)
    if level is None:
        raise InvalidArgumentError(f"level must be one of {', '.join(HealthLevel)}.")
    return level
