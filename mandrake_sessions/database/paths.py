"""What a path names: one spelling for each database, and the identity of its file."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from mandrake_sessions import arguments
from mandrake_sessions.database.faults import translate_os
from mandrake_sessions.errors import DatabaseFolderError, DatabaseMovedError, DatabasePathError
from mandrake_sessions.ids import new_id
from mandrake_sessions.log import get_logger

Identity = tuple[int, int]
"""Device and inode: what a file is, whatever it is called."""


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the one spelling of a database's path, following symbolic links.

    Raises:
        DatabasePathError: it cannot name a file: empty, in memory, a URI, a loop of links.
    """
    text: object = os.fspath(arguments.path("path", path))
    if not isinstance(text, str) or not text or "\0" in text or not _is_utf8(text):
        raise DatabasePathError(
            "The path of a database is a text of at least one character, and UTF-8."
        )
    if text == ":memory:" or text.startswith("file:"):
        raise DatabasePathError(
            "A database lives in a file; for one that goes away use a temporary folder."
        )
    # Not abspath: it would fold ``..`` before links are followed.
    expanded = os.path.expanduser(text)
    try:
        try:
            return Path(os.path.realpath(expanded, strict=True))
        except FileNotFoundError:
            return Path(os.path.realpath(expanded))
    except OSError as error:
        raise translate_os(error, Path(expanded)) from error


def _is_utf8(text: str) -> bool:
    # Python can name files that are not UTF-8, SQLite cannot.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def identify(path: Path) -> Identity | None:
    """Return the identity of the file at ``path``, or None where there is none.

    It asks the folder and never opens the file: closing a file drops every POSIX lock that this
    process holds on it, SQLite's too.

    Raises:
        DatabasePathError: there is something, but not a regular file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translate_os(error, path) from error
    if not stat.S_ISREG(found.st_mode):
        raise DatabasePathError("The path names a folder or a device, not a file.", path=path)
    return found.st_dev, found.st_ino


def make_file(path: Path) -> Identity:
    """Make the file, readable by its owner only, and its folders; return its identity.

    A file that exists, also one that another process makes at this moment, is left as it is. A log
    that is there without its file is kept under another name: SQLite would delete it. Its index
    goes: whoever still has the moved file open writes into it, and a new file would read that.
    """
    identity = identify(path)
    if identity is not None:
        return identity
    try:
        make_folder(path.parent)
        log, index = companions(path)
        orphans = identify(log), identify(index)
        # Before SQLite, so that the -wal and -shm files, which take its mode, are private too.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        # After it: of all that come here at once, one has made the file.
        if orphans[0] is not None and identify(log) == orphans[0]:
            aside = aside_of(log)
            if set_aside(log, aside):
                tell_set_aside(path, aside)
        if orphans[1] is not None and identify(index) == orphans[1]:
            index.unlink(missing_ok=True)
    except FileExistsError:
        if not path.parent.is_dir():
            raise DatabaseFolderError(path=path, operation="open") from None
    except OSError as error:
        raise translate_os(error, path) from error
    identity = identify(path)
    if identity is None:
        raise DatabaseMovedError(path=path, operation="open")
    return identity


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each readable by its owner only.

    Their names are on the disk before anything is: SQLite syncs only the folder of its files.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, on a system that can."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def aside_of(log: Path) -> Path:
    """Return the name under which a log is kept that belongs to no database of its name."""
    return log.with_name(f"{log.name}.of-moved-file-{new_id()}")


def set_aside(log: Path, aside: Path) -> bool:
    """Rename a log that belongs to no database of its name any more; one without bytes goes.

    Returns:
        Whether it is kept. One that is gone is not: whoever had the moved file open may have
        brought it there meanwhile.
    """
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size:
            log.rename(aside)
            return True
        log.unlink()
    return False


def tell_set_aside(path: Path, aside: Path) -> None:
    """Log that the log of a database was kept under another name."""
    get_logger(__name__).error("database_log_set_aside", path=str(path), log=str(aside))


def may_write(path: Path) -> bool:
    """Return whether this process may write a file, by the user it acts as, as opening asks."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def companions(path: Path) -> tuple[Path, Path]:
    """Return the names of the log and of its index, which SQLite makes beside the file."""
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")
