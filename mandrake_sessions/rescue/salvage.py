"""Reads the readable rows of a damaged database into a new one, and reports the losses.

No SQL touches the damaged file. Each page is read by its own content, so that neither a broken tree
nor a broken schema hides rows that still exist.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mandrake_sessions import tables
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.fork import close_inherited
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.connection.settings import foreign_keys_off
from mandrake_sessions.database.connection.verification import verify
from mandrake_sessions.database.error_codes import translate, translate_os
from mandrake_sessions.database.files.atomic import merge_wal, partial_file, replace, sync_file
from mandrake_sessions.database.files.btree import Record, Value, parse
from mandrake_sessions.database.files.own_wal import find_stale_wal
from mandrake_sessions.database.files.pages import Pages, open_pages
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.migrations.head import bring_to_head
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.errors import DatabaseError, DatabaseMissingError, SalvageError
from mandrake_sessions.ids import new_id
from mandrake_sessions.options import DatabaseOptions, Durability
from mandrake_sessions.rescue.index_scan import Entry, Trees, scan, schema_entries
from mandrake_sessions.rescue.orphans import PARENTS, Orphans
from mandrake_sessions.rescue.report import SalvageReport, TableSalvage
from mandrake_sessions.rescue.row_repair import (
    TABLE_OF_WIDTH,
    TABLES,
    Row,
    keyed_table_of,
    repaired,
    tables_of,
)

_OPERATION: Final = "salvage"
_PATIENCE: Final = 3600.0
_TALKS: Final = ("sessions", "rounds", "requests", "responses", "turns", "workspaces")
# ``meta`` is not reported: the new file has its own values there.
_REPORTED: Final = (*(table for table in TABLES if table != "meta"), "workspaces")
_NOT_MISSED: Final = {*TABLES, "workspaces", "changes", "alembic_version"}
_CHUNKS: Final = "turn_chunks"
# Tables that mark a database of this library: the original system has sessions and turns too.
_MARKS: Final = {_CHUNKS, "meta", "changes"}


def salvage(damaged: str | os.PathLike[str], target: str | os.PathLike[str]) -> SalvageReport:
    """Read the readable rows of a damaged database into a new one.

    The damaged file and its ``-wal`` are only read. Sessions, rounds, requests, responses and turns
    are kept wherever their content can be found; a missing parent is made anew. The new file passes
    SQLite's checks before it gets its name.

    Args:
        damaged: the file; best not in use.
        target: the file to make; its folder must exist.

    Returns:
        The numbers of kept, repaired, rebuilt and lost rows of each table.

    Raises:
        DatabaseMissingError: there is no damaged file.
        StaleLogError: the WAL next to the file is not its own; without it, the file may be whole.
        SalvageError: the target exists, or its folder does not; or no row of this library was
            found, and no file is made.
        DatabaseError: the new file cannot be written; each reason has its own subclass.
    """
    source, path = real_path(damaged), real_path(target)
    close_inherited()
    if identify(source) is None:
        raise DatabaseMissingError(path=source, operation=_OPERATION)
    if os.path.lexists(path):
        raise SalvageError("The target exists.", path=path, operation=_OPERATION)
    if not os.path.isdir(path.parent):
        raise SalvageError("The target's folder does not exist.", path=path)
    # With a stale WAL, pages of two files would be read as pages of one.
    find_stale_wal(source, _OPERATION)
    try:
        with partial_file(path) as partial:
            with open_pages(source) as pages, _new_database(partial) as connection:
                report = _Salvage(pages, connection.raw).run(source, path)
            problems = verify(partial)
            if problems:
                raise SalvageError(f"The copy is damaged: {problems[0]}.", path=path)
            sync_file(partial)
            replace(partial, path, overwrite=False)
    except FileExistsError as error:
        raise SalvageError("The target exists.", path=path, operation=_OPERATION) from error
    except OSError as error:
        raise translate_os(error, path) from error
    except apsw.Error as error:
        raise translate(error, path, _OPERATION) from error
    return report


@block
def _new_database(path: Path) -> Iterator[Connection]:
    """Lend a connection to a new database of this version, in a transaction that commits."""
    identity = identify(path)
    if identity is None:
        raise DatabaseError("The new file is gone.", path=path, operation=_OPERATION)
    options = DatabaseOptions(durability=Durability.FAST)
    budget = FileBudget(_PATIENCE)
    connection = open_connection(path, identity, options, budget)
    try:
        bring_to_head(connection, budget)
        connection.deadline = budget.deadline
        connection.interruptible = False
        with foreign_keys_off(connection), connection.raw:
            yield connection
        merge_wal(connection.raw)
    finally:
        connection.close()


class _Salvage:
    """One run over the pages of a damaged file."""

    def __init__(self, pages: Pages, raw: apsw.Connection) -> None:
        self._pages = pages
        self._raw = raw
        self._orphans = Orphans(raw)
        self._mended: Counter[str] = Counter()
        self._unplaced: Counter[str] = Counter()
        # Rows whose place is taken or unknown; they get one after all other rows.
        self._later: list[tuple[str, Row]] = []
        self._inserts: dict[str, str] = {}

    def run(self, source: Path, target: Path) -> SalvageReport:
        entries = schema_entries(self._pages)
        if self._is_anothers(entries):
            raise _nothing_found(source)
        trees = Trees(self._pages, entries)
        if not entries:
            trees.damaged.add(1)
        known = scan(self._raw, self._pages, entries, trees)
        if any(e.table == _CHUNKS for e in entries) and _CHUNKS not in trees.broken:
            # The table has no index, so a sound tree stands for it.
            known.add(_CHUNKS)
        free = self._pages.free()
        unclear = self._read_pages(trees, free or set())
        self._read_unclear(unclear, trees)
        self._place_rest()
        if not (
            known - {_CHUNKS}
            or self._pages.application_id == tables.APPLICATION_ID
            or self._has_rows()
        ):
            raise _nothing_found(source)
        self._orphans.repair()
        damaged = trees.damaged | self._pages.unreadable
        return SalvageReport(
            source=source,
            target=target,
            pages=self._pages.count,
            damaged_pages=len(damaged),
            lost_frames=self._pages.lost_frames,
            tables=tuple(self._count(table, known, is_sound=not damaged) for table in _REPORTED),
            left_out=tuple(sorted({e.table for e in entries if _is_foreign(e.table)})),
            may_hold_deleted=free is None,
        )

    def _is_anothers(self, entries: list[Entry]) -> bool:
        """Return whether the application id and the tables show another program's database."""
        return (
            self._pages.application_id not in (None, tables.APPLICATION_ID)
            and bool(entries)
            and not {entry.table for entry in entries} & _MARKS
        )

    def _has_rows(self) -> bool:
        """Return whether a row was found that has all required values."""
        return any(
            self._raw.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall() for table in _TALKS
        )

    def _count(self, table: str, known: set[str], *, is_sound: bool) -> TableSalvage:
        ((count,),) = self._raw.execute(f"SELECT count(*) FROM {table}").fetchall()
        rebuilt = self._orphans.rebuilt.get(table, 0)
        read = int(str(count)) - rebuilt
        changed = min(self._mended[table], read)
        is_all_known = is_sound or table in known
        lost = self._orphans.lost.get(table, 0)
        return TableSalvage(
            table=table,
            kept=read - changed,
            mended=changed,
            rebuilt=rebuilt,
            # A whole index of ids counts the rows without a place already.
            lost=lost if is_all_known else max(lost, self._unplaced[table] - rebuilt),
            is_all_known=is_all_known,
        )

    # -- reading ----------------------------------------------------------------------------

    def _read_pages(self, trees: Trees, free: set[int]) -> list[int]:
        """Read every page that is in use; return the pages whose table is not clear."""
        unclear: list[int] = []
        for number in self._pages.numbers():
            # A table of another program may resemble one of the library.
            if number in free or _is_foreign(trees.table_of.get(number, "sessions")):
                continue
            page = parse(self._pages, number)
            if page is None and self._pages.is_blank(number):
                trees.damaged.add(number)
            if page is None or number == 1:
                continue
            if page.bad_cells:
                trees.damaged.add(number)
            for record in page.records:
                if page.kind != 13:
                    self._keep_keyed(record)
                    continue
                tables = tables_of(record.values if record.columns == len(record.values) else ())
                if record.columns > len(record.values):
                    tables = _tables_of_cut(record)
                if len(tables) == 1:
                    self._keep(tables[0], record)
                elif tables and number not in unclear[-1:]:
                    unclear.append(number)
        return unclear

    def _read_unclear(self, numbers: list[int], trees: Trees) -> None:
        """Keep the rounds and responses of some pages.

        Their records have one form; the rows that refer to them decide between the two.
        """
        for number in numbers:
            page = parse(self._pages, number)
            records = [] if page is None else [r for r in page.records if len(r.values) == 5]
            records = [r for r in records if len(tables_of(r.values)) == 2]
            ids = [record.values[0] for record in records]
            parents = [record.values[1] for record in records]
            as_rounds = self._found("requests", "round_id", ids) + self._found(
                "sessions", "id", parents
            )
            as_responses = self._found("turns", "response_id", ids) + self._found(
                "requests", "round_id", parents
            )
            if as_rounds == as_responses:
                is_rounds = trees.table_of.get(number) != "responses"
            else:
                is_rounds = as_rounds > as_responses
            for record in records:
                self._keep("rounds" if is_rounds else "responses", record)

    def _found(self, table: str, column: str, values: list[Value]) -> int:
        return sum(
            len(
                self._raw.execute(
                    f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", (value,)
                ).fetchall()
            )
            for value in values
            if isinstance(value, str)
        )

    # -- keeping ----------------------------------------------------------------------------

    def _keep(self, table: str, record: Record) -> None:
        found = repaired(table, record)
        if found is None:
            self._unplaced[table] += 1
            return
        row, was_changed = found
        if row.get("index", 0) is None:
            self._later.append((table, row))
            self._mended[table] += 1
            return
        try:
            was_kept = self._insert(table, row, record.rowid)
        except apsw.ConstraintError:
            self._later.append((table, row))
            self._mended[table] += 1
        else:
            self._mended[table] += was_kept and was_changed

    def _keep_keyed(self, record: Record) -> None:
        """Keep a row of a table without row numbers, if an index page holds one."""
        table = keyed_table_of(record.values) if record.rowid is None else None
        found = None if table is None else repaired(table, record)
        if table is None or found is None:
            return
        places = ", ".join("?" * len(found[0]))
        # The values in ``meta`` of the new file stay.
        self._raw.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", [*found[0].values()])
        self._mended[table] += self._raw.changes() and found[1]

    def _insert(self, table: str, row: Row, rowid: int | None) -> bool:
        """Insert or update a row; return whether the table changed."""
        sql = self._statement(table)
        self._raw.execute(sql, (rowid, *row.values()))
        return self._raw.changes() > 0

    def _statement(self, table: str) -> str:
        if table not in self._inserts:
            names = [f'"{column.name}"' for column in tables.TABLES[table]]
            places = ", ".join("?" * (len(names) + 1))
            sql = f"INSERT INTO {table} (rowid, {', '.join(names)}) VALUES ({places}) "
            if '"updated_at"' in names:
                # A page that is no longer used may hold an older state of the row.
                sets = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
                sql += (
                    f"ON CONFLICT (id) DO UPDATE SET {sets} "
                    f"WHERE excluded.updated_at > {table}.updated_at"
                )
            else:
                sql += "ON CONFLICT (id) DO NOTHING"
            self._inserts[table] = sql
        return self._inserts[table]

    def _place_rest(self) -> None:
        """Insert the rows whose place was taken or unknown, at another place."""
        for table, row in self._later:
            attempts: list[Row] = [{}]
            if table in ("requests", "responses"):
                attempts.append({"round_id": new_id()})
            elif table in ("rounds", "turns"):
                last = self._orphans.next_index(table, row[PARENTS[table][0]])
                attempts = [*attempts[row["index"] is None :], {"index": last}]
            for changes in attempts:
                try:
                    self._insert(table, row | changes, None)
                    break
                except apsw.ConstraintError:
                    continue
            else:
                self._unplaced[table] += 1
                self._mended[table] -= 1


def _nothing_found(source: Path) -> SalvageError:
    return SalvageError(
        "No row of this library was found in the file.",
        path=source,
        operation=_OPERATION,
        result_code=apsw.SQLITE_NOTADB,
    )


def _is_foreign(table: str) -> bool:
    return table not in _NOT_MISSED and not table.startswith("sqlite_")


def _tables_of_cut(record: Record) -> tuple[str, ...]:
    """Return the possible tables of a record without its end; only long texts are cut."""
    if record.columns == 5:
        return ("requests",) if len(record.values) >= 3 else ()
    return (TABLE_OF_WIDTH[record.columns],) if record.columns in TABLE_OF_WIDTH else ()
