"""The generated methods agree with the units that they run."""

import asyncio
import inspect
import typing
from datetime import UTC, datetime
from typing import Any

import pytest

from mandrake_sessions import NotInitializedError, SessionManager, SessionTransaction
from mandrake_sessions.aio import AsyncSessionManager
from mandrake_sessions.faces.awaited import AwaitedFace
from mandrake_sessions.faces.manager import ManagerFace
from mandrake_sessions.faces.reader import ReaderFace
from mandrake_sessions.faces.transaction import TransactionFace
from mandrake_sessions.records import (
    history,
    requests,
    rounds,
    sessions,
    turn_updates,
    turns,
    usage,
)
from tools.generate.faces import FACES, generated
from tools.generate.units import UNITS

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (history, requests, rounds, sessions, turn_updates, turns, usage)
}
READS = tuple(unit for unit in UNITS if unit.kind != "write")
METHODS = [
    pytest.param(unit, getattr(face, unit.method), id=f"{face.__name__}.{unit.method}")
    for face, units in (
        (ManagerFace, UNITS),
        (AwaitedFace, UNITS),
        (TransactionFace, UNITS),
        (ReaderFace, READS),
    )
    for unit in units
]


def function_of(unit):
    module, _, name = unit.function.partition(".")
    return getattr(MODULES[module], name)


def words(documented):
    text = inspect.getdoc(documented)
    assert text, documented
    return " ".join(text.split())


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
def test_a_module_of_faces_is_as_the_generator_writes_it(face):
    assert face.path.read_text("utf-8") == generated()[face.path], "run: make faces"


@pytest.mark.parametrize(
    ("face", "units"),
    [
        (SessionManager, UNITS),
        (AsyncSessionManager, UNITS),
        (SessionTransaction, UNITS),
        (ReaderFace, READS),
    ],
)
def test_a_face_has_a_method_for_each_unit_and_no_other(face, units):
    generated_names = {
        name
        for base in face.__mro__
        if base.__name__.endswith("Face")
        for name in vars(base)
        if not name.startswith("_")
    }

    assert generated_names == {unit.method for unit in units}


@pytest.mark.parametrize(("unit", "method"), METHODS)
def test_a_method_has_the_signature_of_its_unit(unit, method):
    myself, *parameters = inspect.signature(method).parameters.values()
    expected = inspect.signature(function_of(unit))

    assert myself.name == "self"
    assert parameters == list(expected.parameters.values())
    returned = inspect.signature(method).return_annotation
    assert expected.return_annotation in {f"WriteUnit[{returned}]", f"ReadUnit[{returned}]"}


@pytest.mark.parametrize(("unit", "method"), METHODS)
def test_the_annotations_of_a_method_mean_those_of_its_unit(unit, method):
    hints = typing.get_type_hints(method)
    expected = typing.get_type_hints(function_of(unit))

    _, result = typing.get_args(expected.pop("return"))
    assert hints == expected | {"return": result}


@pytest.mark.parametrize(("unit", "method"), METHODS)
def test_a_method_has_the_docstring_of_its_unit_and_its_own_errors(unit, method):
    own, shown = words(function_of(unit)), words(method)

    assert shown.startswith(own)
    added = shown.removeprefix(own)
    assert ("Raises:" in added) == ("Raises:" not in own)
    has_manager = method.__qualname__.startswith(("ManagerFace", "AwaitedFace"))
    assert "DatabaseBusyError:" in added
    assert ("NotInitializedError:" in added) == has_manager
    assert ("CommitOutcomeUnknownError:" in added) == (has_manager and unit.kind == "write")


def test_each_of_many_arguments_reaches_its_field(path, pool):
    """They are passed on by position."""
    created: dict[str, Any] = {
        "content": "text",
        "raw_response": "raw",
        "status": "error",
        "error_message": "why",
        "index": 3,
        "started_at": datetime(2026, 1, 2, tzinfo=UTC),
        "current_tokens": 4,
        "expected_tokens": 5,
        "input_tokens": 6,
        "output_tokens": 7,
        "cache_read_tokens": 8,
        "cache_write_tokens": 9,
        "input_cost": 10.0,
        "output_cost": 11.0,
        "model": "any",
        "id": "mine",
    }
    changed: dict[str, Any] = {
        "content": "other text",
        "raw_response": "other raw",
        "error_message": "other",
        "current_tokens": 14,
        "expected_tokens": 15,
        "input_tokens": 16,
        "output_tokens": 17,
        "cache_read_tokens": 18,
        "cache_write_tokens": 19,
        "input_cost": 20.0,
        "output_cost": 21.0,
        "model": "another",
    }

    def fields(turn, names):
        return {name: getattr(turn, "stream_" * (name == "started_at") + name) for name in names}

    def work(tx):
        tx.delete_turn("mine")
        made = tx.create_turn(response_id, tool_calls=[{"call": 1}], **created | {"index": 5})
        return made, tx.update_turn("mine", tool_calls=[{"call": 2}], **changed)

    async def main():
        async with AsyncSessionManager(path, pool=pool) as sessions:
            await sessions.delete_turn("mine")
            made = await sessions.create_turn(
                response_id, tool_calls=[{"call": 1}], **created | {"index": 7}
            )
            return made, await sessions.update_turn("mine", tool_calls=[{"call": 2}], **changed)

    with SessionManager(path, pool=pool) as sessions:
        response_id = sessions.create_round(sessions.create_session().id, "Hello?").response.id
        by_manager = (
            sessions.create_turn(response_id, tool_calls=[{"call": 1}], **created),
            sessions.update_turn("mine", tool_calls=[{"call": 2}], **changed),
        )
        by_transaction = sessions.transact(work)
        by_coroutine = asyncio.run(main())
    for index, (made, updated) in zip(
        (3, 5, 7), (by_manager, by_transaction, by_coroutine), strict=True
    ):
        assert fields(made, created) == created | {"index": index}
        assert fields(updated, changed) == changed
        assert [made.tool_calls[0].call, updated.tool_calls[0].call] == [1, 2]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.method)
def test_a_closed_manager_says_so_before_it_looks_at_arguments(path, pool, unit):
    required = [
        each
        for each in inspect.signature(function_of(unit)).parameters.values()
        if each.default is each.empty
    ]
    wrong = [object()] * len(required)
    others = (
        {"limit": object()} if "limit" in inspect.signature(function_of(unit)).parameters else {}
    )

    with pytest.raises(NotInitializedError):
        getattr(SessionManager(path, pool=pool), unit.method)(*wrong, **others)

    async def call():
        await getattr(AsyncSessionManager(path, pool=pool), unit.method)(*wrong, **others)

    with pytest.raises(NotInitializedError):
        asyncio.run(call())
