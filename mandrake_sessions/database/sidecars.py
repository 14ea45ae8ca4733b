"""The names of a database's sidecars, also for a database with a very long name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from mandrake_sessions.errors import DatabasePathError

_USUAL: Final = 255
"""Bytes of a name on most file systems."""

_LEAST: Final = 143
"""Bytes that every file system in use allows (eCryptfs)."""

_MOST_IN_CHARACTER: Final = 4
"""Bytes of one character of a name."""

WAL: Final = "-wal"
SHM: Final = "-shm"
JOURNAL: Final = "-journal"
"""SQLite's suffixes of a database's name: the WAL, its index, the rollback journal."""

_DIGEST_BYTES: Final = 8
_SHORTENED: Final = 2 * _DIGEST_BYTES + 1

# SQLite opens paths of up to 512 bytes, and needs 8 of them for -journal. The longest name of a
# sidecar that SQLite opens is that of an unfinished copy from before a migration.
_MOST_BYTES: Final = 512 - 8 - 48
_WAL_BYTES: Final = len(WAL)


def wal_of(path: Path) -> Path:
    """Return the path of a database's WAL."""
    return path.with_name(f"{path.name}{WAL}")


def shm_of(path: Path) -> Path:
    """Return the path of a database's WAL index."""
    return path.with_name(f"{path.name}{SHM}")


def journal_of(path: Path) -> Path:
    """Return the path of a database's rollback journal; a long name is cut, as by ``sidecar``."""
    return sidecar(path, JOURNAL)


def sidecar(path: Path, suffix: str, further: int = 0) -> Path:
    """Return the path of a sidecar; the arguments are those of ``sidecar_name``."""
    return path.with_name(sidecar_name(path, suffix, further))


def sidecar_name(path: Path, suffix: str, further: int = 0) -> str:
    """Return the name of a sidecar: the database's name and a suffix.

    Where that is too long, the database's name is cut, and a digest of the whole name follows.

    Args:
        path: the path of the database.
        suffix: follows its name.
        further: how many bytes must be left after the suffix.
    """
    text = path.name
    # Nearly all names are short, even with four bytes for each character.
    if _MOST_IN_CHARACTER * len(text) + len(suffix) + further <= _LEAST:
        return f"{text}{suffix}"
    name = os.fsencode(text)
    wanted = len(name) + len(suffix) + further
    if wanted <= _LEAST or wanted <= (most := _longest_name(path.parent)):
        return f"{text}{suffix}"
    # Imported late: few names are so long.
    import hashlib

    digest = hashlib.blake2b(name, digest_size=_DIGEST_BYTES).hexdigest()
    cut = name[: max(0, most - len(suffix) - further - _SHORTENED)]
    # Whole characters only.
    return f"{cut.decode(errors='ignore')}~{digest}{suffix}"


def require_room(path: Path) -> None:
    """Check that the path leaves room for the sidecars that SQLite makes.

    Raises:
        DatabasePathError: the name or the path is too long.
    """
    text = str(path)
    if _MOST_IN_CHARACTER * len(text) <= _MOST_BYTES and (
        _MOST_IN_CHARACTER * len(path.name) + _WAL_BYTES <= _LEAST
    ):
        return
    length = len(os.fsencode(text))
    if length > _MOST_BYTES:
        raise DatabasePathError(
            f"The path is too long: {length} bytes; the limit is {_MOST_BYTES}.",
            path=path,
            operation="open",
        )
    length = len(os.fsencode(path.name)) + _WAL_BYTES
    if length > _LEAST and length > (most := _longest_name(path.parent)):
        raise DatabasePathError(
            f"The name is too long: {length - _WAL_BYTES} bytes; the limit is "
            f"{most - _WAL_BYTES}, since the name of its WAL is longer.",
            path=path,
            operation="open",
        )


def _longest_name(folder: Path) -> int:
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return os.pathconf(folder, "PC_NAME_MAX")
    return _USUAL
