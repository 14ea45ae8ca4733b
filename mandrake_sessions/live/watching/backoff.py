"""When the follower reads again after a notification."""

from __future__ import annotations


class Backoff:
    """Decides when the follower reads again: soon, then at growing intervals, then no more.

    The system notifies of a commit's first write, before that is synced and visible; the
    notification of the next commit may come at the same moment. So a read that finds changes
    begins the series anew.
    """

    _FIRST = 0.001
    # This covers a commit whose sync takes as long as 8 s.
    _LAST = 8.0

    def __init__(self) -> None:
        self._step = 0.0
        self.due: float | None = None

    def start(self, now: float) -> None:
        """Read at once, and then in growing intervals."""
        self._step = self._FIRST
        self.due = now

    def note_refresh(self, now: float, *, found: bool) -> None:
        """Set the time of the next read, after a read that found changes or not."""
        if self.due is None:
            return
        if found:
            self._step = self._FIRST
        self.due = None if self._step > self._LAST else now + self._step
        self._step *= 2
