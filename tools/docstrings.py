"""Prints docstrings drawn at random, to be read as a stranger would: ``make docstrings SEED=7``."""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "mandrake_sessions"


def main(seed: int, count: int = 20) -> None:
    """Print ``count`` docstrings; the same ones for the same seed and sources."""
    for place, text in random.Random(seed).sample(list(docstrings()), count):
        sys.stdout.write(f"-- {place}\n{text}\n\n")


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each docstring of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                continue
            text = ast.get_docstring(node)
            if text:
                name = "" if isinstance(node, ast.Module) else node.name
                yield f"{path.relative_to(PACKAGE)} {name}".strip(), text


if __name__ == "__main__":
    main(int(sys.argv[1]))
