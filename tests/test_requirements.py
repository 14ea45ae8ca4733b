"""Each statement that the library was asked for has tests that show it, by name."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
ENTRIES: dict[str, dict[str, Any]] = tomllib.loads(
    (TESTS / "requirements.toml").read_text(encoding="utf-8")
)
# The statements of each document, by letter. None is left out, also where its feature comes later.
LETTERS = {
    "M": "01-06 10-15 20-25 30-33 40-42 50-53 56 60-70",
    "B": "01-08 10 12",
    "L": "01-03 10-13 20-21 30 40 50 60-61",
    "C": "01-12",
    "P": "01-08",
}
CODE = re.compile(r"_(?:[blcmp]\d\d|(?:rule|show|issue|decision|section)_\d+)(?=_|$)")


def _expand(letter: str, ranges: str) -> set[str]:
    found = set()
    for each in ranges.split():
        first, _, last = each.partition("-")
        found |= {f"{letter}{number:02}" for number in range(int(first), int(last or first) + 1)}
    return found


@functools.cache
def _tests_of(path: Path) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [node.name for node in ast.walk(tree) if isinstance(node, functions)]
    return [name for name in named if name.startswith("test_")]


def test_every_statement_has_an_entry() -> None:
    letters = set().union(*(_expand(letter, ranges) for letter, ranges in LETTERS.items()))
    assert letters - ENTRIES.keys() == set()


@pytest.mark.parametrize("letter", ENTRIES)
def test_an_entry_has_a_statement_and_tests_that_exist(letter: str) -> None:
    entry = ENTRIES[letter]
    assert entry.keys() <= {"statement", "later", "tests"}
    assert entry["statement"].endswith(".")
    assert entry["tests"] or entry["later"]
    assert len(entry["tests"]) == len(set(entry["tests"]))
    missing = []
    for test in entry["tests"]:
        file, _, name = test.partition("::")
        path = TESTS.parent / file
        if not path.exists() or name not in _tests_of(path):
            missing.append(test)
    assert missing == []


def test_the_name_of_a_test_carries_no_code() -> None:
    named = [(path.name, name) for path in TESTS.rglob("test_*.py") for name in _tests_of(path)]
    assert len(named) > 1_000
    assert CODE.search("test_m53_sessions_for")
    assert [each for each in named if CODE.search(each[1])] == []
