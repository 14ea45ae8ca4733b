"""The other processes that use an open file: their writes, and which of them live."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from pathlib import Path

from mandrake_sessions.database.files import owner
from mandrake_sessions.database.files.notification import notifier
from mandrake_sessions.database.files.paths import Identity, leads_elsewhere
from mandrake_sessions.database.sidecars import WAL


class OtherProcesses:
    """The other processes that use one file.

    Args:
        path: the real path of the file.
        identity: its device and inode at opening.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        # A text, because making a Path takes longer than the call.
        self._wal = f"{path}{WAL}"

    def watch(self, key: Hashable, notify: Callable[[], None]) -> None:
        """Let the notifier's thread call ``notify`` when the file may have been written.

        Args:
            key: for ``unwatch``.
            notify: must be quick and must not raise.

        Raises:
            ThreadStartError: the notifier's thread cannot be started.
        """
        notifier.watch(key, self._path, notify)

    def unwatch(self, key: Hashable) -> None:
        """End the calls for this key."""
        notifier.forget(key)

    def last_write(self) -> tuple[int, ...] | None:
        """Return time, size and inode of the WAL, which each COMMIT changes; None if unknown."""
        try:
            found = os.stat(self._wal)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def is_elsewhere(self) -> bool:
        """Return whether the path now leads to another file."""
        return leads_elsewhere(self._path, self._identity)

    def is_alive(self, name: str) -> bool:
        """Return whether the process with this claim lives, as far as the system shows it."""
        return owner.is_alive(self._path, name)

    def forget_dead(self) -> None:
        """Remove the claims of processes that have ended."""
        owner.forget_dead(self._path)
