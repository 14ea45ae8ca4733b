"""Refuses a file under a second name: SQLite finds a log by the file's name.

What is written under one name is in a log that nobody who uses the other name looks at, and each
log is one day copied over what the other has brought into the file. So a database belongs to one
name, its home: the folder that it lies in and its name there. It is written down in the database,
and looked at when there is more than one name. Where there is one, the first transaction after each
opening writes it anew: a file may have been moved, or be a copy.
"""

from __future__ import annotations

import binascii
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import apsw

from mandrake_sessions.database.blocks import closing
from mandrake_sessions.database.faults import translate_os
from mandrake_sessions.database.kept import is_kept, logs_kept
from mandrake_sessions.database.mounts import naming_of
from mandrake_sessions.database.placing import is_partial, tidy
from mandrake_sessions.database.waiting import Budget, pace, pause
from mandrake_sessions.errors import DatabaseNamesError
from mandrake_sessions.options import DatabaseOptions

HOME: Final = "home"
"""The key under which ``meta`` has the home."""

_LOOKS: Final = 3
_PAUSE: Final = 0.002
_READ: Final = f"SELECT value FROM meta WHERE key = '{HOME}'"
_WRITE: Final = (
    f"INSERT INTO meta (key, value) VALUES ('{HOME}', ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_PLACING: Final = 1.0
"""Seconds to wait for who gives the file its name, by a link that it removes at once."""

_OVERRIDE: Final = "DatabaseOptions(allow_other_names=True) opens it all the same"


def require_home(path: Path, options: DatabaseOptions, *, tidying: bool = True) -> None:
    """Make sure, before SQLite opens a file, that this is the name its log has.

    Args:
        path: the real path of the file, which is there.
        options: as it is to be opened.
        tidying: whether names that killed processes have left are removed.

    Raises:
        DatabaseNamesError: it is not, or that cannot be known.
    """
    if options.allow_other_names:
        return
    try:
        naming = naming_of(path)
    except OSError as error:
        raise translate_os(error, path) from error
    if naming.is_mounted_alone:
        raise DatabaseNamesError(
            "The file is mounted by itself, without its folder: its log would stay on this side "
            f"of the mount. Mount the folder instead. {_OVERRIDE}.",
            kind="mounted file",
            path=path,
            operation="open",
        )
    if naming.links == 1:
        return
    is_alone = _is_alone(path, tidying=tidying)
    renamed = logs_kept(path, _others_beside(path))
    if renamed:
        moves = " && ".join(f"mv {log.name} {was.name}" for log, was in renamed.items())
        raise DatabaseNamesError(
            f"Restoring was broken off when it had renamed the log to {min(renamed).name}. Restore "
            f"again; or, to have what was there, {moves}.",
            kind="interrupted restore",
            others=tuple(each for each in _others_beside(path) if is_kept(each, path)),
            path=path,
            operation="open",
        )
    if not is_alone and _read_home(path, options) != home_of(path):
        raise DatabaseNamesError(
            f"The file has {naming.links} names (hard links), and this is not known "
            "to be the one that its log belongs to. Open it by that one, or open a copy that "
            "`cp FILE COPY` makes; links come of `cp -l`, of `rsync --link-dest` and of tools "
            f"against duplicates. {_OVERRIDE}.",
            kind="hard link",
            others=_others_beside(path),
            path=path,
            operation="open",
        )


def renew_home(path: Path, execute: Callable[..., Any]) -> None:
    """Write the home of a file that has one name down, in the open transaction.

    It counts when a checkpoint has brought it into the file, at the latest when that is closed.

    Args:
        path: the real path of the file.
        execute: of the connection whose transaction it is.

    Raises:
        apsw.Error: it cannot be read or written, or there is no ``meta``.
    """
    try:
        naming, home = naming_of(path), home_of(path)
    except OSError:
        return
    is_only = naming.links == 1 and not naming.is_mounted_alone
    if is_only and execute(_READ).fetchall() != [(home,)]:
        execute(_WRITE, (home,))


def home_of(path: Path) -> str:
    """Return what stands in a database whose name this is, always of one length.

    Of its folder it is the number: that may be moved, and be mounted elsewhere, with all in it.
    """
    return f"{os.stat(path.parent).st_ino:020}-{binascii.crc32(os.fsencode(path.name)):08x}"


def _read_home(path: Path, options: DatabaseOptions) -> str | None:
    """Return the home that stands in a file, read so that nothing beside it is made or changed."""
    for look in range(_LOOKS):
        if look:
            # A checkpoint of another process may have been half way.
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


def _is_alone(path: Path, *, tidying: bool) -> bool:
    """Return whether all other names are those that this library gives a file for a while.

    One that is being given its own is waited for, and what a process that was killed in it has left
    is removed. One that is being replaced has a second name, under which it is kept.
    """
    budget = Budget(_PLACING)
    while True:
        if tidying:
            tidy(path)
        others = _others_beside(path)
        is_placed = tidying and any(is_partial(each, path) for each in others)
        if not (is_placed or logs_kept(path, others)):
            break
        if not pause(budget.deadline, pace(budget.started)):
            break
    ours = (is_kept,) if tidying else (is_kept, is_partial)
    known = sum(any(each(other, path) for each in ours) for other in _others_beside(path))
    return os.stat(path).st_nlink - known == 1


def _others_beside(path: Path) -> tuple[Path, ...]:
    """Return the other names that a file has in its folder."""
    number = os.stat(path).st_ino
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        return tuple(
            Path(entry.path)
            for entry in entries
            if entry.name != path.name and entry.inode() == number
        )
    return ()
