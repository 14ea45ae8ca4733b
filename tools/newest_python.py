"""Prints the path of the newest Python of this machine, or nothing.

``python -m tools.newest_python 3.12`` looks for 3.12 and what came after it, on ``PATH`` and among
the versions of pyenv, without a network. Pre-releases and free-threaded builds are passed over.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ASK = (
    "import ensurepip, sys, venv; "
    "assert sys.version_info.releaselevel == 'final' and 't' not in sys.abiflags; "
    "print(*sys.version_info[:3])"
)


def newest(least: tuple[int, ...]) -> str | None:
    """Return the path of the newest Python that is at least this one; None if there is none."""
    found = [(version, path) for path in _candidates() if (version := _version_of(path)) >= least]
    return max(found)[1] if found else None


def _candidates() -> Iterator[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, pyenv.glob("versions/*/bin/python"))
    for folder in filter(None, os.environ.get("PATH", "").split(os.pathsep)):
        yield from map(str, Path(folder).glob("python3.[0-9][0-9]"))


def _version_of(path: str) -> tuple[int, ...]:
    """Return the version of an interpreter; an empty one if it does not run or is not wanted."""
    try:
        # Without the caller's site-packages; a shim of pyenv may name a version that is not there.
        asked = subprocess.run(
            [path, "-I", "-c", _ASK], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(map(int, asked.stdout.split()))


if __name__ == "__main__":
    print(newest(tuple(map(int, sys.argv[1].split(".")))) or "", end="")
