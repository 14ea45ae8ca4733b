"""JSON values: those that are, taken as they are; and any other, made one.

What a tool returns is not asked for again: nothing that it may be raises in ``storable``, or is
left out without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.json_writer import (
    DEEP,
    MAX_CONTAINERS,
    MAX_INTEGER,
    MAX_TEXT_BYTES,
    VALUE_DEPTH,
    JsonWriter,
    Unstorable,
    ValueChange,
)
from mandrake_sessions.plain_forms import (
    are_finite_members,
    as_float,
    as_int,
    as_str,
    is_finite,
    pass_on_ending,
    quoted,
    type_name,
)


class Storable(msgspec.Struct, frozen=True):
    """A value as it can be stored.

    Attributes:
        value: plain dicts, lists, texts, numbers, booleans and None.
        changes: what was changed, in its order; the first 100 of them.
    """

    value: Any
    changes: tuple[ValueChange, ...] = ()


def storable(value: Any) -> Storable:
    """Return a value as it can be stored in a tool call or in metadata, and what was changed.

    It never raises, whatever the value and its methods do; only ``KeyboardInterrupt`` and
    ``SystemExit`` pass. Of what is no list, tuple, dict or set of Python's, 100,000 objects and
    values are read in all (``MAX_FOREIGN``): such may be without end.

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
    numpy's scalars and arrays             what ``tolist()`` gives
    nested deeper than 198 levels          JSON text of the rest
    a value inside itself                  the text ``(contains itself)``
    everything else                        its text; or, where it has none, its attributes
    what raises, or is without end         a text in its place, which says so
    =====================================  =====================================================

    A tuple is stored as a list, as JSON has it, and is no change.

    Args:
        value: anything.

    Returns:
        The value, independent of the given one, and its changes.
    """
    return converted(value, VALUE_DEPTH)[0]


def converted(value: Any, depth: int, longest: int = MAX_TEXT_BYTES) -> tuple[Storable, str]:
    """Return a value as it can be stored, and its JSON text.

    Args:
        value: anything.
        depth: levels that it may have.
        longest: bytes that the text may have; of a longer one the beginning is kept, as a text.
    """
    writer = JsonWriter(depth, longest, is_strict=False)
    try:
        return _converted(writer, value, longest)
    except (MemoryError, RecursionError):
        # There was no memory, or no stack, for it as a whole: the turn and its text go on.
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
        # The host has left no room on the stack for what is nested at all.
        writer.note(DEEP)
        plain, text = text, quoted(text)
    return Storable(plain, tuple(writer.changes)), text


def json_value(
    name: str, value: object, *, strict: bool
) -> tuple[Any, str, tuple[ValueChange, ...]]:
    """Return a part of a tool call, independent of the caller's objects, and as JSON text.

    Args:
        name: of the argument.
        value: anything, or a JSON value if ``strict``.
        strict: whether a value that JSON does not have is refused, and not changed.

    Returns:
        The value, its text, and what was changed so that it can be stored.
    """
    if strict:
        plain = plain_json(name, value, VALUE_DEPTH)
        return plain, encoded_json(name, plain, VALUE_DEPTH), ()
    try:
        plain = _copy(value, VALUE_DEPTH, iter(range(MAX_CONTAINERS)))
        return plain, encoded_json(name, plain, VALUE_DEPTH), ()
    except BaseException as error:  # noqa: BLE001  # whatever is in the way, a host's own too
        pass_on_ending(error)
        changed, text = converted(value, VALUE_DEPTH)
        return changed.value, text, changed.changes


def plain_json(name: str, value: Any, depth: int) -> Any:
    """Copy a JSON value into plain types, so that the text made of it comes back equal.

    msgspec alone would write NaN as null and the key 1 as "1", and take datetimes and sets.
    """
    try:
        return _copy(value, depth, iter(range(MAX_CONTAINERS)))
    except BaseException as error:  # noqa: BLE001  # what JSON does not have, or a host's raises
        pass_on_ending(error)
    # What a dict holds is there, though a method of its own raises.
    return msgspec.json.decode(_strict_text(name, value, depth))


def _copy(value: Any, depth: int, containers: Iterator[int]) -> Any:
    """Return what ``plain_json`` does, or raise ``Unstorable`` without saying where.

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
        # Other readers of the file, SQLite's JSON functions first, would make a float of it.
        raise Unstorable
    number = as_float(value)
    if number is not None:
        if math.isfinite(number):
            return number
        raise Unstorable
    if depth == 0 or next(containers, None) is None:
        raise Unstorable
    # What a host's own code reads may be without end.
    if isinstance(value, (list, tuple)) and is_finite(value):
        return [_copy(item, depth - 1, containers) for item in value]
    if isinstance(value, Mapping) and are_finite_members(value):
        plain = {as_str(key): _copy(it, depth - 1, containers) for key, it in value.items()}
        if None not in plain:
            return plain
    raise Unstorable


def _strict_text(name: str, value: object, depth: int) -> str:
    """Return a value as JSON text, or raise what says where in it there is what JSON lacks."""
    try:
        return JsonWriter(depth, MAX_TEXT_BYTES, is_strict=True).write(value)
    except Unstorable as found:
        where, rule = found.where, found.rule
    place = f"{name}.{where}" if where[:1].isidentifier() else f"{name}{where}"
    raise InvalidArgumentError(f"{place} {rule}.")


def encoded_json(name: str, plain: Any, depth: int) -> str:
    """Return a plain value as JSON text; ``depth`` is for saying where in it something is wrong."""
    try:
        encoded = msgspec.json.encode(plain)
    except UnicodeEncodeError:
        # Raised below: this exception holds the text, and would hang on ours as its context.
        encoded = None
    if encoded is None:
        encoded = _strict_text(name, plain, depth).encode()
    if len(encoded) > MAX_TEXT_BYTES:
        raise InvalidArgumentError(f"{name} must not be longer than {MAX_TEXT_BYTES} bytes.")
    return encoded.decode()
