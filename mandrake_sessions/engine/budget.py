"""The time that one call may take, and how it was spent."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Protocol

from mandrake_sessions.errors import DatabaseBusyError

LEAST_BODY = 0.1
"""Seconds that work gets even if its budget is smaller: a caller that got the lease can use it."""


_STAYED_BUSY = "The database stayed busy until the deadline"


class Holder(Protocol):
    """Another process that keeps this one waiting."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def deed(self) -> str:
        """What it does, in words for users."""

    @property
    def advice(self) -> str:
        """What the user can do about it."""


class Budget:
    """The time that one call may take, and how it was spent.

    Args:
        seconds: from now; 0 for a call that must not wait.

    Attributes:
        deadline: when waiting for others ends.
        body_deadline: when the work itself must be done; never sooner than ``LEAST_BODY``.
    """

    __slots__ = ("body_deadline", "deadline", "phases", "started")

    def __init__(self, seconds: float) -> None:
        started = monotonic()
        self.started: float = started
        self.deadline: float = started + seconds
        self.body_deadline: float = started + max(LEAST_BODY, seconds)
        self.phases: dict[str, float] | None = None

    def left(self) -> float:
        """Return the seconds that are left, never less than 0."""
        return max(0.0, self.deadline - monotonic())

    def spent(self, phase: str, since: float) -> None:
        """Note that the time from ``since`` until now went into ``phase``."""
        if self.phases is None:
            self.phases = {}
        self.phases[phase] = self.phases.get(phase, 0.0) + monotonic() - since

    def exceeded(
        self, phase: str, path: Path, operation: str, *, code: int | None = None, attempts: int = 1
    ) -> DatabaseBusyError:
        """Return the error that the budget ran out in ``phase``, with how it was spent.

        Args:
            phase: where the deadline passed.
            path: the real path of the database.
            operation: for the error.
            code: the engine's error code, if the call waited for another connection.
            attempts: how often it was tried.
        """
        waited = monotonic() - self.started
        phases = dict(self.phases or {})
        phases[phase] = phases.get(phase, 0.0) + max(0.0, waited - sum(phases.values()))
        holder = self.holder(phase, path, code)
        return DatabaseBusyError(
            None if holder is None else f"{_STAYED_BUSY}: {holder.deed}. {holder.advice}",
            holder_pid=None if holder is None else holder.pid,
            phase=phase,
            waited=waited,
            phases=phases,
            path=path,
            operation=operation,
            result_code=code,
            attempts=attempts,
        )

    def holder(
        self,
        phase: str,  # noqa: ARG002  # an engine that can see processes uses them
        path: Path,  # noqa: ARG002
        code: int | None,  # noqa: ARG002
    ) -> Holder | None:
        """Return the process that the call waited for; None if the engine cannot determine it.

        Args:
            phase: where the deadline passed.
            path: the real path of the database.
            code: the engine's error code; None for a call that waited for a thread of this process.
        """
        return None
