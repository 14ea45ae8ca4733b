"""A statement: its name, its text, and the order of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from operator import itemgetter
from typing import Any

Values = Mapping[str, Any]
Row = tuple[Any, ...]


class Statement:
    """A statement whose values are given by name.

    Args:
        name: its name in ``records.sql``, and in the texts of another engine. The name of a text
            that varies has a suffix that says how: ``UPDATE_TURN:content,model``.
        sql: the text, with a question mark for each parameter.
        parameters: their names in the order of the question marks; a name may occur again.
        is_read: whether it only reads.
    """

    def __init__(
        self, name: str, sql: str, parameters: tuple[str, ...] = (), *, is_read: bool = False
    ) -> None:
        self.name = name
        self.sql = sql
        self.parameters = parameters
        self.is_read = is_read

    @cached_property
    def bind(self) -> Callable[[Values], Row]:
        """A function that puts named values in the order of the statement's parameters."""
        if not self.parameters:
            return lambda _values: ()
        if len(self.parameters) == 1:
            (name,) = self.parameters
            return lambda values: (values[name],)
        return itemgetter(*self.parameters)

    def bound(self, values: Values) -> Bound:
        """Return the statement with its values, ready to run."""
        return self, self.bind(values)


Bound = tuple[Statement, Row]
"""A statement with its parameters in their order, ready to run."""
