"""The report of a salvage: kept, repaired, rebuilt and lost rows of each table."""

from __future__ import annotations

from pathlib import Path

import msgspec


class TableSalvage(msgspec.Struct, frozen=True):
    """The rows of one table, each counted once.

    The new table has the kept, the mended and the rebuilt rows. These and the lost rows are all
    that is known of the damaged table.

    Attributes:
        table: its name.
        kept: rows that are unchanged.
        mended: rows of which a part was lost or had to be changed.
        rebuilt: lost rows that were made anew because other rows need them; their content is lost.
        lost: rows that are known to have existed and have no row in their place.
        is_all_known: whether ``lost`` counts all lost rows; otherwise there may be more.
    """

    table: str
    kept: int
    mended: int
    rebuilt: int
    lost: int
    is_all_known: bool


class SalvageReport(msgspec.Struct, frozen=True):
    """The result of one salvage.

    Attributes:
        source: the damaged file.
        target: the new database.
        pages: how many the damaged file has.
        damaged_pages: how many of them are known to be damaged.
        lost_frames: damaged frames of its WAL.
        tables: the rows of each table.
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
        """Whether the salvage found no damage and no lost or changed row."""
        return not (self.damaged_pages or self.lost_frames) and not any(
            each.mended or each.rebuilt or each.lost for each in self.tables
        )
