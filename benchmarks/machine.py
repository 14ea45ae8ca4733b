"""What the figures were measured on; they mean nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import apsw

_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def describe(folder: Path) -> dict[str, str]:
    """Return the machine, the versions and the file system of ``folder``."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 0
    return {
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {cpus} CPUs",
        "python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"switch interval {sys.getswitchinterval() * 1000:g} ms",
        "sqlite": f"{apsw.sqlite_lib_version()}, APSW {apsw.apsw_version()}",
        "mandrake_sessions": version("mandrake-sessions") if _is_installed() else "the checkout",
        "databases": f"{folder} on {file_system(folder) or 'an unknown file system'}",
    }


def _is_installed() -> bool:
    try:
        return bool(version("mandrake-sessions"))
    except ModuleNotFoundError:
        return False


def file_system(folder: Path) -> str | None:
    """Return the type of the file system that holds ``folder``, where the system tells."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    best, kind = "", None
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def is_in_memory(folder: Path) -> bool:
    """Return whether a file there never reaches a disk, so that an fsync costs nothing."""
    return file_system(folder) in _IN_MEMORY
