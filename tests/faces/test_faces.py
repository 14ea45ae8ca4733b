"""The generated methods agree with the units that they run."""

import asyncio
import inspect
import typing

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
    return " ".join(inspect.getdoc(documented).split())


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
