"""What tools return is stored, whatever it is: changed where JSON does not have it, and said so."""

from __future__ import annotations

import asyncio
import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import itertools
import json
import math
import pathlib
import subprocess
import sys
import threading
import types
import unittest.mock
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mandrake_sessions import (
    InvalidArgumentError,
    SessionManager,
    Storable,
    ToolCall,
    TurnStatus,
    ValueChange,
    storable,
)
from mandrake_sessions.json_text import values, writer
from mandrake_sessions.json_text.plain_forms import MAX_FOREIGN
from mandrake_sessions.json_text.values import json_value
from mandrake_sessions.json_text.writer import JsonWriter

Pair = collections.namedtuple("Pair", "a b")


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int
    y: Any


class Record(msgspec.Struct):
    name: str


class Attributed:
    __attrs_attrs__ = (types.SimpleNamespace(name="size"),)
    size = 3


class Model:
    def model_dump(self) -> dict[str, Any]:
        return {"of": "Pydantic"}


class Array:
    dtype = "float64"

    def tolist(self) -> list[float]:
        return [1.0, 2.5]


class Plain:
    def __init__(self) -> None:
        self.public = 1
        self._private = 2


class Spoken:
    def __init__(self) -> None:
        self.secret = "not for the store"

    def __str__(self) -> str:
        return "what it says"


class Raising:
    def __getattr__(self, name: str) -> Any:
        raise OSError(name)

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


class RaisingList(list[int]):
    def __iter__(self) -> Any:
        yield 1
        raise RuntimeError


class RaisingDict(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError


class NoMapping(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError

    def __iter__(self) -> Any:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class Endless:
    def __len__(self) -> int:
        return 1

    def __contains__(self, value: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return itertools.repeat(0)


class Growing:
    """Each time it is asked there is a new one inside."""

    def model_dump(self) -> dict[str, Any]:
        return {"inside": Growing()}


class Nameless(type):
    is_asked = False

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        if Nameless.is_asked:
            raise RuntimeError
        return "Nameless"


class OfNameless(metaclass=Nameless):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


UTC = datetime.UTC
CHANGED = {
    "lone surrogate": (json.loads('"a\\ud83d"'), "a\ufffd"),
    "surrogate pair": ("\ud83d\ude00", "\U0001f600"),
    "NaN": (math.nan, "NaN"),
    "infinity": (math.inf, "Infinity"),
    "negative infinity": (-math.inf, "-Infinity"),
    "large integer": (2**70, str(2**70)),
    "small integer": (-(2**63) - 1, str(-(2**63) - 1)),
    "unsigned integer": (2**63, str(2**63)),
    "integer without end": (16**5000, hex(16**5000)),
    "datetime": (datetime.datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
    "date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "time": (datetime.time(3, 4), "03:04:00"),
    "duration": (datetime.timedelta(days=1, seconds=2), "P1DT2S"),
    "bytes": (b"\x89PNG", base64.b64encode(b"\x89PNG").decode()),
    "bytearray": (bytearray(b"ab"), "YWI="),
    "memoryview": (memoryview(b"abcd")[::2], "YWM="),
    "set": ({3, 10, 2}, [2, 3, 10]),
    "set of texts": (frozenset("bca"), ["a", "b", "c"]),
    "set of many kinds": ({1, "a", None, (2, 3)}, [1, None, "a", [2, 3]]),
    "deque": (collections.deque([1]), [1]),
    "keys of a dict": ({"a": 1}.keys(), ["a"]),
    "range": (range(3), [0, 1, 2]),
    "decimal": (decimal.Decimal("1.10"), "1.10"),
    "fraction": (fractions.Fraction(1, 3), "1/3"),
    "complex": (1 + 2j, "(1+2j)"),
    "UUID": (uuid.UUID(int=7), str(uuid.UUID(int=7))),
    "path": (pathlib.PurePosixPath("/a/b"), "/a/b"),
    "path that is not UTF-8": (pathlib.PurePosixPath("/a\udcff"), "/a\ufffd"),
    "enumeration": (Color.RED, "red"),
    "exception": (ValueError("too late"), "ValueError: too late"),
    "dataclass": (Point(1, {2}), {"x": 1, "y": [2]}),
    "Struct": (Record("a"), {"name": "a"}),
    "attrs": (Attributed(), {"size": 3}),
    "Pydantic": (Model(), {"of": "Pydantic"}),
    "numpy": (Array(), [1.0, 2.5]),
    "object": (Plain(), {"public": 1}),
    "object with a text": (Spoken(), "what it says"),
    "UserString": (collections.UserString("ab"), "ab"),
    "type": (int, "<class 'int'>"),
    "function": (json.dumps, "<function dumps>"),
    "keys that are none": (
        {1: "a", None: "b", False: "c", 1.5: "d", (1, 2): "e", datetime.date(2026, 1, 2): "f"},
        {"1": "a", "null": "b", "false": "c", "1.5": "d", "[1,2]": "e", "2026-01-02": "f"},
    ),
    "keys that meet": (
        {1: "a", "1": "b", "1 (2)": "c"},
        {"1": "a", "1 (2)": "b", "1 (2) (2)": "c"},
    ),
    "keys with surrogates": (
        dict.fromkeys(map(chr, (0xD800, 0xDFFF)), 1),
        {"\ufffd": 1, "\ufffd (2)": 1},
    ),
    "iterator that raises": (RaisingList([1, 2]), [1, "(cut: it goes on)"]),
    "raises": ([1, Raising(), 2], [1, "(Raising that cannot be read)", 2]),
    "mapping that raises": (NoMapping(), {"…": "(cut: it goes on)"}),
}
UNCHANGED = {
    "None": None,
    "numbers": [0, -1, 2**63 - 1, -(2**63), 1.5, 1e308, 5e-324, -0.0],
    "texts": ["", "a\x00b", "\U0001f600", '"\\'],
    "object": {"a": [1, {"b": None}], "": True},
    "tuple": (1, (2,)),
    "named tuple": Pair(1, 2),
    "ordered": collections.OrderedDict(a=1),
    "view of a dict": types.MappingProxyType({"a": 1}),
    "integer of an enumeration": Number.ONE,
}


@pytest.mark.parametrize("name", CHANGED)
def test_each_kind_becomes_what_a_reader_expects(name: str) -> None:
    value, expected = CHANGED[name]
    found = storable({"it": value})
    assert found.value == {"it": expected}
    assert found.changes
    assert all(isinstance(change, ValueChange) for change in found.changes)
    assert found.changes[0].where.startswith("it")


def test_a_type_that_does_not_say_its_name_is_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nameless, "is_asked", True)
    assert storable(OfNameless()).value == "(object that cannot be read)"


@pytest.mark.parametrize("name", UNCHANGED)
def test_values_that_json_has_are_not_changed(name: str) -> None:
    value = UNCHANGED[name]
    assert storable(value) == Storable(json.loads(json.dumps(value, default=dict)))


def test_a_change_names_its_place_and_kind_without_the_value() -> None:
    value = {"out": [{"rows": [1, {"v": math.nan}]}], "my secret": {2}, "x" * 33: b"a"}
    assert [str(change) for change in storable(value).changes] == [
        "out[0].rows[1].v: NaN or infinity became text",
        "{1}: set became a list",
        "{2}: bytes became base64 text",
    ]
    assert [str(change) for change in storable({1}).changes] == ["set became a list"]


def test_a_value_that_is_nested_too_deep_is_kept_as_text() -> None:
    deep: Any = "the innermost"
    for _ in range(5_000):
        deep = [deep]
    found = storable(deep)
    assert [change.what for change in found.changes] == [
        "a part that is nested too deep became JSON text"
    ]
    value = found.value
    for _ in range(writer.VALUE_DEPTH):
        (value,) = value
    assert value == "[" * (5_000 - 198) + '"the innermost"' + "]" * (5_000 - 198)
    # It is not too deep for a tool call, and for SQLite.
    assert len(json.dumps(found.value)) < 20_000


def test_a_value_inside_itself_comes_to_an_end() -> None:
    circle: list[Any] = [1]
    circle.append({"again": circle})
    assert storable(circle).value == [1, {"again": "(contains itself)"}]
    point = Point(1, None)
    point.y = [point]
    assert storable(point).value == {"x": 1, "y": ["(contains itself)"]}
    # The same value twice is not inside itself.
    once = [1]
    assert storable([once, once]) == Storable([[1], [1]])


def test_an_endless_value_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_CONTAINERS", 1_000)
    monkeypatch.setattr(writer, "_MOST_VALUES", 1_000)
    twice: Any = 1
    for _ in range(100):
        twice = [twice, twice]
    for value in (Endless(), [Endless()], Growing(), twice, itertools.count(), range(10**9)):
        assert storable(value).changes
        assert len(json.dumps(storable(value).value)) < 1_000_000


class Counted:
    """What a host's own code gives, and how much of it was asked for."""

    asked = 0

    @classmethod
    def endless(cls) -> Any:
        while True:
            cls.asked += 1
            yield cls.asked


class EndlessList(list[int]):
    def __iter__(self) -> Any:
        return Counted.endless()


class EndlessSequence(Endless):
    def __iter__(self) -> Any:
        return Counted.endless()


class EndlessMapping(Mapping[int, int]):
    def __getitem__(self, key: int) -> int:
        return key

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return Counted.endless()


class Splitting:
    def model_dump(self) -> dict[str, Any]:
        Counted.asked += 1
        return {"left": Splitting(), "right": Splitting()}


ENDLESS = (EndlessList, EndlessSequence, EndlessMapping, Splitting)


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("times", [1, 20])
def test_an_endless_value_is_read_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch, kind: type, times: int
) -> None:
    monkeypatch.setattr(Counted, "asked", 0)
    kept, _, changes = json_value("result", [kind() for _ in range(times)], strict=False)
    assert Counted.asked <= MAX_FOREIGN + 2 * times + 10_000
    assert "(cut: it goes on)" in json.dumps(kept)
    if kind is not Splitting:
        assert f"[0]: {kind.__name__} that does not end became its beginning" in map(str, changes)
    with pytest.raises(InvalidArgumentError):
        json_value("result", kind(), strict=True)


def test_a_long_list_is_no_endless_one() -> None:
    long = [1, {2: 0}] * (MAX_FOREIGN + 1)
    found = storable([long, collections.deque(long), dict.fromkeys(range(MAX_FOREIGN + 1))])
    assert [len(it) for it in found.value] == [len(long), len(long), MAX_FOREIGN + 1]


class Stop(BaseException):
    """As a library's own cancellation."""


class Ending:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__


class EndingList(list[int]):
    error: type[BaseException]

    def __iter__(self) -> Any:
        yield 1
        raise self.error


def ending(error: type[BaseException]) -> list[Any]:
    items = EndingList([1, 2])
    items.error = error
    return [items, Ending(error), {Ending(error)}]


@pytest.mark.parametrize(
    "error", [Stop, GeneratorExit, asyncio.CancelledError, MemoryError, RecursionError]
)
def test_whatever_a_value_raises_its_result_is_stored(error: type[BaseException]) -> None:
    kept, _, _ = json_value("result", ["before", *ending(error)], strict=False)
    unread = "(Ending that cannot be read)"
    assert kept == ["before", [1, "(cut: it goes on)"], unread, [unread]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_program_passes(error: type[BaseException]) -> None:
    for value in ending(error):
        with pytest.raises(error):
            storable(value)
        with pytest.raises(error):
            json_value("result", [value], strict=False)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_value_for_which_there_is_no_memory_does_not_end_the_turn(
    sessions: SessionManager,
    response_id: str,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def refuse(*_: object) -> str:
        raise error

    with sessions.stream_turn(response_id) as writer:
        call = writer.tool_call({"name": "ls"})
        with monkeypatch.context() as patch:
            patch.setattr(JsonWriter, "write", refuse)
            (change,) = call.set_result({1})
    assert change.what == "set for which there was no memory became text"
    turn = sessions.get_turn(writer.id)
    assert turn.status is TurnStatus.COMPLETED
    assert turn.tool_calls[0].response == "(set for which there was no memory)"


def test_a_value_that_is_too_long_is_kept_in_its_beginning() -> None:
    kept, text = values.converted(["a" * 600, "b" * 600, "c"], 10, longest=1_000)
    assert kept.value.startswith('["aaaa')
    assert "cut:" in kept.value
    assert len(text) < 1_000
    assert kept.changes[-1].what.endswith("became the beginning of its JSON text")


def test_a_set_has_the_same_order_in_every_process() -> None:
    script = (
        "from mandrake_sessions import storable\n"
        "print(storable({'a', 'b', 'c', 1, None, (1, 2), frozenset('xyz'), b'z'}).value)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_a_value_is_stored_while_the_stack_is_nearly_used_up() -> None:
    deep: Any = {1}
    for _ in range(150):
        deep = [deep]

    def further(steps: int) -> Storable:
        return further(steps - 1) if steps else storable(deep)

    limit = sys.getrecursionlimit()
    here = len(__import__("inspect").stack())
    assert further(limit - here - 60).changes


OBJECTS = (
    Raising(),
    Model(),
    Plain(),
    Spoken(),
    Array(),
    unittest.mock.MagicMock(),
    RaisingList([1]),
    RaisingDict(a=1),
    NoMapping(),
    Color.RED,
    threading.Lock(),
)
hostile = st.one_of(
    # By their places: Hypothesis asks its values for a text.
    st.integers(0, len(OBJECTS) - 1).map(lambda at: OBJECTS[at]),
    st.binary(max_size=5),
    st.floats(),
    st.integers(),
    st.decimals(),
    st.datetimes(),
    st.timedeltas(),
    st.text(st.characters(codec=None, categories=None), max_size=5),
    st.none() | st.booleans(),
)
keys = st.one_of(
    st.text(st.characters(codec=None, categories=None), max_size=2),
    st.integers(-1, 1),
    st.floats(),
    st.binary(max_size=2),
    st.datetimes(),
    st.sampled_from([None, False, Color.RED, (1, 2), frozenset({1})]),
)
anything = st.recursive(
    hostile,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.builds(Point, inner, inner)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(collections.deque)
        | inner.map(lambda it: types.SimpleNamespace(it=it))
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(anything)
def test_any_value_can_be_stored_and_is_read_back_equal(value: Any) -> None:
    found = storable(value)
    text = msgspec.json.encode(found.value)
    assert msgspec.json.decode(text) == found.value
    # Nothing is left to change, and the strict way takes it.
    assert storable(found.value) == Storable(found.value)
    assert json_value("result", found.value, strict=True)[0] == found.value
    # The quick way and the thorough one agree.
    plain, encoded, changes = json_value("result", value, strict=False)
    assert (plain, changes) == (found.value, found.changes)
    assert msgspec.json.decode(encoded) == found.value


# -- in a stream -----------------------------------------------------------------------------


@pytest.fixture
def response_id(sessions: SessionManager) -> str:
    session = sessions.create_session(id="session")
    return sessions.create_round(session.id, "Why?").response.id


@pytest.mark.parametrize("name", CHANGED)
def test_no_call_and_no_result_ends_a_turn(
    sessions: SessionManager, response_id: str, name: str
) -> None:
    value = CHANGED[name][0]
    with sessions.stream_turn(response_id) as writer:
        writer.write("I will look. ")
        call = writer.tool_call({"name": "t", "args": [value]})
        changes = call.set_result({"out": [value]})
        writer.write("Done.")
    turn = sessions.get_turn(writer.id)
    assert (turn.status, turn.content) == (TurnStatus.COMPLETED, "I will look. Done.")
    (stored,) = turn.tool_calls
    expected = storable([value]).value
    assert stored == ToolCall({"name": "t", "args": expected}, {"out": expected})
    assert call.call == stored.call
    assert call.changes[0].where.startswith("args[0]")
    assert changes[0].where.startswith("out[0]")


def test_a_changed_value_is_logged_once_and_without_its_content(
    sessions: SessionManager, response_id: str
) -> None:
    with capture_logs() as events, sessions.stream_turn(response_id) as writer:
        call = writer.tool_call({"name": "ls"})
        call.set_result({"when": datetime.date(2026, 1, 2), "all": [{1}] * 20})
    (event,) = [event for event in events if event["event"] == "value_changed"]
    assert event["log_level"] == "info"
    assert (event["turn_id"], event["argument"], event["count"]) == (writer.id, "result", 21)
    assert event["changes"][:2] == [
        "when: date became ISO 8601 text",
        "all[0]: set became a list",
    ]
    assert len(event["changes"]) == 10


def test_a_strict_call_is_refused_with_the_place(
    sessions: SessionManager, response_id: str
) -> None:
    wrong = {
        "result.out[0].rows[1].v must not hold NaN or infinity.": math.nan,
        "result.out[0].rows[1].v must not contain lone surrogates.": "\ud83d",
        "result.out[0].rows[1].v must hold JSON values only, not date.": datetime.date(2026, 1, 2),
        "result.out[0].rows[1].v must not hold integers of more than 64 bits.": 2**70,
        "result.out[0].rows[1].v{0} must not hold keys that are not strings.": {1: 2},
        "result.out[0].rows[1].v[0][1] must hold JSON values only, not bytes.": [(1, b"")],
    }
    with sessions.stream_turn(response_id) as writer:
        call = writer.tool_call({"name": "ls"}, strict=True)
        for message, value in wrong.items():
            with pytest.raises(InvalidArgumentError) as caught:
                call.set_result({"out": [{"rows": [1, {"v": value}]}]}, strict=True)
            assert str(caught.value) == message
            assert caught.value.__context__ is None
        with pytest.raises(InvalidArgumentError, match=r"^call\{0\} must hold JSON"):
            writer.tool_call({"a key of the user's": {1}}, strict=True)
        assert call.set_result([1], strict=True) == ()
    (stored,) = sessions.get_turn(writer.id).tool_calls
    assert stored.response == [1]


def test_metadata_and_recorded_calls_say_where_too(
    sessions: SessionManager, response_id: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^metadata\.a\[1\] must hold JSON"):
        sessions.create_session(metadata={"a": [1, {2}]})
    with pytest.raises(InvalidArgumentError, match=r"^metadata\.a must not contain lone"):
        sessions.create_session(metadata={"a": "\ud800"})
    calls: list[Any] = [{"call": 1}, ToolCall(1, {"x": [math.inf]})]
    with pytest.raises(InvalidArgumentError, match=r"^tool_calls\[1\]\.response\.x\[0\] must not"):
        sessions.create_turn(response_id, tool_calls=calls)
    with pytest.raises(InvalidArgumentError, match=r"^tool_calls\[0\]\.call must not contain"):
        sessions.create_turn(response_id, tool_calls=[{"call": "\ud800"}])


def test_a_result_for_which_a_turn_has_no_room_is_kept_in_its_beginning(
    sessions: SessionManager, response_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mandrake_sessions.live.streaming.tool_calls.MAX_TEXT_BYTES", 10_000)
    with sessions.stream_turn(response_id) as writer:
        calls = [writer.tool_call({"number": number}) for number in range(2)]
        assert calls[0].set_result("a" * 6_000) == ()
        assert calls[1].set_result("b" * 6_000)
    stored = sessions.get_turn(writer.id).tool_calls
    assert stored[0].response == "a" * 6_000
    assert stored[1].response.startswith('"bbbb')


def test_a_value_that_changes_meanwhile_is_stored(
    sessions: SessionManager, response_id: str
) -> None:
    class Busy(dict[str, int]):
        """As if another thread put something in while it is read."""

        def __iter__(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    with sessions.stream_turn(response_id) as writer:
        writer.tool_call({"name": "ls"}).set_result(Busy(a=1))
    assert sessions.get_turn(writer.id).tool_calls[0].response == {"a": 1}
