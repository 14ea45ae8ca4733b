"""The functions of ``records`` as a method shows them: signature, names to import, docstring."""

from __future__ import annotations

import ast
import builtins
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from tools.generate.imports import PACKAGE, Import

PROJECT: Final = Path(__file__).parents[2]
RECORDS: Final = f"{PACKAGE}.records"

_VARIABLES: Final = {"self", "handle", "unit"}
"""The names that the body of a method uses itself."""

_UNIT_TYPES: Final = {"write": "WriteUnit", "fetch": "ReadUnit", "query": "ReadUnit"}


class Signature(NamedTuple):
    """The signature of a unit's function, as source.

    Attributes:
        parameters: as in a ``def``, without ``self``.
        names: of the parameters, in their order.
        keywords: how many of them, at the end, are passed by keyword only.
        result: the type of the unit's result.
        imports: the names that occur in them.
        docstring: of the function, without its indentation.
    """

    parameters: tuple[str, ...]
    names: tuple[str, ...]
    keywords: int
    result: str
    imports: frozenset[Import]
    docstring: str


def signature_of(function: str, kind: str, hidden: frozenset[str] = frozenset()) -> Signature:
    """Return the signature of a unit's function.

    Args:
        function: as ``module.name`` in ``records``.
        kind: how the unit is run; the type that the function returns must fit.
        hidden: names of builtins that mean something else where the signature is used.

    Raises:
        ValueError: a method cannot be made from the function; the message says why.
    """
    module, _, name = function.rpartition(".")
    source = source_module(f"{RECORDS}.{module}")
    node = source.functions.get(name)
    if node is None:
        raise ValueError(f"There is no function {function} in records.")
    text = ast.get_docstring(node)
    if text is None or "\\" in text or '"""' in text:
        raise ValueError(f"{function} needs a docstring, without backslashes.")
    if node.args.vararg or node.args.kwarg or node.args.posonlyargs:
        raise ValueError(f"{function} has a parameter that is no plain one.")
    names = tuple(each.arg for each in (*node.args.args, *node.args.kwonlyargs))
    if taken := _VARIABLES.intersection(names):
        raise ValueError(f"{function} has a parameter with the name of a variable: {taken}")
    resolver = Resolver(hidden)
    parameters = list(_parameters(resolver, source, node.args))
    match node.returns:
        case ast.Subscript(value=ast.Name(id=returned)) if returned == _UNIT_TYPES[kind]:
            result = resolver.text(source, node.returns.slice)
        case _:
            raise ValueError(f"{function} must return a {_UNIT_TYPES[kind]}: it is run as {kind}.")
    return Signature(
        tuple(parameters),
        names,
        len(node.args.kwonlyargs),
        result,
        frozenset(resolver.imports),
        text,
    )


class SourceModule:
    """The names that a module of the package defines and imports at its top level."""

    def __init__(self, name: str) -> None:
        self.name = name
        path = PROJECT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.functions: dict[str, ast.FunctionDef] = {}
        self.values: dict[str, ast.expr] = {}
        self.imports: dict[str, Import] = {}
        for node in ast.parse(path.read_text("utf-8")).body:
            match node:
                case ast.FunctionDef():
                    self.functions[node.name] = node
                case ast.Assign(targets=[ast.Name(id=target)]):
                    self.values[target] = node.value
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                    self.values[target] = value
                case ast.Import():
                    for each in node.names:
                        self.imports[each.asname or each.name] = Import(
                            each.name, alias=each.asname or ""
                        )
                case ast.ImportFrom(module=str(origin)):
                    for each in node.names:
                        self.imports[each.asname or each.name] = Import(
                            origin, each.name, each.asname or ""
                        )
                case _:
                    pass


source_module = cache(SourceModule)


@cache
def _public_names() -> frozenset[str]:
    listed = source_module(PACKAGE).values["__all__"]
    return frozenset(ast.literal_eval(listed))


def _parameters(resolver: Resolver, source: SourceModule, given: ast.arguments) -> list[str]:
    """Return the parameters of a function as source."""

    def shown(parameter: ast.arg, default: ast.expr | None) -> str:
        if parameter.annotation is None:
            raise ValueError(f"The parameter {parameter.arg} has no annotation.")
        text = f"{parameter.arg}: {resolver.text(source, parameter.annotation)}"
        if default is None:
            return text
        return f"{text} = {resolver.text(source, default, is_type=False)}"

    required = [None] * (len(given.args) - len(given.defaults))
    positional = map(shown, given.args, [*required, *given.defaults])
    keywords = map(shown, given.kwonlyargs, given.kw_defaults)
    return [*positional, *(["*"] if given.kwonlyargs else []), *keywords]


class Resolver:
    """Writes expressions of one module for another one, and gathers the imports they need.

    Args:
        hidden: names of builtins that are written as ``builtins.name``.
    """

    def __init__(self, hidden: frozenset[str]) -> None:
        self.imports: set[Import] = set()
        self._hidden = hidden

    def text(self, source: SourceModule, expression: ast.expr, *, is_type: bool = True) -> str:
        """Return an expression of a module as source; of types, private aliases are expanded."""
        resolver = self

        class Names(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                return resolver._expanded(source, node, is_type=is_type)

        # Parsed again: the transformer changes the nodes that it is given.
        copy = ast.parse(ast.unparse(expression), mode="eval").body
        made = ast.unparse(Names().visit(copy))
        return made if '"' in made else made.replace("'", '"')

    def _expanded(self, source: SourceModule, node: ast.Name, *, is_type: bool) -> ast.expr:
        name = node.id
        imported = source.imports.get(name)
        if imported is not None and imported.is_own:
            origin = source_module(imported.module)
            return self._expanded(origin, ast.Name(imported.name), is_type=is_type)
        if imported is not None:
            self.imports.add(imported)
        elif is_type and name in source.values and name not in _public_names():
            value = self.text(source, source.values[name])
            return ast.parse(value, mode="eval").body
        elif not hasattr(builtins, name):
            self.imports.add(Import(source.name, name))
        elif name in self._hidden:
            self.imports.add(Import("builtins"))
            return ast.Attribute(ast.Name("builtins"), name)
        return ast.Name(name)
