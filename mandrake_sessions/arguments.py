"""Checks of the arguments that callers pass.

Each function checks one kind of argument, which is any object until then, and returns it in its
stored form. A value that is refused raises ``InvalidArgumentError`` with the name of the argument
and never the value, which may be a user's text. The check comes before a lease is taken, so a
refused call has written nothing.

An object of a subclass of ``str``, ``int`` or ``float`` is read as its plain value without calling
its own methods. So callers must use the returned value instead of the argument. Only True and False
are no numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Final, TypeGuard, TypeVar

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.ids import MAX_ID_LENGTH, new_id, to_microseconds
from mandrake_sessions.json_text.plain_forms import as_float, as_int, as_str
from mandrake_sessions.json_text.values import encoded_json, plain_json
from mandrake_sessions.json_text.writer import (
    MAX_INTEGER,
    MAX_JSON_DEPTH,
    MAX_TEXT_BYTES,
    VALUE_DEPTH,
)
from mandrake_sessions.models import NewTurn, ToolCall, TurnStatus

T = TypeVar("T")

MAX_LIMIT: Final = 10_000
"""Rows of one page."""

MAX_SECONDS: Final = 86_400
"""One day; not every system lets a thread wait longer."""

MAX_COUNT: Final = MAX_INTEGER
"""The largest count."""

MAX_INDEX: Final = 2**31 - 1
"""The largest index that a caller may give: the counter behind it must be able to continue."""

_FIRST_MOMENT: Final = to_microseconds(datetime.min.replace(tzinfo=UTC))
_LAST_MOMENT: Final = to_microseconds(datetime.max.replace(tzinfo=UTC))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STATUS: Final[dict[str, TurnStatus]] = {status.value: status for status in TurnStatus}
_TOOL_CALL_KEYS: Final = frozenset({"call", "response", "raw", "is_interrupted"})


def lookup_id(name: str, value: object) -> str:
    """Return an id for a query: any text that a database can hold."""
    if type(value) is str and value.isascii():
        return value
    id = as_str(value)
    if id is None:
        raise InvalidArgumentError(f"{name} must be the id itself, a string.")
    if not _is_utf8(id):
        raise InvalidArgumentError(f"{name} must not contain lone surrogates.")
    return id


def fresh_id(name: str, value: object) -> str:
    """Return the id for a new row: the given one, or a new UUIDv7 for None."""
    if value is None:
        return new_id()
    id = as_str(value)
    if id is None or not 1 <= len(id) <= MAX_ID_LENGTH or "\0" in id or not _is_utf8(id):
        raise InvalidArgumentError(
            f"{name} must be a string of 1 to {MAX_ID_LENGTH} characters "
            "without NUL and lone surrogates."
        )
    return id


def text(name: str, value: object) -> str:
    """Return a text of at most ``MAX_TEXT_BYTES`` in UTF-8."""
    if type(value) is str and value.isascii() and len(value) <= MAX_TEXT_BYTES:
        return value
    given = as_str(value)
    if given is None:
        raise InvalidArgumentError(f"{name} must be a string.")
    if not _is_utf8(given):
        raise InvalidArgumentError(f"{name} must not contain lone surrogates.")
    # No character has fewer than one byte or more than four.
    if len(given) * 4 > MAX_TEXT_BYTES and (
        len(given) > MAX_TEXT_BYTES or len(given.encode()) > MAX_TEXT_BYTES
    ):
        raise InvalidArgumentError(f"{name} must not be longer than {MAX_TEXT_BYTES} bytes.")
    return given


def optional_text(name: str, value: object) -> str | None:
    """Return a text, or None."""
    return None if value is None else text(name, value)


def workspace_name(name: str, value: object) -> str:
    """Return a workspace's name: 1 to 64 letters, digits, ``-``, ``_``, from a letter or digit."""
    given = as_str(value)
    if given is None or _NAME.fullmatch(given) is None:
        raise InvalidArgumentError(
            f"{name} must be 1 to 64 of A-Z, a-z, 0-9, '-' and '_', "
            "and start with a letter or digit."
        )
    return given


def flag(name: str, value: object) -> bool:
    """Return True or False; other values are refused."""
    if type(value) is not bool:
        raise InvalidArgumentError(f"{name} must be True or False.")
    return value


def seconds(name: str, value: object) -> float:
    """Return a time that threads can wait: 0 to ``MAX_SECONDS``."""
    # The usual types first: every call passes here, most of them more than once.
    given = value if type(value) is float else as_float(value)
    if given is None:
        given = as_int(value)
    if given is None or not 0 <= given <= MAX_SECONDS:
        raise InvalidArgumentError(f"{name} must be a number of seconds from 0 to {MAX_SECONDS}.")
    return given


def optional_instance(name: str, value: object, kind: type) -> None:
    """Require that ``value`` is None or a ``kind``."""
    if value is not None and not is_one(value, kind):
        raise InvalidArgumentError(f"{name} must be a {kind.__name__} or None.")


def function(name: str, value: object) -> None:
    """Require that ``value`` can be called."""
    if not callable(value):
        raise InvalidArgumentError(f"{name} must be callable.")


def path(name: str, value: object) -> str | os.PathLike[str]:
    """Return the name of a file or folder."""
    if issubclass(type(value), PurePath):
        return value  # type: ignore[return-value]  # the line above has checked it
    given = as_str(value)
    if given is None:
        with contextlib.suppress(Exception):  # a host's own __fspath__, or none at all
            given = as_str(os.fspath(value))  # type: ignore[call-overload]  # any object
    if given is None:
        raise InvalidArgumentError(f"{name} must be a str or os.PathLike.")
    return given


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
    """Return the index after which a page begins; None, for the first page, becomes -1."""
    return -1 if value is None else _whole(name, value, 0, MAX_COUNT)


def limit(name: str, value: object) -> int:
    """Return the size of a page, 1 to ``MAX_LIMIT`` rows."""
    return _whole(name, value, 1, MAX_LIMIT)


def optional_limit(name: str, value: object) -> int:
    """Return the size of a page, 1 to ``MAX_LIMIT`` rows; None is all rows, SQLite's -1."""
    return -1 if value is None else limit(name, value)


def count_of_last(name: str, value: object) -> int:
    """Return the number of last rows, 0 to ``MAX_LIMIT``."""
    return _whole(name, value, 0, MAX_LIMIT)


def offset(name: str, value: object) -> int:
    """Return the number of rows to skip, 0 to ``MAX_COUNT``."""
    return _whole(name, value, 0, MAX_COUNT)


def cost(name: str, value: object) -> float:
    """Return an amount of money: finite and not negative, in the host's currency."""
    amount = as_float(value)
    whole = as_int(value) if amount is None else None
    if whole is not None:
        try:
            amount = float(whole)
        except OverflowError:
            amount = math.inf
    if amount is not None and 0 <= amount < math.inf:
        return amount
    raise InvalidArgumentError(f"{name} must be a finite number of at least 0.")


def status(name: str, value: object) -> TurnStatus:
    """Return a turn's status, given as the enum or as its value."""
    given = as_str(value)
    found = None if given is None else _STATUS.get(given)
    if found is None:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(_STATUS)}.")
    return found


def moment(name: str, value: object) -> int:
    """Return an aware datetime in microseconds since the epoch, UTC."""
    found = None
    if is_one(value, datetime):
        with contextlib.suppress(Exception):  # a host's own time zone
            found = _microseconds(value)
    if found is None:
        raise InvalidArgumentError(f"{name} must be a datetime with a time zone.")
    return found


def stored_moment(name: str, value: object) -> int:
    """Return microseconds since the epoch that a datetime can hold, years 1 to 9999."""
    return _whole(name, value, _FIRST_MOMENT, _LAST_MOMENT)


def json_object(name: str, value: object) -> tuple[dict[str, Any], str]:
    """Return a mapping as a plain dict, independent of the caller's, and as JSON text.

    None becomes the empty object. The text read back is equal to the dict.
    """
    if value is None:
        return {}, "{}"
    if not is_one(value, Mapping):  # type: ignore[type-abstract]  # isinstance() accepts it
        raise InvalidArgumentError(f"{name} must be a mapping.")
    plain: dict[str, Any] = plain_json(name, value, MAX_JSON_DEPTH)
    return plain, encoded_json(name, plain, MAX_JSON_DEPTH)


def tool_calls(name: str, value: object) -> tuple[tuple[ToolCall, ...], str]:
    """Return tool calls, independent of the caller's objects, and as JSON text."""
    if type(value) is tuple and not value:
        return (), "[]"
    given = None if is_one(value, str) else _items(value)
    if given is None:
        raise InvalidArgumentError(f"{name} must be a sequence of ToolCall or mappings.")
    calls = tuple(_tool_call(f"{name}[{at}]", item) for at, item in enumerate(given))
    encoded = encoded_json(name, [_stored_tool_call(call) for call in calls], MAX_JSON_DEPTH)
    return calls, encoded


def new_turns(name: str, value: object) -> tuple[NewTurn, ...]:
    """Return the turns of a finished exchange."""
    turns = _items(value)
    if turns is not None:
        for turn in turns:
            if not is_one(turn, NewTurn):
                turns = None
                break
    if turns is None:
        raise InvalidArgumentError(f"{name} must be a sequence of NewTurn.")
    return turns


def _tool_call(name: str, item: object) -> ToolCall:
    if is_one(item, ToolCall):
        call, response, raw = item.call, item.response, item.raw
        is_interrupted = item.is_interrupted
    else:
        fields = {as_str(key): part for key, part in _pairs(item)}
        if "call" not in fields or not fields.keys() <= _TOOL_CALL_KEYS:
            raise InvalidArgumentError(
                f"{name} must be a ToolCall, or a mapping with 'call' and 'response'."
            )
        call, response, raw = fields["call"], fields.get("response"), fields.get("raw")
        is_interrupted = fields.get("is_interrupted", False)
    return ToolCall(
        plain_json(f"{name}.call", call, VALUE_DEPTH),
        plain_json(f"{name}.response", response, VALUE_DEPTH),
        optional_text(f"{name}.raw", raw),
        flag(f"{name}.is_interrupted", is_interrupted),
    )


def _stored_tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call as its JSON text has it: without a ``response`` it has no result."""
    stored = {"call": call.call}
    if call.response is not None:
        stored["response"] = call.response
    if call.raw is not None:
        stored["raw"] = call.raw
    if call.is_interrupted:
        stored["is_interrupted"] = True
    return stored


def _whole(name: str, value: object, least: int, most: int) -> int:
    given = value if type(value) is int else as_int(value)
    if given is None or not least <= given <= most:
        raise InvalidArgumentError(f"{name} must be a whole number from {least} to {most}.")
    return given


def _is_utf8(value: str) -> bool:
    # isascii() reads a flag; only other text is encoded.
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_one(value: object, kind: type[T]) -> TypeGuard[T]:
    """Return whether a value is a ``kind``; False if the check itself raises."""
    try:
        return isinstance(value, kind)
    except Exception:  # noqa: BLE001  # a host's own __class__
        return False


def _items(value: object) -> tuple[Any, ...] | None:
    """Return the items of a sequence; None for another object, or one that cannot be read."""
    # The usual types first: the check of an abstract class costs more than all the rest.
    if type(value) is list or type(value) is tuple:
        return tuple(value)
    try:
        return tuple(value) if isinstance(value, Sequence) else None
    except Exception:  # noqa: BLE001  # a host's own sequence
        return None


def _microseconds(value: datetime) -> int | None:
    return None if value.utcoffset() is None else to_microseconds(value)


def _pairs(value: object) -> Iterable[tuple[object, Any]]:
    """Return the items of a mapping; none for another object, or one that cannot be read."""
    try:
        return tuple(value.items()) if isinstance(value, Mapping) else ()
    except Exception:  # noqa: BLE001  # a host's own mapping
        return ()
