"""How the checks of an open database and those of any file say the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mandrake_sessions.database.connection.bad_ids import orphan

LOW_DISK: Final = 64 * 1024 * 1024
"""Free bytes below which a check says so."""
ORPHANS: Final = "Something wrote with foreign keys off: delete the rows that are named"
"""What helps where rows refer to rows that are not there."""
_MOST: Final = 3
_STEP: Final = 1024


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts, such as ``1 turn`` and ``2 turns``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def readable_size(count: int) -> str:
    """Return a number of bytes as people read it, such as ``74.0 GiB``."""
    if count < _STEP:
        return counted(count, "byte")
    size, units = count / _STEP, ["TiB", "GiB", "MiB", "KiB"]
    # 1,023.96 would be shown as 1024.0.
    while size >= _STEP - 0.05 and len(units) > 1:
        size /= _STEP
        units.pop()
    return f"{size:.1f} {units[-1]}"


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first few of some names."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{separator.join(names[:_MOST])}{more}"


def orphans(rows: Sequence[Sequence[Any]]) -> str:
    """Say what ``PRAGMA foreign_key_check`` has found.

    Args:
        rows: its rows: table, row id, table of the parent, number of the foreign key.
    """
    return listed([orphan(row) for row in rows], "; ")
