"""What one id that is not UTF-8 explains of what SQLite's checks find: orphans and index entries.

SQLite does not look at what a text holds. But a row is no parent any more when the bytes of its id
have changed, and an index that has the other bytes does not know the row. No page is damaged, and
the rest of the database is what it was.
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
    """Return whether the bytes of a text are UTF-8; also for what is no bytes."""
    try:
        return not isinstance(cell, bytes) or cell.decode() is not None
    except UnicodeDecodeError:
        return False


def unexplained_orphans(raw: apsw.Connection, found: Iterable[Sequence[Any]]) -> list[str]:
    """Return what is said of the orphans that no id that is not UTF-8 explains.

    Args:
        raw: to read with.
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
    """Return whether as many ids of parents are damaged as readable ones are missed.

    Args:
        raw: to read with.
        table: of the orphans.
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


def mend_indexes(raw: apsw.Connection, problems: Sequence[str], path: Path) -> bool:
    """Make the indexes of a copy anew, if texts that are not UTF-8 are all that is wrong in them.

    Args:
        raw: a connection that may write, to a file that nobody else has open.
        problems: what SQLite's integrity check has found.
        path: of the database, for the log.

    Returns:
        Whether that was done; the copy has to be checked again.

    Raises:
        apsw.Error: the file cannot be read or written, or two rows have the same id by now.
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
    # An index of some rows cannot be asked for all of them.
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
    """Say what one row of ``PRAGMA foreign_key_check`` tells; see ``orphans``."""
    table, row, parent, _ = found
    # A table without row ids has none to tell.
    which = "a row" if row is None else f"row {row}"
    return f"{which} of {table} refers to a row of {parent} that is not there"
