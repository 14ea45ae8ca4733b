"""What the layers above keep with an open database: its streams and watchers."""

from __future__ import annotations

from typing import Protocol


class Attachment(Protocol):
    """Lives as long as the open file it was made for; there is at most one for each."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of it is live this moment; asked often, so it takes no lock."""

    def can_rest(self) -> bool:
        """Return whether the file may be closed for a while and opened again, unseen by anybody.

        Asked while the file takes no other work.
        """

    def committed(self) -> None:
        """Note that this process has committed; its lease is still held, so do next to nothing."""

    def retired(self) -> None:
        """Note that the file takes no more work; perhaps called by the holder of a lease."""

    def close(self, deadline: float) -> None:
        """Store what is not stored yet, and end every thread.

        Args:
            deadline: when it must be done (``time.monotonic``); the file closes after it.
        """

    def forget_after_fork(self) -> None:
        """Drop, in a forked child, what the parent's threads were doing."""
