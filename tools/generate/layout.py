"""The layout of values in a generated module: Python source that fits its lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

WIDTH = 100
# Nested values are indented, up to five times.
_LINE = WIDTH - 20


def text_source(text: str) -> str:
    """Return a text as source, a line for each of its lines, and broken where it is too long."""
    lines = [_quoted(piece) for line in text.splitlines(keepends=True) for piece in _broken(line)]
    return "\n".join(lines or ['""'])


def _broken(line: str) -> Iterator[str]:
    while len(line) > _LINE:
        at = line.rfind(" ", 0, _LINE) + 1 or _LINE
        yield line[:at]
        line = line[at:]
    yield line


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    if '"' not in text:
        return f'"{escaped}"'
    return f"'{escaped}'" if "'" not in text else '"' + escaped.replace('"', '\\"') + '"'


def tuple_source(names: Iterable[str]) -> str:
    """Return a tuple of names as source."""
    quoted = [f'"{name}"' for name in names]
    line = f"({', '.join(quoted)}{',' if len(quoted) == 1 else ''})"
    return line if len(line) < _LINE else f"(\n{_indented(_filled(quoted))}\n)"


def set_source(names: Iterable[str]) -> str:
    """Return a set of names as source, in alphabetical order."""
    quoted = sorted(f'"{name}"' for name in names)
    line = f"{{{', '.join(quoted)}}}"
    return line if len(line) < _LINE else f"{{\n{_indented(_filled(quoted))}\n}}"


def _filled(quoted: list[str]) -> str:
    return textwrap.fill(", ".join(quoted) + ",", _LINE, break_long_words=False)


def several(sources: Iterable[str]) -> str:
    """Return a tuple of sources, each on its own lines."""
    return "(\n" + "".join(f"{_indented(source)},\n" for source in sources) + ")"


def enclosed(source: str) -> str:
    """Return a source of several lines in parentheses, so that it is one element of a tuple."""
    return f"(\n{_indented(source)}\n)" if "\n" in source else source


def call(name: str, arguments: list[str]) -> str:
    """Return a call as source, on one line if it fits."""
    line = f"{name}({', '.join(arguments)})"
    if "\n" not in line and len(line) < _LINE:
        return line
    return f"{name}(\n" + "".join(f"{_indented(each)},\n" for each in arguments) + ")"


def _indented(source: str) -> str:
    return textwrap.indent(source, "    ")
