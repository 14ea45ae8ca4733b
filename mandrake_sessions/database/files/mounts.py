"""Finds the mount of a path on Linux; other systems give no answer."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

_MOUNTS: Final = "/proc/self/mountinfo"
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
# struct statx: attributes, links, and which of the attributes the file system knows.
_STATX: Final = struct.Struct("8xQI36xQ192x")
# Made once: making the type takes as long as the call.
_Answer: Final = ctypes.c_char * _STATX.size
_STATX_NLINK: Final = 0x4
_STATX_MOUNT_ROOT: Final = 0x2000
_AT_FDCWD: Final = -100

# File systems on which a process does not see the memory maps and locks of a process that reaches
# the same file from elsewhere: from another machine, the host of a virtual machine, the folder
# behind a mount. Those of the kind ``fuse.…`` belong to them too.
_UNSHARED: Final = {
    *("9p", "afs", "ceph", "cifs", "drvfs", "fuse", "lustre", "ncpfs", "nfs", "nfs4"),
    *("prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs"),
}


class Mount(msgspec.Struct, frozen=True):
    """One mount of this process's namespace.

    Attributes:
        point: where it is mounted.
        kind: of file system, such as ``ext4``, ``nfs4`` or ``fuse.sshfs``.
    """

    point: str
    kind: str

    @property
    def is_unshared(self) -> bool:
        """Whether other ways to its files are known not to share its memory maps or locks."""
        return self.kind in _UNSHARED or self.kind.startswith("fuse.")


def mount_of(path: Path) -> Mount | None:
    """Return the mount of a real path, or None where the system does not show mounts."""
    return nearest(path, _mounts())


def nearest(path: Path, lines: Iterable[str]) -> Mount | None:
    """Return the mount of a real path.

    Args:
        path: the real path.
        lines: as ``/proc/self/mountinfo`` has them.
    """
    found: Mount | None = None
    for line in lines:
        # 36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw; optional fields vary.
        head, dash, tail = line.partition(" - ")
        fields = head.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[4])
        # A later mount covers an earlier one of the same point.
        is_above = point == "/" or str(path) == point or str(path).startswith(f"{point}/")
        if is_above and (found is None or len(point) >= len(found.point)):
            found = Mount(point, tail.split(" ")[0])
    return found


class Naming(msgspec.Struct, frozen=True):
    """The ways to a file.

    Attributes:
        links: how many names it has in its file system.
        is_mount_point: whether it is itself a mount point, so that its real folder is another one.
    """

    links: int
    is_mount_point: bool


def naming_of(path: Path) -> Naming:
    """Return the ways to the file at a real path.

    Raises:
        OSError: there is none, or the system refuses access.
    """
    statx = _statx()
    if statx is not None:
        answer = _Answer()
        if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_NLINK, answer) == 0:
            attributes, links, known = _STATX.unpack(answer)
            if known & _STATX_MOUNT_ROOT:
                return Naming(links, bool(attributes & _STATX_MOUNT_ROOT))
    found = mount_of(path)
    return Naming(os.stat(path).st_nlink, found is not None and found.point == str(path))


def _mounts() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as table:
            return table.read().splitlines()
    except OSError:
        return []


@functools.cache
def _statx() -> Callable[..., Any] | None:
    """Return the system's function; it takes a tenth of the time of reading the mount table."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[..., Any] = ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return None
    return found
