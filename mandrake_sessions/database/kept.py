"""The names under which restoring keeps a damaged file.

A file gets one while it has its own still, until the restored one takes that. A restore that is
killed meanwhile leaves one file with two names, of which this one is for nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.database.faults import pass_on_timeout
from mandrake_sessions.database.paths import Identity
from mandrake_sessions.database.raw import RawFile
from mandrake_sessions.database.sidecars import beside, name_beside
from mandrake_sessions.ids import new_id

LOGS: Final = ("-wal", "-journal")
"""What restoring keeps with the file: without it, that is an older one or half a transaction."""

_MARK: Final = ".damaged-"
_LONGEST_LOG: Final = len("-journal")
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID_BYTES: Final = 36


def prefix_of(path: Path) -> str:
    """Return what the names begin with under which restoring keeps what was at ``path``."""
    return name_beside(path, _MARK, _ID_BYTES + _LONGEST_LOG)


def is_kept(kept: Path, path: Path) -> bool:
    """Return whether a name is one of those under which restoring keeps what was at ``path``."""
    return kept.name.startswith(prefix_of(path))


def kept_files(path: Path) -> set[Path]:
    """Return the damaged files that restoring has kept beside ``path``, with their logs.

    What is there still under its own name is not kept yet.
    """
    names = [name for name in _names_beside(path) if name.startswith(prefix_of(path))]
    unfinished = tuple(each.name for each in _second_names(path, names))
    return {path.with_name(name) for name in names if not name.startswith(unfinished)}


def name_for(path: Path) -> Path:
    """Return the name under which a damaged file is to be kept; nobody else has it open.

    One that it has already, from a restore that was killed, if its logs find room there.
    """
    for kept in _second_names(path, _names_beside(path)):
        taken = (suffix for suffix in LOGS if os.path.lexists(f"{kept}{suffix}"))
        if not any(_has_content(beside(path, suffix)) for suffix in taken):
            return kept
    return beside(path, f"{_MARK}{new_id()}", _LONGEST_LOG)


def logs_kept(path: Path, others: Iterable[Path]) -> dict[Path, Path]:
    """Return the logs that a restore has renamed already, of a file that is there still.

    Args:
        path: of the file.
        others: its other names in its folder.

    Returns:
        What each is called now, and what it was called; none that has a successor.
    """
    return {
        Path(f"{kept}{suffix}"): beside(path, suffix)
        for kept in others
        if is_kept(kept, path)
        for suffix in LOGS
        if _has_content(Path(f"{kept}{suffix}")) and not _has_content(beside(path, suffix))
    }


def left_names(path: Path, names: Iterable[str] | None = None, *, remove: bool) -> list[Path]:
    """Return the second names of a file that killed restores have left.

    None of a restore that lives, nor where that cannot be known.

    Args:
        path: the real path of the file.
        names: those that are in its folder; None to look.
        remove: whether they are removed. The file keeps its own name, and so all that is in it.
    """
    found = _second_names(path, _names_beside(path) if names is None else names)
    if not found:
        return []
    try:
        # A restore has the file locked from before it gets its second name until it has lost its
        # own. So has whoever uses it: they are not in the way, for readers share their lock.
        with RawFile(path) as file:
            if not file.share():
                return []
            left = [
                kept
                for kept in _second_names(path, [each.name for each in found])
                # With a log it is what the file was.
                if not any(os.path.lexists(f"{kept}{suffix}") for suffix in LOGS)
            ]
            for kept in left if remove else ():
                os.unlink(kept)
            return left
    except OSError as error:
        # Another process has removed it, or this one may not.
        pass_on_timeout(error)
    except apsw.Error:
        # It cannot be read.
        pass
    return []


def _second_names(path: Path, names: Iterable[str]) -> list[Path]:
    """Return the names that are those of kept files, and of the file at ``path`` all the same."""
    prefix = prefix_of(path)
    ids = [name for name in names if _ID.fullmatch(name.removeprefix(prefix))]
    if not ids:
        return []
    own = _identify(path)
    kept = (path.with_name(name) for name in sorted(ids))
    return [each for each in kept if own is not None and _identify(each) == own]


def _identify(path: Path) -> Identity | None:
    """Return the identity of a file that has several names, None of any other and of a link."""
    try:
        found = os.lstat(path)
    except OSError as error:
        pass_on_timeout(error)
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink == 1:
        return None
    return found.st_dev, found.st_ino


def _has_content(log: Path) -> bool:
    try:
        return os.stat(log).st_size > 0
    except OSError as error:
        pass_on_timeout(error)
        return False


def _names_beside(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(path.parent)
    return []
