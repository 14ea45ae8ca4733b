"""When to look again after something was noticed."""

from __future__ import annotations


class Backoff:
    """When to look again after something was noticed: soon, then ever more rarely, then no more.

    The system tells of the first write of a commit, before that is synced and can be seen; and of
    the next one perhaps in the same breath. So a look that finds something begins it anew.
    """

    _FIRST = 0.001
    # So a commit is seen whose sync takes as long as 8 s.
    _LAST = 8.0

    def __init__(self) -> None:
        self._step = 0.0
        self.due: float | None = None

    def start(self, now: float) -> None:
        """Look at once, and then again."""
        self._step = self._FIRST
        self.due = now

    def note_look(self, now: float, *, found: bool) -> None:
        """Decide, after a look, when the next one is due."""
        if self.due is None:
            return
        if found:
            self._step = self._FIRST
        self.due = None if self._step > self._LAST else now + self._step
        self._step *= 2
