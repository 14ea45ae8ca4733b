"""What callers may pass.

Each function checks one kind of argument, an object until then, and returns it as it is stored.
What is refused raises ``InvalidArgumentError`` with the name of the argument and never its value,
which is somebody's text. It happens before a lease is taken, so a refused call wrote nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.ids import MAX_ID_LENGTH, new_id, to_microseconds
from mandrake_sessions.models import NewTurn, ToolCall, TurnStatus

MAX_TEXT_BYTES: Final = 256 * 1024 * 1024
"""Bytes of one text in UTF-8; SQLite's own limit is 1e9 for a whole row."""

MAX_JSON_DEPTH: Final = 200
"""Levels of a JSON value; SQLite's JSON functions stop at 1,000."""

MAX_LIMIT: Final = 10_000
"""Rows of one page."""

MAX_SECONDS: Final = 86_400
"""One day; threads cannot wait for any length of time everywhere."""

MAX_COUNT: Final = 2**63 - 1
"""The largest integer that SQLite stores."""

MAX_INDEX: Final = 2**31 - 1
"""The largest index a caller may name: the counter behind it must be able to go on."""

_FIRST_MOMENT: Final = to_microseconds(datetime.min.replace(tzinfo=UTC))
_LAST_MOMENT: Final = to_microseconds(datetime.max.replace(tzinfo=UTC))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STATUS: Final[dict[str, TurnStatus]] = {status.value: status for status in TurnStatus}
_TOOL_CALL_KEYS: Final = frozenset({"call", "response", "raw", "is_interrupted"})


def lookup_id(name: str, value: object) -> str:
    """Return an id to look something up by: any text that a database can hold."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be the id itself, a string.")
    if not _is_utf8(value):
        raise InvalidArgumentError(f"{name} must not contain lone surrogates.")
    return value


def fresh_id(name: str, value: object) -> str:
    """Return the id for a new row: the one given, or a new UUIDv7 for None."""
    if value is None:
        return new_id()
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= MAX_ID_LENGTH
        or "\0" in value
        or not _is_utf8(value)
    ):
        raise InvalidArgumentError(
            f"{name} must be a string of 1 to {MAX_ID_LENGTH} characters "
            "without NUL and lone surrogates."
        )
    return _exact_str(value)


def text(name: str, value: object) -> str:
    """Return a text of at most ``MAX_TEXT_BYTES`` in UTF-8."""
    if type(value) is str and value.isascii() and len(value) <= MAX_TEXT_BYTES:
        return value
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a string.")
    if not _is_utf8(value):
        raise InvalidArgumentError(f"{name} must not contain lone surrogates.")
    # No character has fewer than one byte or more than four.
    if len(value) * 4 > MAX_TEXT_BYTES and (
        len(value) > MAX_TEXT_BYTES or len(value.encode()) > MAX_TEXT_BYTES
    ):
        raise InvalidArgumentError(f"{name} must not be longer than {MAX_TEXT_BYTES} bytes.")
    return _exact_str(value)


def optional_text(name: str, value: object) -> str | None:
    """Return a text, or None."""
    return None if value is None else text(name, value)


def workspace_name(name: str, value: object) -> str:
    """Return a workspace's name: 1 to 64 of letters, digits, ``-``, ``_``; no sign in front."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise InvalidArgumentError(
            f"{name} must be 1 to 64 of A-Z, a-z, 0-9, '-' and '_', "
            "and start with a letter or digit."
        )
    return _exact_str(value)


def flag(name: str, value: object) -> bool:
    """Return True or False, given as such."""
    if type(value) is not bool:
        raise InvalidArgumentError(f"{name} must be True or False.")
    return value


def seconds(name: str, value: object) -> float:
    """Return a time that threads can wait: 0 to ``MAX_SECONDS``."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 <= value <= MAX_SECONDS
    ):
        raise InvalidArgumentError(f"{name} must be a number of seconds from 0 to {MAX_SECONDS}.")
    return value


def optional_instance(name: str, value: object, kind: type) -> None:
    """Make sure that ``value`` is None or a ``kind``."""
    if value is not None and not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} must be a {kind.__name__} or None.")


def path(name: str, value: object) -> str | os.PathLike[str]:
    """Return what names a file or folder."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidArgumentError(f"{name} must be a str or os.PathLike.")
    return value


def count(name: str, value: object) -> int:
    """Return a whole number from 0 to ``MAX_COUNT``."""
    return _whole(name, value, 0, MAX_COUNT)


def optional_count(name: str, value: object) -> int | None:
    """Return a whole number from 0 to ``MAX_COUNT``, or None."""
    return None if value is None else count(name, value)


def index(name: str, value: object) -> int:
    """Return an index from 0 to ``MAX_INDEX``."""
    return _whole(name, value, 0, MAX_INDEX)


def optional_index(name: str, value: object) -> int | None:
    """Return an index from 0 to ``MAX_INDEX``, or None."""
    return None if value is None else index(name, value)


def after_index(name: str, value: object) -> int:
    """Return the index behind which a page begins; None is before the first, -1."""
    return -1 if value is None else _whole(name, value, 0, MAX_COUNT)


def limit(name: str, value: object) -> int:
    """Return the size of a page, 1 to ``MAX_LIMIT`` rows."""
    return _whole(name, value, 1, MAX_LIMIT)


def optional_limit(name: str, value: object) -> int:
    """Return the size of a page, 1 to ``MAX_LIMIT`` rows; None is all rows, SQLite's -1."""
    return -1 if value is None else limit(name, value)


def offset(name: str, value: object) -> int:
    """Return how many rows are left out in front, 0 to ``MAX_COUNT``."""
    return _whole(name, value, 0, MAX_COUNT)


def cost(name: str, value: object) -> float:
    """Return an amount of money: finite and not negative, in the host's currency."""
    if isinstance(value, float) or type(value) is int:
        try:
            amount = float(value)
        except OverflowError:
            amount = math.inf
        if 0 <= amount < math.inf:
            return amount
    raise InvalidArgumentError(f"{name} must be a finite number of at least 0.")


def status(name: str, value: object) -> TurnStatus:
    """Return a turn's status, given as the enum or as its value."""
    found = _STATUS.get(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(_STATUS)}.")
    return found


def moment(name: str, value: object) -> int:
    """Return an aware datetime in microseconds since the epoch, UTC."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidArgumentError(f"{name} must be a datetime with a time zone.")
    return to_microseconds(value)


def stored_moment(name: str, value: object) -> int:
    """Return microseconds since the epoch that a datetime can show, years 1 to 9999."""
    return _whole(name, value, _FIRST_MOMENT, _LAST_MOMENT)


def json_object(name: str, value: object) -> tuple[dict[str, Any], str]:
    """Return a mapping as a plain dict, independent of the caller's, and as JSON text.

    None is the empty object. The text read back is equal to the dict.
    """
    if value is None:
        return {}, "{}"
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{name} must be a mapping.")
    plain: dict[str, Any] = _plain(name, value, MAX_JSON_DEPTH)
    return plain, _encode(name, plain)


def tool_calls(name: str, value: object) -> tuple[tuple[ToolCall, ...], str]:
    """Return tool calls, independent of the caller's objects, and as JSON text."""
    if value == ():
        return (), "[]"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArgumentError(f"{name} must be a sequence of ToolCall or mappings.")
    if not value:
        return (), "[]"
    calls = tuple(_tool_call(name, item) for item in value)
    return calls, _encode(name, [_stored_tool_call(call) for call in calls])


def tool_call(name: str, value: ToolCall, *, is_answered: bool) -> tuple[ToolCall, str]:
    """Return one tool call, as ``tool_calls`` does; None is its result if it ``is_answered``."""
    call = _tool_call(name, value)
    return call, _encode(name, _stored_tool_call(call, is_answered=is_answered))


def new_turns(name: str, value: object) -> tuple[NewTurn, ...]:
    """Return the turns of a finished exchange."""
    # The usual kinds first: asking an abstract class costs more than all the rest.
    if not isinstance(value, list | tuple) and not isinstance(value, Sequence):
        raise InvalidArgumentError(f"{name} must be a sequence of NewTurn.")
    turns = tuple(value)
    for turn in turns:
        if not isinstance(turn, NewTurn):
            raise InvalidArgumentError(f"{name} must be a sequence of NewTurn.")
    return turns


def _tool_call(name: str, item: object) -> ToolCall:
    if isinstance(item, ToolCall):
        call, response, raw = item.call, item.response, item.raw
        is_interrupted = item.is_interrupted
    elif isinstance(item, Mapping) and "call" in item and item.keys() <= _TOOL_CALL_KEYS:
        call, response, raw = item["call"], item.get("response"), item.get("raw")
        is_interrupted = item.get("is_interrupted", False)
    else:
        raise InvalidArgumentError(
            f"{name} must hold ToolCall, or mappings with 'call' and 'response'."
        )
    # Two levels are the list's and the object's around these.
    return ToolCall(
        _plain(name, call, MAX_JSON_DEPTH - 2),
        _plain(name, response, MAX_JSON_DEPTH - 2),
        optional_text(name, raw),
        flag(f"is_interrupted of {name}", is_interrupted),
    )


def _stored_tool_call(call: ToolCall, *, is_answered: bool = False) -> dict[str, Any]:
    """Return a tool call as its JSON text holds it: without a ``response`` it has no result."""
    stored = {"call": call.call}
    if call.response is not None or is_answered:
        stored["response"] = call.response
    if call.raw is not None:
        stored["raw"] = call.raw
    if call.is_interrupted:
        stored["is_interrupted"] = True
    return stored


def _plain(name: str, value: Any, depth: int) -> Any:
    """Copy a JSON value into plain types, so that the text made of it comes back equal.

    msgspec alone would write NaN as null and the key 1 as "1", and take datetimes and sets.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _exact_str(value)
    if isinstance(value, int):
        if -MAX_COUNT - 1 <= value <= MAX_COUNT:
            return int(value)
        # Other readers of the file, SQLite's JSON functions first, would make a float of it.
        raise InvalidArgumentError(f"{name} must not hold integers of more than 64 bits.")
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise InvalidArgumentError(f"{name} must not hold NaN or infinity.")
    if depth == 0:
        raise InvalidArgumentError(f"{name} must not be nested deeper than {MAX_JSON_DEPTH}.")
    if isinstance(value, (list, tuple)):
        return [_plain(name, item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidArgumentError(f"{name} must not hold keys that are not strings.")
        return {_exact_str(key): _plain(name, item, depth - 1) for key, item in value.items()}
    raise InvalidArgumentError(f"{name} must hold JSON values only, not {type(value).__name__}.")


def _encode(name: str, plain: Any) -> str:
    try:
        encoded = msgspec.json.encode(plain)
    except UnicodeEncodeError:
        # Raised below: this exception holds the text, and would hang on ours as its context.
        encoded = None
    if encoded is None:
        raise InvalidArgumentError(f"{name} must not contain lone surrogates.")
    if len(encoded) > MAX_TEXT_BYTES:
        raise InvalidArgumentError(f"{name} must not be longer than {MAX_TEXT_BYTES} bytes.")
    return encoded.decode()


def _whole(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgumentError(f"{name} must be a whole number from {least} to {most}.")
    return value


def _is_utf8(value: str) -> bool:
    # isascii() reads a flag; only other text is looked through.
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _exact_str(value: str) -> str:
    """Return a str, and never a subclass, whose own methods would be called on what we return."""
    return value if type(value) is str else str.__str__(value)
