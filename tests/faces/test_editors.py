"""Editors show each public method: by jedi, and by the language server of pyright."""

import inspect
import json
import sys
from pathlib import Path

import jedi
import pytest
from language_server import LanguageServer

from mandrake_sessions import (
    MandrakeManager,
    SessionManager,
    SessionTransaction,
    WorkspaceManager,
)
from mandrake_sessions.aio import AsyncMandrakeManager, AsyncSessionManager, AsyncWorkspaceManager

PROJECT = Path(__file__).parents[2]
CLASSES = (
    SessionManager,
    SessionTransaction,
    AsyncSessionManager,
    MandrakeManager,
    WorkspaceManager,
    AsyncMandrakeManager,
    AsyncWorkspaceManager,
)


def public_methods(found):
    return {
        name: member
        for name, member in inspect.getmembers(found, inspect.isfunction)
        if not name.startswith("_")
    }


def program(found, last_line):
    folder = "mandrake_sessions.aio"
    package = folder if found.__module__.startswith(folder) else "mandrake_sessions"
    name = found.__name__
    return f"from {package} import {name}\n\n\ndef work(it: {name}) -> None:\n    {last_line}"


def parameters_of(method):
    return [each for each in inspect.signature(method).parameters if each != "self"]


def is_defined_at(method, path, line):
    """Whether a method's ``def`` stands at a line, the first one being 1."""
    defined = inspect.unwrap(method).__code__
    text = path.read_text("utf-8").splitlines()[line - 1]
    return path == Path(defined.co_filename) and f"def {method.__name__}(" in text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("found", CLASSES)
def test_jedi_completes_each_public_method_with_signature_and_docstring(found):
    script = jedi.Script(program(found, "it."), project=jedi.Project(PROJECT))
    shown = {each.name: each for each in script.complete()}

    methods = public_methods(found)
    assert methods.keys() <= shown.keys()
    for name, method in methods.items():
        completion = shown[name]
        assert completion.type == "function"
        assert completion.docstring(raw=True) == inspect.getdoc(method)
        assert is_defined_at(method, completion.module_path, completion.line)
        signatures = completion.get_signatures()
        assert signatures
        for signature in signatures:
            names = [each.name for each in signature.params if each.name not in {"*", "self"}]
            assert names == parameters_of(method)


@pytest.mark.timeout(300)
def test_pyright_completes_and_finds_each_record_method_and_shows_it_in_a_hover(tmp_path):
    configuration = {
        "extraPaths": [str(PROJECT)],
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(configuration), encoding="utf-8")
    missing = []
    with LanguageServer(tmp_path) as server:
        for found in (SessionManager, SessionTransaction, AsyncSessionManager):
            methods = public_methods(found)
            path = tmp_path / f"{found.__name__}.py"
            lines = "\n    ".join(f"it.{name}" for name in methods)
            path.write_text(program(found, lines), encoding="utf-8")
            server.open(path)
            document = {"uri": path.as_uri()}

            def at(name, methods=methods, document=document):
                position = {"line": 4 + list(methods).index(name), "character": 7}
                return {"textDocument": document, "position": position}

            completed = server.ask("textDocument/completion", at(next(iter(methods))))
            labels = {item["label"] for item in completed["items"]}
            missing += sorted(methods.keys() - labels)
            for name, method in methods.items():
                hover = server.ask("textDocument/hover", at(name))["contents"]["value"]
                head = f"(method) def {name}("
                head_of_coroutine = f"(method) async def {name}("
                assert hover.startswith((head, head_of_coroutine)), hover
                for parameter in parameters_of(method):
                    assert f"{parameter}: " in hover
                text = inspect.getdoc(method)
                assert text, name
                first = text.splitlines()[0]
                assert first.replace("`", "") in hover.replace("`", "").replace("\\", "")
                (target,) = server.ask("textDocument/definition", at(name))
                definition = Path(target["uri"].removeprefix("file://"))
                assert is_defined_at(method, definition, target["range"]["start"]["line"] + 1)
    assert missing == []
