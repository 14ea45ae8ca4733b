"""The reference shows the public names, those alone, and each of their arguments has words."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import msgspec
from docs_pages import DOCS, PAGES, Page

import mandrake_sessions
from mandrake_sessions import MandrakeSessionsError, aio, errors, importers, testing

PACKAGES = (mandrake_sessions, aio, importers, testing)
REFERENCE = [page for page in PAGES if page.path.parent == DOCS / "reference"]

_SECTION = re.compile(r"^(?:Args|Attributes):\n(?P<fields>(?:(?: .*)?\n)*)", re.MULTILINE)
_REFERS = re.compile(r"(?:as|are those of|does|errors of) ``[\w.]+``|``[\w.]+`` does")
_ENTRY = re.compile(
    r"^\.\. (?:auto(?:class|exception|function)|py:data):: (?P<name>\w+).*\n"
    r"(?P<options>(?:   .*\n)*)",
    re.MULTILINE,
)


def _entries(page: Page) -> Iterator[tuple[str, str, str]]:
    """Yield package, name and options of each public name on a page of the reference."""
    for block in page.blocks:
        if block.language == "{eval-rst}":
            package = re.findall(r"^\.\. currentmodule:: (\S+)$", block.text, re.MULTILINE)
            assert len(package) == 1
            for entry in _ENTRY.finditer(block.text):
                yield package[0], entry["name"], entry["options"]


ENTRIES = [entry for page in REFERENCE for entry in _entries(page)]


def _hidden(options: str) -> set[str]:
    found = re.search(r":exclude-members:(.*(?:\n    .*)*)", options)
    return set(re.findall(r"\w+", found[1])) if found else set()


def _shown() -> Iterator[tuple[str, Any]]:
    """Yield each function, class and method that the reference shows, by its name."""
    for package, name, options in ENTRIES:
        found = getattr(importlib.import_module(package), name)
        if inspect.isfunction(found):
            yield name, found
        if not inspect.isclass(found):
            continue
        yield name, found
        hidden = _hidden(options)
        listed = re.search(r"   :members: (.*)", options)
        for kind in found.__mro__:
            if not kind.__module__.startswith("mandrake_sessions"):
                continue
            for member, value in vars(kind).items():
                if (
                    not member.startswith("_")
                    and (not listed or member in listed[1].split(", "))
                    and member not in hidden
                ):
                    yield f"{name}.{member}", value


SHOWN = list(_shown())


def test_every_public_name_is_in_the_reference_once_and_nothing_else() -> None:
    public = sorted((package.__name__, name) for package in PACKAGES for name in package.__all__)
    assert sorted((package, name) for package, name, _ in ENTRIES) == public


def test_a_handle_shows_what_a_host_may_call() -> None:
    members = {name for name, _ in SHOWN if name.startswith("DatabaseHandle.")}
    public = {"path", "options", "sqlalchemy", "backup", "health", "stats", "release"}
    assert members == {f"DatabaseHandle.{name}" for name in public}


def test_the_reference_hides_only_the_names_that_sqlite_calls() -> None:
    hidden = {
        (name, member)
        for _, name, options in ENTRIES
        for member in _hidden(options)
        if not member.startswith("_")
    }
    assert hidden == {
        (name, member) for name in ("FaultVFS", "PowerLossVFS") for member in ("xOpen", "xDelete")
    }


def _docstring(found: Any) -> str:
    return inspect.cleandoc(getattr(found, "__doc__", None) or "")


def test_every_member_that_is_shown_has_words() -> None:
    kinds = (property, cached_property)
    assert [
        name
        for name, found in SHOWN
        if (inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, kinds))
        and not _docstring(found)
    ] == []


def _described(text: str) -> set[str]:
    sections = "".join(match["fields"] for match in _SECTION.finditer(text + "\n"))
    return set(re.findall(r"^    (\w+): ", sections, re.MULTILINE))


def test_every_argument_that_is_shown_has_words() -> None:
    lacking = []
    for name, found in SHOWN:
        if not inspect.isfunction(found):
            continue
        text = _docstring(found)
        arguments = [each for each in inspect.signature(found).parameters if each != "self"]
        missing = [each for each in arguments if each not in _described(text)]
        if missing and not _REFERS.search(text):
            lacking.append((name, missing))
    assert lacking == []


def test_every_field_of_a_record_has_words() -> None:
    lacking = []
    for name, found in SHOWN:
        if inspect.isclass(found) and issubclass(found, msgspec.Struct):
            texts = [_docstring(kind) for kind in found.__mro__]
            described = set().union(*(_described(text) for text in texts))
            fields = {field.name for field in msgspec.structs.fields(found)}
            lacking += [f"{name}.{field}" for field in sorted(fields - described)]
    assert lacking == []


def error_classes() -> list[type[MandrakeSessionsError]]:
    """Return the public exceptions."""
    public = (getattr(mandrake_sessions, name) for name in mandrake_sessions.__all__)
    return [
        found
        for found in public
        if inspect.isclass(found) and issubclass(found, MandrakeSessionsError)
    ]


def test_the_tree_of_the_errors_is_that_of_the_code() -> None:
    page = next(page for page in REFERENCE if page.path.name == "errors.md")
    drawn = next(block.text for block in page.blocks if block.language == "text")
    assert drawn in re.sub(r"^ {4}", "", errors.__doc__, flags=re.MULTILINE)


def test_every_error_has_something_to_do_about_it() -> None:
    page = next(page for page in PAGES if page.name == "docs/howto/errors.md")
    named = set(re.findall(r"`(\w+Error)`", page.text))
    assert {kind.__name__ for kind in error_classes()} - named == set()
    assert named - {"ValueError"} <= set(mandrake_sessions.__all__)
