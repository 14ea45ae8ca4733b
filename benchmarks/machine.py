"""The machine and the versions of a run; the figures mean nothing without them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir

import apsw

_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_MEASURED = (
    "agno",
    "aiosqlite",
    "apsw",
    "google-adk",
    "langgraph-checkpoint-sqlite",
    "openai-agents",
    "sqlalchemy",
)


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
        "processor": _processor(),
        "mandrake_sessions": _version("mandrake-sessions") or "the checkout",
        "databases": f"on {file_system(folder) or 'an unknown file system'}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def versions() -> dict[str, str]:
    """Return the versions of the measured stores, and of the two SQLite libraries."""
    found = {name: _version(name) or "not installed" for name in _MEASURED}
    # From another process: a second SQLite library must not be in the one that measures this one.
    program = "import sqlite3; print(sqlite3.sqlite_version, end='')"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return found | {
        "SQLite of APSW": apsw.sqlite_lib_version(),
        "SQLite of Python": answer.stdout.decode(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def file_system(folder: Path) -> str | None:
    """Return the type of the file system that holds ``folder``, None if it is unknown."""
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


def usual_folder(project: Path) -> Path:
    """Return the folder to measure in if none is named: on a disk."""
    # A temporary folder in memory would make `durable` free; then the checkout, on a disk, is used.
    places = [Path(gettempdir()).resolve(), project]
    return next((place for place in places if not is_in_memory(place)), places[0])


def is_in_memory(folder: Path) -> bool:
    """Return whether a file there never reaches a disk, so that an fsync costs nothing."""
    return file_system(folder) in _IN_MEMORY
