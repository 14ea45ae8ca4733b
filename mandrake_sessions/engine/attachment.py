"""The object that the layers above attach to an open database: its streams and watchers."""

from __future__ import annotations

from typing import Protocol


class Attachment(Protocol):
    """Lives as long as the open file it was made for; each file has at most one."""

    @property
    def is_quiet(self) -> bool:
        """Whether it has no live stream or watcher; called often, so it takes no lock."""

    def can_rest(self) -> bool:
        """Return whether the file may be closed and opened again without any caller noticing.

        Called while the file takes no other work.
        """

    def committed(self) -> None:
        """Note that this process has committed; its lease is still held, so this must be quick."""

    def retired(self) -> None:
        """Note that the file takes no more work; the caller may hold a lease."""

    def close(self, deadline: float) -> None:
        """Store what is not stored yet, and end every thread.

        Args:
            deadline: when it must be done (``time.monotonic``); the file closes after it.
        """

    def forget_after_fork(self) -> None:
        """Drop the state of the parent's threads in a forked child."""
