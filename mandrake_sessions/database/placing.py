"""Makes a file beside its target, and gives it the target's name when it is whole.

Whoever makes one claims it as a process claims a database, so that what a killed process left
behind is told from what is being made.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.database import owner
from mandrake_sessions.database.creation import sync_folder

_MARK: Final = ".partial-"
_PARTIAL: Final = re.compile(r"(\.partial-[0-9a-f]{16})(-wal|-shm|-journal|-owner-[0-9a-f-]{36})?")
_BESIDE: Final = ("-wal", "-shm", "-journal")


@contextlib.contextmanager
def making(path: Path) -> Iterator[Path]:
    """Lend an empty file beside ``path``, readable by its owner only, which goes with the block.

    What killed processes have left of the same kind is removed first.

    Args:
        path: the name it may get by ``put_in_place``.

    Returns:
        The path of the file to fill.

    Raises:
        DatabaseError: it cannot be claimed; each reason has its own subclass.
        OSError: it cannot be made.
    """
    remove_leftovers(path)
    partial = path.with_name(f"{path.name}{_MARK}{os.urandom(8).hex()}")
    # First, so that nobody finds the file without its maker.
    claim = owner.claim(partial)
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        yield partial
    finally:
        _remove(partial)
        claim.release()


def leftovers(path: Path) -> list[Path]:
    """Return the unfinished files beside ``path`` that nobody makes any more."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f"{path.name}{_MARK}"):
                matched = _PARTIAL.fullmatch(entry.name.removeprefix(path.name))
                if matched is not None:
                    found.add(path.with_name(f"{path.name}{matched[1]}"))
    return sorted(partial for partial in found if not owner.is_claimed(partial))


def remove_leftovers(path: Path) -> None:
    """Remove the unfinished files beside ``path`` that nobody makes any more."""
    for left in leftovers(path):
        _remove(left)


def _remove(partial: Path) -> None:
    for each in (partial, *(Path(f"{partial}{suffix}") for suffix in _BESIDE)):
        with contextlib.suppress(OSError):
            each.unlink()
    owner.forget_dead(partial)


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
