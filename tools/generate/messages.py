"""The text of ``mandrake_sessions/error_messages.py``: what each error says by itself."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tools.generate.layout import WIDTH, text_source

_ERRORS = Path(__file__).parents[2] / "mandrake_sessions" / "errors.py"
_HEAD = '''\
"""The messages of errors, for ``python -OO``. Made by ``make sql`` from ``errors.py``."""

# fmt: off

MESSAGES: dict[str, str] = {
'''


def messages() -> Iterator[tuple[str, str]]:
    """Yield the name of each error's class, and the first paragraph of its docstring."""
    # Not imported: errors.py imports the module that is written here.
    for node in ast.parse(_ERRORS.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            documented = ast.get_docstring(node)
            assert documented, f"{node.name} has no docstring, so it would have no message"
            yield node.name, " ".join(documented.split("\n\n")[0].split())


def messages_source() -> str:
    """Return the module's text."""
    return "".join([_HEAD, *(_entry(name, text) for name, text in messages()), "}\n"])


def _entry(name: str, text: str) -> str:
    line = f'    "{name}": "{text}",\n'
    if len(line) <= WIDTH:
        return line
    pieces = textwrap.indent(text_source(text), " " * 8)
    return f'    "{name}": (\n{pieces}\n    ),\n'
