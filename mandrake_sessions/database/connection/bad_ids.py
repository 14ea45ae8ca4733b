"""Recognizes problems in SQLite's checks that come from an id that is not UTF-8.

SQLite does not check the bytes of a text. But if the bytes of a row's id have changed, its children
are orphans, and an index with the former bytes misses the row. No page is damaged, and the rest of
the database is unchanged.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from mandrake_sessions.log import get_logger

_MISSING: Final = re.compile(r"row (\d+) missing from index (\w+)")


def is_text(cell: object) -> bool:
    """Return whether the bytes of a text are UTF-8; True for a value that is no bytes."""
    try:
        return not isinstance(cell, bytes) or cell.decode() is not None
    except UnicodeDecodeError:
        return False


def unexplained_orphans(raw: apsw.Connection, found: Iterable[Sequence[Any]]) -> list[str]:
    """Return a sentence for each orphan that does not come from an id that is not UTF-8.

    Args:
        raw: reads the tables.
        found: the rows of ``PRAGMA foreign_key_check``.

    Raises:
        apsw.Error: the tables cannot be read.
    """
    rows = list(found)
    explained = {
        (table, key)
        for table, key in {(str(row[0]), row[3]) for row in rows}
        if _explains(raw, table, key)
    }
    return [orphan(row) for row in rows if (str(row[0]), row[3]) not in explained]


def _explains(raw: apsw.Connection, table: str, key: object) -> bool:
    """Return whether at least as many parents' ids are damaged as readable ids are missing.

    Args:
        raw: reads the tables.
        table: the table of the orphans.
        key: the number of the foreign key.
    """
    columns = [
        (str(row[2]), str(row[3]), row[4])
        for row in raw.execute(f"PRAGMA foreign_key_list({_quoted(table)})")
        if row[0] == key
    ]
    if len(columns) != 1:
        return False
    parent, child, target = columns[0]
    id = _quoted(str(target or "id"))
    missed = raw.execute(
        f"SELECT DISTINCT CAST({_quoted(child)} AS BLOB) FROM {_quoted(table)}"
        f" WHERE {_quoted(child)} NOT IN (SELECT {id} FROM {_quoted(parent)})"
    )
    readable = sum(is_text(cell) for (cell,) in missed)
    ids = raw.execute(f"SELECT CAST({id} AS BLOB) FROM {_quoted(parent)} NOT INDEXED")
    return readable <= sum(not is_text(cell) for (cell,) in ids)


def reindex(raw: apsw.Connection, problems: Sequence[str], path: Path) -> bool:
    """Rebuild the indexes of a copy, if texts that are not UTF-8 are their only problem.

    Args:
        raw: a connection that may write, to a file that no other connection has open.
        problems: those that SQLite's integrity check has found.
        path: the path of the database, for the log.

    Returns:
        Whether they were rebuilt; the copy has to be checked again.

    Raises:
        apsw.Error: the file cannot be read or written, or two rows now have the same id.
    """
    rows: dict[str, list[int]] = {}
    for problem in problems:
        missing = _MISSING.fullmatch(problem)
        if missing is None:
            return False
        rows.setdefault(missing[2], []).append(int(missing[1]))
    if not all(_has_bad_text(raw, index, numbers) for index, numbers in rows.items()):
        return False
    for index in rows:
        raw.execute(f"REINDEX {_quoted(index)}")
    get_logger(__name__).warning("copy_reindexed", path=str(path), indexes=list(rows))
    return True


def _has_bad_text(raw: apsw.Connection, index: str, rows: Sequence[int]) -> bool:
    """Return whether an index, or each row that it misses, has a text that is not UTF-8."""
    ((table,),) = raw.execute("SELECT tbl_name FROM sqlite_schema WHERE name = ?", (index,))
    columns = [
        f"CAST({_quoted(str(name))} AS BLOB)"
        for _, _, name in raw.execute(f"PRAGMA index_info({_quoted(index)})")
    ]
    select = f"SELECT {', '.join(columns)} FROM {_quoted(str(table))}"
    # A partial index cannot answer for all rows.
    with contextlib.suppress(apsw.SQLError):
        entries = raw.execute(f"{select} INDEXED BY {_quoted(index)}")
        if any(not is_text(cell) for entry in entries for cell in entry):
            return True
    by_row = f"{select} NOT INDEXED WHERE rowid = ?"
    return all(
        any(not is_text(cell) for found in raw.execute(by_row, (row,)) for cell in found)
        for row in rows
    )


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def orphan(found: Sequence[Any]) -> str:
    """Return a sentence for one row of ``PRAGMA foreign_key_check``; see ``orphans``."""
    table, row, parent, _ = found
    # A table without row ids has None there.
    which = "a row" if row is None else f"row {row}"
    return f"{which} of {table} refers to a missing row of {parent}"
