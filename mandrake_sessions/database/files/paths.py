"""Resolves paths: one spelling for each database, and the identity of its file."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

from mandrake_sessions import arguments
from mandrake_sessions.database.error_codes import pass_on_timeout, translate_os
from mandrake_sessions.database.sidecars import JOURNAL, SHM, WAL, sidecar, sidecar_name
from mandrake_sessions.errors import DatabasePathError
from mandrake_sessions.ids import new_id
from mandrake_sessions.log import get_logger

_MOST_LINKS: Final = 40
"""The most links on one path, as in the Linux kernel."""

Identity = tuple[int, int]
"""Device and inode, which identify a file independently of its name."""


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the one spelling of a database's path, following symbolic links.

    It refuses a link that another user has put into a folder that not only its owner may write.

    Raises:
        DatabasePathError: the path cannot name a file: empty, in memory, a URI, a loop of links; or
            it has another user's link.
    """
    text: object = os.fspath(arguments.path("path", path))
    if not isinstance(text, str) or not text or "\0" in text or not _is_utf8(text):
        raise DatabasePathError(
            "The path of a database is a text of at least one character, and UTF-8."
        )
    if not _may_name_a_file(text):
        raise DatabasePathError(
            "A database lives in a file; for a temporary one use a temporary folder."
        )
    # Not abspath: it would fold ``..`` before links are followed.
    expanded = at_home(text)
    if _leads_straight(expanded):
        return _path(expanded)
    try:
        try:
            real = os.path.realpath(expanded, strict=True)
        except (FileNotFoundError, NotADirectoryError):
            real = os.path.realpath(expanded)
        # A path without links is its own real path and needs no check.
        if sys.platform != "win32" and real != expanded and _follow(expanded) != real:
            raise DatabasePathError("The path changed while it was resolved.", path=expanded)
    except OSError as error:
        raise translate_os(error, Path(expanded)) from error
    return _path(real)


# Cached: a host opens the same few files again and again, and a cached path has parsed its parts.
@functools.lru_cache(maxsize=256)
def _path(real: str) -> Path:
    path = Path(real)
    if not path.name:
        # The root has no name, so its sidecars would have no names either.
        raise DatabasePathError("The path names a folder or a device, not a file.", path=path)
    return path


def _leads_straight(path: str) -> bool:
    """Return whether a path is certainly its own real path; ``realpath`` takes twice as long."""
    if path[0] != "/" or path[1:2] == "/" or os.path.normpath(path) != path:
        return False
    at = path
    while at:
        try:
            if stat.S_ISLNK(os.lstat(at).st_mode):
                return False
        except (FileNotFoundError, NotADirectoryError):
            # A missing name is no link.
            pass
        except OSError:
            return False
        at = at[: at.rindex("/")]
    return True


def _follow(path: str) -> str:
    """Return the target of a path; refuse a link that another user has put there."""
    left = from_here(path).split(os.sep)[::-1]
    at = os.sep
    links = 0
    while left:
        part = left.pop()
        if part == os.pardir:
            at = os.path.dirname(at)
        elif part not in ("", os.curdir):
            here = os.path.join(at, part)
            try:
                found = os.lstat(here)
            except (FileNotFoundError, NotADirectoryError):
                found = None
            if found is None or not stat.S_ISLNK(found.st_mode):
                at = here
                continue
            links += 1
            if links > _MOST_LINKS:
                # After a missing folder ``realpath`` detects no loop.
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), here)
            _require_trusted(here, found, os.stat(at), is_last=not any(left))
            target = os.readlink(here)
            at = os.sep if os.path.isabs(target) else at
            left += target.split(os.sep)[::-1]
    return at


def _require_trusted(
    link: str, found: os.stat_result, folder: os.stat_result, *, is_last: bool
) -> None:
    """Refuse a link that another user may have put into a folder, to redirect this process.

    For a folder on the way the rule is the kernel's: it counts folders that all users may write. In
    the place of the file itself, folders that a group may write count too.
    """
    if sys.platform == "win32":
        return
    others = stat.S_IWOTH | (stat.S_IWGRP if is_last else 0)
    if folder.st_mode & others and found.st_uid not in (0, os.geteuid(), folder.st_uid):
        raise DatabasePathError(
            f"{link} is a link of another user, and such links are not followed.", path=link
        )


def refuse_planted(path: Path) -> None:
    """Refuse a database whose WAL, index or journal another user may have planted, or is no file.

    SQLite follows no link at these names, but would write into a private file that has one of them
    as a second name, and would read another user's WAL. Only users that may write the database make
    such files. SQLite would wait without end for the other end of a pipe.

    Raises:
        DatabasePathError: the name, and that it must be removed.
    """
    if sys.platform == "win32":
        return
    try:
        if os.stat(os.path.dirname(path)).st_mode & (stat.S_IWOTH | stat.S_IWGRP):
            _refuse_planted(path, os.stat(path))
        else:
            _refuse_no_files(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate_os(error, path) from error


def _refuse_planted(path: Path, database: os.stat_result) -> None:
    is_shared = database.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    for suffix in (WAL, SHM, JOURNAL):
        try:
            found = os.lstat(sidecar(path, suffix))
        except FileNotFoundError:
            continue
        is_trusted = is_shared or found.st_uid in (0, os.geteuid(), database.st_uid)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or not is_trusted:
            raise DatabasePathError(
                f"{path.name}{suffix} was put there by another user, or is a link: remove it.",
                path=path,
            )


def _refuse_no_files(path: Path) -> None:
    name = odd_sidecar(path, even_link=False)
    if name is not None:
        raise DatabasePathError(f"{name} is no file: remove it.", path=path)


def odd_sidecar(path: Path, *, even_link: bool) -> str | None:
    """Return the name of a WAL, index or journal that is no file; None if there is none.

    Args:
        path: the path of the database.
        even_link: whether a link counts, which SQLite itself refuses.
    """
    folder = os.path.dirname(path)
    for suffix in (WAL, SHM, JOURNAL):
        name = sidecar_name(path, suffix)
        try:
            mode = os.lstat(os.path.join(folder, name)).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode) and (even_link or not stat.S_ISLNK(mode)):
            return name
    return None


def unlinked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a database; refuse each spelling except its real path.

    Raises:
        DatabasePathError: a link is on the path; or ``real_path`` refuses the path.
    """
    given = Path(absolute_path(arguments.path("path", path)))
    refuse_link(given)
    real = real_path(given)
    if real != given:
        raise DatabasePathError("The path is not the real path of the file.", path=given)
    return real


def refuse_link(path: Path) -> None:
    """Raise DatabasePathError if a path, or a folder on its way, is a symbolic link."""
    for each in (*reversed(path.parents), path):
        try:
            is_link = stat.S_ISLNK(os.lstat(each).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise translate_os(error, path) from error
        if is_link:
            raise DatabasePathError(f"{each} is a link, and links are not followed.", path=path)


def absolute_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path that does not depend on the process's working directory.

    A path that cannot name a file is returned unchanged, and ``real_path`` refuses it.
    """
    text: object = os.fspath(path)
    if not isinstance(text, str) or not _may_name_a_file(text):
        return path
    return from_here(text)


def from_here(text: str) -> str:
    """Return a name that may begin with ``~`` or be relative as an absolute one."""
    expanded = at_home(text)
    if os.path.isabs(expanded):
        return expanded
    # Not abspath: it would fold ``..`` before links are followed. If the working directory is gone,
    # opening the file fails later.
    with contextlib.suppress(FileNotFoundError):
        return os.path.join(os.getcwd(), expanded)
    return expanded


def at_home(text: str) -> str:
    """Return a name with its ``~`` expanded.

    Raises:
        DatabasePathError: the home directory of this user is not known.
    """
    expanded = os.path.expanduser(text)
    if expanded == text and (text == "~" or text.startswith("~/")):
        raise DatabasePathError(
            "No home directory is known for this user: set HOME, or name a path without ~."
        )
    return expanded


def _may_name_a_file(text: str) -> bool:
    return bool(text) and text != ":memory:" and not text.startswith("file:")


def _is_utf8(text: str) -> bool:
    # Python supports names that are not UTF-8, SQLite does not.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def identify(path: Path | str) -> Identity | None:
    """Return the identity of the file at ``path``, or None if there is none.

    It never opens the file: closing it would drop every POSIX lock that this process holds on it,
    SQLite's too.

    Raises:
        DatabasePathError: the path names something else than a regular file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translate_os(error, Path(path)) from error
    if not stat.S_ISREG(found.st_mode):
        raise DatabasePathError("The path names a folder or a device, not a file.", path=path)
    return found.st_dev, found.st_ino


def descriptors_on(files: Collection[Identity]) -> list[int] | None:
    """Return the descriptors of this process that are open on one of ``files``.

    None if the system does not list a process's descriptors.
    """
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [each for each in map(int, os.listdir(folder)) if is_on(each, files)]
    return None


def is_on(descriptor: int, files: Collection[Identity]) -> bool:
    """Return whether a descriptor of this process is open on one of ``files``."""
    try:
        found = os.fstat(descriptor)
    except OSError as error:
        pass_on_timeout(error)
        # Closed since it was listed, as is always the descriptor that listed them.
        return False
    return (found.st_dev, found.st_ino) in files


def leads_elsewhere(path: Path, identity: Identity) -> bool:
    """Return whether a path names another file than this, or none.

    If the system cannot examine the path, as on a failing disk, the answer is no: the WAL of a file
    that counts as gone is set aside, and a living file would lose its commits.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        pass_on_timeout(error)
        return error.errno in _GONE
    return (found.st_dev, found.st_ino) != identity


_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


ASIDE: Final = ".of-moved-file-"
"""A part of the name under which a WAL is set aside; an id follows."""


def aside_of(wal: Path) -> Path:
    """Return a name for a WAL that belongs to no database of its name."""
    return sidecar(wal, f"{ASIDE}{new_id()}")


def set_aside(wal: Path, aside: Path) -> bool:
    """Rename a WAL that belongs to no database of its name any more; remove an empty one.

    Returns:
        Whether it is kept. It may be gone, because a process that had the moved file open may have
        moved it too.
    """
    with contextlib.suppress(FileNotFoundError):
        if wal.lstat().st_size:
            wal.rename(aside)
            return True
        wal.unlink()
    return False


def log_set_aside(path: Path, aside: Path) -> None:
    """Log that the WAL of a database was kept under another name."""
    get_logger(__name__).error("database_log_set_aside", path=str(path), log=str(aside))


def may_write(path: Path) -> bool:
    """Return whether this process may write a file, by its effective user, as opening checks it."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
