"""Runs the command: in this process for breadth, as a process of its own for what only that has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "mandrake_sessions.cli"]


class Ended:
    """How a command ended, and what it printed."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    def json(self) -> Any:
        """Return the one document on stdout."""
        return json.loads(self.stdout)

    def error(self) -> dict[str, Any]:
        """Return the error that stdout holds as JSON."""
        document = self.json()
        assert list(document) == ["error"]
        assert document["error"]["exit_code"] == self.code
        error: dict[str, Any] = document["error"]
        return error

    def require_one_line(self) -> str:
        """Return the error that stderr shows to people: one line, and no traceback."""
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        assert len(self.stderr.splitlines()) == 1, self.stderr
        assert self.stderr.startswith("mandrake-sessions: ")
        return self.stderr


def environment(**variables: str | Path) -> dict[str, str]:
    """Return this process's environment for a command, without a root of the tester's own."""
    kept = {name: value for name, value in os.environ.items() if name != "MANDRAKE_DIR"}
    return kept | {"PYTHONPATH": str(PROJECT)} | {name: str(it) for name, it in variables.items()}


def run_process(
    *arguments: object, command: Sequence[str] = COMMAND, cwd: Path, **variables: str | Path
) -> Ended:
    """Run a command line as a process of its own."""
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment(**variables),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
