"""Waits for locks of other processes, and tries again after BUSY.

One budget covers a call: the queue, BEGIN and the body. While another process holds a lock, a
thread polls it at a pace that is constant at first, and never slow. SQLite's own pauses grow to a
tenth of a second and starve the process that has waited longest (with 8 processes the longest wait
was 1.1 s against 0.1 s).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TypeVar

import apsw

from mandrake_sessions.database.error_codes import extended_code, primary_code, translate
from mandrake_sessions.database.lock_holder import Holder, opener, write_lock_holder
from mandrake_sessions.engine.budget import Budget

PACE = 0.001
"""Seconds between two polls of a lock that another process holds, at first."""

_LONGEST_PACE = 0.02
# A poll with its pause takes 25 to 65 us, so that one each millisecond would take 3 % of a core or
# more. Polls become rarer, but a thread notices the end of a wait late by at most this part of it.
_LATENESS = 1 / 32


T = TypeVar("T")


class FileBudget(Budget):
    """The time that a call to one file may take; its error names the holder of the lock."""

    __slots__ = ()

    def holder(self, phase: str, path: Path, code: int | None) -> Holder | None:
        """Return the process that holds the lock, None if none is found; for a failed call.

        A call that waited in the queue waited for a thread of this process. The result is then the
        process for which that thread waited.
        """
        found = write_lock_holder(path)
        if code is not None:
            return opener(path) if found is None and phase == "open" else found
        is_other = phase == "queue" and found is not None and found.pid != os.getpid()
        return found if is_other else None


def pace(since: float) -> float:
    """Return the seconds until the next poll of a wait that began at ``since``."""
    return max(PACE, min(_LONGEST_PACE, (monotonic() - since) * _LATENESS))


def pause(deadline: float, seconds: float) -> bool:
    """Sleep for ``seconds`` and return True; return False at once if the deadline has passed."""
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

    ``work`` must have changed nothing and yielded nothing when it fails: opening a file, switching
    it to WAL, BEGIN IMMEDIATE, the first statement of a read. After BEGIN IMMEDIATE no statement
    can be BUSY, so no statement in the body of a write is ever tried again.

    Args:
        work: the function to call.
        budget: the budget of the call.
        path: the path of the database.
        operation: for errors.
        phase: the part of the budget that the wait belongs to.
        raw: the connection that it uses, if it has one.

    Raises:
        DatabaseBusyError: the file was still busy at the deadline.
        DatabaseError: any other error of SQLite.
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
