"""When the holder of the write lock lets go of it for a moment, as the log beside the file tells.

A program that commits and begins again at once leaves a few microseconds between two transactions.
Pauses hardly ever meet them; looks without pauses do, but they take a whole core. So there are
none while the holder does not commit, being stopped or at work for long; and otherwise only about
when its next COMMIT is due::

    holder   COMMIT BEGIN .............. COMMIT BEGIN .............. COMMIT BEGIN
    log      written ................... written ................... written
    looks    .   .   .   .   .   .   .   ||..   .   .   .   .   .  |||| BEGIN
"""

from __future__ import annotations

import os
import time
from time import monotonic, thread_time
from typing import Final

from mandrake_sessions.database.retry import pace

_QUICK: Final = 0.05
"""Seconds from COMMIT to COMMIT up to which the wait is over long before it takes a second."""

_FRESH: Final = 0.002
"""Seconds in which the lock may still come free after the log was written: the disk may be slow."""

_MARGIN: Final = 0.0003
"""Seconds by which the next COMMIT may be off, at the least."""

_STEADINESS: Final = 1.5
"""How far off it may be, in terms of what the last two differed."""

# Seconds of a core, without pauses, that a wait may take, at first and of each second.
_MOST_IF_QUICK: Final = 0.25
_MOST: Final = 0.01
_SHARE: Final = 0.003

_LIVELY_PACE: Final = 0.005
_LOOKS_AT_LOG: Final = 8


class Rhythm:
    """What one thread that waits for the write lock has seen of its holder.

    Args:
        log: of the database; its time of change tells when the holder has committed.
        since: when the wait began (``time.monotonic``).
    """

    def __init__(self, log: str, since: float) -> None:
        self._log = log
        self._since = since
        self._changed_at = since
        # Seconds between the last two changes; of the first one since the wait began.
        self._cycle: float | None = None
        self._margin = 0.0
        # Seconds without pauses so far, and until when the present ones last.
        self._spent = 0.0
        self._restless_until = 0.0
        self._looks = 0
        self._taken = 0.0
        self._last = self._state()

    def pause(self) -> float:
        """Return the seconds until the lock should be looked at again."""
        now = monotonic()
        if now < self._restless_until:
            self._looks += 1
            if self._looks % _LOOKS_AT_LOG:
                return 0.0
        if self._restless_until:
            # Not the time that has passed: others may have had the core.
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
        # By the clock that the file's times are of.
        age = min(max(0.0, time.time() - state[1] / 1e9), now - self._changed_at)
        before, self._cycle = self._cycle, now - age - self._changed_at
        difference = self._cycle if before is None else abs(self._cycle - before)
        self._margin = _MARGIN + _STEADINESS * difference
        self._changed_at, self._last = now - age, state

    def _next_rest(self, now: float) -> float:
        """Return until when to look without pauses from now on, 0 where there are to be some."""
        if self._cycle is None:
            return 0.0
        is_quick = self._cycle <= _QUICK
        allowed = (_MOST_IF_QUICK if is_quick else _MOST) + _SHARE * (now - self._since)
        end = self._end(now - self._changed_at)
        # Of the seconds that are left, no more than are allowed.
        left = allowed - self._spent
        if end is None or left <= 0 or (not is_quick and self._margin > left):
            return 0.0
        return min(self._changed_at + end, now + left)

    def _end(self, elapsed: float) -> float | None:
        """Return when the moments end in which the lock may come free, None outside of them."""
        assert self._cycle is not None
        if abs(elapsed - self._cycle) < self._margin:
            return self._cycle + self._margin
        return _FRESH if elapsed < _FRESH else None

    def _state(self) -> tuple[int, int] | None:
        """Return what changes whenever somebody commits, None where there is no log."""
        try:
            found = os.stat(self._log)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns
