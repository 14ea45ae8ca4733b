"""How a registry stores directories: those below its own one relative to it, others absolutely.

So a root that is moved finds its workspaces, and a copy of it finds its copies. A directory outside
is the same one for both, and belongs to the registry that registered it; a note records which.
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
        identity: its device and inode, which no rename changes; None if unknown.

    Attributes:
        root: the directory that the registry lies in.
    """

    def __init__(self, database: Path, identity: tuple[int, int] | None) -> None:
        self.database = database
        self.identity = identity
        self.root: Path = database.parent
        # Every query of a workspace makes a path: of the names alone.
        self._root_name = str(self.root)

    def stored(self, path: str) -> str:
        """Return the stored form of the real path of a directory."""
        folder = Path(path)
        if folder.is_relative_to(self.root):
            return folder.relative_to(self.root).as_posix()
        # A directory mounted in two places, or spelled in another case, has two real paths.
        for each in (folder, *folder.parents):
            if _is_same(each, self.root):
                return folder.relative_to(each).as_posix()
        return path

    def workspace(self, row: tuple[Any, ...]) -> Workspace:
        """Return a workspace of the registry with its present path."""
        id, name, stored, *rest = row
        return Workspace(id, name, self.path(stored), *rest)

    def path(self, stored: str) -> str:
        """Return the present path for a stored one."""
        return self._root_name if stored == os.curdir else os.path.join(self._root_name, stored)

    def document(self) -> str:
        """Return the note for a directory outside that is registered here."""
        device, inode = self._names()
        return f"{device}:{inode}:{self.database}"

    def _names(self) -> tuple[str, str]:
        device, inode = self.identity or (0, 0)
        return str(device), str(inode)

    def has_moved_since(self, document: str) -> bool:
        """Return whether a note names this database at a former path."""
        device, _, rest = document.partition(":")
        inode, _, path = rest.partition(":")
        return (device, inode) == self._names() and not _is_same(Path(path), self.database)

    def other(self, document: str | None) -> Path | None:
        """Return the database that a note names; None if it is this one under any name."""
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
