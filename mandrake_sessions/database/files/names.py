"""Refuses a file under a second name, because SQLite finds the WAL by the file's name.

Processes that use different names of a file write different WALs. None sees the commits of the
other, and each WAL is copied over pages that the other has brought into the file. So a database
belongs to one name, its home: its folder and its name there. The database stores its home, which is
checked if the file has more than one name. If it has one name, the first transaction after each
opening writes the home anew: the file may have been moved, or be a copy.
"""

from __future__ import annotations

import binascii
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import apsw

from mandrake_sessions.concurrency.blocks import closing
from mandrake_sessions.database.error_codes import translate_os
from mandrake_sessions.database.files.atomic import is_partial, tidy
from mandrake_sessions.database.files.kept import is_kept, renamed_sidecars
from mandrake_sessions.database.files.mounts import naming_of
from mandrake_sessions.database.retry import FileBudget, pace, pause
from mandrake_sessions.errors import DatabaseNamesError
from mandrake_sessions.options import DatabaseOptions

HOME: Final = "home"
"""The key under which ``meta`` has the home."""

_READINGS: Final = 3
_PAUSE: Final = 0.002
_READ: Final = f"SELECT value FROM meta WHERE key = '{HOME}'"
_WRITE: Final = (
    f"INSERT INTO meta (key, value) VALUES ('{HOME}', ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_PLACING: Final = 1.0
"""Seconds to wait for a process that gives the file its name, by a link that it then removes."""

_OVERRIDE: Final = "DatabaseOptions(allow_other_names=True) opens it nevertheless"


def require_home(path: Path, options: DatabaseOptions, *, tidying: bool = True) -> None:
    """Check, before SQLite opens a file, that its WAL belongs to this name.

    Args:
        path: the real path of the file, which exists.
        options: the options of the opening.
        tidying: whether names that killed processes have left are removed.

    Raises:
        DatabaseNamesError: the WAL belongs to another name, or that cannot be known.
    """
    if options.allow_other_names:
        return
    try:
        naming = naming_of(path)
    except OSError as error:
        raise translate_os(error, path) from error
    if naming.is_mount_point:
        raise DatabaseNamesError(
            "The file is mounted by itself, without its folder: its WAL would stay on this side "
            f"of the mount. Mount the folder instead. {_OVERRIDE}.",
            kind="mounted file",
            path=path,
            operation="open",
        )
    if naming.links == 1:
        return
    has_one_name = _has_one_name(path, tidying=tidying)
    renamed = renamed_sidecars(path, _other_names(path))
    if renamed:
        moves = " && ".join(f"mv {now.name} {was.name}" for now, was in renamed.items())
        raise DatabaseNamesError(
            f"A restore was interrupted after it had renamed the WAL to {min(renamed).name}. "
            f"Restore again; or, to keep the earlier content, {moves}.",
            kind="interrupted restore",
            others=tuple(each for each in _other_names(path) if is_kept(each, path)),
            path=path,
            operation="open",
        )
    if not has_one_name and _read_home(path, options) != home_of(path):
        raise DatabaseNamesError(
            f"The file has {naming.links} names (hard links), and this is not known "
            "to be the one that its WAL belongs to. Open it by that one, or open a copy that "
            "`cp FILE COPY` makes; `cp -l`, `rsync --link-dest` and deduplicating tools make "
            f"links. {_OVERRIDE}.",
            kind="hard link",
            others=_other_names(path),
            path=path,
            operation="open",
        )


def renew_home(path: Path, execute: Callable[..., Any]) -> None:
    """Store the home of a file that has one name, in the open transaction.

    It takes effect when a WAL checkpoint has brought it into the file, at the latest at closing.

    Args:
        path: the real path of the file.
        execute: of the connection that has the transaction.

    Raises:
        apsw.Error: the home cannot be read or written, or there is no ``meta``.
    """
    try:
        naming, home = naming_of(path), home_of(path)
    except OSError:
        return
    is_only = naming.links == 1 and not naming.is_mount_point
    if is_only and execute(_READ).fetchall() != [(home,)]:
        execute(_WRITE, (home,))


def home_of(path: Path) -> str:
    """Return the home of a database with this name; its length is always the same.

    It has the inode of the folder, because the folder with all its files may be moved, and be
    mounted elsewhere.
    """
    return f"{os.stat(path.parent).st_ino:020}-{binascii.crc32(os.fsencode(path.name)):08x}"


def _read_home(path: Path, options: DatabaseOptions) -> str | None:
    """Return the home that a file stores, without making or changing a sidecar."""
    for reading in range(_READINGS):
        if reading:
            # A WAL checkpoint of another process may have been under way.
            pause(float("inf"), _PAUSE)
        with contextlib.suppress(apsw.Error):
            raw = apsw.Connection(
                f"{path.as_uri()}?immutable=1",
                flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
                vfs=options.vfs,
            )
            with closing(raw):
                rows = raw.execute(_READ).fetchall()
                if rows:
                    return str(rows[0][0])
    return None


def _has_one_name(path: Path, *, tidying: bool) -> bool:
    """Return whether all other names of a file are temporary ones of this library.

    The thread waits for a process that gives the file its name, and removes the leftovers of a
    process that was killed meanwhile. A file that is being replaced has a second name, under which
    it is kept.
    """
    budget = FileBudget(_PLACING)
    while True:
        if tidying:
            tidy(path)
        others = _other_names(path)
        is_placed = tidying and any(is_partial(each, path) for each in others)
        if not (is_placed or renamed_sidecars(path, others)):
            break
        if not pause(budget.deadline, pace(budget.started)):
            break
    temporary = (is_kept,) if tidying else (is_kept, is_partial)
    known = sum(any(each(other, path) for each in temporary) for other in _other_names(path))
    return os.stat(path).st_nlink - known == 1


def _other_names(path: Path) -> tuple[Path, ...]:
    """Return the other names that a file has in its folder."""
    number = os.stat(path).st_ino
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        return tuple(
            Path(entry.path)
            for entry in entries
            if entry.name != path.name and entry.inode() == number
        )
    return ()
