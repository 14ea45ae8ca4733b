"""Writes any value as JSON text, piece by piece and without recursion.

So depth costs no stack, and the writing ends even if a value contains itself or grows meanwhile.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from mandrake_sessions.json_text.plain_forms import (
    MAX_FOREIGN,
    are_finite_members,
    is_finite,
    paired,
    pass_on_ending,
    plain_form,
    quoted,
    type_name,
)

MAX_JSON_DEPTH: Final = 200
"""Levels of a JSON value; SQLite's JSON functions stop at 1,000."""

VALUE_DEPTH: Final = MAX_JSON_DEPTH - 2
"""Levels of a value inside a tool call: the list and the object around it take two."""

MAX_TEXT_BYTES: Final = 256 * 1024 * 1024
"""Bytes of one text in UTF-8; SQLite's own limit is 1e9 for a whole row."""

MAX_INTEGER: Final = 2**63 - 1
"""The largest integer that SQLite stores; its JSON functions make a float of a larger one."""

MAX_CONTAINERS: Final = 1_000_000
"""Lists and objects of a value: one that repeats a few of them may be endless."""

_MOST_VALUES: Final = 4_000_000
_DEEPEST: Final = 10_000
_MOST_CHANGES: Final = 100
_MOST_REPLACEMENTS: Final = 8
_LONGEST_KEY: Final = 10_000
_LONGEST_WHERE: Final = 200
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_CONSTANTS: Final = {None: "null", True: "true", False: "false"}
DEEP: Final = "a part that is nested too deep became JSON text"
_TOO_DEEP: Final = f"must not be nested deeper than {MAX_JSON_DEPTH}"
_NO_SURROGATES: Final = "must not contain lone surrogates"
_ENDLESS: Final = "must not be without end"
_CUT: Final = "(cut: it goes on)"


class ValueChange(msgspec.Struct, frozen=True):
    """A change that made a value storable.

    Attributes:
        where: the path to it, such as ``items[3].when``; empty for the value itself. A key other
            than a name of at most 32 letters, digits and ``_`` appears as its position: ``{2}``.
        what: the old and the new kind, such as ``datetime became ISO 8601 text``; no content.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class Unstorable(Exception):  # noqa: N818  # caught where the argument has a name
    """A value has a part that JSON lacks.

    Attributes:
        where: the path to that part; see ``ValueChange``.
        rule: the rule that it breaks.
    """

    def __init__(self, where: str = "", rule: str = "") -> None:
        super().__init__(rule)
        self.where = where
        self.rule = rule


class _Frame:
    """A list or an object that is being written.

    Attributes:
        children: the parts to be written: the place of each, its key as JSON, itself.
        step: the place of the part that is being written.
        outer: the text before it, if its own text becomes a text inside that.
    """

    __slots__ = ("children", "closing", "identity", "is_empty", "outer", "step")

    def __init__(self, children: Iterator[tuple[str, str, Any]], closing: str) -> None:
        self.children = children
        self.closing = closing
        self.identity = 0
        self.is_empty = True
        self.outer: list[str] | None = None
        self.step = ""


class _Instead(NamedTuple):
    """Another value, to be written in the place of the given one."""

    value: Any


class JsonWriter:
    """Writes one value as JSON text.

    Args:
        depth: levels that it may have.
        longest: about how many characters are written before the rest is left out.
        is_strict: whether a value that needs a change is refused.

    Attributes:
        changes: the changes so far.
    """

    def __init__(self, depth: int, longest: int, *, is_strict: bool) -> None:
        self.changes: list[ValueChange] = []
        self._depth = depth
        self._longest = longest
        self._is_strict = is_strict
        self._parts: list[str] = []
        self._size = 0
        self._frames: list[_Frame] = []
        self._above: set[int] = set()
        self._values_left = _MOST_VALUES
        self._containers_left = MAX_CONTAINERS
        self._foreign_left = MAX_FOREIGN

    def write(self, value: Any) -> str:
        """Return the JSON text of a value.

        Raises:
            Unstorable: a part needs a change, and the writer is strict.
        """
        self._put(value)
        while self._frames:
            frame = self._frames[-1]
            following = next(frame.children, None) if self._size <= self._longest else None
            if following is None:
                self._close()
                continue
            frame.step, key, child = following
            if not frame.is_empty:
                self._add(",")
            frame.is_empty = False
            self._add(key)
            self._put(child)
        return "".join(self._parts)

    def note(self, what: str, rule: str = "must hold JSON values only", step: str = "") -> None:
        """Note a change at the present place, or refuse it.

        Args:
            what: the old and the new kind.
            rule: the rule that the part breaks.
            step: from the present place to the part.
        """
        if not self._is_strict and len(self.changes) >= _MOST_CHANGES:
            return
        where = ("".join(frame.step for frame in self._frames) + step).removeprefix(".")
        if len(where) > _LONGEST_WHERE:
            where = f"{where[:_LONGEST_WHERE]}…"
        if self._is_strict:
            raise Unstorable(where, rule)
        self.changes.append(ValueChange(where, what))

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)

    # -- one value --------------------------------------------------------------------------

    def _put(self, value: Any) -> None:
        """Write a value; of a list or an object, the beginning."""
        if id(value) in self._above:
            self.note(f"{type_name(value)} inside itself became text", "must not contain itself")
            self._add(quoted("(contains itself)"))
            return
        present = value
        for _ in range(_MOST_REPLACEMENTS):
            try:
                found = self._read(present, is_given=present is value)
            except Unstorable:
                raise
            except BaseException as error:  # noqa: BLE001  # from a host's class, or a full stack
                pass_on_ending(error)
                break
            if isinstance(found, str):
                self._add(found)
                return
            if isinstance(found, _Frame):
                found.identity = id(value)
                self._open(found)
                return
            present = found.value
        name = type_name(value)
        self.note(f"{name} that cannot be read became text")
        self._add(quoted(f"({name} that cannot be read)"))

    def _read(self, value: Any, *, is_given: bool) -> str | _Frame | _Instead:  # noqa: PLR0911  # one for each kind
        """Return the text of a value, a frame with its parts, or another value in its place.

        Args:
            value: any operation on it may raise.
            is_given: whether it is the given value, and not its plain form.
        """
        if value is None or value is True or value is False:
            return _CONSTANTS[value]
        # Not isinstance(): an object may claim a class that it does not have.
        kind = type(value)
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if issubclass(kind, int):
            return self._integer(int.__int__(value))
        if issubclass(kind, float):
            return self._float(float.__float__(value))
        if not isinstance(value, (dict, list, tuple, Mapping)):
            form = plain_form(value, self._foreign_left)
            name = type_name(value)
            if is_given:
                self.note(f"{name} became {form.name}", f"must hold JSON values only, not {name}")
            if isinstance(form.value, (dict, list)) and not (
                isinstance(value, Collection) and is_finite(value)
            ):
                self._foreign_left -= 1 if isinstance(form.value, dict) else len(form.value)
            if form.is_cut:
                self._note_cut(name)
                form.value.append(_CUT)
            return _Instead(form.value)
        if len(self._frames) >= _DEEPEST or self._containers_left <= 0 or self._foreign_left < 0:
            self.note(f"{type_name(value)} without end became text", _ENDLESS)
            return quoted(_CUT)
        self._containers_left -= 1
        if isinstance(value, Mapping):
            return _Frame(iter(self._members(value)), "}")
        items = self._some(value, type_name(value), is_finite=is_finite(value))
        return _Frame(((f"[{at}]", "", item) for at, item in enumerate(items)), "]")

    def _some(self, values: Iterable[Any], name: str, *, is_finite: bool) -> list[Any]:
        """Return the items of a container; not all of them if it is endless or raises.

        Args:
            values: the container.
            name: the name of its type, for the note.
            is_finite: whether Python's own code iterates it.
        """
        found: list[Any] = []
        most = max(0, self._values_left if is_finite else self._foreign_left)
        is_whole = False
        try:
            found.extend(itertools.islice(values, most + 1))
            is_whole = len(found) <= most
        except BaseException as error:  # noqa: BLE001  # the items before the error are kept
            pass_on_ending(error)
        del found[most:]
        self._values_left -= len(found)
        if not is_finite:
            self._foreign_left -= len(found)
        if not is_whole:
            self._note_cut(name)
            found.append(_CUT)
        return found

    def _note_cut(self, name: str) -> None:
        self.note(f"{name} that does not end became its beginning", _ENDLESS)

    def _members(self, value: Mapping[Any, Any]) -> list[tuple[str, str, Any]]:
        """Return the members of an object in the form of a frame, each key once."""
        members = []
        taken: set[str] = set()
        last: dict[str, int] = {}
        try:
            items = value.items()
        except BaseException as error:  # the items of a dict can be read all the same
            pass_on_ending(error)
            if not isinstance(value, dict):
                raise
            items = dict.items(value)
        are_finite = are_finite_members(value)
        for at, member in enumerate(self._some(items, type_name(value), is_finite=are_finite)):
            # The mark for the rest of an endless mapping has no key.
            key, child = member if isinstance(member, tuple) else ("…", member)
            text = self._key(key, at)
            name = text
            while name in taken:
                last[text] = last.get(text, 1) + 1
                name = f"{text} ({last[text]})"
            taken.add(name)
            members.append((_step(name, at), f"{quoted(name)}:", child))
        return members

    def _key(self, key: Any, at: int) -> str:
        """Return a key as text that is UTF-8."""
        if not issubclass(type(key), str):
            kind = type_name(key)
            rule = "must not hold keys that are not strings"
            self.note(f"a key of type {kind} became text", rule, f"{{{at}}}")
            text = JsonWriter(VALUE_DEPTH, _LONGEST_KEY, is_strict=False).write(key)
            return msgspec.json.decode(text) if text.startswith('"') else text
        text = str.__str__(key)
        whole = paired(text)
        if whole is not text:
            self.note(
                "surrogates in a key were joined, or became U+FFFD", _NO_SURROGATES, f"{{{at}}}"
            )
        return whole

    # -- values without parts ---------------------------------------------------------------

    def _text(self, text: str) -> str:
        whole = paired(text)
        if whole is not text:
            self.note("surrogates were joined, or became U+FFFD", _NO_SURROGATES)
        return quoted(whole)

    def _integer(self, value: int) -> str:
        if -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
            return str(value)
        self.note(
            "an integer of more than 64 bits became text",
            "must not hold integers of more than 64 bits",
        )
        try:
            return quoted(str(value))
        except ValueError:
            # Python refuses to write so many decimal digits: that takes quadratic time.
            return quoted(hex(value))

    def _float(self, value: float) -> str:
        if math.isfinite(value):
            return repr(value)
        self.note("NaN or infinity became text", "must not hold NaN or infinity")
        return quoted("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")

    # -- values with parts ------------------------------------------------------------------

    def _open(self, frame: _Frame) -> None:
        if len(self._frames) == self._depth:
            self.note(DEEP, _TOO_DEEP)
            frame.outer, self._parts = self._parts, []
        self._frames.append(frame)
        self._above.add(frame.identity)
        self._add("{" if frame.closing == "}" else "[")

    def _close(self) -> None:
        frame = self._frames.pop()
        self._above.discard(frame.identity)
        self._add(frame.closing)
        if frame.outer is not None:
            text = "".join(self._parts)
            self._parts = frame.outer
            self._parts.append(quoted(text))


def _step(key: str, at: int) -> str:
    return f".{key}" if _NAME.fullmatch(key) else f"{{{at}}}"
