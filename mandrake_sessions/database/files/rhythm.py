"""Predicts from the times of the WAL when the holder of the write lock releases it for a moment.

A program that commits and begins again at once leaves a few microseconds between two transactions.
Polls with pauses hardly ever meet them; polls without pauses do, but they take a whole core. So a
waiting thread polls without pauses only about when the next COMMIT of the holder is due, and not
at all while the holder does not commit because it is stopped or works for long::

    holder   COMMIT BEGIN .............. COMMIT BEGIN .............. COMMIT BEGIN
    WAL      written ................... written ................... written
    polls    .   .   .   .   .   .   .   ||..   .   .   .   .   .  |||| BEGIN
"""

from __future__ import annotations

import os
import time
from time import monotonic, thread_time
from typing import Final

from mandrake_sessions.database.retry import pace

_QUICK: Final = 0.05
"""Seconds from COMMIT to COMMIT up to which a wait ends long before it takes a second."""

_FRESH: Final = 0.002
"""Seconds after a write of the WAL in which the lock may still be released: a disk may be slow."""

_MARGIN: Final = 0.0003
"""Seconds by which the next COMMIT may differ from its due time, at the least."""

_STEADINESS: Final = 1.5
"""How far it may differ, as a multiple of the difference of the last two cycles."""

# CPU seconds without pauses that a wait may take: at first, and for each further second.
_MOST_IF_QUICK: Final = 0.25
_MOST: Final = 0.01
_SHARE: Final = 0.003

_LIVELY_PACE: Final = 0.005
_POLLS_PER_CHECK: Final = 8


class Rhythm:
    """The commits of the lock's holder, as one waiting thread has seen them.

    Args:
        wal: of the database; its time of change shows when the holder has committed.
        since: when the wait began (``time.monotonic``).
    """

    def __init__(self, wal: str, since: float) -> None:
        self._wal = wal
        self._since = since
        self._changed_at = since
        # Seconds between the last two changes; for the first one, since the wait began.
        self._cycle: float | None = None
        self._margin = 0.0
        # CPU seconds without pauses so far, and the end of the present phase without pauses.
        self._spent = 0.0
        self._restless_until = 0.0
        self._polls = 0
        self._taken = 0.0
        self._last = self._state()

    def pause(self) -> float:
        """Return the seconds until the thread should poll the lock again."""
        now = monotonic()
        if now < self._restless_until:
            self._polls += 1
            if self._polls % _POLLS_PER_CHECK:
                return 0.0
        if self._restless_until:
            # CPU time, because other threads may have had the core.
            self._spent += thread_time() - self._taken
        self._note_change(now)
        self._restless_until = self._next_rest(now)
        if self._restless_until:
            self._taken = thread_time()
            return 0.0
        if self._cycle is None:
            return pace(self._since)
        calm = max(_LIVELY_PACE, pace(self._changed_at))
        due = self._changed_at + self._cycle - self._margin
        return min(calm, due - now) if due > now else calm

    def _note_change(self, now: float) -> None:
        state = self._state()
        if state is None or state == self._last:
            return
        # By time.time(), the clock of file times.
        age = min(max(0.0, time.time() - state[1] / 1e9), now - self._changed_at)
        before, self._cycle = self._cycle, now - age - self._changed_at
        difference = self._cycle if before is None else abs(self._cycle - before)
        self._margin = _MARGIN + _STEADINESS * difference
        self._changed_at, self._last = now - age, state

    def _next_rest(self, now: float) -> float:
        """Return until when to poll without pauses, 0 to poll with pauses."""
        if self._cycle is None:
            return 0.0
        is_quick = self._cycle <= _QUICK
        allowed = (_MOST_IF_QUICK if is_quick else _MOST) + _SHARE * (now - self._since)
        end = self._end(now - self._changed_at)
        # Never more CPU seconds than are allowed.
        left = allowed - self._spent
        if end is None or left <= 0 or (not is_quick and self._margin > left):
            return 0.0
        return min(self._changed_at + end, now + left)

    def _end(self, elapsed: float) -> float | None:
        """Return the end of the present interval in which the lock may be released, else None."""
        assert self._cycle is not None
        if abs(elapsed - self._cycle) < self._margin:
            return self._cycle + self._margin
        return _FRESH if elapsed < _FRESH else None

    def _state(self) -> tuple[int, int] | None:
        """Return size and time of the WAL, which change with each commit; None without a WAL."""
        try:
            found = os.stat(self._wal)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns
