"""What stands for a value that JSON does not have; to read that may raise whatever its code does.

Kinds are told by what they are or what they offer, so that no other library is imported for them.
"""

from __future__ import annotations

import binascii
import collections
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

MAX_FOREIGN: Final = 100_000
"""Objects and values that are read of what is no list, tuple, dict or set of Python's, in all.

Only such can be without end. It takes about a second to find that one is.
"""

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class PlainForm(NamedTuple):
    """What stands for a value.

    Attributes:
        name: what it is.
        value: it; it may need another form itself.
        is_cut: whether it is only the beginning.
    """

    name: str
    value: Any
    is_cut: bool = False


def pass_on_ending(error: BaseException) -> None:
    """Raise again what shall end the program: Ctrl-C, and an exit.

    Whatever else the code of a value raises, of any class, is a fact of that value.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def is_finite(value: object) -> bool:
    """Return whether a container is read by Python's own code, and so comes to an end."""
    return getattr(type(value), "__iter__", None) in _FINITE


def are_finite_members(value: object) -> bool:
    """Return whether the members of a mapping are those of a dict."""
    return getattr(type(value), "items", None) in _FINITE_MEMBERS


_ORDERED: Final = collections.OrderedDict[str, str]()
_DICT: Final[dict[str, str]] = {}
_FINITE: Final[set[Any]] = {
    *(list.__iter__, tuple.__iter__, dict.__iter__, set.__iter__, frozenset.__iter__),
    *(collections.OrderedDict.__iter__, collections.deque.__iter__),
    *(type(_ORDERED.keys()).__iter__, type(_ORDERED.values()).__iter__),
    *(type(_DICT.keys()).__iter__, type(_DICT.values()).__iter__, type(_DICT.items()).__iter__),
}
_FINITE_MEMBERS: Final[set[Any]] = {dict.items, collections.OrderedDict.items}


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
    except BaseException as error:  # noqa: BLE001  # a metaclass of a host's
        pass_on_ending(error)
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


def plain_form(value: Any, most: int) -> PlainForm:
    """Return what stands for a value that is no mapping, list, tuple, text, number or constant.

    Args:
        value: it.
        most: how many values are read of one that may be without end.
    """
    try:
        found = _scalar(value) or _container(value, most)
    except BaseException as error:  # noqa: BLE001  # a host's own: their text may still be there
        pass_on_ending(error)
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


def _container(value: Any, most: int) -> PlainForm | None:  # noqa: PLR0911  # one for each kind
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
    if isinstance(value, Collection):
        found = list(value) if is_finite(value) else list(itertools.islice(value, most + 1))
        is_cut = len(found) > most and not is_finite(value)
        kept = found[:most] if is_cut else found
        if isinstance(value, Set):
            kept.sort(key=_order)
        return PlainForm("a list", kept, is_cut)
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


def _order(value: Any) -> tuple[str, float, str]:
    """Return what gives the values of a set the same order in each process."""
    try:
        if isinstance(value, (int, float)) and not math.isnan(value):
            return "", float(value), ""
        if isinstance(value, Set):
            return type_name(value), 0.0, ",".join(sorted(map(repr, value)))
        return type_name(value), 0.0, value if isinstance(value, str) else repr(value)
    except BaseException as error:  # noqa: BLE001  # a host's own, or an integer that is no float
        pass_on_ending(error)
        return type_name(value), 0.0, ""
