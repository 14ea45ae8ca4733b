"""Gives a forked child files of its own behind what it has from its parent.

A lock that a thread of the parent waits for (``lock_wait``) belongs to the open file, and an open
file that a child has inherited lives as long as the child does, through its mappings, too. Where
the parent is killed, or closes the file before the thread has the lock, it would last as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import Final

_FIXED: Final = 0x10
_WRITES: Final = "rw-s"


def part_from_parent(descriptors: Iterable[int]) -> None:
    """Open files anew behind their descriptors and mappings, in a child that was just forked.

    It has none of SQLite's locks yet that closing a file could drop. What fails stays shared.

    Args:
        descriptors: of files that are open for reading and writing.
    """
    files = {os.fstat(each).st_ino: each for each in descriptors}
    with contextlib.suppress(OSError):
        for each in files.values():
            name = f"/proc/self/fd/{each}"
            opened = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.dup2(opened, each, inheritable=False)
            finally:
                os.close(opened)
        if files:
            _map_anew(files)


def _map_anew(files: dict[int, int]) -> None:
    """Put equal mappings of descriptors in the place of those of the parent's open files."""
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    kinds = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    library.mmap.argtypes = (*kinds, ctypes.c_long)
    with open("/proc/self/maps", "rb") as lines:
        mapped = [line.decode(errors="surrogateescape").split(maxsplit=5) for line in lines]
    for fields in mapped:
        descriptor = files.get(int(fields[4]))
        if descriptor is None or fields[1] != _WRITES:
            continue
        # The same inode on another device has another name.
        if fields[5].strip() != os.readlink(f"/proc/self/fd/{descriptor}"):
            continue
        begin, end = (int(each, 16) for each in fields[0].split("-"))
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED
        offset = int(fields[2], 16)
        library.mmap(begin, end - begin, protection, flags, descriptor, offset)
