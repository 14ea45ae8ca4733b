"""The open files of this process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def descriptors(path: Path | None = None) -> list[str]:
    """Return the open files of this process, or those of them that belong to a database file."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(each for each in found if path is None or each.startswith(str(path)))


def open_connections(path: Path) -> int:
    """Return how many connections of this process have a database file open."""
    return descriptors(path).count(str(path))
