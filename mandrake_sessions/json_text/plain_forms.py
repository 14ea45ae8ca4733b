"""Plain forms of values that JSON lacks; reading a value may raise whatever its code raises.

A kind is recognized by its class or its methods, so that no other library is imported for it.
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
"""Objects and values in all that are read from containers other than Python's list, tuple, dict and
set. Only these can be endless; about a second shows that one is.
"""

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class PlainForm(NamedTuple):
    """The plain form of a value.

    Attributes:
        name: what the form is, for the change.
        value: the form; it may need another form itself.
        is_cut: whether it is only the beginning.
    """

    name: str
    value: Any
    is_cut: bool = False


def pass_on_ending(error: BaseException) -> None:
    """Raise an error again if it ends the program: Ctrl-C, or an exit.

    Any other exception from the code of a value, of any class, is a property of that value.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def is_finite(value: object) -> bool:
    """Return whether Python's own code iterates a container, so that it has an end."""
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
    """Return a string of any subclass as plain text; None for another object."""
    if type(value) is str:
        return value
    # Not isinstance(): an object may claim a class that it does not have.
    return str.__str__(value) if issubclass(type(value), str) else None


def as_int(value: object) -> int | None:
    """Return an integer of any subclass as a plain one; None for another object."""
    kind = type(value)
    if kind is int:
        return value  # type: ignore[return-value]  # the line above has checked it
    return int.__int__(value) if issubclass(kind, int) and kind is not bool else None  # type: ignore[arg-type]


def as_float(value: object) -> float | None:
    """Return a float of any subclass as a plain one; None for another object."""
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
    """Return a text without lone surrogates as JSON."""
    return msgspec.json.encode(text).decode()


def paired(text: str) -> str:
    """Return a text with its surrogate pairs joined; lone ones become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def plain_form(value: Any, most: int) -> PlainForm:
    """Return the plain form of a value other than mapping, list, tuple, text, number or constant.

    Args:
        value: the value.
        most: how many items are read of a container that may be endless.
    """
    try:
        found = _scalar(value) or _container(value, most)
    except BaseException as error:  # noqa: BLE001  # from a host's class: its text may still work
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
        # Late: a host that has a dataclass has imported this.
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
    # A dataclass with slots may lack an attribute that was never set.
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
    """Return a sort key that gives the values of a set the same order in each process."""
    try:
        if isinstance(value, (int, float)) and not math.isnan(value):
            return "", float(value), ""
        if isinstance(value, Set):
            return type_name(value), 0.0, ",".join(sorted(map(repr, value)))
        return type_name(value), 0.0, value if isinstance(value, str) else repr(value)
    except BaseException as error:  # noqa: BLE001  # from a host's class, or of a huge integer
        pass_on_ending(error)
        return type_name(value), 0.0, ""
