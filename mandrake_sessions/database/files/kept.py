"""The names under which a restore keeps a damaged file.

A file gets one while it still has its own name, which the restored file then takes. A restore that
is killed meanwhile leaves one file with two names; this one has no further use.
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

from mandrake_sessions.database.error_codes import pass_on_timeout
from mandrake_sessions.database.files.paths import Identity
from mandrake_sessions.database.files.raw import RawFile
from mandrake_sessions.database.sidecars import JOURNAL, WAL, sidecar, sidecar_name
from mandrake_sessions.ids import new_id

KEPT_SUFFIXES: Final = (WAL, JOURNAL)
"""A restore keeps these with the file: without them, that is older, or has half a transaction."""

_MARK: Final = ".damaged-"
_LONGEST_SUFFIX: Final = len(JOURNAL)
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID_BYTES: Final = 36


def prefix_of(path: Path) -> str:
    """Return how the names begin under which a restore keeps the earlier file of ``path``."""
    return sidecar_name(path, _MARK, _ID_BYTES + _LONGEST_SUFFIX)


def is_kept(kept: Path, path: Path) -> bool:
    """Return whether a restore keeps the earlier file of ``path`` under a name."""
    return kept.name.startswith(prefix_of(path))


def kept_files(path: Path) -> set[Path]:
    """Return the damaged files of ``path`` that restores have kept, with their WALs and journals.

    A file that still has its own name is not kept yet.
    """
    names = [name for name in _names_in_folder(path) if name.startswith(prefix_of(path))]
    unfinished = tuple(each.name for each in _second_names(path, names))
    return {path.with_name(name) for name in names if not name.startswith(unfinished)}


def name_for(path: Path) -> Path:
    """Return the name under which a restore keeps a damaged file, which no other process has open.

    It is the one that the file has from a restore that was killed, if its WAL and its journal find
    room there.
    """
    for kept in _second_names(path, _names_in_folder(path)):
        taken = (suffix for suffix in KEPT_SUFFIXES if os.path.lexists(f"{kept}{suffix}"))
        if not any(_has_content(sidecar(path, suffix)) for suffix in taken):
            return kept
    return sidecar(path, f"{_MARK}{new_id()}", _LONGEST_SUFFIX)


def renamed_sidecars(path: Path, others: Iterable[Path]) -> dict[Path, Path]:
    """Return the WAL and the journal that a restore has renamed already, of a file still in place.

    Args:
        path: the path of the file.
        others: its other names in its folder.

    Returns:
        The path of each now, and its path before; none that has a successor.
    """
    return {
        Path(f"{kept}{suffix}"): sidecar(path, suffix)
        for kept in others
        if is_kept(kept, path)
        for suffix in KEPT_SUFFIXES
        if _has_content(Path(f"{kept}{suffix}")) and not _has_content(sidecar(path, suffix))
    }


def left_names(path: Path, names: Iterable[str] | None = None, *, remove: bool) -> list[Path]:
    """Return the second names of a file that killed restores have left.

    The name that a running restore has given is not among them. If the lock cannot be read, none is
    returned.

    Args:
        path: the real path of the file.
        names: those in its folder; None to list them.
        remove: whether they are removed. The file keeps its own name, and so its content.
    """
    found = _second_names(path, _names_in_folder(path) if names is None else names)
    if not found:
        return []
    try:
        # A restore has the exclusive lock from before it gives the second name until the file has
        # lost its own. Processes that use the file have a shared lock, as this one takes.
        with RawFile(path) as file:
            if not file.share():
                return []
            left = [
                kept
                for kept in _second_names(path, [each.name for each in found])
                # With a WAL or a journal it is the earlier state of the file.
                if not any(os.path.lexists(f"{kept}{suffix}") for suffix in KEPT_SUFFIXES)
            ]
            for kept in left if remove else ():
                os.unlink(kept)
            return left
    except OSError as error:
        # Another process has removed it, or the system does not let this one remove it.
        pass_on_timeout(error)
    except apsw.Error:
        # It cannot be read.
        pass
    return []


def _second_names(path: Path, names: Iterable[str]) -> list[Path]:
    """Return the names of kept files that are second names of the file at ``path``."""
    prefix = prefix_of(path)
    ids = [name for name in names if _ID.fullmatch(name.removeprefix(prefix))]
    if not ids:
        return []
    own = _identify(path)
    kept = (path.with_name(name) for name in sorted(ids))
    return [each for each in kept if own is not None and _identify(each) == own]


def _identify(path: Path) -> Identity | None:
    """Return the identity of a file that has several names; None for any other and for a link."""
    try:
        found = os.lstat(path)
    except OSError as error:
        pass_on_timeout(error)
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink == 1:
        return None
    return found.st_dev, found.st_ino


def _has_content(file: Path) -> bool:
    try:
        return os.stat(file).st_size > 0
    except OSError as error:
        pass_on_timeout(error)
        return False


def _names_in_folder(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(path.parent)
    return []
