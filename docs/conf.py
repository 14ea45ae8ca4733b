"""How Sphinx builds the site from the Markdown of this repository; `make docs` runs it.

The source folder is the repository and not docs/, so that the links between all pages are those
that a forge follows too. The pages have no directive but those of the reference.
"""

from __future__ import annotations

import builtins
import enum
import importlib
import inspect
import re
import sys
from typing import Any, TypeVar

import msgspec
import structlog
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring

import mandrake_sessions
from mandrake_sessions import aio, importers, models, testing

project = "mandrake_sessions"
version = "0.1.0"
project_copyright = "the mandrake_sessions authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/**/*.md",
    "migrations/README.md",
]

html_theme = "furo"
html_title = "mandrake_sessions"
html_extra_path = ["site/index.html"]
html_static_path = ["site/site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 6
suppress_warnings = ["myst.header"]  # a forge renders a page that skips a level, too

add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
FOREIGN_BASES = "object, str, Enum, ReprEnum, StrEnum, Struct, VFS, Exception, BaseException"
autodoc_default_options = {"inherited-members": FOREIGN_BASES, "undoc-members": True}


PUBLIC = (mandrake_sessions, aio, importers, testing)
"""The packages whose ``__all__`` is the public surface."""

PUBLIC_NAMES = {
    f"{found.__module__}.{found.__qualname__}": f"{package.__name__}.{name}"
    for package in PUBLIC
    for name in package.__all__
    if hasattr(found := getattr(package, name), "__qualname__")
}
"""From where a public class or function is defined to where it is imported from."""

for _module in [sys.modules[name] for name in sys.modules if name.startswith("mandrake_sessions")]:
    if hasattr(_module, "HostLogger"):
        _module.HostLogger = structlog.stdlib.BoundLogger  # at run time it is Any

OTHER_LIBRARIES = {"apsw", "sqlalchemy", "structlog"}
"""Libraries whose types stand in public signatures, as those of the standard library do."""

GIVEN = (
    aio.AsyncTurnWriter,
    mandrake_sessions.DatabaseHandle,
    mandrake_sessions.PendingToolCall,
    mandrake_sessions.SessionTransaction,
    mandrake_sessions.ShutdownHook,
    mandrake_sessions.Subscription,
    mandrake_sessions.TurnUpdate,
    mandrake_sessions.TurnWriter,
    testing.Injection,
    testing.Life,
    testing.PowerCut,
    enum.Enum,
    msgspec.Struct,
    Exception,
)
"""Classes that the library makes and callers do not: their arguments are not shown."""

MADE_BY_CALLERS = (
    mandrake_sessions.DatabaseOptions,
    mandrake_sessions.NewTurn,
    mandrake_sessions.PoolOptions,
    mandrake_sessions.ToolCall,
    testing.Fault,
    testing.Moment,
)
"""Records that callers make."""

_FIELDS = re.compile(r"^(?:Attributes|Args):\n(?P<fields>(?:(?: .*)?\n)*)", re.MULTILINE)
_FIELD = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
_LISTED = re.compile(r"^- \[.*?\]\((?P<target>[^)#:]+)\.md\)", re.MULTILINE)


def add_toctrees(_app: Sphinx, docname: str, content: list[str]) -> None:
    """Make a hidden toctree of each list of pages in an index, which a forge shows as a list."""
    if docname.rpartition("/")[2] != "index":
        return
    parts = re.split(r"^(?=## )", content[0], flags=re.MULTILINE)
    for number, part in enumerate(parts):
        listed = [match["target"] for match in _LISTED.finditer(part)]
        if listed:
            caption = part.partition("\n")[0].lstrip("# ")
            lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *listed, "```"]
            parts[number] = part.rstrip() + "\n\n" + "\n".join(lines) + "\n\n"
    content[0] = "".join(parts)


def show_signature(
    _app: Sphinx,
    what: str,
    _name: str,
    found: Any,
    _options: Any,
    arguments: str | None,
    returns: str | None,
) -> tuple[str | None, str | None] | None:
    """Show no arguments of a class that only the library makes, and blocks as what they are."""
    if what in ("class", "exception"):
        is_given = issubclass(found, GIVEN) and not issubclass(found, MADE_BY_CALLERS)
        return ("", None) if is_given else None
    inner = inspect.unwrap(found) if inspect.isfunction(found) else found
    yielded = re.match(r"~?[\w.]*\bIterator\[", returns or "")
    if yielded and inner is not found:
        # A generator function, decorated to be used in a ``with`` block.
        return arguments, f"~contextlib.AbstractContextManager[{returns[yielded.end() :]}"
    return None


def convert_docstring(
    _app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Turn the sections of a docstring into fields.

    Not by napoleon's own hook: to that, the first words of a property's docstring are its type if
    a colon follows. What a record's docstring says of its fields stands at each field.
    """
    if what == "attribute" and not any(lines):
        owner, _, field = name.rpartition(".")
        package, _, owner = owner.rpartition(".")
        lines[:] = [_field_texts(getattr(importlib.import_module(package), owner)).get(field, "")]
        return
    text = "\n".join(lines)
    if what == "class" and issubclass(found, msgspec.Struct):
        text = _FIELDS.sub("", text)
    kind = what if what in ("class", "exception") else "function"
    config = Config(napoleon_use_ivar=True)
    lines[:] = GoogleDocstring(text, config, None, kind, name, found, options).lines()


def _field_texts(record: type[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in reversed(record.__mro__):
        for section in _FIELDS.finditer(inspect.cleandoc(each.__doc__ or "") + "\n"):
            for name, text in _FIELD.findall(section["fields"]):
                sentence = " ".join(text.split())
                found[name] = sentence[0].upper() + sentence[1:]
    return found


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.Node | None:
    """Lead a type to where it is documented, or let one of another library stand as it is.

    No inventory is fetched, so a build needs no network; a name that does not exist is not found.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    public = PUBLIC_NAMES.get(target)
    if public is not None:
        domain = env.domains.python_domain
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], public, node, shown
        )
    if "." not in target:
        # As the annotation of a record's field has it, which autodoc does not evaluate.
        found = getattr(models, target, None) or getattr(builtins, target, None)
        return shown if _is_of_another_library(getattr(found, "__module__", "")) else None
    found = _imported(target)
    is_shown = isinstance(found, TypeVar) or (found is not None and _is_of_another_library(target))
    return shown if is_shown else None


def _is_of_another_library(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names | OTHER_LIBRARIES


def _imported(target: str) -> Any:
    """Return what a dotted name means, None where there is no such thing."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def setup(app: Sphinx) -> None:
    """Connect the above."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("source-read", add_toctrees)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("autodoc-process-docstring", convert_docstring)
    app.connect("missing-reference", resolve)
