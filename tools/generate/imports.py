"""The imports of a generated module, laid out as the linter wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

PACKAGE: Final = "mandrake_sessions"
WIDTH: Final = 100


class Import(NamedTuple):
    """One name that a module imports; ``name`` is empty for ``import module``."""

    module: str
    name: str = ""
    alias: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it comes from the package itself."""
        return self.module.partition(".")[0] == PACKAGE


def import_lines(imports: Iterable[Import]) -> Iterator[str]:
    """Yield the lines of imports, with an empty one between the library's and the package's."""
    others = [each for each in imports if not each.is_own]
    own = [each for each in imports if each.is_own]
    yield from _section(others)
    if others and own:
        yield ""
    yield from _section(own)


def _section(imports: Iterable[Import]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for each in sorted(imports, key=_order):
        renamed = f" as {each.alias}" if each.alias else ""
        if not each.name:
            yield f"import {each.module}{renamed}"
        elif each.alias:
            names[f"from {each.module} import {each.name}{renamed}"] = []
        else:
            names.setdefault(f"from {each.module} import ", []).append(each.name)
    for head, found in names.items():
        line = head + ", ".join(found)
        if len(line) <= WIDTH:
            yield line
        else:
            yield from (f"{head}(", *(f"    {name}," for name in found), ")")


def _order(each: Import) -> tuple[bool, str, bool, int, str]:
    kind = 0 if each.name.isupper() else 1 if each.name[:1].isupper() else 2
    return bool(each.name), each.module, bool(each.alias), kind, each.name
