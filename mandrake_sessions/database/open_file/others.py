"""What an open file learns of other processes: their writes, and which of them live."""

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
        # A name and not a path, which takes longer to make than a look.
        self._wal = f"{path}{WAL}"

    def watch(self, key: Hashable, notify: Callable[[], None]) -> None:
        """Have ``notify`` called, in the notifier's thread, when the file was perhaps written.

        Args:
            key: for ``unwatch``.
            notify: must be quick and must not raise.

        Raises:
            ThreadStartError: no thread can be started that hears of writes.
        """
        notifier.watch(key, self._path, notify)

    def unwatch(self, key: Hashable) -> None:
        """Call that ``notify`` no more."""
        notifier.forget(key)

    def last_write(self) -> tuple[int, ...] | None:
        """Return what changes with every COMMIT of any process; None where that is not known."""
        try:
            found = os.stat(self._wal)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def is_elsewhere(self) -> bool:
        """Return whether the path leads to another file by now."""
        return leads_elsewhere(self._path, self._identity)

    def is_alive(self, name: str) -> bool:
        """Return whether the process with this claim lives, as far as can be seen."""
        return owner.is_alive(self._path, name)

    def forget_dead(self) -> None:
        """Remove the claims of processes that have ended."""
        owner.forget_dead(self._path)
