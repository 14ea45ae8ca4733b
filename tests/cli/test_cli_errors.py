"""How commands fail: the exit code, one line or one document, and never a traceback."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from cli_kit import COMMAND, Ended, environment, run_process

from mandrake_sessions import MandrakeManager, Session
from mandrake_sessions.cli.errors import CommandError, ExitCode, Failure
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseFolderError,
    MandrakeSessionsError,
    SchemaTooNewError,
    StorageFullError,
)

Run = Callable[..., Ended]

HOLD = """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
send("held")
receive()
"""


@pytest.fixture
def database(root: Path, session: Session) -> Path:
    return root / "db.sqlite"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("sessions", "show", "missing"), ExitCode.NOT_FOUND, "SessionNotFoundError"),
        (("sessions", "delete", "missing", "--yes"), ExitCode.NOT_FOUND, "SessionNotFoundError"),
        (("sessions", "list", "-w", "nowhere"), ExitCode.NOT_FOUND, "WorkspaceNotFoundError"),
        (("sessions", "list", "--limit", "0"), ExitCode.USAGE, "InvalidArgumentError"),
        (("sessions", "list", "--limit", "1000000000"), ExitCode.USAGE, "InvalidArgumentError"),
        (("sessions", "list", "--timeout", "-1"), ExitCode.USAGE, "InvalidArgumentError"),
        (("sessions", "list", "--database", "x", "-w", "y"), ExitCode.USAGE, "UsageError"),
        (("sessions", "list", "--database", "/"), ExitCode.USAGE, "DatabasePathError"),
        (("sessions", "lst"), ExitCode.USAGE, "UsageError"),
        (("sessions", "list", "--limit", "many"), ExitCode.USAGE, "UsageError"),
        (("--nonsense",), ExitCode.USAGE, "UsageError"),
        (("workspaces", "list", "--limit", "0"), ExitCode.USAGE, "UsageError"),
        (("workspaces", "create", "a b"), ExitCode.USAGE, "InvalidArgumentError"),
        (("workspaces", "create", "shop"), ExitCode.EXISTS, "WorkspaceAlreadyExistsError"),
        (("workspaces", "delete", "shop"), ExitCode.USAGE, "UsageError"),
        (("migrate", "--revision", "zzzz"), ExitCode.UNUSABLE, "MigrationError"),
        (("migrate", "--revision", "base:head"), ExitCode.USAGE, "UsageError"),
        (("migrate", "--downgrade"), ExitCode.USAGE, "UsageError"),
        (("demo",), ExitCode.USAGE, "UsageError"),
        (("import", "/nowhere"), ExitCode.NOT_FOUND, "NotFoundError"),
    ],
)
def test_each_error_has_its_exit_code(
    run: Run, session: Session, arguments: tuple[str, ...], code: ExitCode, kind: str
) -> None:
    ended = run(*arguments, "--json")
    assert (ended.code, ended.error()["type"]) == (code, kind)
    assert ended.stderr == ""
    failed = run(*arguments)
    assert failed.code == code
    failed.require_one_line()


def test_a_file_that_is_no_database_is_unusable(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are notes and no database. " * 100)
    assert run("sessions", "list", "--database", path, "--json").error()["type"] == (
        "NotADatabaseError"
    )
    assert run("sessions", "list", "--database", path).code == ExitCode.UNUSABLE


def test_a_newer_schema_has_its_own_exit_code(run: Run, database: Path) -> None:
    connection = apsw.Connection(str(database))
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    failed = run("sessions", "list")
    assert failed.code == ExitCode.UNUSABLE
    assert "upgrade" in failed.require_one_line()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DatabaseBusyError(), ExitCode.BUSY),
        (CorruptDatabaseError(), ExitCode.UNUSABLE),
        (SchemaTooNewError(), ExitCode.UNUSABLE),
        (StorageFullError(), ExitCode.UNUSABLE),
        (DatabaseFolderError(), ExitCode.UNUSABLE),
        (MandrakeSessionsError(), ExitCode.FAILED),
        (ExceptionGroup("several", [StorageFullError(), ValueError()]), ExitCode.UNUSABLE),
        (CommandError("no", ExitCode.EXISTS), ExitCode.EXISTS),
        (RuntimeError("two\nlines"), ExitCode.FAILED),
    ],
)
def test_every_kind_of_error_has_a_code_and_one_line(error: Exception, code: ExitCode) -> None:
    failure = Failure(error)
    assert failure.code is code
    assert len(str(failure).splitlines()) == 1


def test_a_bug_is_one_line_too(run: Run, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unheard of")

    monkeypatch.setattr("mandrake_sessions.cli.sessions.print_table", fail)
    failed = run("sessions", "list")
    assert failed.code == ExitCode.FAILED
    assert "unheard of" in failed.stderr
    assert "MANDRAKE_TRACEBACK" in failed.stderr


# -- as processes of their own --------------------------------------------------------------


def test_a_process_fails_without_a_traceback(root: Path, database: Path, tmp_path: Path) -> None:
    ended = run_process("sessions", "show", "missing", cwd=tmp_path, MANDRAKE_DIR=root)
    assert ended.code == ExitCode.NOT_FOUND
    ended.require_one_line()
    ended = run_process("sessions", "show", "missing", "--json", cwd=tmp_path, MANDRAKE_DIR=root)
    assert ended.error()["type"] == "SessionNotFoundError"
    assert ended.stderr == ""


def test_events_go_to_stderr(root: Path, database: Path, tmp_path: Path) -> None:
    connection = apsw.Connection(str(database))
    connection.execute("UPDATE sessions SET metadata = 'not json'")
    connection.close()
    ended = run_process("sessions", "list", "--json", cwd=tmp_path, MANDRAKE_DIR=root)
    assert ended.code == 0
    assert ended.json()["total"] == 1
    assert "metadata_unreadable" in ended.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_one_line(missing: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; import mandrake_sessions.cli as c; c.main()"
    )
    ended = run_process(command=[sys.executable, "-c", script], cwd=tmp_path)
    assert ended.code == ExitCode.USAGE
    assert "pip install 'mandrake-sessions[cli]'" in ended.require_one_line()


def test_a_busy_database_has_its_own_code(
    database: Path, run: Run, start_child: Callable[..., Any]
) -> None:
    holder = start_child(HOLD, database)
    assert holder.receive() == "held"
    failed = run("workspaces", "create", "late", "--timeout", "0.05")
    assert failed.code == ExitCode.BUSY
    assert "--timeout" in failed.require_one_line()


def test_sigint_ends_a_waiting_command_quietly(
    root: Path, database: Path, tmp_path: Path, start_child: Callable[..., Any]
) -> None:
    """It comes while the command waits in SQLite's busy handler for another process."""
    holder = start_child(HOLD, database)
    assert holder.receive() == "held"
    # The only sign from outside that the command waits: a line from its busy handler.
    script = (
        "import sys\n"
        "from mandrake_sessions.database.connection import connection\n"
        "waits = connection.Connection.on_busy\n"
        "def on_busy(self, attempt):\n"
        "    print('waiting', file=sys.stderr, flush=True)\n"
        "    return waits(self, attempt)\n"
        "connection.Connection.on_busy = on_busy\n"
        "from mandrake_sessions.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "workspaces", "create", "late"],
        env=environment(MANDRAKE_DIR=root),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        printed = [line for line in process.stderr if line != "waiting\n"]
        assert process.wait() == ExitCode.INTERRUPTED
    assert printed == ["mandrake-sessions: Interrupted.\n"]


def test_a_broken_pipe_is_quiet(root: Path, tmp_path: Path) -> None:
    with MandrakeManager(root) as mandrake:
        session = mandrake.sessions.create_session()
        # More than a pipe holds.
        mandrake.sessions.create_round(session.id, "long " * 30_000)
    for options, unbuffered in itertools.product(([], ["--json"]), ("", "1")):
        process = subprocess.Popen(
            [*COMMAND, "sessions", "show", session.id, *options],
            env=environment(MANDRAKE_DIR=root, PYTHONUNBUFFERED=unbuffered),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(1)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == ExitCode.BROKEN_PIPE


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["sessions", "--help"], ["sessions", "list", "-h"]]
)
def test_a_help_text_without_a_reader_is_quiet(
    tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(PYTHONUNBUFFERED=unbuffered),
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (ExitCode.BROKEN_PIPE, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_long_output_is_whole(root: Path, tmp_path: Path, unbuffered: str) -> None:
    """Unbuffered, one write of Python's stops where the pipe is full."""
    content = "long " * 30_000
    with MandrakeManager(root) as mandrake:
        session = mandrake.sessions.create_session()
        mandrake.sessions.create_round(session.id, content)
    variables: dict[str, Any] = {"MANDRAKE_DIR": root, "PYTHONUNBUFFERED": unbuffered}
    answer = run_process("sessions", "show", session.id, "--json", cwd=tmp_path, **variables)
    assert answer.json()["rounds"][0]["request"]["content"] == content
    shown = run_process("sessions", "show", session.id, cwd=tmp_path, **variables)
    assert content in shown.stdout


@pytest.mark.parametrize(("answer", "code"), [("n", ExitCode.FAILED), ("y", ExitCode.OK)])
def test_a_command_asks_a_person_before_it_deletes(
    root: Path, session: Session, tmp_path: Path, answer: str, code: ExitCode
) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "sessions", "delete", session.id, "-w", "shop"],
        env=environment(MANDRAKE_DIR=root),
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert "with 2 rounds and 2 turns?" in err
    assert process.returncode == code
    assert ("Deleted" in out) is (answer == "y")


def test_a_file_with_a_second_name_is_opened_if_the_command_says_so(
    run: Run, database: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.sqlite"
    os.link(database, link)

    refused = run("sessions", "list", "--database", link)

    assert refused.code == ExitCode.UNUSABLE
    assert "mandrake-sessions --allow-other-names" in refused.require_one_line()
    assert "DatabaseOptions" not in refused.stderr
    allowed = run("--allow-other-names", "sessions", "list", "--database", link)
    assert (allowed.code, "Of the system" in allowed.stdout) == (ExitCode.OK, True)
    assert run("sessions", "list", "--database", link).code == ExitCode.UNUSABLE
