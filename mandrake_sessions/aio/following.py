"""Subscribing from an event loop, which must not wait until a parked file is open again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.engine.protocols import FileParkedError, Handle
from mandrake_sessions.errors import HandleReleasedError, NotInitializedError
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.subscription import Followed
from mandrake_sessions.live.watching.targets import Joining


class WakingFollower:
    """Opens the file in a thread, and passes on there what was asked of the follower.

    Args:
        handle: on the database.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._follower: Followed | None = None
        self._has_left = False

    def require_no_lease(self, operation: str) -> None:
        """Nothing to be made sure of: no thread has a lease of a file that is not open."""

    def subscribe(self, joining: Joining) -> None:
        """Have a subscriber let in; ``joining`` tells when it is, or why not."""
        start(
            threading.Thread(
                target=self._subscribe, args=(joining,), name="mandrake-async watch", daemon=True
            )
        )

    def leave(self, mailbox: Mailbox) -> None:
        """Forget the subscriber; takes no lock, so a finalizer may call it."""
        self._has_left = True
        if self._follower is not None:
            self._follower.leave(mailbox)

    def _subscribe(self, joining: Joining) -> None:
        try:
            with self._handle.pinned("watch") as file:
                self._follower = Hub.of(file).follower
                self._follower.subscribe(joining)
        except HandleReleasedError:
            joining.settle(NotInitializedError())
        except BaseException as error:  # noqa: BLE001  # the one who watches gets it
            joining.settle(error)
        if self._has_left and self._follower is not None:
            # Meanwhile: before it was let in.
            self._follower.leave(joining.mailbox)


@block
def followed(handle: Handle) -> Iterator[Followed]:
    """Lend what subscribes to a database; never waits for the file."""
    key = object()
    try:
        file = handle.pin_now(key)
    except FileParkedError:
        yield WakingFollower(handle)
        return
    try:
        yield Hub.of(file).follower
    finally:
        file.unpin(key)
