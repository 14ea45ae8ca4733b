"""Writes the modules of ``mandrake_sessions/faces/`` that hold methods: what ``make faces`` does.

Each method is a ``def`` with the signature and the docstring of its unit's function, so editors,
type checkers and readers find it. Its body takes the handle before it prepares the unit: a closed
manager raises NotInitializedError, whatever the arguments are.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.generate.docstrings import docstring
from tools.generate.imports import PACKAGE, WIDTH, Import, import_lines
from tools.generate.signatures import PROJECT, RECORDS, Signature, signature_of
from tools.generate.units import FACETS, UNITS, Kind, Unit

FOLDER: Final = PROJECT / PACKAGE / "faces"
_MANY_KEYWORDS: Final = 8
_CALLS: Final = f"{PACKAGE}.faces.calls"
_READER: Final = f"{PACKAGE}.faces.reader"

_NOT_OPEN: Final = "NotInitializedError: before ``init()`` and after ``close()``."
_BUSY: Final = "DatabaseBusyError: the ``busy_timeout`` was used up"
_UNKNOWN: Final = "CommitOutcomeUnknownError: the COMMIT failed and may have stored it."
_TIME_USED_UP: Final = "DatabaseBusyError: the transaction's time was used up."


@dataclass(frozen=True)
class Face:
    """One set of methods over the units. A facet of it is a class of its own.

    Attributes:
        name: begins the names of its classes; in lower case that of its module.
        summary: the docstring of its classes.
        kinds: of the units that it offers.
        base: the bases of its class, as source.
        facet_base: the bases of a facet's class; ``{facet}`` is the end of the name of that class.
        facet: the arguments that make a facet.
        result: the last line of a method, by kind; ``{claims}`` adds the argument for units that
            claim the file.
        write_errors: further errors of a method that writes.
        read_errors: further errors of a method that reads.
        facet_type: follows the name of a facet's class where it is a type.
        before: the first line of a method, before it prepares the unit.
        is_async: whether its methods are coroutine functions.
    """

    name: str
    summary: str
    kinds: tuple[Kind, ...]
    base: str
    facet_base: str
    facet: str
    result: Mapping[Kind, str]
    write_errors: Sequence[str] = ()
    read_errors: Sequence[str] = ()
    facet_type: str = ""
    before: str = ""
    is_async: bool = False

    @property
    def path(self) -> Path:
        """The module that is written."""
        return FOLDER / f"{self.name.lower()}.py"

    def class_of(self, facet: str | None) -> str:
        """Return the name of the class of a facet, or of the face itself."""
        return f"{self.name}{'Face' if facet is None else _capitalized(facet)}"


FACES: Final = (
    Face(
        "Manager",
        "Methods of an open manager; each call is a unit of its own.",
        ("write", "fetch", "query"),
        base="_ManagerCalls",
        facet_base="_ManagerFacet",
        facet="self",
        before="handle = self._opened",
        result={
            "write": 'return _write(handle, unit, "{name}"{claims})',
            "fetch": 'return _fetch(handle, unit, "{name}")',
            "query": 'return _query(handle, unit, "{name}")',
        },
        write_errors=(_NOT_OPEN, f"{_BUSY}; nothing was stored.", _UNKNOWN),
        read_errors=(_NOT_OPEN, f"{_BUSY}."),
    ),
    Face(
        "Awaited",
        "Methods of an open manager for coroutines; each call is a unit of its own.",
        ("write", "fetch", "query"),
        base="_AwaitedCalls",
        facet_base="_AwaitedFacet",
        facet="self",
        before="handle = self._open_handle()",
        result=dict.fromkeys(
            ("write", "fetch", "query"),
            'return await self._run_unit(handle, unit, "{name}", "{kind}"{claims})',
        ),
        write_errors=(_NOT_OPEN, f"{_BUSY}; nothing was stored.", _UNKNOWN),
        read_errors=(_NOT_OPEN, f"{_BUSY}."),
        is_async=True,
    ),
    Face(
        "Reader",
        "Methods that read inside an open transaction.",
        ("fetch", "query"),
        base="_ReaderCalls[_R]",
        facet_base="_ReaderCalls[_R]",
        facet="self._database",
        facet_type="[_R]",
        result=dict.fromkeys(("fetch", "query"), "return unit(self._database)"),
        read_errors=(_TIME_USED_UP,),
    ),
    Face(
        "Transaction",
        "Methods inside an open transaction; a call that raises undoes what it has written.",
        ("write",),
        base="_ReaderFace[_WriteTransaction], _TransactionCalls",
        facet_base="_Reader{facet}[_WriteTransaction], _TransactionCalls",
        facet="self._database, self._claim",
        result={"write": "return _write_within(self, unit{claims})"},
        write_errors=(_TIME_USED_UP,),
    ),
)

# Names that a template may hold: imported where it does, under a private name.
_PRIVATE: Final = {
    **{
        f"_{name}": _CALLS
        for name in (
            *("AwaitedCalls", "AwaitedFacet", "ManagerCalls", "ManagerFacet", "ReaderCalls"),
            *("TransactionCalls", "R", "fetch", "positional", "query", "write", "write_within"),
        )
    },
    "_WriteTransaction": f"{PACKAGE}.engine.transaction",
    "_ReaderFace": _READER,
}


def generated(units: Sequence[Unit] = UNITS, facets: Mapping[str, str] = FACETS) -> dict[Path, str]:
    """Return the text of each file.

    Args:
        units: one for each method.
        facets: the facets that the units name, each with the docstring of its attribute.

    Raises:
        ValueError: a method cannot be made; the message says why.
    """
    _check(units, facets)
    return {face.path: _module(face, units, facets) for face in FACES}


def _check(units: Sequence[Unit], facets: Mapping[str, str]) -> None:
    methods = [(unit.facet, unit.method) for unit in units]
    if len(methods) > len(set(methods)):
        raise ValueError("Two units give a method of the same name.")
    if unknown := {unit.facet for unit in units} - {None, *facets}:
        raise ValueError(f"Facets without a docstring: {unknown}")
    read = {unit.facet for unit in units if unit.kind != "write"}
    if unread := facets.keys() - read:
        # The facets of a transaction inherit those of a reader.
        raise ValueError(f"Facets without a unit that reads: {unread}")


def _module(face: Face, units: Sequence[Unit], facets: Mapping[str, str]) -> str:
    imports: set[Import] = set()
    methods: dict[str | None, list[Unit]] = {facet: [] for facet in (*facets, None)}
    offered = [unit for unit in units if unit.kind in face.kinds]
    for unit in offered:
        methods[unit.facet].append(unit)
    named = [facet for facet in facets if methods[facet]]
    classes = [_class(face, facet, methods[facet], imports) for facet in named]
    attributes = [_attribute(face, facet, facets[facet]) for facet in named]
    classes.append(_class(face, None, methods[None], imports, attributes))
    functions = _functions(offered)
    text = functions + "\n\n" + "\n\n".join(classes)
    private = _PRIVATE | {f"_Reader{_capitalized(each)}": _READER for each in named}
    imports |= {
        Import(module, name[1:], name)
        for name, module in private.items()
        if re.search(rf"\b{name}\b", text)
    }
    head = f'"""{face.summary}\n\nMade by ``make faces``.\n"""'
    imported = "\n".join(import_lines(imports))
    return f"{head}\n\nfrom __future__ import annotations\n\n{imported}\n{text}"


def _functions(units: Iterable[Unit]) -> str:
    """Return the lines that make functions for calls by position, where there are any."""
    names = {
        unit.name: _module_of(unit).alias
        for unit in units
        if _takes_many(signature_of(unit.function, unit.kind))
    }
    lines = [f"_{name} = _positional({module}.{name})\n" for name, module in names.items()]
    return "".join(["\n" if lines else "", *lines])


def _class(
    face: Face,
    facet: str | None,
    units: Sequence[Unit],
    imports: set[Import],
    attributes: Iterable[str] = (),
) -> str:
    base = face.base if facet is None else face.facet_base.format(facet=_capitalized(facet))
    hidden = frozenset(unit.method for unit in units if hasattr(builtins, unit.method))
    parts = [f'    """{face.summary}"""\n', *attributes]
    for unit in units:
        signature = signature_of(unit.function, unit.kind, hidden)
        imports |= signature.imports
        imports.add(_module_of(unit))
        parts.append("".join(f"{line}\n" for line in _method(face, unit, signature)))
    return f"class {face.class_of(facet)}({base}):\n" + "\n".join(parts)


def _attribute(face: Face, facet: str, summary: str) -> str:
    name = face.class_of(facet)
    return (
        "    @property\n"
        f"    def {facet}(self) -> {name}{face.facet_type}:\n"
        f'        """{summary}"""\n'
        f"        return {name}({face.facet})\n"
    )


def _method(face: Face, unit: Unit, signature: Signature) -> Iterator[str]:
    keyword = "async def" if face.is_async else "def"
    yield from laid_out(
        f"    {keyword} {unit.method}", ["self", *signature.parameters], f" -> {signature.result}:"
    )
    errors = face.write_errors if unit.kind == "write" else face.read_errors
    yield docstring(signature.docstring, errors, indent=8, width=WIDTH)
    if face.before:
        yield f"        {face.before}"
    yield from _preparation(unit, signature)
    claims = ", claims=True" if unit.claims else ""
    result = face.result[unit.kind]
    yield f"        {result.format(name=unit.name, kind=unit.kind, claims=claims)}"


def _preparation(unit: Unit, signature: Signature) -> list[str]:
    """Return the lines that call the unit's function."""
    if _takes_many(signature):
        return laid_out(f"        unit = _{unit.name}", signature.names, "")
    at = len(signature.names) - signature.keywords
    keywords = [f"{name}={name}" for name in signature.names[at:]]
    function = f"{_module_of(unit).alias}.{unit.name}"
    return laid_out(f"        unit = {function}", [*signature.names[:at], *keywords], "")


def _takes_many(signature: Signature) -> bool:
    """Whether a call by position is quicker, by enough to have a function for it."""
    return signature.keywords > _MANY_KEYWORDS


def laid_out(head: str, arguments: Sequence[str], tail: str) -> list[str]:
    """Return a call or a ``def`` as the formatter lays it: on one line, or on several."""
    inside = ", ".join(arguments)
    if len(line := f"{head}({inside}){tail}") <= WIDTH:
        return [line]
    indent = " " * (len(head) - len(head.lstrip()))
    if len(line := f"{indent}    {inside}") <= WIDTH:
        return [f"{head}(", line, f"{indent}){tail}"]
    return [f"{head}(", *(f"{indent}    {each}," for each in arguments), f"{indent}){tail}"]


def _capitalized(facet: str) -> str:
    return facet.title().replace("_", "")


def _module_of(unit: Unit) -> Import:
    module = unit.function.partition(".")[0]
    return Import(RECORDS, module, f"_{module}")


def main() -> None:
    """Write the files."""
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
