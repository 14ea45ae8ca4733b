"""The common wording of the checks of an open database and those of any file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mandrake_sessions.database.connection.bad_ids import orphan

LOW_DISK: Final = 64 * 1024 * 1024
"""Free bytes below which a check reports a full disk."""
ORPHANS: Final = "A program wrote with foreign keys off: delete the named rows"
"""The advice for rows that refer to missing rows."""
_MOST: Final = 3
_STEP: Final = 1024


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts, such as ``1 turn`` and ``2 turns``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def readable_size(count: int) -> str:
    """Return a number of bytes in a readable form, such as ``74.0 GiB``."""
    if count < _STEP:
        return counted(count, "byte")
    size, units = count / _STEP, ["TiB", "GiB", "MiB", "KiB"]
    # Otherwise 1,023.96 would be shown as 1024.0.
    while size >= _STEP - 0.05 and len(units) > 1:
        size /= _STEP
        units.pop()
    return f"{size:.1f} {units[-1]}"


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first three names, and the number of the others."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{separator.join(names[:_MOST])}{more}"


def orphans(rows: Sequence[Sequence[Any]]) -> str:
    """Return sentences for the first rows of ``PRAGMA foreign_key_check``.

    Args:
        rows: its rows: table, row id, table of the parent, number of the foreign key.
    """
    return listed([orphan(row) for row in rows], "; ")
