"""Keeps the attachment of an open file from the layers above, and this process's claim."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mandrake_sessions.concurrency.fork import keep_alive
from mandrake_sessions.database.files import owner
from mandrake_sessions.engine.attachment import Attachment
from mandrake_sessions.log import get_logger

C = TypeVar("C", bound=Attachment)


class Attached:
    """Keeps the attachment and the claim of one open file.

    Args:
        path: the real path of the file.

    Attributes:
        attachment: None until it is made, and after it was closed.
        claim: None until it is made.
        is_claim_over: whether the claim may end with the file.
    """

    def __init__(self, path: Path) -> None:
        self.attachment: Attachment | None = None
        self.claim: owner.Owner | None = None
        self.is_claim_over: bool = False
        self._path = path
        self._mutex = threading.Lock()

    def attach(self, make: Callable[[], C], require_usable: Callable[[], None]) -> C:
        """Return the attachment; make it if there is none and the file is usable."""
        with self._mutex:
            if self.attachment is None:
                require_usable()
                self.attachment = make()
            return self.attachment  # type: ignore[return-value]  # there is one kind for a file

    def claimed(self, require_open: Callable[[], None]) -> str:
        """Return the id of the claim; make the claim if there is none."""
        with self._mutex:
            require_open()
            self.is_claim_over = False
            if self.claim is None:
                self.claim = owner.claim(self._path)
            return self.claim.id

    @property
    def is_quiet(self) -> bool:
        """Whether the attachment has no live stream or watcher."""
        attachment = self.attachment
        return attachment is None or attachment.is_quiet

    def can_rest(self) -> bool:
        """Return whether the attachment allows the file to be parked."""
        attachment = self.attachment
        return attachment is None or attachment.can_rest()

    def committed(self) -> None:
        """Notify the attachment of a commit; log its error, because the COMMIT has succeeded."""
        attachment = self.attachment
        if attachment is not None:
            try:
                attachment.committed()
            except Exception:  # noqa: BLE001  # as the docstring says
                get_logger(__name__).exception("commit_notification_failed")

    def retired(self) -> None:
        """Notify the attachment of the retirement; log its error, which changes nothing."""
        attachment = self.attachment
        if attachment is not None:
            try:
                attachment.retired()
            except Exception:  # noqa: BLE001  # as the docstring says
                get_logger(__name__).exception("retirement_notification_failed")

    def close_attachment(self, deadline: float) -> list[Exception]:
        """Close the attachment and return its errors."""
        attachment = self.attachment
        try:
            if attachment is not None:
                attachment.close(deadline)
        except ExceptionGroup as group:
            return list(group.exceptions)
        except Exception as error:  # noqa: BLE001  # the file is closed nevertheless
            return [error]
        return []

    def end(self, note_closed: Callable[[], None], *, is_moved: bool) -> None:
        """Drop the attachment and release the claim, when the file is closed.

        Args:
            note_closed: makes the file unusable, so that no attachment is made afterwards.
            is_moved: whether the file is gone, so that this process no longer writes its turns.
        """
        with self._mutex:
            note_closed()
            self.attachment = None
            claim, self.claim = self.claim, None
        if claim is not None:
            claim.release(keep=not self.is_claim_over and not is_moved)

    def forget_after_fork(self) -> None:
        """Leave both to the parent, which has the owner's file and the attachment's threads."""
        self.claim = None
        if self.attachment is not None:
            keep_alive(self.attachment)
            self.attachment.forget_after_fork()
