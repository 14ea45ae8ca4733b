"""The docstring of a unit's function, made true for a method of a face."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

_SECTION: Final = "    "


def docstring(text: str, raised: Iterable[str], *, indent: int, width: int) -> str:
    """Return a docstring as source, with its quotes.

    Args:
        text: of the function, without its indentation.
        raised: further errors of the method, each with its condition.
        indent: columns before each line.
        width: columns of the longest line.

    Raises:
        ValueError: the first line of the text is too long for the method.
    """
    first = text.partition("\n")[0]
    if len(first) + len('"""') > width - indent:
        raise ValueError(f"The first line of a docstring is too long for a method: {first}")
    lines = list(_fitted(_with_errors(text, raised), width - indent))
    if len(lines) == 1 and len(lines[0]) + 2 * len('"""') <= width - indent:
        return textwrap.indent(f'"""{lines[0]}"""', " " * indent)
    return textwrap.indent("\n".join([f'"""{lines[0]}', *lines[1:], '"""']), " " * indent)


def _with_errors(text: str, raised: Iterable[str]) -> str:
    """Return a docstring with further lines at the end of its ``Raises``."""
    added = "".join(f"\n{_SECTION}{line}" for line in raised)
    if not added:
        return text
    before, heading, after = text.partition("\nRaises:\n")
    if not heading:
        return f"{text}\n\nRaises:{added}"
    named, gap, rest = after.partition("\n\n")
    return f"{before}{heading}{named.rstrip()}{added}{gap}{rest}"


def _fitted(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text; a paragraph or an entry that is too wide is broken anew."""
    block: list[str] = []
    for line in text.splitlines():
        is_entry = re.match(rf"{_SECTION}\S", line)
        if block and (not line or is_entry or line[0] != block[0][0]):
            yield from _broken(block, width)
            block = []
        if line:
            block.append(line)
        else:
            yield ""
    yield from _broken(block, width)


def _broken(block: list[str], width: int) -> list[str]:
    if all(len(line) <= width for line in block):
        return block
    first = re.match(" *", block[0])
    assert first is not None
    indent = first[0]
    return textwrap.wrap(
        " ".join(line.strip() for line in block),
        width,
        initial_indent=indent,
        subsequent_indent=indent and indent + _SECTION,
        break_long_words=False,
        break_on_hyphens=False,
    )
