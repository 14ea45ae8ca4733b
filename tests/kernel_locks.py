"""The kernel's list of locks, read so that it can be relied upon.

``/proc/locks`` comes in pages. If a lock comes or goes between two of them, anywhere on the
machine, one that stays may be listed twice or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

AGREEING = 4


def lock_lines(paths: Iterable[Path]) -> list[str]:
    """Return the lines on these files, without their numbers, as readings in a row agree on.

    Lines of processes that wait for a lock begin with ``->``.
    """
    paths = list(paths)
    last, agreeing = _read_once(paths), 1
    while agreeing < AGREEING:
        before, last = last, _read_once(paths)
        agreeing = agreeing + 1 if last == before else 1
    return last


def own_lock_lines(paths: Iterable[Path]) -> list[str]:
    """Return those of them that are this process's."""
    pid = str(os.getpid())
    return [line for line in lock_lines(paths) if _fields(line)[3] == pid]


def _read_once(paths: list[Path]) -> list[str]:
    inodes = set()
    for path in paths:
        try:
            inodes.add(str(path.stat().st_ino))
        except FileNotFoundError:
            continue
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    found = [line.partition(":")[2].strip() for line in lines]
    return sorted(line for line in found if _fields(line)[4].rpartition(":")[2] in inodes)


def _fields(line: str) -> list[str]:
    # POSIX  ADVISORY  READ 32355 fe:00:2147494 128 128
    return line.removeprefix("-> ").split()
