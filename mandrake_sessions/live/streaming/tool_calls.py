"""The tool calls of a streaming turn, each with its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mandrake_sessions import arguments
from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.json_text.values import converted, json_value
from mandrake_sessions.json_text.writer import MAX_TEXT_BYTES, VALUE_DEPTH, ValueChange
from mandrake_sessions.log import get_logger

_MOST_LOGGED: Final = 10
_WITHOUT_ROOM: Final = 1_000
"""Bytes kept of a value when the turn has no room for all of it."""


class PendingToolCall:
    """A tool call without a result so far; any thread may give it.

    Attributes:
        call: the call as it is stored.
        changes: the changes that made it storable.
    """

    __slots__ = ("_answer", "call", "changes")

    def __init__(
        self,
        call: Any,
        changes: tuple[ValueChange, ...],
        answer: Callable[[Any, bool], tuple[ValueChange, ...]],
    ) -> None:
        self.call: Any = call
        self.changes: tuple[ValueChange, ...] = changes
        self._answer = answer

    def set_result(self, value: Any, *, strict: bool = False) -> tuple[ValueChange, ...]:
        """Give the call its result; it is stored with the next flush.

        A tool that has run may not be run again, so its result is always stored: values that JSON
        lacks are changed as ``storable`` does it.

        Args:
            value: anything; None is a result too.
            strict: whether to refuse a value that would have to be changed.

        Returns:
            The changes that made it storable; mostly none.

        Raises:
            InvalidArgumentError: the call has its result already; or, if ``strict``, the value is
                no JSON value or too long, and the error says where in it.
            TurnFinishedError: the turn has ended; the call is marked as interrupted there.
            TurnInterruptedError: another caller has ended the turn.
        """
        return self._answer(value, arguments.flag("strict", strict))


class Value(NamedTuple):
    """A call, or a result, as it is stored."""

    plain: Any
    text: str
    changes: tuple[ValueChange, ...]

    def log_changes(self, name: str, turn_id: str) -> None:
        """Log the changes, if there are any: where and how, and nothing of the value."""
        if self.changes:
            get_logger(__name__).info(
                "value_changed",
                turn_id=turn_id,
                argument=name,
                changes=[str(change) for change in self.changes[:_MOST_LOGGED]],
                count=len(self.changes),
            )


class _Entry(NamedTuple):
    """One call as JSON: itself, and its result if it has one."""

    call: str
    result: str | None = None

    def text(self, mark: str = "") -> str:
        """Return the call as it is stored; ``mark`` is for one without a result."""
        if self.result is None:
            return f'{{"call":{self.call}{mark}}}'
        return f'{{"call":{self.call},"response":{self.result}}}'


class ToolCallList:
    """The calls of one turn as JSON text, so that no value is converted twice.

    The caller ensures that only one thread uses it at a time.
    """

    def __init__(self) -> None:
        # One list that changes in one step: Ctrl-C comes before or after it.
        self._entries: list[_Entry] = []
        self._length = len("[]")

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, call: str) -> int:
        """Add a call and return its place.

        Raises:
            InvalidArgumentError: all calls together are too long.
        """
        entry = _Entry(call)
        self._require_room(len(entry.text(_MARK)) + 1)
        place = len(self._entries)
        self._entries.append(entry)
        return place

    def answer(self, place: int, result: str) -> None:
        """Give a call its result.

        Raises:
            InvalidArgumentError: it has a result, or all calls together are too long.
        """
        entry = self._entries[place]
        if entry.result is not None:
            raise InvalidArgumentError("The tool call has its result already.")
        answered = entry._replace(result=result)
        self._require_room(len(answered.text()) - len(entry.text(_MARK)))
        self._entries[place] = answered

    def fitting(self, value: Value) -> Value:
        """Return a value, or its beginning if there is no room for all of it."""
        if len(value.text) <= MAX_TEXT_BYTES - self._length - _WITHOUT_ROOM:
            return value
        kept, text = converted(value.plain, VALUE_DEPTH, _WITHOUT_ROOM)
        return Value(kept.value, text, (*value.changes, *kept.changes))

    def text(self) -> str:
        """Return all calls as they are stored while the turn is streaming."""
        return f"[{','.join([entry.text() for entry in self._entries])}]"

    def final_text(self) -> str:
        """Return all calls as they are stored at the end: those without a result are marked."""
        return f"[{','.join([entry.text(_MARK) for entry in self._entries])}]"

    def _require_room(self, more: int) -> None:
        # Characters outside ASCII have more bytes; SQLite's own limit is four times this one.
        if self._length + more > MAX_TEXT_BYTES:
            raise InvalidArgumentError(f"tool_calls must have at most {MAX_TEXT_BYTES} bytes.")
        self._length += more


_MARK: Final = ',"is_interrupted":true'


def value_of(name: str, given: Any, *, strict: bool) -> Value:
    """Return a call or a result as it is stored.

    Args:
        name: `call` or `result`, for the error.
        given: the host's value.
        strict: whether to refuse a value that would have to be changed.

    Raises:
        InvalidArgumentError: it is refused.
    """
    return Value(*json_value(name, given, strict=strict))
