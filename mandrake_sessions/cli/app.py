"""The command: its parts, its log, and the exit code and message of each error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import structlog
import typer

from mandrake_sessions.cli import importing, maintenance, rescue, sessions, workspaces
from mandrake_sessions.cli.errors import EXIT_CODES, CommandError, ExitCode, Failure
from mandrake_sessions.cli.help import Group, polish
from mandrake_sessions.cli.output import print_error, print_json, print_json_line
from mandrake_sessions.cli.target import ALLOWS_OTHER_NAMES
from mandrake_sessions.visible import visible

PROGRAM = "mandrake-sessions"
TRACEBACK_VARIABLE = "MANDRAKE_TRACEBACK"

# The base class of Typer's own usage errors; Typer does not export it under its own name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Program(Group):
    """Ends every command with its exit code and at most one line, never with a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command line and exit."""
        given = list(sys.argv[1:] if args is None else args)
        _require_streams()
        options.update(standalone_mode=False, prog_name=PROGRAM, obj=given)
        try:
            code = super().main(given, *rest, **options) or ExitCode.OK
            # The text of --version may still be in the buffer.
            sys.stdout.flush()
        except SystemExit as end:
            # Typer and Rich end the process with 1 if no reader is left for a help text.
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            _mute_output()
            code = ExitCode.BROKEN_PIPE
        except BrokenPipeError:
            _mute_output()
            code = ExitCode.BROKEN_PIPE
        except typer.Abort:
            code = _report(CommandError("Not done.", ExitCode.FAILED), given)
        except _UsageError as error:
            code = _report_usage(error, given)
        except KeyboardInterrupt:
            code = _interrupted(given)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and turn its exceptions into exit codes."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, _UsageError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted(_arguments(ctx))) from None
        except BrokenPipeError:
            _mute_output()
            raise typer.Exit(ExitCode.BROKEN_PIPE) from None
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            raise typer.Exit(_report(error, _arguments(ctx))) from None


def _arguments(ctx: Any) -> list[str]:
    given: list[str] = ctx.obj
    return given


def _report(error: BaseException, given: Sequence[str]) -> int:
    """Print an error, as JSON on stdout or as one line on stderr; return the exit code."""
    failure = Failure(error)
    try:
        if not _wants_json(given):
            print_error(f"{PROGRAM}: {failure}")
        elif _wants_lines(given):
            print_json_line(failure.document())
        else:
            print_json(failure.document())
    except BrokenPipeError:
        _mute_output()
    return failure.code


def _report_usage(error: Exception, given: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    path = PROGRAM if context is None else context.command_path
    # The error of a group of commands without a command has no message.
    message = getattr(error, "format_message", error.__str__)() or "A command is missing."
    return _report(CommandError(message, ExitCode.USAGE, f"See {path} --help."), given)


def _interrupted(given: Sequence[str]) -> int:
    return _report(CommandError("Interrupted.", ExitCode.INTERRUPTED), given)


def _wants_json(given: Sequence[str]) -> bool:
    # Not from the parsed options: an error in them must be printed as JSON too.
    options = given[: given.index("--")] if "--" in given else given
    return "--json" in options


def _wants_lines(given: Sequence[str]) -> bool:
    """Return whether the command prints one document on each line: then its errors are such too."""
    words = [each for each in given if not each.startswith("-")]
    return words[:2] == ["sessions", "tail"]


def _require_streams() -> None:
    """Provide a stream to print to if the caller has closed it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for the process


def _mute_output() -> None:
    """Discard the interpreter's last flush, so that it does not complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


app: typer.Typer = typer.Typer(
    name=PROGRAM,
    cls=Program,
    help="The session store for agent hosts: one SQLite file per workspace.",
    epilog=f"Exit codes: {EXIT_CODES}.",
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what the library does to stderr.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    allow_other_names: Annotated[
        bool,
        typer.Option(
            "--allow-other-names",
            help="Open a file that has a second name, which no other program uses.",
        ),
    ] = False,
) -> None:
    _configure_log(logging.INFO if verbose else logging.WARNING)
    ALLOWS_OTHER_NAMES.set(allow_other_names)
    if version:
        print(f"{PROGRAM} {_version()}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(ExitCode.USAGE)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("mandrake-sessions")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _without_controls(_: object, __: str, event: Any) -> Any:
    """Remove control characters: no stored id or path may steer the terminal."""
    return {key: visible(it) if isinstance(it, str) else it for key, it in event.items()}


def _configure_log(level: int) -> None:
    """Send the library's events to stderr; stdout is for the output of the command."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            _without_controls,
            # Without the local variables that Rich would show: they hold conversations.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # A new one for each logger: tests replace the stream.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


app.add_typer(sessions.app, name="sessions")
app.add_typer(workspaces.app, name="workspaces")
importing.register(app)
maintenance.register(app)
rescue.register(app)


for _part in (app, sessions.app, workspaces.app):
    polish(_part)


def run() -> None:
    """Run the command with this process's arguments."""
    app()
