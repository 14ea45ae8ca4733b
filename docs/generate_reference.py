"""Writes docs/reference.md from the public names; a test compares it with the file.

python docs/generate_reference.py
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

import mandrake_sessions
from mandrake_sessions import aio, importers, testing

TARGET = Path(__file__).parent / "reference.md"

GROUPS: dict[str, tuple[str, ...]] = {
    "Managers": ("SessionManager", "SessionTransaction", "MandrakeManager", "WorkspaceManager"),
    "Shutdown": ("install_shutdown_hook", "ShutdownHook", "ShutdownReport"),
    "Records": (
        "Session",
        "Round",
        "Request",
        "Response",
        "Turn",
        "TurnStatus",
        "ToolCall",
        "NewTurn",
        "Exchange",
        "SessionHistory",
        "SessionUsage",
        "StreamingStatus",
        "Workspace",
        "UNSET",
    ),
    "Streaming": ("TurnWriter", "PendingToolCall", "storable", "Storable", "ValueChange"),
    "Watching": (
        "Watch",
        "Subscription",
        "TurnUpdate",
        "RoundUpdate",
        "SessionUpdate",
        "SessionEvent",
    ),
    "Pool": ("default_pool", "ConnectionPool", "DatabaseHandle", "PoolStats", "DatabaseStats"),
    "Options": ("DatabaseOptions", "PoolOptions", "Durability"),
    "Repair": ("diagnose", "salvage", "SalvageReport", "TableSalvage"),
    "Health": ("HealthMonitor", "HealthLevel", "HealthReport", "HealthCheck", "HealthStatus"),
}
"""Every public name that is no exception, in the order of the page."""

GIVEN = (
    "AsyncTurnWriter",
    "DatabaseHandle",
    "Injection",
    "Life",
    "PendingToolCall",
    "PowerCut",
    "SalvageReport",
    "SessionTransaction",
    "ShutdownHook",
    "Storable",
    "Subscription",
    "TableSalvage",
    "TurnUpdate",
    "TurnWriter",
    "ValueChange",
    "Watch",
)
"""Classes that the library makes, and callers do not."""

TWINS = {
    mandrake_sessions.SessionTransaction: mandrake_sessions.SessionManager,
    aio.AsyncSessionManager: mandrake_sessions.SessionManager,
    aio.AsyncMandrakeManager: mandrake_sessions.MandrakeManager,
    aio.AsyncWorkspaceManager: mandrake_sessions.WorkspaceManager,
    aio.AsyncTurnWriter: mandrake_sessions.TurnWriter,
}
"""Classes whose methods of the same names are another one's."""

_FACES = "mandrake_sessions.faces."

VALUES = {
    "UNSET": "Leave this field alone; `None` clears it.",
    "SessionEvent": "What `watch_session` tells: `TurnUpdate | RoundUpdate | SessionUpdate`.",
}
"""Public names that are neither class nor function."""

INTRODUCTION = """\
# Reference

Every public name, in one line each. The docstrings say more: what an argument means, what is
raised. Names are imported from `mandrake_sessions` unless said otherwise. What is not on this page
may change in any release.

This page is written by `python docs/generate_reference.py`, and a test compares it with the code.
"""


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name, getattr(mandrake_sessions, name)) for name in names]
    parts.append("## asyncio\n\nFrom `mandrake_sessions.aio`; [how to](howto/asyncio.md).\n")
    parts += [_entry(name, getattr(aio, name)) for name in sorted(aio.__all__)]
    parts.append("## Importers\n\nFrom `mandrake_sessions.importers`.\n")
    parts += [_entry(name, getattr(importers, name)) for name in sorted(importers.__all__)]
    parts.append("## Testing\n\nFrom `mandrake_sessions.testing`; [how to](howto/testing.md).\n")
    parts += [_entry(name, getattr(testing, name)) for name in sorted(testing.__all__)]
    parts.append("## Errors\n\n[Handle every error](howto/errors.md) says what to do about each.\n")
    parts.append("\n".join(_errors()) + "\n")
    return "\n".join(parts)


def missing_names() -> set[str]:
    """Return the public names that no group has."""
    grouped = {name for names in GROUPS.values() for name in names}
    return set(mandrake_sessions.__all__) - grouped - {kind.__name__ for kind in error_classes()}


def error_classes() -> list[type[mandrake_sessions.MandrakeSessionsError]]:
    """Return the public exceptions."""
    public = (getattr(mandrake_sessions, name) for name in mandrake_sessions.__all__)
    root = mandrake_sessions.MandrakeSessionsError
    return [found for found in public if inspect.isclass(found) and issubclass(found, root)]


def _entry(name: str, found: Any) -> str:
    if inspect.isfunction(found):
        return f"### `{name}`\n\n{_first_line(found)}\n\n- `{name}{_signature(found)}`\n"
    if not inspect.isclass(found):
        return f"### `{name}`\n\n{VALUES[name]}\n"
    lines = [f"### `{name}`\n", f"{_first_line(found)}\n"]
    if issubclass(found, enum.Enum):
        lines.append("- " + " · ".join(f"`{member.name}`" for member in found))
    elif issubclass(found, msgspec.Struct):
        lines += _fields(found)
    elif name not in GIVEN:
        lines.append(f"- `{name}{_signature(found.__init__)}`")
    if not issubclass(found, msgspec.Struct | enum.Enum):
        lines += _attributes(found)
    lines += _members(found)
    return "\n".join(lines) + "\n"


def _fields(record: type[msgspec.Struct]) -> Iterator[str]:
    annotations: dict[str, str] = {}
    for each in reversed(record.__mro__):
        annotations |= inspect.get_annotations(each)
    for field in msgspec.structs.fields(record):
        default = ""
        if field.default is not msgspec.NODEFAULT:
            default = f" = {_value(field.default)}"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = f" = {field.default_factory.__name__}()"
        yield f"- `{field.name}: {annotations[field.name]}{default}`"


def _attributes(found: type[Any]) -> Iterator[str]:
    """Yield what the docstring says under Attributes."""
    _, _, section = (inspect.getdoc(found) or "").partition("Attributes:\n")
    for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE):
        yield f"- `{name}`: {_plain(text)}"


def _members(found: type[Any]) -> Iterator[str]:
    """Yield the public methods and properties, those of ours that are inherited too."""
    seen: set[str] = set()
    twin = TWINS.get(found)
    if twin is not None:
        # Made of the same functions, or told by the same words.
        seen = {name for name in _own(twin).keys() & _own(found).keys() if name[0] != "_"}
        shared = " · ".join(f"`{name}`" for name in _own(found) if name in seen)
        yield f"- as in `{twin.__name__}`: {shared}"
    for each in found.__mro__:
        if not each.__module__.startswith("mandrake_sessions"):
            continue
        for name, member in vars(each).items():
            # What begins with an x is called by SQLite, not by people.
            if re.match("_|x[A-Z]", name) or name in seen:
                continue
            seen.add(name)
            getter = member.func if isinstance(member, cached_property) else member
            getter = getter.fget if isinstance(getter, property) else getter
            if isinstance(member, property | cached_property) and getter is not None:
                yield f"- `{name}: {getter.__annotations__['return']}`: {_first_line(member)}"
            elif inspect.isfunction(member):
                yield _line(name, member)


def _own(found: type[Any]) -> dict[str, Any]:
    """Return the members of a class with those of its faces."""
    faces = (each for each in found.__mro__ if each.__module__.startswith(_FACES))
    return {name: member for each in (*faces, found) for name, member in vars(each).items()}


def _line(name: str, function: Any) -> str:
    return f"- `{name}{_signature(function)}`: {_first_line(function)}"


def _signature(function: Any) -> str:
    """Return a signature as a caller sees it: no self, and what a unit returns when it is run."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    returns = str(signature.return_annotation)
    unit = re.fullmatch(r"(?:Read|Write)Unit\[(.*)\]", returns)
    if unit:
        returns = unit[1]
    yielded = re.fullmatch(r"Iterator\[(.*)\]", returns)
    if yielded and _is_context_manager(function):
        returns = f"AbstractContextManager[{yielded[1]}]"
    shown = f"({', '.join(_parameters(parameters))})"
    shown = shown.replace(": Root", ": str | os.PathLike[str]")
    if signature.return_annotation is inspect.Signature.empty or function.__name__ == "__init__":
        return shown
    return f"{shown} -> {returns}"


def _is_context_manager(function: Any) -> bool:
    return getattr(function, "__code__", None) is not getattr(
        inspect.unwrap(function), "__code__", None
    )


def _parameters(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for each in parameters:
        if each.kind is each.VAR_POSITIONAL:
            starred = True
            yield f"*{each.name}: {each.annotation}"
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        default = "" if each.default is each.empty else f" = {_value(each.default)}"
        yield f"{each.name}: {each.annotation}{default}"


def _value(value: object) -> str:
    if isinstance(value, enum.Enum) and value is not mandrake_sessions.UNSET:
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, tuple) and value:
        return f"({', '.join(_value(each) for each in value)})"
    if isinstance(value, msgspec.Struct) and value == type(value)():
        return f"{type(value).__name__}()"
    return repr(value)


def _first_line(found: Any) -> str:
    return _plain((inspect.getdoc(found) or "").split("\n\n")[0])


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _errors() -> Iterator[str]:
    def under(parent: type[Any], depth: int) -> Iterator[str]:
        yield f"{'  ' * depth}- `{parent.__name__}`: {_first_line(parent)}"
        for child in sorted(parent.__subclasses__(), key=lambda each: each.__name__):
            if child in public:
                yield from under(child, depth + 1)

    public = set(error_classes())
    yield from under(mandrake_sessions.MandrakeSessionsError, 0)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
