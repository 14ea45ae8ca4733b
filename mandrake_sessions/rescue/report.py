"""What was read from a damaged database, and what was lost of it."""

from __future__ import annotations

from pathlib import Path

import msgspec


class TableSalvage(msgspec.Struct, frozen=True):
    """What became of the rows of one table; each is counted once.

    The new table has those that were kept, mended and rebuilt. With those that are lost, they are
    what is known of the damaged one.

    Attributes:
        table: its name.
        kept: rows that are as they were.
        mended: rows of which something was lost or had to be changed.
        rebuilt: rows that were lost and are needed by others; what they held is lost.
        lost: rows that are known to have been there and have nothing in their place.
        is_all_known: whether ``lost`` is all that was lost; otherwise there may be more.
    """

    table: str
    kept: int
    mended: int
    rebuilt: int
    lost: int
    is_all_known: bool


class SalvageReport(msgspec.Struct, frozen=True):
    """What was read from a damaged database.

    Attributes:
        source: the damaged file.
        target: the new database.
        pages: how many the damaged file has.
        damaged_pages: how many of them are known to be damaged.
        lost_frames: frames of its log that are damaged.
        tables: what became of each table.
        left_out: tables that are not the library's; they are not copied.
        may_hold_deleted: whether deleted rows may be back, since the list of free pages is damaged.
    """

    source: Path
    target: Path
    pages: int
    damaged_pages: int
    lost_frames: int
    tables: tuple[TableSalvage, ...]
    left_out: tuple[str, ...]
    may_hold_deleted: bool

    @property
    def is_complete(self) -> bool:
        """Whether nothing is known to be lost or changed."""
        return not (self.damaged_pages or self.lost_frames) and not any(
            each.mended or each.rebuilt or each.lost for each in self.tables
        )
