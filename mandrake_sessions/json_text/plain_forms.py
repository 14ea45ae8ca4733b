"""What stands for a value that JSON does not have; to read that may raise whatever its code does.

Kinds are told by what they are or what they offer, so that no other library is imported for them.
"""

from __future__ import annotations

import binascii
import datetime
import enum
import itertools
import math
import os
import re
from collections import UserString
from collections.abc import Collection, Set
from typing import Any, Final, NamedTuple

import msgspec

_MOST_VALUES: Final = 4_000_000
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class PlainForm(NamedTuple):
    """What stands for a value.

    Attributes:
        name: what it is.
        value: it; it may need another form itself.
    """

    name: str
    value: Any


def as_str(value: object) -> str | None:
    """Return the text that a string is, of whatever class; None for what is none."""
    if type(value) is str:
        return value
    # Not isinstance(): an object may say that it is of a class that it is not of.
    return str.__str__(value) if issubclass(type(value), str) else None


def as_int(value: object) -> int | None:
    """Return the number that an integer is, of whatever class; None for what is none."""
    kind = type(value)
    if kind is int:
        return value  # type: ignore[return-value]  # as the line above says
    return int.__int__(value) if issubclass(kind, int) and kind is not bool else None  # type: ignore[arg-type]


def as_float(value: object) -> float | None:
    """Return the number that a float is, of whatever class; None for what is none."""
    return float.__float__(value) if issubclass(type(value), float) else None  # type: ignore[arg-type]


def type_name(value: Any) -> str:
    """Return the name of a value's type; never raises."""
    try:
        name = type(value).__name__
        name.encode()
    except Exception:  # noqa: BLE001  # a metaclass of a host's
        return "object"
    return name if type(name) is str else "object"


def quoted(text: str) -> str:
    """Return a text, which is UTF-8, as JSON."""
    return msgspec.json.encode(text).decode()


def paired(text: str) -> str:
    """Return a text with its surrogate pairs joined; what stays alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def plain_form(value: Any) -> PlainForm:
    """Return what stands for a value that is no mapping, list, tuple, text, number or constant."""
    try:
        found = _scalar(value) or _container(value)
    except Exception:  # noqa: BLE001  # a host's own objects: their text may still be there
        found = None
    return found or _other(value)


def _scalar(value: Any) -> PlainForm | None:  # noqa: PLR0911  # one for each kind
    if isinstance(value, enum.Enum):
        return PlainForm("its value", value.value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return PlainForm("base64 text", binascii.b2a_base64(bytes(value), newline=False).decode())
    if isinstance(value, (datetime.date, datetime.time)):
        return PlainForm("ISO 8601 text", value.isoformat())
    if isinstance(value, datetime.timedelta):
        # A subclass may be of another kind to msgspec.
        exact = datetime.timedelta(value.days, value.seconds, value.microseconds)
        return PlainForm("ISO 8601 text", msgspec.to_builtins(exact))
    if isinstance(value, os.PathLike):
        return PlainForm("text", os.fsdecode(value))
    if isinstance(value, UserString):
        return PlainForm("text", str(value))
    if isinstance(value, BaseException):
        return PlainForm("text", f"{type_name(value)}: {value}")
    return None


def _container(value: Any) -> PlainForm | None:  # noqa: PLR0911  # one for each kind
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        return PlainForm("an object", _attributes(value, value.__struct_fields__))
    if hasattr(type(value), "__dataclass_fields__"):
        # Late: whoever has one has imported it.
        import dataclasses

        names = [field.name for field in dataclasses.fields(value)]
        return PlainForm("an object", _attributes(value, names))
    if isinstance(fields := getattr(type(value), "__attrs_attrs__", None), tuple):
        return PlainForm("an object", _attributes(value, [field.name for field in fields]))
    if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)):
        return PlainForm("what its tolist() gives", value.tolist())
    if callable(getattr(value, "model_dump", None)):
        return PlainForm("what its model_dump() gives", value.model_dump())
    if isinstance(value, Set):
        return PlainForm("a list", _sorted(itertools.islice(value, _MOST_VALUES)))
    if isinstance(value, Collection):
        return PlainForm("a list", list(itertools.islice(value, _MOST_VALUES)))
    return None


def _attributes(value: Any, names: Any) -> dict[str, Any]:
    # One that is not set, of a dataclass with slots, is left out.
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _other(value: Any) -> PlainForm:
    kind: Any = type(value)
    is_speechless = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    attributes = getattr(value, "__dict__", None)
    if is_speechless and isinstance(attributes, dict):
        public = {name: it for name, it in attributes.items() if not name.startswith("_")}
        return PlainForm("an object of its attributes", public)
    # Without the address, the same value has the same text in the next process.
    return PlainForm("text", _ADDRESS.sub("", str(value)))


def _sorted(values: Any) -> list[Any]:
    """Return what is in a set in an order that does not change from process to process."""
    return sorted(values, key=_order)


def _order(value: Any) -> tuple[str, float, str]:
    try:
        if isinstance(value, (int, float)) and not math.isnan(value):
            return "", float(value), ""
        if isinstance(value, Set):
            return type_name(value), 0.0, ",".join(sorted(map(repr, value)))
        return type_name(value), 0.0, value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001  # a host's own objects, or an integer that is no float
        return type_name(value), 0.0, ""
