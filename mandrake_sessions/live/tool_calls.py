"""The tool calls of a turn that is streamed, each kept together with its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mandrake_sessions import arguments
from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.models import ToolCall

_MAX_BYTES: Final = arguments.MAX_TEXT_BYTES


class PendingToolCall:
    """A tool call whose result is still to come, from whichever thread.

    Attributes:
        call: what is called, as it is stored.
    """

    __slots__ = ("_answer", "call")

    def __init__(self, call: Any, answer: Callable[[Any], None]) -> None:
        self.call = call
        self._answer = answer

    def set_result(self, value: Any) -> None:
        """Give the call its result; it is stored with the next flush.

        Args:
            value: a JSON value; None is a result too.

        Raises:
            InvalidArgumentError: it is no JSON value or too long, or the call has its result.
            TurnFinishedError: the turn has ended; the call is marked as interrupted there.
            TurnInterruptedError: somebody else has ended the turn.
        """
        self._answer(value)


class _Entry(NamedTuple):
    """A call of the list, and its JSON text."""

    call: ToolCall
    text: str
    is_answered: bool


class ToolCallList:
    """The calls of one turn as JSON text, so that nothing is looked through twice.

    Whoever calls it sees to it that only one thread does at a time.
    """

    def __init__(self) -> None:
        # One list, which changes in one step: Ctrl-C finds it before or after.
        self._entries: list[_Entry] = []
        self._length = len("[]")

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, call: ToolCall, text: str) -> int:
        """Add a call and return its place."""
        self._require_room(len(text) + 1)
        place = len(self._entries)
        self._entries.append(_Entry(call, text, is_answered=False))
        return place

    def answer(self, place: int, answered: ToolCall, text: str) -> None:
        """Put the call with its result in the place of the one without.

        Raises:
            InvalidArgumentError: it has a result, or all calls together are too long.
        """
        entry = self._entries[place]
        if entry.is_answered:
            raise InvalidArgumentError("The tool call has its result already.")
        self._require_room(len(text) - len(entry.text))
        self._entries[place] = _Entry(answered, text, is_answered=True)

    def text(self) -> str:
        """Return all calls as they are stored while the turn is streaming."""
        return f"[{','.join(entry.text for entry in self._entries)}]"

    def final_text(self) -> str:
        """Return all calls as they are stored at the end: those without a result are marked."""
        return f"[{','.join(map(_final, self._entries))}]"

    def _require_room(self, more: int) -> None:
        # Characters that are no ASCII have more bytes; SQLite's own limit is four times this one.
        if self._length + more > _MAX_BYTES:
            raise InvalidArgumentError(f"tool_calls must not be longer than {_MAX_BYTES} bytes.")
        self._length += more


def _final(entry: _Entry) -> str:
    if entry.is_answered:
        return entry.text
    return encoded_call(entry.call.call, is_interrupted=True)[1]


def encoded_call(
    call: Any,
    response: Any = None,
    *,
    is_answered: bool = False,
    is_interrupted: bool = False,
    name: str = "call",
) -> tuple[ToolCall, str]:
    """Return a call independent of the caller's objects, and its JSON text.

    Args:
        call: what is called.
        response: what came back.
        is_answered: whether it did; it may be None.
        is_interrupted: whether the turn ended before.
        name: of what is new, for the error.

    Raises:
        InvalidArgumentError: something is no JSON value.
    """
    given = ToolCall(call, response, is_interrupted=is_interrupted)
    return arguments.tool_call(name, given, is_answered=is_answered)
