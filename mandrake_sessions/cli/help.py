"""Help texts: a flag without a type, and a docstring wrapped for the terminal."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose help shows a flag without a type: Typer writes ``--json <bool>``."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, for parsing and for help."""
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands, its flags shown as in ``Command``."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, for parsing and for help."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: Any) -> Any:
    for each in parameters:
        if getattr(each, "is_bool_flag", False) or getattr(each, "count", False):
            each.metavar = ""
    return parameters


def polish(part: typer.Typer) -> None:
    """Wrap the help of each command, where Typer keeps a docstring's lines."""
    for command in part.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
        command.cls = Command
