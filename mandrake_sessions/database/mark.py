"""The mark that ties a log to its file: one row of ``meta``, on a page of its own.

SQLite takes any ``-wal`` of the right name for the log of a file, also one that a copying program
left there from an earlier day; and a file whose log is missing looks like one that is whole. So the
row holds two numbers that only grow and a word::

    <base> <number> <new or used>

``number`` grows in the first transaction of each connection, in the first one of each log, before
each checkpoint, and when a connection closes. So each log holds the row, and a file into which a
log was copied has a number that no earlier copy of that log has. ``base`` is a number that the file
itself had when this log began; the checkpoint before that brought it, with the rest of the log
before. What belongs together has ``base <= the file's own number <= number``.

A file becomes ``used``, in the file itself and not only in its log, before anything is stored in it
for the first time: one that is used, empty and without a log has lost it.
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
    """The row, taken apart."""

    base: int
    number: int
    use: str

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """Return a mark from its text, or None for a text that is none."""
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
        moment: microseconds; later than any earlier mark of a file that was at base again.
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
    """Return whether anything was ever stored: the last change is always kept.

    Raises:
        apsw.Error: it cannot be read, or has no such tables.
    """
    return bool(execute(_HAS_CONTENT).fetchall()[0][0])


def end_mark(execute: Callable[..., Any]) -> None:
    """Raise the number for the last time before all of the log is copied into the file.

    One without content is new again: with its log gone, nothing is missing.

    Raises:
        apsw.Error: it cannot be read or written, or has no such tables.
    """
    raise_number(execute)
    make_new(execute)


def make_new(execute: Callable[..., Any]) -> None:
    """Mark a copy that holds nothing as new: there is no log that could be missing.

    Raises:
        apsw.Error: it cannot be read or written, or has no such tables.
    """
    mark = read_mark(execute)
    if mark is not None and mark.use == USED and not has_content(execute):
        store_mark(execute, mark._replace(use=NEW))


def raise_number(execute: Callable[..., Any]) -> None:
    """Let the number grow in the open transaction, whatever the connection.

    Raises:
        apsw.Error: it cannot be read or written, or has no ``meta``.
    """
    mark = read_mark(execute)
    if mark is not None:
        store_mark(execute, mark._replace(number=mark.number + 1))
