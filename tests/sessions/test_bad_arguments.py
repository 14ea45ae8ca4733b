"""Wrong arguments of every public method: ``InvalidArgumentError``, and nothing is written.

What is wrong depends on the kind of an argument, and its kind on its name and annotation; a new
parameter without a kind fails a test here.
"""

import asyncio
import contextlib
import inspect
import math
import os
import signal
from collections import UserDict
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any

import pytest
from kits.workspaces import id_of

import mandrake_sessions
from mandrake_sessions import (
    UNSET,
    ConnectionPool,
    DatabaseHandle,
    DatabaseOptions,
    HealthMonitor,
    InvalidArgumentError,
    MandrakeManager,
    NewTurn,
    NotFoundError,
    PendingToolCall,
    PoolOptions,
    SessionManager,
    SessionTransaction,
    ShutdownHook,
    Subscription,
    ToolCall,
    TurnWriter,
    Watch,
    WorkspaceManager,
    default_pool,
    diagnose,
    install_shutdown_hook,
    salvage,
    storable,
)
from mandrake_sessions.aio import (
    AsyncMandrakeManager,
    AsyncSessionManager,
    AsyncTurnWriter,
    AsyncWorkspaceManager,
)
from mandrake_sessions.importers.mandrake import import_mandrake

LONE = "lone \ud800 surrogate"
CYCLE: dict[str, object] = {}
CYCLE["again"] = CYCLE
DEEP: dict[str, object] = {}
for _ in range(250):
    DEEP = {"deeper": DEEP}


class Unreadable(Sequence, Mapping, os.PathLike):
    """Seems to be whatever is asked for, and raises when it is used."""

    def refuse(self, *_):
        raise RuntimeError("an object of the host's own")

    __len__ = __iter__ = __getitem__ = __contains__ = __fspath__ = __bool__ = __eq__ = refuse
    __hash__ = items = keys = values = utcoffset = refuse


class Faceless:
    """Raises when it is asked what it is."""

    @property  # type: ignore[misc]  # a class that cannot be asked for
    def __class__(self):
        raise RuntimeError("an object of the host's own")


class NamedInBytes(os.PathLike):
    def __fspath__(self):
        return b"bytes"


class NoZone(tzinfo):
    def utcoffset(self, _):
        raise RuntimeError("a time zone of the host's own")

    dst = tzname = utcoffset


NOT_JSON = [
    {"a": Unreadable()},
    {"a": [Faceless()]},
    {"a": math.nan},
    {"a": [math.inf]},
    {"a": {1, 2}},
    {"a": (1, {2})},
    {1: "a"},
    {"a": {None: 1}},
    {"a": datetime(2024, 1, 1)},  # noqa: DTZ001
    {"a": b"bytes"},
    {"a": object()},
    {"a": 2**64},
    {"a": LONE},
    {LONE: "a"},
    CYCLE,
    DEEP,
]
NOT_TEXT = [5, 1.5, b"bytes", ["text"], {"a": "text"}, object(), LONE]
NOT_NEW_ID = [5, b"id", "", "x" * 256, "with\0nul", LONE, ["id"]]
NOT_COUNT = [-1, 1.5, "1", True, 2**63, math.nan, [1]]
NOT_SECONDS = ["1", -1, math.nan, math.inf, [1], object()]
NOT_PATH = [5, b"bytes", object(), ["path"], Unreadable(), Faceless(), NamedInBytes()]

BAD: dict[str, list[Any]] = {
    "id": [None, *NOT_TEXT],
    "text": [None, *NOT_TEXT],
    "optional text": NOT_TEXT,
    "new id": NOT_NEW_ID,
    "metadata": ["text", 5, [("a", 1)], {"a"}, Unreadable(), Faceless(), *NOT_JSON],
    "index": [-1, 1.0, "1", True, 2**31, 2**63],
    "after": [-1, 1.0, "1", True, 2**63],
    "count": [None, *NOT_COUNT],
    "optional count": NOT_COUNT,
    "cost": [None, -0.01, math.nan, math.inf, "1", True, 10**400, 1 + 1j],
    "limit": [None, 0, -1, 1_000_000_000, 1.0, "1", True],
    "optional limit": [0, -1, 1_000_000_000, 1.0, "1", True],
    "last": [None, -1, 1_000_000_000, 1.0, "1", True],
    "offset": [None, -1, 1.0, "0", True, 2**63],
    "session": [5, "id", {"id": "x"}, Faceless()],
    "status": [None, "done", "", "STREAMING", 5, b"error"],
    "moment": [
        datetime(2024, 1, 1),  # noqa: DTZ001
        datetime(2024, 1, 1, tzinfo=NoZone()),
        "2024-01-01",
        5,
        Faceless(),
    ],
    "tool calls": [
        None,
        "text",
        5,
        {"call": {}},
        [5],
        ["text"],
        [{}],
        [{"response": 1}],
        [{"call": {}, "more": 1}],
        [ToolCall({}, raw=5)],  # type: ignore[arg-type]
        [ToolCall({}, is_interrupted=1)],  # type: ignore[arg-type]
        [{"call": {}, "is_interrupted": None}],
        Unreadable(),
        Faceless(),
        [Unreadable()],
        [Faceless()],
        *([{"call": bad}] for bad in NOT_JSON),
        *([ToolCall({}, bad)] for bad in NOT_JSON),
    ],
    "turns": [
        None,
        5,
        "text",
        NewTurn(),
        [None],
        [{"content": "x"}],
        [NewTurn(status="streaming")],
        [NewTurn(), NewTurn(content=LONE)],
        [NewTurn(id="")],
        Unreadable(),
        Faceless(),
        [Faceless()],
    ],
    "flag": [None, "yes", 1, 0.0, []],
    "seconds": NOT_SECONDS,
    "health level": [None, 5, "deep", b"full", Unreadable(), Faceless()],
    "work": [None, 5, "text"],
    "optional listener": [5, "text"],
    "error": [None, 5, b"text", ["text"], object()],
    "optional error": [5, b"text", ["text"], object()],
    # Half a surrogate pair may be followed by the other half.
    "streamed text": [None, *(each for each in NOT_TEXT if each != LONE)],
    "instance": [None, 5, "text", object()],
    "signals": [None, 5, "text", [None], ["INT"], [2.0]],
    # Changed into what JSON has.
    "value": [],
    "listener": [None, 5, "text"],
    "path": [None, *NOT_PATH],
    "optional path": NOT_PATH,
    "name": [None, 5, "", "-x", "_x", "a b", "a/b", "..", "x" * 65, "é", "a\n", b"a"],
    "pool": [5, "pool", object(), Faceless()],
    "database options": [5, {"busy_timeout": 1}, PoolOptions()],
    "pool options": [5, {"linger": 1}, DatabaseOptions()],
    # Duck-typed: what else a logger must have is structlog's affair.
    "logger": [5, "text", object()],
    "callback": [],
    "ours": [],
}
# Whatever an argument is for: what raises when it is asked, and numbers beyond every range.
for _wrong in filter(None, BAD.values()):
    _wrong.extend([Unreadable(), Faceless(), 10**400, 1 + 1j, NotImplemented])

KINDS = {
    "session_id": "id",
    "response_id": "id",
    "turn_id": "id",
    "metadata": "metadata",
    "index": "index",
    "expected_index": "index",
    "expected_revision": "optional count",
    "started_at": "moment",
    "status": "status",
    "tool_calls": "tool calls",
    "turns": "turns",
    "offset": "offset",
    "page_size": "limit",
    "missing_ok": "flag",
    "follow": "flag",
    "overwrite": "flag",
    "create": "flag",
    "read_only": "flag",
    "follow_links": "flag",
    "even_damaged": "flag",
    "timeout": "seconds",
    "interval": "seconds",
    "thorough_interval": "seconds",
    "work": "work",
    "listener": "listener",
    "level": "health level",
    "target": "path",
    "damaged": "path",
    "source": "path",
    "full": "flag",
    "strict": "flag",
    "recover_orphans": "flag",
    "progress": "optional listener",
    "on_report": "optional listener",
    "error": "error",
    "call": "value",
    "value": "value",
    "sessions": "instance",
    "signals": "signals",
    # What the library itself gives.
    "operation": "ours",
    "delegable": "ours",
    "claims": "ours",
    "batch": "ours",
    "backup": "path",
    "name": "name",
    "pool": "pool",
    "logger": "logger",
    "on_stuck": "callback",
    # Where it comes from the registry.
    "workspace": "ours",
    "root": "optional path",
}
BY_ANNOTATION = {
    "str": "text",
    "str | None": "optional text",
    "int": "count",
    "int | None": "optional count",
    "float": "cost",
}


def parameters(owner, name):
    signature = inspect.signature(getattr(owner, name) if name else owner)
    return [
        each
        for each in signature.parameters.values()
        if each.name != "self" and each.kind is not each.VAR_POSITIONAL
    ]


def kind_of(owner, method, parameter):
    """Return the kind of an argument, by which the wrong ones are chosen."""
    name = parameter.name
    annotation = str(parameter.annotation).replace("Unset | ", "").replace(" | Unset", "")
    may_be_none = "None" in annotation
    special = {
        "id": "new id" if may_be_none else "id",
        "workspace_id": "optional text",
        "after": "session" if "Session" in annotation else "after",
        "limit": "optional limit" if may_be_none else "limit",
        "last": "optional limit" if may_be_none else "last",
        "options": "pool options"
        if (owner, method) == (ConnectionPool, "")
        else "database options",
        "path": "optional path" if may_be_none else "path",
    }
    if owner in (TurnWriter, AsyncTurnWriter) and annotation == "str":
        return "streamed text"
    if name == "error" and may_be_none:
        return "optional error"
    return special.get(name) or KINDS.get(name) or BY_ANNOTATION[annotation]


def cases(owner, names):
    """Every argument of every method: the method, the argument, and a wrong value for it."""
    return [
        pytest.param((name, each.name, bad), id=f"{name or 'new'}-{each.name}")
        for name in names
        for each in parameters(owner, name)
        if (bad := BAD[kind_of(owner, name, each)])
    ]


def public(owner, *without):
    return [
        name
        for name, _ in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_") and name not in without
    ]


def use(result):
    """Do what makes a lazy result check its arguments."""
    if inspect.isgenerator(result):
        list(result)
    elif hasattr(result, "__enter__") and not isinstance(result, SessionManager):
        with result:
            pass


def accepted(call, name, values):
    """Return which values are not refused as they should be, and what comes of them instead."""
    found = {}
    for value in values:
        try:
            use(call(**{name: value}))
        except InvalidArgumentError:
            pass
        except Exception as error:  # noqa: BLE001  # named in the failure
            found[repr(value)[:60]] = type(error).__name__
        else:
            found[repr(value)[:60]] = "accepted"
    return found


@pytest.fixture
def good(sessions, tmp_path):
    """Good values by method and argument, of a database that has one of each."""
    session = sessions.create_session("title", "about", {"a": 1}, id="session")
    exchange = sessions.record_round(session.id, "question", [NewTurn(id="turn")], id="round")
    ids = {
        "session": session.id,
        "round": exchange.id,
        "request": exchange.request.id,
        "response": exchange.response.id,
        "turn": "turn",
    }

    def value(method, name):
        if name in {"session_id", "response_id", "turn_id"}:
            return ids[name.removesuffix("_id")]
        if name == "id":
            return ids[method.split("_")[1]]
        return {
            "content": "text",
            "work": lambda tx: None,
            "listener": lambda update: None,
            "target": tmp_path / "copy",
            "backup": tmp_path / "copy",
        }[name]

    return value


def required(owner, method, good):
    return {
        each.name: good(method, each.name)
        for each in parameters(owner, method)
        if each.default is each.empty
    }


@pytest.mark.parametrize("case", cases(SessionManager, public(SessionManager)))
def test_a_manager_refuses_wrong_arguments_before_anything_is_written(sessions, good, dump, case):
    method, name, wrong = case
    arguments = required(SessionManager, method, good)
    before = dump(sessions.path)

    def call(**given):
        return getattr(sessions, method)(**arguments | given)

    assert accepted(call, name, wrong) == {}
    assert sessions.is_initialized
    assert dump(sessions.path) == before


@pytest.mark.parametrize("case", cases(SessionTransaction, public(SessionTransaction, "savepoint")))
def test_a_transaction_refuses_wrong_arguments_and_goes_on(sessions, good, dump, case):
    method, name, wrong = case
    arguments = required(SessionTransaction, method, good)
    before = dump(sessions.path)

    with sessions.transaction() as tx:
        found = accepted(lambda **given: getattr(tx, method)(**arguments | given), name, wrong)
        tx.count_sessions()

    assert found == {}
    assert dump(sessions.path) == before


@pytest.mark.parametrize("case", cases(MandrakeManager, public(MandrakeManager)))
def test_a_host_refuses_wrong_arguments_before_anything_is_written(tmp_path, pool, dump, case):
    method, name, wrong = case
    with MandrakeManager(tmp_path / "root", pool=pool) as mandrake:
        known = mandrake.create_workspace("known")
        values = {"id": known.id, "workspace_id": known.id, "name": "new", "path": tmp_path}
        arguments = {
            each.name: values[each.name]
            for each in parameters(MandrakeManager, method)
            if each.default is each.empty
        }
        before = dump(mandrake.sessions.path), sorted(tmp_path.rglob("*"))

        def call(**given):
            return getattr(mandrake, method)(**arguments | given)

        assert accepted(call, name, wrong) == {}
        assert (dump(mandrake.sessions.path), sorted(tmp_path.rglob("*"))) == before
        assert mandrake.get_workspace(id_of(known)) is known


CLASSES = {
    SessionManager: {"path": "db.sqlite"},
    WorkspaceManager: {"path": "workspace"},
    MandrakeManager: {},
    ConnectionPool: {},
    AsyncSessionManager: {"path": "db.sqlite"},
    AsyncWorkspaceManager: {"path": "workspace"},
    AsyncMandrakeManager: {},
    HealthMonitor: {"pool": ConnectionPool()},
}


@pytest.mark.parametrize(
    ("owner", "case"),
    [
        pytest.param(owner, *case.values, id=f"{owner.__name__}-{case.id}")
        for owner in CLASSES
        for case in cases(owner, [""])
    ],
)
def test_a_class_refuses_wrong_arguments(tmp_path, monkeypatch, owner, case):
    _, name, wrong = case
    monkeypatch.chdir(tmp_path)

    assert accepted(lambda **given: owner(**CLASSES[owner] | given), name, wrong) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", cases(ConnectionPool, public(ConnectionPool)))
def test_a_pool_refuses_wrong_arguments(tmp_path, monkeypatch, pool, case):
    method, name, wrong = case
    monkeypatch.chdir(tmp_path)
    values = {"path": "db.sqlite", "backup": "copy.sqlite"}
    arguments = required(ConnectionPool, method, lambda _, name: values[name])

    assert accepted(lambda **given: getattr(pool, method)(**arguments | given), name, wrong) == {}
    assert list(tmp_path.iterdir()) == []
    pool.acquire("db.sqlite").release()


OURS = ("give_up", "pin_now", "pinned", "budget")


@pytest.mark.parametrize("case", cases(DatabaseHandle, public(DatabaseHandle, *OURS)))
def test_a_handle_refuses_wrong_arguments(sessions, good, dump, case):
    method, name, wrong = case
    arguments = required(DatabaseHandle, method, good)
    before = dump(sessions.path)

    def call(**given):
        return getattr(sessions.handle, method)(**arguments | given)

    assert accepted(call, name, wrong) == {}
    assert dump(sessions.path) == before


@pytest.mark.parametrize("case", cases(TurnWriter, public(TurnWriter)))
def test_a_turn_writer_refuses_wrong_arguments_and_goes_on(sessions, good, case):
    method, name, wrong = case
    values = {"text": "text", "call": {}, "error": "reason", "status": "completed"}
    arguments = required(TurnWriter, method, lambda _, name: values[name])

    with sessions.stream_turn(good("", "response_id")) as turn:
        turn.write("kept")

        def call(**given):
            return getattr(turn, method)(**arguments | given)

        assert accepted(call, name, wrong) == {}

    stored = sessions.get_turn(turn.id)
    assert (stored.content, stored.status, stored.error_message) == ("kept", "completed", None)


def a_watch(sessions, stack):
    return stack.enter_context(sessions.watch_session("session"))


def a_subscription(sessions, stack):
    return stack.enter_context(sessions.add_turn_update_listener("turn", lambda _: None))


def a_tool_call(sessions, stack):
    exchange = sessions.create_round("session", "question")
    return stack.enter_context(sessions.stream_turn(exchange.response.id)).tool_call({})


LENT = {Watch: a_watch, Subscription: a_subscription, PendingToolCall: a_tool_call}


@pytest.mark.parametrize(
    ("owner", "case"),
    [
        pytest.param(owner, *case.values, id=f"{owner.__name__}-{case.id}")
        for owner in LENT
        for case in cases(owner, public(owner))
    ],
)
@pytest.mark.usefixtures("good")
def test_a_lent_object_refuses_wrong_arguments(sessions, owner, case):
    method, name, wrong = case
    arguments = required(owner, method, lambda *_: {})

    with contextlib.ExitStack() as stack:
        lent = LENT[owner](sessions, stack)
        found = accepted(lambda **given: getattr(lent, method)(**arguments | given), name, wrong)

    assert found == {}


@pytest.mark.parametrize("case", cases(HealthMonitor, public(HealthMonitor)))
def test_a_monitor_refuses_wrong_arguments(pool, case):
    method, name, wrong = case

    assert accepted(getattr(HealthMonitor(pool), method), name, wrong) == {}


def test_every_public_class_and_function_is_covered():
    named = [getattr(mandrake_sessions, name) for name in mandrake_sessions.__all__]
    classes = {
        each
        for each in named
        if inspect.isclass(each)
        and not issubclass(each, BaseException)
        and any(parameters(each, method) for method in public(each))
    }

    # A hook's own are asked where hooks are tested; anything is storable.
    asked = {SessionTransaction, DatabaseHandle, TurnWriter, ShutdownHook, *LENT, *CLASSES}
    assert classes <= asked
    assert set(filter(inspect.isfunction, named)) - {default_pool, storable} <= FUNCTIONS.keys()


FUNCTIONS = {
    diagnose: {"path": "db.sqlite"},
    salvage: {"damaged": "db.sqlite", "target": "copy.sqlite"},
    import_mandrake: {"source": "other.sqlite"},
    install_shutdown_hook: {},
}


@pytest.mark.parametrize(
    ("function", "case"),
    [
        pytest.param(function, *case.values, id=f"{function.__name__}-{case.id}")
        for function in FUNCTIONS
        for case in cases(function, [""])
    ],
)
def test_a_function_refuses_wrong_arguments(
    tmp_path_factory, monkeypatch, sessions, function, case
):
    _, name, wrong = case
    folder = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(folder)
    arguments = FUNCTIONS[function]
    if function is import_mandrake:
        arguments = arguments | {"sessions": sessions}
    before = sessions.count_sessions(), signal.getsignal(signal.SIGTERM)

    assert accepted(lambda **given: function(**arguments | given), name, wrong) == {}
    assert (sessions.count_sessions(), signal.getsignal(signal.SIGTERM)) == before
    assert list(folder.iterdir()) == []


async def use_async(result):
    """Do what makes a result of a coroutine's check its arguments."""
    if inspect.isawaitable(result):
        result = await result
    if hasattr(result, "__aenter__") and not isinstance(result, AsyncSessionManager):
        async with result:
            pass
    elif hasattr(result, "__aiter__"):
        async for _ in result:
            pass


async def accepted_async(call, name, values):
    """Do what ``accepted`` does, with what has to be awaited."""
    found = {}
    for value in values:
        try:
            await use_async(call(**{name: value}))
        except InvalidArgumentError:
            pass
        except Exception as error:  # noqa: BLE001  # named in the failure
            found[repr(value)[:60]] = type(error).__name__
        else:
            found[repr(value)[:60]] = "accepted"
    return found


@pytest.mark.parametrize("case", cases(AsyncSessionManager, public(AsyncSessionManager)))
def test_a_manager_for_coroutines_refuses_wrong_arguments(sessions, pool, good, dump, case):
    method, name, wrong = case
    arguments = required(AsyncSessionManager, method, good)
    before = dump(sessions.path)

    async def refuse():
        async with AsyncSessionManager(sessions.path, pool=pool) as manager:
            if method == "restore":
                await manager.close()

            def call(**given):
                return getattr(manager, method)(**arguments | given)

            return await accepted_async(call, name, wrong)

    assert asyncio.run(refuse()) == {}
    assert dump(sessions.path) == before


@pytest.mark.parametrize("case", cases(AsyncTurnWriter, public(AsyncTurnWriter)))
def test_a_turn_writer_for_coroutines_refuses_wrong_arguments(sessions, pool, good, case):
    method, name, wrong = case
    values = {"text": "text", "call": {}, "error": "reason"}
    arguments = required(AsyncTurnWriter, method, lambda _, name: values[name])

    async def refuse():
        async with (
            AsyncSessionManager(sessions.path, pool=pool) as manager,
            manager.stream_turn(good("", "response_id")) as turn,
        ):
            turn.write("kept")

            def call(**given):
                return getattr(turn, method)(**arguments | given)

            found = await accepted_async(call, name, wrong)
        return found, turn.id

    found, id = asyncio.run(refuse())

    assert found == {}
    stored = sessions.get_turn(id)
    assert (stored.content, stored.status, stored.error_message) == ("kept", "completed", None)


OPTION_CASES = {
    DatabaseOptions: {
        "durability": ["durable", None, 2],
        "busy_timeout": [*NOT_SECONDS, None, True],
        "group_max_seconds": [*NOT_SECONDS, None],
        "group_max_units": [0, -1, 1.0, "1", None, True],
        "checkpoint_frames": [0, -1, 1.0, "1", None],
        "wal_limit_bytes": [0, -1, 1.0, "1", None],
        "cache_bytes": [0, -1, 1.0, "1", None],
        "flush_interval": [*NOT_SECONDS, None, True, 0, 0.0],
        "flush_bytes": [0, -1, 1.0, "1", None],
        "max_buffered_bytes": [0, -1, 1.0, "1", None],
        "vfs": [5, b"unix", ""],
        "read_only": [None, 1, "yes"],
        "allow_other_names": [None, 1, "yes"],
    },
    PoolOptions: {
        "database": [None, {}, 5],
        "linger": [*NOT_SECONDS, None],
        "max_idle": [-1, 1.0, "1", None],
        "max_open": [-1, 1.0, "1", None],
        "close_timeout": [*NOT_SECONDS, None],
    },
}


@pytest.mark.parametrize("owner", OPTION_CASES)
def test_options_refuse_wrong_values(owner):
    assert OPTION_CASES[owner].keys() == set(owner.__struct_fields__)

    found = {name: accepted(owner, name, wrong) for name, wrong in OPTION_CASES[owner].items()}

    assert {name: each for name, each in found.items() if each} == {}


LOOKED_UP = {
    method: each.name
    for method in public(SessionManager, "find_session")
    for each in parameters(SessionManager, method)
    if each.name.endswith("id") and each.default is each.empty
}


@pytest.mark.parametrize("method", LOOKED_UP)
@pytest.mark.parametrize(
    "unknown", ["missing", "", "x" * 300, "nul\0", "\N{SNOWMAN}", "%", "'; --"]
)
def test_an_unknown_id_raises_its_own_error_and_writes_nothing(
    sessions, good, dump, method, unknown
):
    arguments = required(SessionManager, method, good) | {LOOKED_UP[method]: unknown}
    entity = (
        LOOKED_UP[method].removesuffix("_id") if LOOKED_UP[method] != "id" else method.split("_")[1]
    )
    before = dump(sessions.path)

    with pytest.raises(NotFoundError) as caught:
        use(getattr(sessions, method)(**arguments))

    assert caught.type.__name__ == f"{entity.capitalize()}NotFoundError"
    assert caught.value.id == unknown
    assert dump(sessions.path) == before


TEXTS = {
    "empty": "",
    "NUL": "before\0after\0",
    "emoji": "\N{ZOMBIE}\u200d\N{MALE SIGN}\ufe0f \N{FAMILY}",
    "CJK": "\u6f22\u5b57\u3000\u304b\u306a \ud55c\uae00",
    "line ends": "a\r\nb\rc\n\u2028",
    "quotes": """'";--\\ %s ? :x {}""",
    "not normalised": "e\u0301 \u00e9 \ufeff",
    "10 MB": "0123456789" * 1_000_000,
    "10 MB of CJK": "\u6f22" * 3_500_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_is_stored_and_comes_back_equal(path, sessions, pool, text):
    session = sessions.create_session(text, text, {"key": text, f"k{text[:100]}": [text[:9]]})
    calls = [ToolCall({"argument": text}, text)]
    turn = NewTurn(content=text, raw_response=text, tool_calls=calls, error_message=text)
    exchange = sessions.record_round(session.id, text, [turn])
    sessions.close()

    sessions.init()

    assert sessions.get_session(session.id).metadata == session.metadata
    history = sessions.render_session_history(session.id)
    assert history.session.title == history.session.description == text
    assert history.rounds == (exchange,)
    stored = history.rounds[0].turns[0]
    assert stored.content == stored.raw_response == stored.error_message == text
    assert stored.tool_calls == tuple(calls)
    assert history.rounds[0].request.content == text


def test_a_mapping_of_any_kind_is_metadata(sessions):
    made = sessions.create_session(metadata=UserDict({"a": (1, 2), "big": 2**63 - 1}))

    assert made.metadata == {"a": [1, 2], "big": 2**63 - 1}
    assert sessions.get_session(made.id).metadata == made.metadata


def test_the_largest_values_are_stored(sessions, good):
    largest = 2**63 - 1
    turn = sessions.create_turn(
        good("", "response_id"),
        index=2**31 - 1,
        input_tokens=largest,
        expected_tokens=largest,
        input_cost=1e308,
    )

    assert sessions.get_turn(turn.id) == turn
    assert sessions.list_turns(turn.response_id, limit=10_000, offset=largest) == []
    assert sessions.list_turns(turn.response_id, after=2**31 - 2) == [turn]


def test_invalid_arguments_are_value_errors_too(sessions):
    with pytest.raises(ValueError, match=r"^title must be a string\.$"):
        sessions.create_session(5)


def test_unset_is_no_value_of_a_creation(sessions):
    with pytest.raises(InvalidArgumentError):
        sessions.create_session(UNSET)
