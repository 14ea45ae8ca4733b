"""Checks from outside whether the process that made an owner's file lives.

Its lock shows it. If the lock cannot be tried, the system's table of locks decides, or else the
times at which the file was touched.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.files.flock import try_lock
from mandrake_sessions.database.kernel_locks import is_flocked

HEARTBEAT: Final = b"heartbeat"
"""The content of the file of an owner that cannot lock it, and touches it instead."""

HEARTBEAT_INTERVAL: Final = 2.0
"""Seconds between two touches of such a file; FAT stores times in steps of two seconds."""

_SILENT_INTERVALS: Final = 3
# The name may be a trap: opening must follow no link, and wait for no other end of a pipe.
_LOOK: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# This process lacks a resource, which shows nothing about the owner, and passes.
_LACKING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# The time of a file's last touch, and since when it is known. Needs no lock: each access is a
# single operation of a dict.
_heard: dict[Path, tuple[int, float]] = {}


@block
def examined(path: Path) -> Iterator[bool]:
    """Check whether the owner of a file lives; a dead owner's file stays locked in the block.

    The check takes a shared lock, so that two checks never see each other as the owner.
    """
    try:
        descriptor = os.open(path, _LOOK)
    except OSError as error:
        pass_on_timeout(error)
        yield error.errno in _LACKING or _is_living_unopened(path)
        return
    try:
        yield _is_living(path, descriptor)
    finally:
        os.close(descriptor)


def _is_living_unopened(path: Path) -> bool:
    """Return whether the owner of a file may live, if the file cannot be opened."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        pass_on_timeout(error)
        return _was_heard(path, 0)
    # A link is no owner's file.
    return stat.S_ISREG(found.st_mode) and _is_living_unlocked(path, found)


def _is_living_unlocked(path: Path, found: os.stat_result) -> bool:
    """Return whether the owner of a file whose lock cannot be tried may live."""
    is_held = is_flocked(found.st_ino)
    if is_held:
        return True
    # The file of an owner with a heartbeat is not empty.
    is_freed = is_held is False and not found.st_size
    return not is_freed and _was_heard(path, found.st_mtime_ns)


def _is_living(path: Path, descriptor: int) -> bool:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return False
    if os.read(descriptor, len(HEARTBEAT)) == HEARTBEAT:
        return _was_heard(path, found.st_mtime_ns)
    try:
        return not try_lock(descriptor, is_shared=True)
    except OSError as error:
        pass_on_timeout(error)
        return _is_living_unlocked(path, found)


def _was_heard(path: Path, touched: int) -> bool:
    """Return whether an owner has touched its file within the time that this process allows.

    Two times of change are compared for equality only, so the clocks may differ.
    """
    present = monotonic()
    last, since = _heard.get(path, (None, present))
    if last != touched:
        _heard[path] = (touched, present)
        return True
    return present - since < _SILENT_INTERVALS * HEARTBEAT_INTERVAL


def forget(path: Path) -> None:
    """Forget the heartbeat of an owner whose file was removed."""
    _heard.pop(path, None)
