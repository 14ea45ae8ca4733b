"""Copies another program's database with its sidecar files, and leaves no trace.

Opening it in its place would leave one: read-only, a crashed WAL database gets a ``-shm``;
read-write, its ``-wal`` is removed; immutable, the rows in the ``-wal`` are missed.

Whether a process has it open is read from the operating system, without taking a lock. Two
connections hold no lock and so stay unseen: an idle one in a rollback-journal mode, and one in any
mode that has not read yet. Their next write changes the file, and is noticed if it falls between
the two checks of sizes and times around the copying. Locks are visible on Linux; on other systems
only the changes are.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mandrake_sessions.database.error_codes import translate_os
from mandrake_sessions.database.file_format import LOCK_BYTE
from mandrake_sessions.database.files.paths import Identity, descriptors_on, identify
from mandrake_sessions.database.files.raw import states_of
from mandrake_sessions.database.sidecars import JOURNAL, SHM, WAL
from mandrake_sessions.errors import DatabaseFolderError, DatabaseMissingError, ImportSourceError

_OPERATION: Final = "import"
_ATTEMPTS: Final = 3
_BLOCK: Final = 1024 * 1024

# The places of SQLite's locks (os_unix.c): PENDING, RESERVED and the 510 SHARED bytes of the
# database, the eight WAL locks and the "dead man's switch" of the -shm. A WAL connection that has
# read once holds a SHARED byte of the database for as long as it is open.
_DATABASE_LOCKS: Final = (LOCK_BYTE, 512)
_SHM_LOCKS: Final = (120, 9)

_ALL: Final = ("", WAL, JOURNAL, SHM)
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """Copy a database into a private temporary folder, which is removed when the block ends.

    ``tempfile`` chooses the place of the folder (``TMPDIR``), which needs room for the whole
    database.

    Args:
        path: the database, as ``real_path`` returned it.

    Returns:
        The path of the copy.

    Raises:
        DatabaseMissingError: there is no file.
        DatabasePathError: it is not a regular file.
        ImportSourceError: it is in use, changed while it was copied, or cannot be read.
        StorageFullError: there is no room for the copy.
    """
    with _private_folder() as folder:
        copy = Path(folder) / "source.sqlite"
        for _ in range(_ATTEMPTS):
            if _copy_once(path, copy):
                break
        else:
            raise ImportSourceError(f"{path} is in use: it changed while it was copied.")
        yield copy


def find_user(path: Path) -> str | None:
    """Return the user of a database, as far as this is visible without disturbing it.

    Args:
        path: the database, as ``real_path`` returned it.

    Returns:
        A phrase such as ``process 4711``, or None.

    Raises:
        OSError: one of its files cannot be opened.
    """
    # First, because this process may open the file only if it does not use it: closing it again
    # would drop the locks that SQLite holds for this process.
    if _is_open_here(path):
        return "this process"
    for suffix, (start, length) in (("", _DATABASE_LOCKS), (SHM, _SHM_LOCKS)):
        with contextlib.suppress(FileNotFoundError), _opened(f"{path}{suffix}") as file:
            pid = _lock_holder(file, start, length)
            if pid is not None:
                return f"process {pid}" if pid > 0 else "another process"
    return None


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="mandrake-import-")
    except OSError as error:
        if error.filename is None:
            raise DatabaseFolderError(
                "No temporary folder can be used: set TMPDIR to one that can be written."
            ) from error
        raise translate_os(error, Path(error.filename)) from error


def _copy_once(path: Path, copy: Path) -> bool:
    """Copy the files; return whether they stayed unchanged meanwhile."""
    if identify(path) is None:
        raise DatabaseMissingError(path=path, operation=_OPERATION)
    try:
        before = states_of(path)
        _require_unused(path)
        for suffix, state in before.items():
            part = Path(f"{copy}{suffix}")
            part.unlink(missing_ok=True)
            if state is not None:
                with _opened(f"{path}{suffix}") as file:
                    _copy_file(file, part)
        _require_unused(path)
        return before == states_of(path)
    except FileNotFoundError:
        # Removed between two checks: a process that ended has removed its -wal.
        return False
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ImportSourceError(f"{path} cannot be read: {reason}.") from error


def _require_unused(path: Path) -> None:
    user = find_user(path)
    if user is not None:
        raise ImportSourceError(f"{path} is in use by {user}; close it there first.")


def _copy_file(file: int, target: Path) -> None:
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", buffering=0) as copy:
            while block := os.read(file, _BLOCK):
                rest = memoryview(block)
                while rest:
                    rest = rest[copy.write(rest) or 0 :]
    except OSError as error:
        raise translate_os(error, target) from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    file = os.open(path, _FLAGS)
    try:
        yield file
    finally:
        os.close(file)


def _is_open_here(path: Path) -> bool:
    """Return whether a file descriptor of this process is one of the database's files."""
    files: set[Identity] = set()
    for suffix in _ALL:
        with contextlib.suppress(OSError):
            found = os.stat(f"{path}{suffix}")
            files.add((found.st_dev, found.st_ino))
    return bool(descriptors_on(files))


def _lock_holder(file: int, start: int, length: int) -> int | None:
    """Return the process that holds a lock in a range of bytes, or None; takes no lock."""
    if not sys.platform.startswith("linux") or struct.calcsize("P") != 8:
        return None
    import fcntl

    # struct flock: type, whence, start, length, pid.
    layout = "hhqqi4x"
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    try:
        answer = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        # A file system without locks.
        return None
    return None if answer[0] == fcntl.F_UNLCK else int(answer[4])
