"""Makes a database file: private, by one maker, and without the WAL of another file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.error_codes import pass_on_timeout, translate_os
from mandrake_sessions.database.files.flock import try_lock, unlock
from mandrake_sessions.database.files.folders import opened_folder
from mandrake_sessions.database.files.paths import (
    Identity,
    aside_of,
    identify,
    log_set_aside,
    set_aside,
)
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.database.sidecars import shm_of, wal_of
from mandrake_sessions.errors import DatabaseFolderError, DatabaseMovedError

PATIENCE: Final = 1.0
"""Seconds to wait for another maker: it needs milliseconds, but may be stopped."""


def make_file(path: Path, content: Callable[[], bytes] | None = None) -> Identity:
    """Make the private file and its folders; return its identity.

    A file that exists, also one that another process is making, stays unchanged.

    Args:
        path: as ``real_path`` gave it.
        content: returns the first content of the file. Where the system cannot make a file that is
            whole when it gets its name, the file is empty.
    """
    identity = identify(path)
    if identity is not None:
        return identity
    try:
        changed = _make_folders(path.parent)
        # The folder is opened, so that no file is made behind a link that replaces the folder.
        with opened_folder(path.parent) as folder, folder_lock(path.parent):
            if folder.identify(path.name) is None:
                clear_name(path)
                # Made before SQLite opens it: -wal and -shm take its mode, so they are private too.
                if content is None or not folder.make_whole(path.name, content()):
                    folder.make(path.name)
        # After the file, because its sync has often brought these names to the disk already.
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
    """Clear the sidecars of a missing database; the caller must hold the folder lock.

    The WAL is kept under another name, because SQLite would delete it. Its index is removed: a
    process that still has a moved file open writes into it, and a new file would read that.
    """
    wal, index = wal_of(path), shm_of(path)
    aside = aside_of(wal)
    if set_aside(wal, aside):
        log_set_aside(path, aside)
    index.unlink(missing_ok=True)


@block
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other makers of databases out of a folder for a block, which takes milliseconds.

    A maker clears the sidecars of a name before the file exists. A second maker that cleared them
    later would remove the WAL of the first process that opened the new file. If the folder cannot
    be locked, or the holder of the lock is stopped, the block runs without the lock.
    """
    descriptor: int | None = None
    try:
        # Inside the try: a signal during the wait must not leave the folder locked.
        descriptor = _opened(folder)
        if descriptor is not None:
            _lock(descriptor)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                # Explicitly: a child that was just forked may still have the descriptor open.
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
    try:
        while not try_lock(descriptor):
            if not pause(since + PATIENCE, pace(since)):
                return
    except OSError as error:
        # This folder cannot be locked, unless a signal's handler has ended the wait.
        pass_on_timeout(error)


def make_folder(folder: Path) -> None:
    """Make a private folder and the missing folders above it, and sync their names.

    SQLite syncs only the folder of its own files.
    """
    for changed in _make_folders(folder):
        sync_folder(changed)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and the missing ones above it; return the folders that have a new name."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    return [each.parent for each in reversed(missing)]


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, on a system that has such a call."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except AttributeError:
        # Windows has no such call.
        return
    except OSError as error:
        pass_on_timeout(error)
