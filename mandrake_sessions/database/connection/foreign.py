"""Reads a private copy of another program's database with plain SQL.

Only for a file that nobody else has open: it is opened for writing, because only such a connection
rolls a crashed ``-wal`` or ``-journal`` forward or back, and may be given indexes of our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.errors import CorruptDatabaseError

Cell: TypeAlias = str | int | float | bytes | None
"""What a column holds; see ``fetchable`` for the two kinds that SQLite calls text and blob."""

_OPERATION: Final = "import"
_CODECS: Final = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
_PROBLEMS: Final = 3


def fetchable(column: str) -> str:
    """Return SQL for a column whose text may be anything: APSW refuses text that is not UTF-8.

    Text comes as its bytes in the database's encoding, a blob as its bytes in hex digits, numbers
    and NULL as they are. So each kind has a Python type of its own.
    """
    return (
        f"CASE typeof({column}) WHEN 'text' THEN CAST({column} AS BLOB) "
        f"WHEN 'blob' THEN hex({column}) ELSE {column} END"
    )


class ForeignDatabase:
    """An open private copy.

    Attributes:
        codec: Python's name of the encoding of its text.
    """

    def __init__(self, raw: apsw.Connection, source: Path) -> None:
        self._raw = raw
        self._source = source
        ((encoding,),) = self.rows("PRAGMA encoding")
        self.codec: str = _CODECS[str(encoding)]

    def rows(self, sql: str, values: tuple[Cell, ...] = ()) -> Iterator[tuple[Cell, ...]]:
        """Yield the rows of a statement as they are read; statements may run inside each other.

        Raises:
            NotADatabaseError: the file is not a SQLite database.
            CorruptDatabaseError: it is damaged.
            DatabaseError: what else SQLite said.
        """
        try:
            yield from self._raw.cursor().execute(sql, values)
        except apsw.Error as error:
            raise translate(error, self._source, _OPERATION) from error

    def run(self, sql: str) -> None:
        """Run a statement that returns no rows; raises what ``rows`` does."""
        for _ in self.rows(sql):
            pass

    def count(self, sql: str) -> int:
        """Return the whole number that a statement gives; raises what ``rows`` does."""
        ((number,),) = self.rows(sql)
        assert isinstance(number, int)
        return number

    def columns(self) -> dict[str, frozenset[str]]:
        """Return the columns of each table that has rows of its own, so no views."""
        found: dict[str, set[str]] = {}
        for table, column in self.rows(
            "SELECT s.name, c.name FROM sqlite_schema s, pragma_table_info(s.name) c "
            "WHERE s.type = 'table' AND s.rootpage > 0"
        ):
            found.setdefault(str(table), set()).add(str(column))
        return {table: frozenset(columns) for table, columns in found.items()}

    def verify(self) -> None:
        """Look through the whole file.

        Raises:
            CorruptDatabaseError: SQLite's integrity check found something.
        """
        # Not quick_check: an index that misses rows would hide them from us.
        problems = [str(row[0]) for row in self.rows(f"PRAGMA integrity_check({_PROBLEMS})")]
        if problems != ["ok"]:
            raise CorruptDatabaseError(
                f"The source is damaged: {'; '.join(problems)}.",
                path=self._source,
                operation=_OPERATION,
            )


@block
def open_foreign(copy: Path, source: Path) -> Iterator[ForeignDatabase]:
    """Open a private copy for a block.

    Args:
        copy: the file to open, with what belongs to it (``-wal`` or ``-journal``) beside it.
        source: what errors shall name: the file it was copied from.

    Raises:
        NotADatabaseError: the file is not a SQLite database.
        CorruptDatabaseError: it is damaged.
        DatabaseError: what else SQLite said.
    """
    try:
        raw = apsw.Connection(
            str(copy), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
    except apsw.Error as error:
        raise translate(error, source, _OPERATION) from error
    try:
        # A schema is code, and this one is a stranger's.
        raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        database = ForeignDatabase(raw, source)
        # The copy is thrown away, so what is written to it need not reach the disk.
        for setting in ("cell_size_check=ON", "synchronous=OFF", "mmap_size=0"):
            database.run(f"PRAGMA {setting}")
        yield database
    finally:
        raw.close(True)
