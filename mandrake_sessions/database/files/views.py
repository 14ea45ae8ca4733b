"""Refuses a database that a process has open through a mount that shares no memory with this one.

A folder behind FUSE is reached by two ways, each with its own WAL index and locks. The second user
finds an index that no lock of its own way explains: it is left by a killed process, or a process
uses the other way. Only then the second user searches for processes that use an index of that name.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.files.atomic import unfinished_name
from mandrake_sessions.database.files.creation import folder_lock
from mandrake_sessions.database.files.own_wal import has_index
from mandrake_sessions.database.files.raw import RawFile
from mandrake_sessions.database.sidecars import shm_of
from mandrake_sessions.errors import DatabaseNamesError

_INDEX_LOCKS: Final = frozenset(str(each).encode() for each in range(120, 129))
"""The bytes of a WAL index that SQLite locks; it locks the last one as long as the file is open."""

_FIELDS: Final = 8

_READINGS: Final = 4
"""How often the table of locks is read: a lock that stays may be missing in a reading."""


def require_one_view(path: Path) -> None:
    """Check, before SQLite opens a file, that no process has it open by another mount.

    Only Linux shows that, and only for processes in this pid namespace and of the same user, or to
    root.

    Args:
        path: the real path of the file.

    Raises:
        DatabaseNamesError: a process has it open by another mount. Nothing was changed.
    """
    if not has_index(path) or not sys.platform.startswith("linux") or _is_in_use_here(path):
        return
    others = list(_users_elsewhere(shm_of(path)))
    if not others:
        return
    # If no file can be made there, the answer is not known, and the file is not refused.
    with contextlib.suppress(OSError), _probe(path) as probe:
        for pid, index in others:
            if os.path.lexists(f"/proc/{pid}/root{index.with_name(probe.name)}"):
                raise _refusal(path, pid, index.with_name(path.name))


def _refusal(path: Path, pid: int, other: Path) -> DatabaseNamesError:
    return DatabaseNamesError(
        f"Process {pid} has the file open as {other}, by a mount that shares neither memory nor "
        "locks with this one. Use one of them in all processes. "
        "DatabaseOptions(allow_other_names=True) opens it nevertheless.",
        kind="other mount",
        others=(other,),
        path=path,
        operation="open",
    )


def _is_in_use_here(path: Path) -> bool:
    """Return whether a connection that came this way, also one of this process, has it open."""
    # Each such connection holds a lock on the file. Without the folder lock, two processes that
    # check would find each other's.
    with folder_lock(path.parent):
        try:
            with RawFile(path, lockable=True) as file:
                return not file.is_free()
        except apsw.Error:
            # The file is not writable, so this process cannot write the index either.
            return True


def _users_elsewhere(index: Path) -> Iterator[tuple[int, Path]]:
    """Yield each process that has an index of this name open on another device, with its path."""
    try:
        device = os.stat(index).st_dev
    except OSError:
        # Its last user has closed it.
        return
    for pid in _holders():
        # The process ended, or belongs to another user.
        with contextlib.suppress(OSError):
            folder = f"/proc/{pid}/fd"
            for each in os.listdir(folder):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"{folder}/{each}")
                    # On the same device it would be the same file, which is not in use here.
                    if (
                        target.endswith(f"/{index.name}")
                        and os.stat(f"{folder}/{each}").st_dev != device
                    ):
                        yield pid, Path(target)


def _holders() -> set[int]:
    """Return the processes that hold a lock on any WAL index."""
    found = set()
    for _ in range(_READINGS):
        with contextlib.suppress(OSError), open("/proc/locks", "rb") as table:
            # 12: POSIX  ADVISORY  READ 32355 fe:00:2147494 128 128
            for line in table:
                fields = line.split()
                if len(fields) == _FIELDS and fields[1] == b"POSIX" and fields[7] in _INDEX_LOCKS:
                    found.add(int(fields[4]))
    return found


@block
def _probe(path: Path) -> Iterator[Path]:
    """Lend a new file next to a database: a path that also shows it leads to the same folder.

    Raises:
        OSError: it cannot be made.
    """
    probe = unfinished_name(path)
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)
