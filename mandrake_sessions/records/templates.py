"""Templates: a record's INSERT, and texts that vary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from operator import attrgetter, itemgetter
from typing import NamedTuple

import msgspec

from mandrake_sessions.engine.statement import Bound, Row, Statement


class RecordInsert(Statement):
    """The INSERT of a record: each column gets the field that carries it.

    Args:
        name: as of any statement.
        sql: the text.
        parameters: the columns, in its order.
        fields: the fields of the record for the other columns.
        extra: columns whose values are given separately, in that order.
    """

    def __init__(
        self,
        name: str,
        sql: str,
        parameters: tuple[str, ...],
        fields: tuple[str, ...],
        extra: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name, sql, parameters)
        self._fields: Callable[[msgspec.Struct], Row] = attrgetter(*fields)
        given = [*(name for name in parameters if name not in extra), *extra]
        self._in_order: Callable[[Row], Row] = itemgetter(*map(given.index, parameters))

    def of(self, record: msgspec.Struct, *extra: object) -> Bound:
        """Return the statement with a record's values and the extra ones, ready to run."""
        row = self._fields(record)
        return self, self._in_order((*row, *extra)) if extra else row


class Piece(NamedTuple):
    """An assignment or a condition of an UPDATE.

    Attributes:
        parameters: the names of its values, in their order.
        when: it is included only if one of these columns is set; always if there are none.
        unless: it is left out if one of these columns is set.
    """

    text: str
    parameters: tuple[str, ...] = ()
    when: AbstractSet[str] = frozenset()
    unless: AbstractSet[str] = frozenset()


class UpdateSome:
    """An UPDATE of the named columns; the statement of each combination is built once.

    Args:
        name: the name of its statements, before the colon.
        head: the text up to the assignments.
        assignments: in the order of the table's columns.
        conditions: all of them must hold.
        tail: the text after the conditions.
        settable: the columns that may be named.
    """

    def __init__(
        self,
        name: str,
        head: str,
        assignments: tuple[Piece, ...],
        conditions: tuple[Piece, ...],
        tail: str,
        *,
        settable: AbstractSet[str],
    ) -> None:
        self._name = name
        self._head = head
        self._assignments = assignments
        self._conditions = conditions
        self._tail = tail
        self._settable = settable
        self._made: dict[frozenset[str], Statement] = {}

    def of(self, names: Iterable[str]) -> Statement:
        """Return the statement that sets the named columns, each from the value of its name."""
        # In any order: else a host that varies the order of ten names would fill the cache.
        key = frozenset(names)
        statement = self._made.get(key)
        if statement is None:
            statement = self._made[key] = self._put_together(key)
        return statement

    def _put_together(self, names: frozenset[str]) -> Statement:
        if not names <= self._settable:
            raise ValueError(f"not to be set: {', '.join(sorted(names - self._settable))}")
        assignments, conditions = (
            [p for p in pieces if (not p.when or p.when & names) and not p.unless & names]
            for pieces in (self._assignments, self._conditions)
        )
        return Statement(
            f"{self._name}:{','.join(sorted(names))}",
            f"{self._head}{', '.join(piece.text for piece in assignments)}"
            f" WHERE {' AND '.join(piece.text for piece in conditions)}{self._tail}",
            tuple(name for piece in (*assignments, *conditions) for name in piece.parameters),
        )


class InsertMany:
    """An INSERT of several rows, each from its own SELECT.

    Args:
        name: the name of its statements, before the colon; the number of rows comes after it.
        head: the text up to the first SELECT.
        source: the text of a SELECT.
        parameters: its values; ``{at}`` stands for the position of the row.
        tail: the text after the last SELECT.
    """

    def __init__(
        self, name: str, head: str, source: str, parameters: tuple[str, ...], tail: str
    ) -> None:
        self._name = name
        self._head = head
        self._source = source
        self._parameters = parameters
        self._tail = tail
        self._made: dict[int, Statement] = {}

    def of(self, count: int) -> Statement:
        """Return the statement for a number of rows."""
        statement = self._made.get(count)
        if statement is None:
            statement = self._made[count] = Statement(
                f"{self._name}:{count}",
                f"{self._head}{' UNION ALL '.join([self._source] * count)}{self._tail}",
                tuple(name.format(at=at) for at in range(count) for name in self._parameters),
            )
        return statement
