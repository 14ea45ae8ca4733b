"""JSON values, copied unchanged, and other values, converted to JSON.

A tool may not be run again for its result. So ``storable`` raises for no value, and reports each
part that it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.json_text.plain_forms import (
    are_finite_members,
    as_float,
    as_int,
    as_str,
    is_finite,
    pass_on_ending,
    quoted,
    type_name,
)
from mandrake_sessions.json_text.writer import (
    DEEP,
    MAX_CONTAINERS,
    MAX_INTEGER,
    MAX_TEXT_BYTES,
    VALUE_DEPTH,
    JsonWriter,
    Unstorable,
    ValueChange,
)


class Storable(msgspec.Struct, frozen=True):
    """A value in its stored form.

    Attributes:
        value: plain dicts, lists, texts, numbers, booleans and None.
        changes: the changes in their order; the first 100 of them.
    """

    value: Any
    changes: tuple[ValueChange, ...] = ()


def storable(value: Any) -> Storable:
    """Return a value as a tool call or metadata can store it, and the changes that this needed.

    It never raises, whatever the value and its methods do; only ``KeyboardInterrupt`` and
    ``SystemExit`` pass. Of containers other than Python's list, tuple, dict and set, 100,000
    objects and values are read in all (``MAX_FOREIGN``), because such a container may be endless.

    =====================================  =====================================================
    a lone surrogate                       U+FFFD; two halves of a pair are joined
    NaN, infinity                          the texts ``NaN``, ``Infinity``, ``-Infinity``
    an integer of more than 64 bits        its digits as text (hexadecimal above 4,300)
    dates, times, durations                ISO 8601 text
    bytes                                  base64 text
    a set                                  a list, sorted
    a key that is no string                text, as JSON would write the key
    ``Decimal``, ``UUID``, a path          text
    a member of an enumeration             its value
    dataclasses, Structs, attrs, Pydantic  an object of their fields
    numpy's scalars and arrays             the result of ``tolist()``
    nested deeper than 198 levels          JSON text of the rest
    a value inside itself                  the text ``(contains itself)``
    everything else                        its text; or its attributes, if it has no text
    a value that raises, or is endless     a text in its place that says so
    =====================================  =====================================================

    A tuple is stored as a list, as in JSON, and counts as no change.

    Args:
        value: anything.

    Returns:
        The value, independent of the given one, and its changes.
    """
    return converted(value, VALUE_DEPTH)[0]


def converted(value: Any, depth: int, longest: int = MAX_TEXT_BYTES) -> tuple[Storable, str]:
    """Return a value in its stored form, and its JSON text.

    Args:
        value: anything.
        depth: levels that it may have.
        longest: bytes that the text may have; of a longer one the beginning is stored, as a text.
    """
    writer = JsonWriter(depth, longest, is_strict=False)
    try:
        return _converted(writer, value, longest)
    except (MemoryError, RecursionError):
        # Memory or stack did not suffice for the whole value: the turn and its text go on.
        name = type_name(value)
        change = ValueChange("", f"{name} for which there was no memory became text")
        kept = f"({name} for which there was no memory)"
        return Storable(kept, (change,)), quoted(kept)


def _converted(writer: JsonWriter, value: Any, longest: int) -> tuple[Storable, str]:
    text = writer.write(value)
    size = len(text.encode())
    if size > longest:
        writer.note(f"{type_name(value)} that is too long became the beginning of its JSON text")
        text = quoted(f"{text[: longest // 8]}… (cut: {size} bytes or more)")
    try:
        plain = msgspec.json.decode(text)
    except RecursionError:
        # The host has left no room on the stack for any nested value.
        writer.note(DEEP)
        plain, text = text, quoted(text)
    return Storable(plain, tuple(writer.changes)), text


def json_value(
    name: str, value: object, *, strict: bool
) -> tuple[Any, str, tuple[ValueChange, ...]]:
    """Return a part of a tool call, independent of the caller's objects, and as JSON text.

    Args:
        name: the name of the argument.
        value: anything, or a JSON value if ``strict``.
        strict: whether to refuse a value that JSON lacks, instead of changing it.

    Returns:
        The value, its text, and the changes that made it storable.
    """
    if strict:
        plain = plain_json(name, value, VALUE_DEPTH)
        return plain, encoded_json(name, plain, VALUE_DEPTH), ()
    try:
        plain = _copy(value, VALUE_DEPTH, iter(range(MAX_CONTAINERS)))
        return plain, encoded_json(name, plain, VALUE_DEPTH), ()
    except BaseException as error:  # noqa: BLE001  # any obstacle, a host's own code too
        pass_on_ending(error)
        changed, text = converted(value, VALUE_DEPTH)
        return changed.value, text, changed.changes


def plain_json(name: str, value: Any, depth: int) -> Any:
    """Copy a JSON value into plain types, so that its JSON text decodes to an equal value.

    msgspec alone would write NaN as null and the key 1 as "1", and accept datetimes and sets.
    """
    try:
        return _copy(value, depth, iter(range(MAX_CONTAINERS)))
    except BaseException as error:  # noqa: BLE001  # no JSON value, or an error of a host's class
        pass_on_ending(error)
    # The items of a dict can be read even if a method of its own raises.
    return msgspec.json.decode(_strict_text(name, value, depth))


def _copy(value: Any, depth: int, containers: Iterator[int]) -> Any:
    """Return the copy for ``plain_json``, or raise ``Unstorable`` without the place.

    Args:
        value: the value.
        depth: levels that it may still have.
        containers: one for each list and object that it may still hold.
    """
    if value is None or value is True or value is False:
        return value
    given = as_str(value)
    if given is not None:
        return given
    whole = as_int(value)
    if whole is not None:
        if -MAX_INTEGER - 1 <= whole <= MAX_INTEGER:
            return whole
        # Other readers of the file, such as SQLite's JSON functions, would make a float of it.
        raise Unstorable
    number = as_float(value)
    if number is not None:
        if math.isfinite(number):
            return number
        raise Unstorable
    if depth == 0 or next(containers, None) is None:
        raise Unstorable
    # A container that a host's own code iterates may be endless.
    if isinstance(value, (list, tuple)) and is_finite(value):
        return [_copy(item, depth - 1, containers) for item in value]
    if isinstance(value, Mapping) and are_finite_members(value):
        plain = {as_str(key): _copy(it, depth - 1, containers) for key, it in value.items()}
        if None not in plain:
            return plain
    raise Unstorable


def _strict_text(name: str, value: object, depth: int) -> str:
    """Return a value as JSON text, or raise an error with the place of the part that JSON lacks."""
    try:
        return JsonWriter(depth, MAX_TEXT_BYTES, is_strict=True).write(value)
    except Unstorable as found:
        where, rule = found.where, found.rule
    place = f"{name}.{where}" if where[:1].isidentifier() else f"{name}{where}"
    raise InvalidArgumentError(f"{place} {rule}.")


def encoded_json(name: str, plain: Any, depth: int) -> str:
    """Return a plain value as JSON text; an error gives the place, down to ``depth`` levels."""
    try:
        encoded = msgspec.json.encode(plain)
    except UnicodeEncodeError:
        # Raised below: this exception holds the text, and would be the context of the other one.
        encoded = None
    if encoded is None:
        encoded = _strict_text(name, plain, depth).encode()
    if len(encoded) > MAX_TEXT_BYTES:
        raise InvalidArgumentError(f"{name} must not be longer than {MAX_TEXT_BYTES} bytes.")
    return encoded.decode()
