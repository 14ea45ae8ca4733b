"""A transaction, as units of work use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from mandrake_sessions.engine.statement import Bound, Row, Statement, Values

T = TypeVar("T")
NO_VALUES: Final[Mapping[str, Any]] = MappingProxyType({})


class ReadTransaction(Protocol):
    """Runs reading statements for as long as its scope lasts; all rows are fetched at once."""

    operation: str

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the database; None before it has."""

    def rows(self, statement: Statement, values: Values = NO_VALUES) -> list[Row]:
        """Run a statement and return its rows."""

    def row(self, statement: Statement, values: Values = NO_VALUES) -> Row | None:
        """Run a statement and return its first row, or None."""


class WriteTransaction(ReadTransaction, Protocol):
    """Runs reading and writing statements; all of them are stored, or none."""

    def run(self, statement: Statement, values: Values = NO_VALUES) -> int:
        """Run a statement that returns no rows; return how many it changed."""

    def run_all(self, bound: Iterable[Bound]) -> int:
        """Run several statements with their values."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo the statements of the block if it raises, and only those."""


ReadUnit: TypeAlias = Callable[[ReadTransaction], T]
"""Work that reads; it may be called again."""


WriteUnit: TypeAlias = Callable[[WriteTransaction], T]
"""Work that writes; it may be called again if the transaction it shared was lost."""
