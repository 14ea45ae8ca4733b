"""The generator of the faces: facets, private aliases, and functions that cannot be a method."""

import ast
import asyncio
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import InvalidArgumentError, NotInitializedError, SessionManager
from mandrake_sessions.aio import AsyncSessionManager
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.session_transaction import SessionTransaction
from tools.generate import signatures
from tools.generate.docstrings import docstring
from tools.generate.faces import generated
from tools.generate.imports import Import
from tools.generate.signatures import Resolver, signature_of, source_module
from tools.generate.units import UNITS, Unit

PROJECT = Path(__file__).parents[2]
FACET = (
    Unit("rounds.create_round", "write", facet="rounds", short_name="create"),
    Unit("rounds.get_round", "fetch", facet="rounds", short_name="get"),
    Unit("rounds.list_rounds", "query", facet="rounds", short_name="list"),
    Unit("turns.create_turn", "write", claims=True, facet="rounds", short_name="create_turn"),
    Unit("turns.list_turns", "query", facet="rounds"),
)


def write_faces(folder):
    """Write the faces with a facet more, under names that do not hide the library's."""
    made = generated((*UNITS, *FACET), {"rounds": "The rounds of a session."})
    paths = {}
    for path, text in made.items():
        paths[path.stem] = folder / f"faces_with_facet_{path.stem}.py"
        own = text.replace("mandrake_sessions.faces.reader", "faces_with_facet_reader")
        paths[path.stem].write_text(own, encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    loaded, loaders = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for name, path in write_faces(tmp_path_factory.mktemp("faces")).items():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            loaded[name], loaders[name] = importlib.util.module_from_spec(spec), spec.loader
            patch.setitem(sys.modules, path.stem, loaded[name])
        for name in ("reader", "transaction", "manager", "awaited"):
            loaders[name].exec_module(loaded[name])
        yield loaded


def subclass(*bases: type) -> Any:
    """Return a class of bases that no type checker knows."""
    return type("Subclass", bases, {})


def test_a_facet_of_a_manager_runs_its_units(faces, path, pool):
    manager_type = subclass(faces["manager"].ManagerFace, SessionManager)
    manager = manager_type(path, pool=pool)
    with manager:
        session = manager.create_session()
        facet = manager.rounds
        round_ = facet.create(session.id, "Hello?")
        assert facet.get(round_.id) == round_ == manager.get_round(round_.id)
        assert facet.list(session.id) == [round_]
        turn = facet.create_turn(round_.response.id)
        assert facet.list_turns(round_.response.id) == [turn]
        with pytest.raises(InvalidArgumentError):
            facet.get(7)
    with pytest.raises(NotInitializedError):
        facet.get(7)


def test_a_facet_of_a_transaction_runs_its_units(faces, path, pool):
    transaction_type = subclass(faces["transaction"].TransactionFace, SessionTransaction)
    with SessionManager(path, pool=pool) as manager:
        handle = file_handle(manager.handle)

        def work(database):
            tx = transaction_type(database, handle.claim)
            session = tx.create_session()
            round_ = tx.rounds.create(session.id, "Hello?")
            reader = faces["reader"].ReaderFace(database)
            assert reader.rounds.list(session.id) == tx.rounds.list(session.id) == [round_]
            assert not hasattr(reader.rounds, "create")
            turn = tx.rounds.create_turn(round_.response.id)
            assert tx.rounds.list_turns(round_.response.id) == [turn]
            return turn

        turn = handle.transact(work)
        assert manager.get_turn(turn.id) == turn


def test_a_facet_for_coroutines_runs_its_units(faces, path, pool):
    manager_type = subclass(AsyncSessionManager, faces["awaited"].AwaitedFace)

    async def main():
        manager = manager_type(path, pool=pool)
        async with manager:
            session = await manager.create_session()
            facet = manager.rounds
            round_ = await facet.create(session.id, "Hello?")
            assert await facet.list(session.id) == [round_]
            turn = await facet.create_turn(round_.response.id)
            assert await facet.list_turns(round_.response.id) == [turn]
        with pytest.raises(NotInitializedError):
            await facet.get(7)

    asyncio.run(main())


def test_a_facet_is_a_documented_attribute_and_errors_name_the_unit(faces, path, pool):
    manager_type = subclass(faces["manager"].ManagerFace, SessionManager)
    assert inspect.getdoc(manager_type.rounds) == "The rounds of a session."
    source = inspect.getsource(faces["manager"].ManagerRounds.list)
    assert '"list_rounds"' in source
    # Inside the class `list` is the method.
    assert "builtins.list[Round]" in source


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_faces_with_a_facet_pass_the_type_checkers(tmp_path, checker):
    paths = write_faces(tmp_path).values()
    configuration = {
        "typeCheckingMode": "strict",
        "extraPaths": [str(PROJECT)],
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(configuration), encoding="utf-8")
    options = {
        "mypy": ["--config-file", str(PROJECT / "pyproject.toml"), *map(str, paths)],
        "pyright": ["--project", str(tmp_path)],
    }
    done = subprocess.run(
        [Path(sys.executable).with_name(checker), *options[checker]],
        cwd=PROJECT,
        env=os.environ | {"MYPYPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ((UNITS[0], UNITS[0]), "same name"),
        ((Unit("rounds.get_round", "fetch", facet="other"),), "without a docstring"),
        ((Unit("rounds.create_round", "write", facet="rounds"),), "that reads"),
        ((Unit("rounds.create_round", "fetch"),), "must return a ReadUnit"),
        ((Unit("rounds.get_round", "write"),), "must return a WriteUnit"),
        ((Unit("rounds.add_round", "write"),), "must return a WriteUnit"),
        ((Unit("rounds.nothing", "write"),), "There is no function"),
    ],
)
def test_a_table_that_makes_no_methods_is_refused(units, message):
    facets = {"rounds": "The rounds of a session."} if units[0].facet == "rounds" else {}

    with pytest.raises(ValueError, match=message):
        generated(units, facets)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def unit_of(id: str) -> ReadUnit[int]: ...", "needs a docstring"),
        ('def unit_of(id) -> ReadUnit[int]:\n    """Return."""', "has no annotation"),
        ('def unit_of(*ids: str) -> ReadUnit[int]:\n    """Return."""', "no plain one"),
        ('def unit_of(handle: str) -> ReadUnit[int]:\n    """Return."""', "name of a variable"),
    ],
)
def test_a_function_that_makes_no_method_is_refused(tmp_path, monkeypatch, source, message):
    records = tmp_path / "mandrake_sessions" / "records"
    records.mkdir(parents=True)
    (records / "made.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(signatures, "PROJECT", tmp_path)

    source_module.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            signature_of("made.unit_of", "fetch")
    finally:
        source_module.cache_clear()


@pytest.mark.parametrize(
    ("module", "annotation", "shown", "imports"),
    [
        # An alias that is no public name is shown as what it stands for.
        ("workspace", "Root | None", "str | os.PathLike[str] | None", {Import("os")}),
        ("hosts", "list[Root]", "list[str | os.PathLike[str]]", {Import("os")}),
        # A public one keeps its name.
        (
            "aio.manager",
            "Watch[SessionEvent]",
            "Watch[SessionEvent]",
            {
                Import("mandrake_sessions.live.watching.subscription", "Watch"),
                Import("mandrake_sessions.live.watching.updates", "SessionEvent"),
            },
        ),
        ("records.turns", "datetime | None", "datetime | None", {Import("datetime", "datetime")}),
    ],
)
def test_private_aliases_are_expanded(module, annotation, shown, imports):
    resolver = Resolver(frozenset())
    expression = ast.parse(annotation, mode="eval").body

    assert resolver.text(source_module(f"mandrake_sessions.{module}"), expression) == shown
    assert resolver.imports == imports


def test_a_docstring_that_is_too_wide_for_a_method_is_broken_anew():
    text = """Return it.

Args:
    id: one two three four five six
        seven eight.
    b: c.

Returns:
    It."""

    assert docstring(text, ["AnError: when."], indent=4, width=32).splitlines() == [
        '    """Return it.',
        "",
        "    Args:",
        "        id: one two three four",
        "            five six seven",
        "            eight.",
        "        b: c.",
        "",
        "    Returns:",
        "        It.",
        "",
        "    Raises:",
        "        AnError: when.",
        '    """',
    ]


def test_a_first_line_that_is_too_wide_for_a_method_is_refused():
    with pytest.raises(ValueError, match="too long for a method"):
        docstring("One two three four five six.", [], indent=8, width=30)
