"""A system of its own for each test, and the command to look at it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from cli_kit import Ended
from typer.testing import CliRunner

from mandrake_sessions import ConnectionPool, MandrakeManager, NewTurn, Session
from mandrake_sessions.cli.app import app


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root that commands use in this test; nothing is there yet."""
    path = tmp_path / "root"
    monkeypatch.setenv("MANDRAKE_DIR", str(path))
    return path


@pytest.fixture
def run(root: Path) -> Iterator[Callable[..., Ended]]:
    """Runs a command line in this process."""

    def run_here(*arguments: object) -> Ended:
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return Ended(done.exit_code, done.stdout, done.stderr)

    yield run_here
    # The command, being an application, configures the log.
    structlog.reset_defaults()


@pytest.fixture
def session(root: Path, pool: ConnectionPool, ready_database: Any) -> Session:
    """A session with two rounds in the workspace ``shop``; the system has one without any."""
    ready_database.lay(root / "db.sqlite")
    with MandrakeManager(root, pool=pool) as mandrake:
        mandrake.sessions.create_session("Of the system")
        sessions = mandrake.create_workspace("shop", "sells things").sessions
        session = sessions.create_session("Why [bold]late[/bold]?", metadata={"branch": "main"})
        for number in range(2):
            turns = [NewTurn(content=f"Because of {number}.", input_tokens=8, output_tokens=4)]
            sessions.record_round(session.id, f"Question {number}", turns)
        return sessions.get_session(session.id)
