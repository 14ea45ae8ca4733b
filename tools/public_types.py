"""Whether the types of the public names are complete: ``make public-types``.

pyright counts each module without an underscore as public. Public here is what the documented
packages export (docs/reference/), wherever a module defines it, and each member of it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "mandrake_sessions",
    "mandrake_sessions.aio",
    "mandrake_sessions.importers",
    "mandrake_sessions.testing",
)
MOST: Final = 900
"""Public symbols, members included; psycopg_pool has 181, procrastinate 1,098."""


def main() -> int:
    """Print each public symbol whose type is not known; return how the command exits."""
    public = [each for each in _symbols() if is_public(each["name"], names())]
    unknown = [each for each in public if each["isTypeAmbiguous"] or not each["isTypeKnown"]]
    for each in unknown:
        sys.stdout.write(f"{each['name']}: {_reason(each)}\n")
    sys.stdout.write(f"{len(public)} public symbols, {len(unknown)} without a complete type\n")
    return int(bool(unknown) or len(public) > MOST)


def names() -> frozenset[str]:
    """Return the full names of what the documented packages export, as they are defined."""
    return frozenset(_names())


def _names() -> Iterator[str]:
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found = getattr(module, name)
            home = getattr(found, "__module__", None) or package
            yield f"{home}.{getattr(found, '__qualname__', name)}"


def is_public(symbol: str, exported: frozenset[str]) -> bool:
    """Return whether a symbol is exported, or a member of a class that is."""
    return symbol in exported or symbol.rpartition(".")[0] in exported


def _symbols() -> list[dict[str, Any]]:
    """Return every symbol as pyright sees it, of the package that is installed."""
    pyright = Path(sys.executable).parent / "pyright"
    run = subprocess.run(
        [pyright, "--verifytypes", "mandrake_sessions", "--ignoreexternal", "--outputjson"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"PATH": f"{pyright.parent}{os.pathsep}{os.environ.get('PATH', '')}"},
    )
    symbols: list[dict[str, Any]] = json.loads(run.stdout)["typeCompleteness"]["symbols"]
    return symbols


def _reason(symbol: dict[str, Any]) -> str:
    messages = [each["message"].splitlines()[0] for each in symbol["diagnostics"]]
    return next((each for each in messages if "docstring" not in each), "unknown")


if __name__ == "__main__":
    raise SystemExit(main())
