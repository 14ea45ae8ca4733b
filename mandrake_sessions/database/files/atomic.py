"""Makes a file next to its target, and gives it the target's name when it is whole.

The maker claims the file as a process claims a database. So the leftovers of a killed process
differ from files that a living process is making.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.files import kept, owner
from mandrake_sessions.database.files.creation import sync_folder
from mandrake_sessions.database.sidecars import JOURNAL, SHM, WAL, sidecar, sidecar_name

_MARK: Final = ".partial-"
_DIGITS: Final = 16
_OWNER_BYTES: Final = len("-owner-") + 36

BEFORE: Final = ".before-"
"""A part of the name of a copy from before a migration."""

BEFORE_BYTES: Final = 16 + len(_MARK) + _DIGITS + _OWNER_BYTES
"""The most bytes that follow it, while the copy is made."""

_PARTIAL: Final = re.compile(
    r"(.+\.partial-[0-9a-f]{16})(?:-wal|-shm|-journal|-owner-([0-9a-f-]{36}))?"
)
_BESIDE: Final = ("", WAL, SHM, JOURNAL)


@block
def partial_file(path: Path) -> Iterator[Path]:
    """Lend an empty private file next to ``path``, which is removed after the block.

    Leftovers of killed processes are removed first.

    Args:
        path: the name that ``replace`` may give it.

    Returns:
        The path of the file to fill.

    Raises:
        DatabaseError: the file cannot be claimed; each reason has its own subclass.
        OSError: the file cannot be made.
    """
    tidy(path)
    partial = unfinished_name(path)
    # The claim comes first, so that no process finds the file without a living maker.
    claim = owner.claim(partial)
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        yield partial
    finally:
        try:
            _discard(partial, claim)
        finally:
            # signal-safe release: no process removes a file that is still claimed.
            _discard(partial, claim)


def _discard(partial: Path, claim: owner.Owner) -> None:
    _remove(partial)
    if claim.uses > 0:
        claim.release()
    else:
        claim.end()


class Leftover(NamedTuple):
    """An unfinished file whose maker is gone.

    Attributes:
        path: its name.
        owners: the ids of its makers that have left a claim.
    """

    path: Path
    owners: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes on the disk, with the sidecars that SQLite has made for it."""
        total = 0
        for suffix in _BESIDE:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{self.path}{suffix}").st_size
        return total

    def remove(self) -> None:
        """Remove the file, and then the claims of its makers."""
        _remove(self.path)
        for id in self.owners:
            owner.forget(self.path, id)


def unfinished_name(path: Path) -> Path:
    """Return a new name next to a database; a file that is left there by a kill is tidied up."""
    return sidecar(path, f"{_MARK}{os.urandom(8).hex()}", _OWNER_BYTES)


def is_partial(partial: Path, path: Path) -> bool:
    """Return whether a name is that of an unfinished file for ``path``."""
    return partial.name.startswith(_prefix_of(path))


def _prefix_of(path: Path) -> str:
    return sidecar_name(path, _MARK, _DIGITS + _OWNER_BYTES)


def leftovers(path: Path) -> list[Leftover]:
    """Return the unfinished files in the folder of ``path`` whose makers are gone."""
    return _leftovers_among(path, _candidate_names(path))


def tidy(path: Path) -> None:
    """Remove the leftovers of killed processes in the folder of a database.

    These are unfinished files of any database in the folder, and the claims and the second names
    of this database.

    Args:
        path: the real path of the database.
    """
    names = _candidate_names(path)
    if not names:
        return
    for left in _leftovers_among(path, names):
        left.remove()
    for id in owner.ids_among(names, path):
        owner.forget(path, id)
    kept.left_names(path, names, remove=True)


def _candidate_names(path: Path) -> list[str]:
    """Return the names in the folder that may be unfinished files, claims or kept files."""
    others = (owner.prefix_of(path), kept.prefix_of(path))
    with contextlib.suppress(OSError):
        # One expression is the fastest form: a folder may hold ten thousand names.
        return [
            name
            for name in os.listdir(os.path.dirname(path))
            if _MARK in name or name.startswith(others)
        ]
    return []


def _leftovers_among(path: Path, names: Iterable[str]) -> list[Leftover]:
    owners: dict[str, list[str]] = {}
    for name in names:
        matched = _PARTIAL.fullmatch(name)
        if matched is not None:
            found = owners.setdefault(matched[1], [])
            if matched[2] is not None:
                found.append(matched[2])
    # A file whose name does not begin as this database's is the library's only if it was claimed.
    ours = (_prefix_of(path), sidecar_name(path, BEFORE, BEFORE_BYTES))
    return [
        Leftover(partial, tuple(ids))
        for partial, ids in sorted((path.with_name(name), ids) for name, ids in owners.items())
        if (ids or partial.name.startswith(ours))
        and not any(owner.is_alive(partial, id) for id in ids)
    ]


def _remove(partial: Path) -> None:
    for suffix in _BESIDE:
        with contextlib.suppress(OSError):
            os.unlink(f"{partial}{suffix}")


def replace(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name, and bring the name to the disk.

    Args:
        partial: the file; its content is on the disk.
        path: the name it gets.
        overwrite: whether a file of that name is replaced, also one that comes there meanwhile.

    Raises:
        FileExistsError: a file has the name, and keeps it.
        OSError: the file system refuses.
    """
    if overwrite:
        os.replace(partial, path)
    else:
        try:
            # Unlike a rename, a link fails where the name exists.
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError as error:
            # On a file system without links a check before the rename has to do.
            if os.path.lexists(path):
                raise FileExistsError(*error.args) from error
            os.rename(partial, path)
    sync_folder(path.parent)


def merge_wal(raw: apsw.Connection) -> None:
    """Copy the WAL into its file before the connection is closed: only the file is renamed.

    Closing does so too, but reports no full disk.

    Raises:
        apsw.Error: the WAL could not be copied completely.
    """
    raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)


def sync_file(path: Path) -> None:
    """Sync a file that no connection has open."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
