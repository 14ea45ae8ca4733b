"""Reads ids, parents and places of rows from the indexes of a damaged file.

An index has an entry for each row of its table, on other pages. So the indexes show which rows are
lost, and hold most of the content of sessions, rounds and responses.
"""

from __future__ import annotations

from typing import Final

import apsw

from mandrake_sessions.database.files.btree import Page, Value, walk
from mandrake_sessions.database.files.pages import Pages

_BATCH: Final = 1000
_TABLE: Final = (
    'CREATE TEMP TABLE evidence ("table" TEXT, "row" INTEGER, "column" TEXT, value ANY, '
    'PRIMARY KEY ("table", "column", "row")) STRICT, WITHOUT ROWID'
)
_INSERT: Final = "INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?)"


class Entry:
    """One entry of the schema of the damaged file."""

    def __init__(self, kind: str, name: str, table: str, root: int) -> None:
        self.kind = kind
        self.name = name
        self.table = table
        self.root = root


def schema_entries(pages: Pages) -> list[Entry]:
    """Return the readable entries of the file's own list of tables and indexes."""
    found: list[Entry] = []
    for _, page in walk(pages, 1):
        for record in page.records if page is not None else ():
            values: list[Value] = [*record.values, None, None, None, None]
            kind, name, table, root = values[:4]
            if (
                kind in ("table", "index")
                and isinstance(name, str)
                and isinstance(table, str)
                and isinstance(root, int)
                and root > 1
            ):
                found.append(Entry(str(kind), name, table, root))
    return found


class Trees:
    """Which pages belong to which table, and whether each tree could be walked to its end.

    Attributes:
        table_of: by the page; only those that a root leads to.
        broken: names of the trees that have a damaged page.
        damaged: the damaged pages.
    """

    def __init__(self, pages: Pages, entries: list[Entry]) -> None:
        self.table_of: dict[int, str] = {}
        self.broken: set[str] = set()
        self.damaged: set[int] = set()
        for entry in entries:
            if entry.kind == "table":
                for number, page in walk(pages, entry.root):
                    self.note(entry, number, page)

    def note(self, entry: Entry, number: int, page: Page | None) -> None:
        """Record the page that a walk has reached, or that it is damaged."""
        if page is None or page.bad_cells:
            self.broken.add(entry.name)
            self.damaged.add(number)
        if page is not None:
            self.table_of.setdefault(number, entry.table)


def scan(raw: apsw.Connection, pages: Pages, entries: list[Entry], trees: Trees) -> set[str]:
    """Copy the entries of all indexes into the temporary table ``evidence`` of the new database.

    Args:
        raw: the new database; it has the same indexes.
        pages: of the damaged one.
        entries: its schema.
        trees: records the pages that the walks reach.

    Returns:
        The tables of which every id is known.
    """
    raw.execute(_TABLE)
    columns = _index_columns(raw)
    known: set[str] = set()
    for entry in entries:
        names = columns.get(entry.name)
        if (
            entry.kind != "index"
            or names is None
            or _table_of_index(raw, entry.name) != entry.table
        ):
            continue
        rows: list[tuple[str, int, str, Value]] = []
        for number, page in walk(pages, entry.root):
            trees.note(entry, number, page)
            for record in page.records if page is not None and page.kind in (2, 10) else ():
                *values, row = record.values
                if isinstance(row, int) and len(values) == len(names) and not record.is_garbled:
                    rows += [
                        (entry.table, row, name, value)
                        for name, value in zip(names, values, strict=True)
                    ]
            if len(rows) > _BATCH:
                raw.executemany(_INSERT, rows)
                rows.clear()
        raw.executemany(_INSERT, rows)
        if names == ("id",) and entry.name not in trees.broken:
            known.add(entry.table)
    return known


def _index_columns(raw: apsw.Connection) -> dict[str, tuple[str, ...]]:
    """Return the columns of each index, by its name; partial indexes are left out."""
    found: dict[str, list[str]] = {}
    for index, column in raw.execute(
        "SELECT l.name, i.name FROM sqlite_schema s, pragma_index_list(s.name) l, "
        "pragma_index_info(l.name) i WHERE s.type = 'table' AND NOT l.partial "
        "ORDER BY l.name, i.seqno"
    ):
        found.setdefault(str(index), []).append(str(column))
    return {index: tuple(names) for index, names in found.items()}


def _table_of_index(raw: apsw.Connection, index: str) -> str | None:
    """Return the table of an index of the new database."""
    rows = raw.execute("SELECT tbl_name FROM sqlite_schema WHERE name = ?", (index,)).fetchall()
    return str(rows[0][0]) if rows else None
