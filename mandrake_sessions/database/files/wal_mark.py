"""The mark that ties a WAL to its file: one row of ``meta``, on a page of its own.

SQLite accepts any ``-wal`` of the right name as the WAL of a file, also an old one that a copying
program left there; and a file whose WAL is missing looks complete. So the row holds two numbers
that only grow and a word::

    <base> <number> <new or used>

``number`` grows in the first transaction of each connection, in the first one of each WAL, before
each WAL checkpoint, and when a connection closes. So each WAL holds the row, and a file into which
a WAL was copied has a number that no earlier copy of that WAL has. ``base`` is a number that the
file itself had when this WAL began; the last WAL checkpoint before had brought it into the file. A
file and its own WAL have ``base <= the file's own number <= number``.

A file becomes ``used``, in the file itself and not only in its WAL, before rows are stored in it
for the first time. A file that is used, empty and without a WAL has lost it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

NEW: Final = "new"
USED: Final = "used"
KEY: Final = "log"

_READ: Final = f"SELECT value FROM meta WHERE key = '{KEY}'"
_WRITE: Final = (
    f"INSERT INTO meta (key, value) VALUES ('{KEY}', ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_HAS_CONTENT: Final = (
    "SELECT EXISTS (SELECT 1 FROM changes) OR EXISTS (SELECT 1 FROM sessions) "
    "OR EXISTS (SELECT 1 FROM workspaces)"
)


class Mark(NamedTuple):
    """The three parts of the row."""

    base: int
    number: int
    use: str

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """Return the mark in a text, or None for a text that is no mark."""
        base, _, rest = text.partition(" ")
        number, _, use = rest.partition(" ")
        if not (base.isdigit() and number.isdigit() and use in (NEW, USED)):
            return None
        return cls(int(base), int(number), use)

    def __str__(self) -> str:
        return f"{self.base} {self.number} {self.use}"


def first_mark(moment: int) -> Mark:
    """Return the mark of a new file.

    Args:
        moment: microseconds; later than each mark that the file had before it was reverted to base.
    """
    return Mark(moment, moment, NEW)


def read_mark(execute: Callable[..., Any]) -> Mark | None:
    """Return the mark of a database, or None for one that has none.

    Raises:
        apsw.Error: it cannot be read, or has no ``meta``.
    """
    rows = execute(_READ).fetchall()
    return Mark.parsed(str(rows[0][0])) if rows else None


def store_mark(execute: Callable[..., Any], mark: Mark) -> None:
    """Store the mark in the open transaction.

    Raises:
        apsw.Error: it cannot be written, or there is no ``meta``.
    """
    execute(_WRITE, (str(mark),))


def has_content(execute: Callable[..., Any]) -> bool:
    """Return whether rows were ever stored: the last change is always kept.

    Raises:
        apsw.Error: it cannot be read, or has no such tables.
    """
    return bool(execute(_HAS_CONTENT).fetchall()[0][0])


def end_mark(execute: Callable[..., Any]) -> None:
    """Raise the number for the last time before the whole WAL is copied into the file.

    A file without content becomes new again: no rows are missing when its WAL is gone.

    Raises:
        apsw.Error: it cannot be read or written, or has no such tables.
    """
    raise_number(execute)
    make_new(execute)


def make_new(execute: Callable[..., Any]) -> None:
    """Mark a copy without content as new: it has no WAL that could be missing.

    Raises:
        apsw.Error: it cannot be read or written, or has no such tables.
    """
    mark = read_mark(execute)
    if mark is not None and mark.use == USED and not has_content(execute):
        store_mark(execute, mark._replace(use=NEW))


def raise_number(execute: Callable[..., Any]) -> None:
    """Raise the number in the open transaction, of any connection.

    Raises:
        apsw.Error: it cannot be read or written, or has no ``meta``.
    """
    mark = read_mark(execute)
    if mark is not None:
        store_mark(execute, mark._replace(number=mark.number + 1))
