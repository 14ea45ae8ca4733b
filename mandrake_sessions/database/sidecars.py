"""What the files beside a database are called, also where its own name leaves them no room."""

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
"""What SQLite puts behind a database's name: its log, the log's index, the rollback journal."""

_DIGEST_BYTES: Final = 8
_SHORTENED: Final = 2 * _DIGEST_BYTES + 1

# SQLite opens paths of 512 bytes, and wants 8 of them for -journal; the longest one that is made
# beside a database and opened is that of an unfinished copy from before a migration.
_MOST_BYTES: Final = 512 - 8 - 48
_LOG_BYTES: Final = len(WAL)


def wal_of(path: Path) -> Path:
    """Return the name of a database's log."""
    return path.with_name(f"{path.name}{WAL}")


def shm_of(path: Path) -> Path:
    """Return the name of the index of a database's log."""
    return path.with_name(f"{path.name}{SHM}")


def journal_of(path: Path) -> Path:
    """Return the name of a database's rollback journal, for which its own may leave no room."""
    return beside(path, JOURNAL)


def beside(path: Path, suffix: str, further: int = 0) -> Path:
    """Return the path of a file beside a database; as for ``name_beside``."""
    return path.with_name(name_beside(path, suffix, further))


def name_beside(path: Path, suffix: str, further: int = 0) -> str:
    """Return what a file beside a database is called.

    It is called as the database is, with a suffix. Where that is too long, the name is cut, and
    goes on with a digest of the whole.

    Args:
        path: of the database.
        suffix: what follows its name.
        further: how many bytes must find room behind the suffix.
    """
    text = path.name
    # Nearly all names are short, however many bytes their characters have.
    if _MOST_IN_CHARACTER * len(text) + len(suffix) + further <= _LEAST:
        return f"{text}{suffix}"
    name = os.fsencode(text)
    wanted = len(name) + len(suffix) + further
    if wanted <= _LEAST or wanted <= (most := _longest_name(path.parent)):
        return f"{text}{suffix}"
    # Late: few names are so long.
    import hashlib

    digest = hashlib.blake2b(name, digest_size=_DIGEST_BYTES).hexdigest()
    cut = name[: max(0, most - len(suffix) - further - _SHORTENED)]
    # Whole characters only.
    return f"{cut.decode(errors='ignore')}~{digest}{suffix}"


def require_room(path: Path) -> None:
    """Make sure that what SQLite makes beside a database can be called as it calls it.

    Raises:
        DatabasePathError: the name or the path is too long.
    """
    text = str(path)
    if _MOST_IN_CHARACTER * len(text) <= _MOST_BYTES and (
        _MOST_IN_CHARACTER * len(path.name) + _LOG_BYTES <= _LEAST
    ):
        return
    length = len(os.fsencode(text))
    if length > _MOST_BYTES:
        raise DatabasePathError(
            f"The path is too long: {length} bytes, of which {_MOST_BYTES} are possible.",
            path=path,
            operation="open",
        )
    length = len(os.fsencode(path.name)) + _LOG_BYTES
    if length > _LEAST and length > (most := _longest_name(path.parent)):
        raise DatabasePathError(
            f"The name is too long: {length - _LOG_BYTES} bytes, of which {most - _LOG_BYTES} are "
            "possible, since its log's name is longer.",
            path=path,
            operation="open",
        )


def _longest_name(folder: Path) -> int:
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return os.pathconf(folder, "PC_NAME_MAX")
    return _USUAL
