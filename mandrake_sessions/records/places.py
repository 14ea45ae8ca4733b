"""How a registry names directories: below its own one as seen from there, others by their path.

So a root that is moved finds its workspaces, and a copy of it finds its copies. A directory outside
is the same one for both, and belongs to the registry that registered it: that one is noted with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mandrake_sessions.models import Workspace


class Registry:
    """The file that holds a registry.

    Args:
        database: its real path.
        identity: its device and inode, whatever it is called; None where that is not known.

    Attributes:
        root: the directory that the registry lies in.
    """

    def __init__(self, database: Path, identity: tuple[int, int] | None) -> None:
        self.database = database
        self.identity = identity
        self.root: Path = database.parent
        # Of every workspace that is looked up a path is made: by names alone.
        self._root_name = str(self.root)

    def stored(self, path: str) -> str:
        """Return how the registry stores the real path of a directory."""
        folder = Path(path)
        if folder.is_relative_to(self.root):
            return folder.relative_to(self.root).as_posix()
        # Mounted in two places, or written in other letters, it has two real paths.
        for each in (folder, *folder.parents):
            if _is_same(each, self.root):
                return folder.relative_to(each).as_posix()
        return path

    def workspace(self, row: tuple[Any, ...]) -> Workspace:
        """Return a workspace of the registry, with the path it has now."""
        id, name, stored, *rest = row
        return Workspace(id, name, self.path(stored), *rest)

    def path(self, stored: str) -> str:
        """Return the path that a stored one stands for now."""
        return self._root_name if stored == os.curdir else os.path.join(self._root_name, stored)

    def document(self) -> str:
        """Return what is noted with a directory outside that is registered here."""
        device, inode = self._names()
        return f"{device}:{inode}:{self.database}"

    def _names(self) -> tuple[str, str]:
        device, inode = self.identity or (0, 0)
        return str(device), str(inode)

    def has_moved_since(self, document: str) -> bool:
        """Return whether a note names this database where it does not lie any more."""
        device, _, rest = document.partition(":")
        inode, _, path = rest.partition(":")
        return (device, inode) == self._names() and not _is_same(Path(path), self.database)

    def other(self, document: str | None) -> Path | None:
        """Return the database that a note names, None if it is this one under whatever name."""
        if document is None:
            return None
        device, _, rest = document.partition(":")
        inode, _, path = rest.partition(":")
        if path in ("", str(self.database)) or (device, inode) == self._names():
            return None
        return None if _is_same(Path(path), self.database) else Path(path)


def is_outside(stored: str) -> bool:
    """Return whether a directory lies outside the registry's own one."""
    return os.path.isabs(stored)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
