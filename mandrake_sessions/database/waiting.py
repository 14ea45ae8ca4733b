"""How long we wait for other processes, and what may be tried again.

One budget covers a call: the queue, BEGIN and the body. While another process holds a lock we
look again at a pace that is steady at first, and never slow: SQLite's own pauses, which grow to a
tenth of a second, starve the one that has waited longest (with 8 processes the longest wait was
1.1 s against 0.1 s).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TypeVar

import apsw

from mandrake_sessions.database.faults import extended_code, primary_code, translate
from mandrake_sessions.database.health.holder import Holder, opener, write_lock_holder
from mandrake_sessions.errors import DatabaseBusyError

PACE = 0.001
"""Seconds between two looks at a lock that another process holds, at first."""

_LONGEST_PACE = 0.02
# A look with its pause takes 25 to 65 us: one each millisecond would be 3 % of a core, and more. So
# they become rarer, but the last one comes late by no more than a part of the whole wait.
_LATENESS = 1 / 32

LEAST_BODY = 0.1
"""Seconds that work gets though its budget is smaller: what got the lease can use it."""

T = TypeVar("T")

_STAYED_BUSY = "The database stayed busy until the deadline"


class Budget:
    """The time one call may take, and where it went.

    Args:
        seconds: from now; 0 means: only what needs no waiting.

    Attributes:
        deadline: when waiting for others ends.
        body_deadline: when the work itself must be done; never sooner than ``LEAST_BODY``.
    """

    __slots__ = ("body_deadline", "deadline", "phases", "started")

    def __init__(self, seconds: float) -> None:
        self.started = started = monotonic()
        self.deadline = started + seconds
        self.body_deadline = started + max(LEAST_BODY, seconds)
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
        """Return the error that says the budget ran out in ``phase``, and where it went.

        Args:
            phase: where the deadline passed.
            path: the real path of the database.
            operation: for the error.
            code: what SQLite said, where it was another connection that was waited for; then the
                error names the process that has that. Who waited for a thread of this process is
                given the name of the process that all of them waited for.
            attempts: how often it was tried.
        """
        waited = monotonic() - self.started
        phases = dict(self.phases or {})
        phases[phase] = phases.get(phase, 0.0) + max(0.0, waited - sum(phases.values()))
        holder = _other_writer(path) if phase == "queue" else None
        if code is not None:
            holder = _holder(path, phase)
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


def _holder(path: Path, phase: str) -> Holder | None:
    """Return the process that was waited for; looked for once, now that the call has failed."""
    found = write_lock_holder(path)
    return opener(path) if found is None and phase == "open" else found


def _other_writer(path: Path) -> Holder | None:
    """Return the process that the threads before us waited for, if it is another one."""
    found = write_lock_holder(path)
    return None if found is None or found.pid == os.getpid() else found


def pace(since: float) -> float:
    """Return the seconds until the next look of a wait that began at ``since``."""
    return max(PACE, min(_LONGEST_PACE, (monotonic() - since) * _LATENESS))


def pause(deadline: float, seconds: float) -> bool:
    """Wait so many seconds; return False, at once, when the deadline has passed."""
    if monotonic() >= deadline:
        return False
    if seconds:
        time.sleep(seconds)
    return True


def retry_busy(
    work: Callable[[], T],
    budget: Budget,
    path: Path,
    operation: str,
    phase: str,
    *,
    raw: apsw.Connection | None = None,
) -> T:
    """Call ``work`` until it meets no BUSY, at most until the budget's deadline.

    Only for what has changed nothing and yielded nothing when it fails: opening a file, switching
    it to WAL, BEGIN IMMEDIATE, the first statement of a read. After BEGIN IMMEDIATE no statement
    can be BUSY, so nothing in the body of a write is ever tried again.

    Args:
        work: what is tried.
        budget: of the call.
        path: of the database.
        operation: for errors.
        phase: of the budget that the wait counts for.
        raw: the connection that it uses, if it has one.

    Raises:
        DatabaseBusyError: it was still busy at the deadline.
        DatabaseError: what else SQLite said.
    """
    attempts = 1
    since = monotonic()
    while True:
        try:
            return work()
        except apsw.Error as error:
            if primary_code(error) != apsw.SQLITE_BUSY:
                raise translate(error, path, operation, attempts, raw=raw) from error
            if not pause(budget.deadline, pace(since)):
                raise budget.exceeded(
                    phase, path, operation, code=extended_code(error), attempts=attempts
                ) from error
        attempts += 1
