"""Reads a private copy of another program's database with plain SQL.

Only for a file that no other connection has open. It is opened for writing, because only such a
connection recovers a ``-wal`` or ``-journal`` after a crash, and can make indexes for the import.
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
"""A value of a column; ``fetchable`` describes the Python types of texts and blobs."""

_OPERATION: Final = "import"
_CODECS: Final = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
_PROBLEMS: Final = 3


def fetchable(column: str) -> str:
    """Return SQL for a column whose texts may not be UTF-8, which APSW would refuse.

    A text is returned as its bytes in the database's encoding, a blob as hex digits, numbers and
    NULL as they are. So each kind has a Python type of its own.
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
        """Yield the rows of a statement as they are read; statements may be nested.

        Raises:
            NotADatabaseError: the file is not a SQLite database.
            CorruptDatabaseError: it is damaged.
            DatabaseError: any other error of SQLite.
        """
        try:
            yield from self._raw.cursor().execute(sql, values)
        except apsw.Error as error:
            raise translate(error, self._source, _OPERATION) from error

    def run(self, sql: str) -> None:
        """Run a statement that returns no rows; raise the errors of ``rows``."""
        for _ in self.rows(sql):
            pass

    def count(self, sql: str) -> int:
        """Return the integer that a statement gives; raise the errors of ``rows``."""
        ((number,),) = self.rows(sql)
        assert isinstance(number, int)
        return number

    def columns(self) -> dict[str, frozenset[str]]:
        """Return the columns of each table that stores rows, which excludes views."""
        found: dict[str, set[str]] = {}
        for table, column in self.rows(
            "SELECT s.name, c.name FROM sqlite_schema s, pragma_table_info(s.name) c "
            "WHERE s.type = 'table' AND s.rootpage > 0"
        ):
            found.setdefault(str(table), set()).add(str(column))
        return {table: frozenset(columns) for table, columns in found.items()}

    def verify(self) -> None:
        """Check the whole file.

        Raises:
            CorruptDatabaseError: SQLite's integrity check found a problem.
        """
        # Not quick_check: an index that misses rows would hide them from the import.
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
        copy: the file to open, with its ``-wal`` or ``-journal`` next to it.
        source: the file that it was copied from, for errors.

    Raises:
        NotADatabaseError: the file is not a SQLite database.
        CorruptDatabaseError: it is damaged.
        DatabaseError: any other error of SQLite.
    """
    try:
        raw = apsw.Connection(
            str(copy), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
    except apsw.Error as error:
        raise translate(error, source, _OPERATION) from error
    try:
        # A schema can run functions, and this one is not trusted.
        raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        database = ForeignDatabase(raw, source)
        # The copy is temporary, so its writes need not reach the disk.
        for setting in ("cell_size_check=ON", "synchronous=OFF", "mmap_size=0"):
            database.run(f"PRAGMA {setting}")
        yield database
    finally:
        raw.close(True)
