"""What hangs on an open file: its companion from the layers above, and this process's claim."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from mandrake_sessions.concurrency.fork import keep_alive
from mandrake_sessions.database.files import owner
from mandrake_sessions.log import get_logger


class Companion(Protocol):
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


C = TypeVar("C", bound=Companion)


class Attached:
    """Keeps the companion and the claim of one open file.

    Args:
        path: the real path of the file.

    Attributes:
        companion: None until it is made, and after it was closed.
        claim: None until it is made.
        is_claim_over: whether the claim may end with the file.
    """

    def __init__(self, path: Path) -> None:
        self.companion: Companion | None = None
        self.claim: owner.Owner | None = None
        self.is_claim_over = False
        self._path = path
        self._mutex = threading.Lock()

    def companion_of(self, make: Callable[[], C], require_usable: Callable[[], None]) -> C:
        """Return the companion; it is made now if there is none, and the file is usable."""
        with self._mutex:
            if self.companion is None:
                require_usable()
                self.companion = make()
            return self.companion  # type: ignore[return-value]  # there is one kind for a file

    def claimed(self, require_open: Callable[[], None]) -> str:
        """Return the id of the claim, which is made now if there is none."""
        with self._mutex:
            require_open()
            self.is_claim_over = False
            if self.claim is None:
                self.claim = owner.claim(self._path)
            return self.claim.id

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is live in the companion this moment."""
        companion = self.companion
        return companion is None or companion.is_quiet

    def can_rest(self) -> bool:
        """Return whether the file may be closed for a while, as far as the companion goes."""
        companion = self.companion
        return companion is None or companion.can_rest()

    def committed(self) -> None:
        """Tell the companion; it is committed whatever happens here."""
        companion = self.companion
        if companion is not None:
            try:
                companion.committed()
            except Exception:  # noqa: BLE001  # as the docstring says
                get_logger(__name__).exception("commit_not_told")

    def retired(self) -> None:
        """Tell the companion; the file is retired whatever happens here."""
        companion = self.companion
        if companion is not None:
            try:
                companion.retired()
            except Exception:  # noqa: BLE001  # as the docstring says
                get_logger(__name__).exception("retirement_not_told")

    def close_companion(self, deadline: float) -> list[Exception]:
        """Close the companion and return what failed."""
        companion = self.companion
        try:
            if companion is not None:
                companion.close(deadline)
        except ExceptionGroup as group:
            return list(group.exceptions)
        except Exception as error:  # noqa: BLE001  # the file is closed all the same
            return [error]
        return []

    def end(self, note_closed: Callable[[], None], *, is_moved: bool) -> None:
        """Let go of both: the file is closed.

        Args:
            note_closed: makes the file unusable, so that nothing is attached any more.
            is_moved: whether the file went away: what streams into it is not ours to write.
        """
        with self._mutex:
            note_closed()
            self.companion = None
            claim, self.claim = self.claim, None
        if claim is not None:
            claim.release(keep=not self.is_claim_over and not is_moved)

    def forget_after_fork(self) -> None:
        """Leave both to the parent: the owner's file is its, and so are the companion's threads."""
        self.claim = None
        if self.companion is not None:
            keep_alive(self.companion)
            self.companion.forget_after_fork()
