"""What a path names: one spelling for each database, and the identity of its file."""

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
from mandrake_sessions.database.sidecars import JOURNAL, SHM, WAL, beside
from mandrake_sessions.errors import DatabasePathError
from mandrake_sessions.ids import new_id
from mandrake_sessions.log import get_logger

_MOST_LINKS: Final = 40
"""On one path, as the Linux kernel has it."""

Identity = tuple[int, int]
"""Device and inode: what a file is, whatever it is called."""


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the one spelling of a database's path, following symbolic links.

    Not those that another user has put into a folder where others than its owner may.

    Raises:
        DatabasePathError: it cannot name a file: empty, in memory, a URI, a loop of links; or it is
            another user's link.
    """
    text: object = os.fspath(arguments.path("path", path))
    if not isinstance(text, str) or not text or "\0" in text or not _is_utf8(text):
        raise DatabasePathError(
            "The path of a database is a text of at least one character, and UTF-8."
        )
    if not _may_name_a_file(text):
        raise DatabasePathError(
            "A database lives in a file; for one that goes away use a temporary folder."
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
        # Without a link nothing is resolved, and nothing need be looked at.
        if sys.platform != "win32" and real != expanded and _follow(expanded) != real:
            raise DatabasePathError("The path changed while it was looked at.", path=expanded)
    except OSError as error:
        raise translate_os(error, Path(expanded)) from error
    return _path(real)


# A host opens the same few files again and again, and a path that is known has all its parts.
@functools.lru_cache(maxsize=256)
def _path(real: str) -> Path:
    path = Path(real)
    if not path.name:
        # The root: a file beside it could not be called after it, and a removal found none there.
        raise DatabasePathError("The path names a folder or a device, not a file.", path=path)
    return path


def _leads_straight(path: str) -> bool:
    """Return whether a path is its own real one, for certain: ``realpath`` takes twice as long."""
    if path[0] != "/" or path[1:2] == "/" or os.path.normpath(path) != path:
        return False
    at = path
    while at:
        try:
            if stat.S_ISLNK(os.lstat(at).st_mode):
                return False
        except (FileNotFoundError, NotADirectoryError):
            # What is not there is no link.
            pass
        except OSError:
            return False
        at = at[: at.rindex("/")]
    return True


def _follow(path: str) -> str:
    """Return where a path leads, if it goes through no link that another user has put there."""
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
                # Behind a folder that is not there, ``realpath`` looks for no loop.
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), here)
            _require_trusted(here, found, os.stat(at), is_last=not any(left))
            target = os.readlink(here)
            at = os.sep if os.path.isabs(target) else at
            left += target.split(os.sep)[::-1]
    return at


def _require_trusted(
    link: str, found: os.stat_result, folder: os.stat_result, *, is_last: bool
) -> None:
    """Refuse a link that another user may have put into a folder, to lead us elsewhere.

    On the way to the file as the Linux kernel does, in folders that everybody may write; in the
    place of the file itself also where only a group may.
    """
    if sys.platform == "win32":
        return
    others = stat.S_IWOTH | (stat.S_IWGRP if is_last else 0)
    if folder.st_mode & others and found.st_uid not in (0, os.geteuid(), folder.st_uid):
        raise DatabasePathError(
            f"{link} is a link that another user has put there; it is not followed.", path=link
        )


def refuse_planted(path: Path) -> None:
    """Refuse a database whose log, index or journal another user may have planted.

    SQLite follows no link there, but would write into a private file that has a second name there,
    and would read another user's log. Only the users that may write the database make these.

    Raises:
        DatabasePathError: the name of what was put there.
    """
    if sys.platform == "win32":
        return
    try:
        # Of nearly all folders nothing more is asked.
        if os.stat(os.path.dirname(path)).st_mode & (stat.S_IWOTH | stat.S_IWGRP):
            _refuse_planted(path, os.stat(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate_os(error, path) from error


def _refuse_planted(path: Path, database: os.stat_result) -> None:
    is_shared = database.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    for suffix in (WAL, SHM, JOURNAL):
        try:
            found = os.lstat(f"{path}{suffix}")
        except FileNotFoundError:
            continue
        is_trusted = is_shared or found.st_uid in (0, os.geteuid(), database.st_uid)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or not is_trusted:
            raise DatabasePathError(
                f"{path.name}{suffix} was put there by another user, or is a link: remove it.",
                path=path,
            )


def unlinked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a database that is called by its real path, and by nothing else.

    Raises:
        DatabasePathError: a link is in the way; or what ``real_path`` refuses.
    """
    given = Path(absolute_path(arguments.path("path", path)))
    refuse_link(given)
    real = real_path(given)
    if real != given:
        raise DatabasePathError("It has another name, which is its real one.", path=given)
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
            raise DatabasePathError(f"{each} is a link, which is not followed.", path=path)


def absolute_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path that names the same wherever the process changes its directory to.

    What cannot name a file stays as it is: ``real_path`` says what is wrong with it.
    """
    text: object = os.fspath(path)
    if not isinstance(text, str) or not _may_name_a_file(text):
        return path
    return from_here(text)


def from_here(text: str) -> str:
    """Return a name, with ``~`` or relative, as one that begins at the root."""
    expanded = at_home(text)
    if os.path.isabs(expanded):
        return expanded
    # Not abspath: it would fold ``..`` before links are followed. A directory that is gone is the
    # business of whoever opens something in it.
    with contextlib.suppress(FileNotFoundError):
        return os.path.join(os.getcwd(), expanded)
    return expanded


def at_home(text: str) -> str:
    """Return a name with what its ``~`` stands for.

    Raises:
        DatabasePathError: this user has no home that is known.
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
    # Python can name files that are not UTF-8, SQLite cannot.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def identify(path: Path | str) -> Identity | None:
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
        raise translate_os(error, Path(path)) from error
    if not stat.S_ISREG(found.st_mode):
        raise DatabasePathError("The path names a folder or a device, not a file.", path=path)
    return found.st_dev, found.st_ino


def descriptors_on(files: Collection[Identity]) -> list[int] | None:
    """Return the descriptors of this process that are open on any of some files.

    None where the system does not list a process's descriptors.
    """
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [each for each in map(int, os.listdir(folder)) if is_on(each, files)]
    return None


def is_on(descriptor: int, files: Collection[Identity]) -> bool:
    """Return whether a descriptor of this process is open on any of some files."""
    try:
        found = os.fstat(descriptor)
    except OSError as error:
        pass_on_timeout(error)
        # Closed meanwhile, as the one is that lists them.
        return False
    return (found.st_dev, found.st_ino) in files


def leads_elsewhere(path: Path, identity: Identity) -> bool:
    """Return whether a path names another file than this, or none.

    What the system cannot look at, as its disk fails, is not judged: the log of a file that was
    taken for one that is gone would be set aside, and the file lose what is in it.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        pass_on_timeout(error)
        return error.errno in _GONE
    return (found.st_dev, found.st_ino) != identity


_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


ASIDE: Final = ".of-moved-file-"
"""Stands in the name of a log that is kept so; its id follows."""


def aside_of(log: Path) -> Path:
    """Return the name under which a log is kept that belongs to no database of its name."""
    return beside(log, f"{ASIDE}{new_id()}")


def set_aside(log: Path, aside: Path) -> bool:
    """Rename a log that belongs to no database of its name any more; one without bytes goes.

    Returns:
        Whether it is kept. One that is gone is not: whoever had the moved file open may have
        brought it there meanwhile.
    """
    with contextlib.suppress(FileNotFoundError):
        if log.lstat().st_size:
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
