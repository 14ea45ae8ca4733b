"""Makes a file beside its target, and gives it the target's name when it is whole.

Whoever makes one claims it as a process claims a database, so that what a killed process left
behind is told from what is being made.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from mandrake_sessions.database import kept, owner
from mandrake_sessions.database.blocks import block
from mandrake_sessions.database.creation import sync_folder
from mandrake_sessions.database.sidecars import beside, name_beside

_MARK: Final = ".partial-"
_DIGITS: Final = 16
_OWNER_BYTES: Final = len("-owner-") + 36

BEFORE: Final = ".before-"
"""Stands in the name of a copy from before a migration."""

BEFORE_BYTES: Final = 16 + len(_MARK) + _DIGITS + _OWNER_BYTES
"""What follows that at most, while it is made."""

_PARTIAL: Final = re.compile(
    r"(.+\.partial-[0-9a-f]{16})(?:-wal|-shm|-journal|-owner-([0-9a-f-]{36}))?"
)
_BESIDE: Final = ("", "-wal", "-shm", "-journal")


@block
def making(path: Path) -> Iterator[Path]:
    """Lend an empty file beside ``path``, readable by its owner only, which goes with the block.

    Leftovers of killed processes are removed first.

    Args:
        path: the name it may get by ``put_in_place``.

    Returns:
        The path of the file to fill.

    Raises:
        DatabaseError: it cannot be claimed; each reason has its own subclass.
        OSError: it cannot be made.
    """
    tidy(path)
    partial = unfinished_name(path)
    # First, so that nobody finds the file without its maker.
    claim = owner.claim(partial)
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        yield partial
    finally:
        try:
            _let_go(partial, claim)
        finally:
            # A signal in the midst of it: as long as it is claimed nobody removes it.
            _let_go(partial, claim)


def _let_go(partial: Path, claim: owner.Owner) -> None:
    _remove(partial)
    if claim.uses > 0:
        claim.release()
    else:
        claim.end()


class Leftover(NamedTuple):
    """An unfinished file whose maker is gone.

    Attributes:
        path: its name.
        owners: the ids of its makers whose files are there.
    """

    path: Path
    owners: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes on the disk, with the files that SQLite has made for it."""
        total = 0
        for suffix in _BESIDE:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{self.path}{suffix}").st_size
        return total

    def remove(self) -> None:
        """Remove it, and then the files of its makers."""
        _remove(self.path)
        for id in self.owners:
            owner.forget(self.path, id)


def unfinished_name(path: Path) -> Path:
    """Return a new name beside a database; what a killed process leaves under it is removed."""
    return beside(path, f"{_MARK}{os.urandom(8).hex()}", _OWNER_BYTES)


def is_partial(partial: Path, path: Path) -> bool:
    """Return whether a name is one of those that a file gets before it is given ``path``."""
    return partial.name.startswith(_prefix_of(path))


def _prefix_of(path: Path) -> str:
    return name_beside(path, _MARK, _DIGITS + _OWNER_BYTES)


def leftovers(path: Path) -> list[Leftover]:
    """Return the unfinished files in the folder of ``path`` that no process makes any more."""
    return _look(path, _names_beside(path))


def tidy(path: Path) -> None:
    """Remove the leftovers of killed processes in the folder of a database.

    These are unfinished files, of any database in the folder, and of this one owners' files and
    second names.

    Args:
        path: the real path of the database.
    """
    names = _names_beside(path)
    if not names:
        return
    for left in _look(path, names):
        left.remove()
    for id in owner.ids_among(names, path):
        owner.forget(path, id)
    kept.left_names(path, names, remove=True)


def _names_beside(path: Path) -> list[str]:
    """Return the names in the folder that may be unfinished files, owners' or kept ones."""
    others = (owner.prefix_of(path), kept.prefix_of(path))
    with contextlib.suppress(OSError):
        # In one expression: a folder may hold ten thousand names.
        return [
            name
            for name in os.listdir(os.path.dirname(path))
            if _MARK in name or name.startswith(others)
        ]
    return []


def _look(path: Path, names: Iterable[str]) -> list[Leftover]:
    owners: dict[str, list[str]] = {}
    for name in names:
        matched = _PARTIAL.fullmatch(name)
        if matched is not None:
            found = owners.setdefault(matched[1], [])
            if matched[2] is not None:
                found.append(matched[2])
    # Of another name than the database's a file is ours only if it was claimed.
    ours = (_prefix_of(path), name_beside(path, BEFORE, BEFORE_BYTES))
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


def put_in_place(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Give a whole file its name, for good.

    Args:
        partial: the file; its content is on the disk.
        path: the name it gets.
        overwrite: whether a file of that name is replaced; one that comes there this moment too.

    Raises:
        FileExistsError: there is one, and it stays.
        OSError: the file system refuses.
    """
    if overwrite:
        os.replace(partial, path)
    else:
        try:
            # Unlike a rename, a link fails where there is something.
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError as error:
            # A file system without links, where the look must do.
            if os.path.lexists(path):
                raise FileExistsError(*error.args) from error
            os.rename(partial, path)
    sync_folder(path.parent)


def merge_log(raw: apsw.Connection) -> None:
    """Copy the log of a file into it before its connection is closed: only the file is renamed.

    Closing does so too, but keeps silent where the disk is full.

    Raises:
        apsw.Error: not all of it could be copied.
    """
    raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)


def sync_file(path: Path) -> None:
    """Bring a file that no connection has open to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
