"""How a database file comes into being: private, by one maker, with no log of another file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.error_codes import translate_os
from mandrake_sessions.database.files.flock import try_lock, unlock
from mandrake_sessions.database.files.folders import opened_folder
from mandrake_sessions.database.files.paths import (
    Identity,
    aside_of,
    identify,
    set_aside,
    tell_set_aside,
)
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.database.sidecars import shm_of, wal_of
from mandrake_sessions.errors import DatabaseFolderError, DatabaseMovedError

PATIENCE: Final = 1.0
"""Seconds to wait for another maker, which needs milliseconds; it may be stopped."""


def make_file(path: Path, content: Callable[[], bytes] | None = None) -> Identity:
    """Make the file, readable by its owner only, and its folders; return its identity.

    A file that exists, also one that another process makes at this moment, is left as it is.

    Args:
        path: as ``real_path`` gave it.
        content: returns what the file begins with. Where the system cannot make a file that is
            whole when it gets its name, the file is empty all the same.
    """
    identity = identify(path)
    if identity is not None:
        return identity
    try:
        changed = _make_folders(path.parent)
        # Open: in the place of the folder a link may come, and no file is made where it leads.
        with opened_folder(path.parent) as folder, alone_in(path.parent):
            if folder.identify(path.name) is None:
                clear_name(path)
                # Before SQLite, so that the -wal and -shm files, which take its mode, are private.
                if content is None or not folder.make_whole(path.name, content()):
                    folder.make(path.name)
        # After the file: what one sync has brought to the disk, the next finds there.
        for each in changed:
            sync_folder(each)
    except FileExistsError:
        if not os.path.isdir(path.parent):
            raise DatabaseFolderError(path=path, operation="open") from None
    except OSError as error:
        raise translate_os(error, path) from error
    identity = identify(path)
    if identity is None:
        raise DatabaseMovedError(path=path, operation="open")
    return identity


def clear_name(path: Path) -> None:
    """Take away what lies beside a database that is not there; its maker is alone in the folder.

    A log is kept under another name: SQLite would delete it. Its index goes: whoever still has a
    moved file open writes into it, and a new file would read that.
    """
    log, index = wal_of(path), shm_of(path)
    aside = aside_of(log)
    if set_aside(log, aside):
        tell_set_aside(path, aside)
    index.unlink(missing_ok=True)


@block
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other makers of databases out of a folder for a block, which takes milliseconds.

    What lies beside a name is cleared before there is a file, and by nobody afterwards: it would
    be the log of who opened the new one first. Where a folder cannot be locked, and behind a maker
    that is stopped, it goes on without.
    """
    descriptor: int | None = None
    try:
        # Inside: a signal while it waits must not leave the folder locked.
        descriptor = _opened(folder)
        if descriptor is not None:
            _lock(descriptor)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                # A child that was forked this moment has it open still.
                unlock(descriptor)
            os.close(descriptor)


def _opened(folder: Path) -> int | None:
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def _lock(descriptor: int) -> None:
    since = monotonic()
    with contextlib.suppress(OSError):
        while not try_lock(descriptor):
            if not pause(since + PATIENCE, pace(since)):
                return


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each readable by its owner only.

    Their names are on the disk before anything is: SQLite syncs only the folder of its files.
    """
    for changed in _make_folders(folder):
        sync_folder(changed)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return those that have a new name in them."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    return [each.parent for each in reversed(missing)]


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, on a system that can."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
