"""The documentation names what exists: links, tests, commands, errors, events, public names."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from docs_pages import DOCS, PAGES, ROOT, Page

import mandrake_sessions

README = next(page for page in PAGES if page.name == "README.md")
GUARANTEES = next(page for page in PAGES if page.name == "docs/guarantees.md")
ARCHITECTURE = next(page for page in PAGES if page.name == "docs/architecture.md")
FORBIDDEN = {
    "the host of a package index": r"\bpypi\b|pythonhosted|https?://[\w.-]*\b(?:index|mirror|proxy)\b",
    "a plain http link": r"http://",
    "a path of one machine": r"(?<![\w.~])/(?:home|root|tmp|work|Users|private|mnt)/",
    "a word for a missing part": r"\b(?:TODO|TBD|FIXME|XXX)\b",
}
OTHER_COMMANDS = {".", "alembic", "python", "python3"}


def _named(pages: list[Page]) -> dict[str, Any]:
    return {"argvalues": pages, "ids": [page.name for page in pages]}


@pytest.mark.parametrize("page", **_named(PAGES))
def test_every_link_leads_somewhere(page: Page) -> None:
    anchors = {each.path: each.anchors for each in PAGES}
    broken = []
    for link in page.links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists() or (anchor and anchor not in anchors.get(path, set())):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [README.path]
    pages = {page.path: page for page in PAGES}
    while waiting:
        path = waiting.pop()
        if path in reached or path not in pages:
            continue
        reached.add(path)
        targets = (link.partition("#")[0] for link in pages[path].links)
        waiting += [(path.parent / target).resolve() for target in targets if target]
    assert {page.name for page in PAGES if page.path not in reached} == set()


def test_the_readme_is_short() -> None:
    assert len(README.text.splitlines()) < 150


@pytest.mark.parametrize("page", **_named(PAGES))
def test_nothing_of_a_machine_or_an_index_is_named(page: Page) -> None:
    found = {
        what: match[0]
        for what, pattern in FORBIDDEN.items()
        if (match := re.search(pattern, page.text))
    }
    assert found == {}


@cache
def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", "".join(page.text for page in PAGES))
    assert named
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or name not in _tests_of(ROOT / file)
    ]
    assert missing == []


def test_every_guarantee_has_a_limit_and_a_proof() -> None:
    parts = re.split(r"^## ", GUARANTEES.text, flags=re.MULTILINE)[1:]
    promises = [part for part in parts if not part.startswith("Not promised")]
    assert promises
    lacking = [
        part.splitlines()[0]
        for part in promises
        if "**Limit.**" not in part or "**Proof.**" not in part or "`tests/" not in part
    ]
    assert lacking == []


def _command_lines() -> list[tuple[str, list[str]]]:
    return [
        (f"{page.name}: {line}", shlex.split(line))
        for page in PAGES
        for block in page.blocks
        if block.language == "console"
        for line in block.text.splitlines()
        if line.strip()
    ]


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {words[1] for _, words in _command_lines() if words[0] == "make"}
    named |= set(re.findall(r"`make ([a-z-]+)`", "".join(page.text for page in PAGES)))
    assert named - targets == set()


def test_every_command_and_option_that_is_named_exists() -> None:
    typer = pytest.importorskip("typer")
    cli = pytest.importorskip("mandrake_sessions.cli.app")
    program = typer.main.get_command(cli.app)
    lines = _command_lines()
    inline = re.findall(r"`(mandrake-sessions [^`]+)`", "".join(page.prose for page in PAGES))
    lines += [(text, shlex.split(text)) for text in inline]
    unknown = []
    for where, (command, *words) in lines:
        if command == "mandrake-sessions":
            unknown += [f"{where} ({word})" for word in _unknown_words(program, words)]
        elif command not in OTHER_COMMANDS | {"make"}:
            unknown.append(where)
    assert unknown == []


def _unknown_words(command: Any, words: list[str]) -> list[str]:
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return words[:1]
        command, words = command.commands[words[0]], words[1:]
    options = {option for each in command.params for option in each.opts} | {"--help"}
    return [word for word in words if word.startswith("-") and word not in options]


def test_every_python_file_that_is_to_be_run_exists() -> None:
    files = [
        word
        for _, words in _command_lines()
        if words[0] == "python"
        for word in words
        if word.endswith(".py")
    ]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_measurement_is_named_by_a_decision() -> None:
    scripts = {path.relative_to(ROOT).as_posix() for path in DOCS.rglob("measurements/*.py")}
    assert {name for name in scripts if not any(name in page.text for page in PAGES)} == set()


def test_every_decision_has_its_parts() -> None:
    decisions = [page for page in PAGES if re.match(r"docs/adr/\d", page.name)]
    assert [page.path.name[:4] for page in decisions] == [
        f"{number:04}" for number in range(1, len(decisions) + 1)
    ]
    parts = ("## Context", "## Decision", "## Consequences", "## Alternatives weighed")
    assert [
        (page.name, part) for page in decisions for part in parts if part not in page.text
    ] == []


def _packages() -> dict[str, set[str]]:
    """Return the modules of each package, by its heading in the architecture."""
    top = Path(mandrake_sessions.__file__).parent
    packages: dict[str, set[str]] = {}
    for path in top.rglob("*.py"):
        folder = path.parent.relative_to(top).as_posix()
        heading = "top level" if folder == "." else f"`{folder}/`"
        packages.setdefault(heading, set()).add(path.stem)
    return {name: modules - {"__init__", "__main__"} for name, modules in packages.items()}


def test_the_architecture_names_the_modules_of_each_package_and_no_others() -> None:
    named: dict[str, set[str]] = {}
    _, _, text = ARCHITECTURE.text.partition("## What each package holds")
    for part in text.partition("\n## ")[0].split("\n### ")[1:]:
        heading, _, table = part.partition("\n")
        cells = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
        named[heading] = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == _packages()


def test_the_architecture_names_every_event() -> None:
    package = Path(mandrake_sessions.__file__).parent
    logged = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(
            r"(?:get_logger\(\w*\)|\blog|_logger)\.(?:debug|info|warning|error|exception)"
            r"\(\s*\"(\w+)\"",
            path.read_text(encoding="utf-8"),
        )
    }
    _, _, events = ARCHITECTURE.text.partition("## Events")
    named = set(re.findall(r"^\| `(\w+)` \|", events, re.MULTILINE))
    assert logged == named
