"""The ``mandrake-sessions`` command; it needs the extra ``cli`` (Typer and Rich)."""

from __future__ import annotations

import sys

from mandrake_sessions.cli.errors import ExitCode

_EXTRA = frozenset({"typer", "rich", "click"})


def main() -> None:
    """Run the command with this process's arguments, and exit with its code."""
    try:
        from mandrake_sessions.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(
            f"mandrake-sessions: the command needs {error.name}: "
            "pip install 'mandrake-sessions[cli]'",
            file=sys.stderr,
        )
        sys.exit(ExitCode.USAGE)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    run()
