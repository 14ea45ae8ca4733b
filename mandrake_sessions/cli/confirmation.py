"""Asks before anything is lost."""

from __future__ import annotations

import sys

import typer

from mandrake_sessions.cli.errors import CommandError, ExitCode
from mandrake_sessions.cli.output import printable


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Return if the user agrees, or has agreed with ``--yes``.

    Raises:
        CommandError: there is no terminal to ask on.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise CommandError(f"{question} Not without --yes.", ExitCode.USAGE)
    typer.confirm(printable(question), abort=True, err=True)
