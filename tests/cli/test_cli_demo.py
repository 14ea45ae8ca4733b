"""``demo``: what it promises holds, and its check can fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from cli_kit import COMMAND, Ended, environment, run_process

from mandrake_sessions.cli.demo.ledger import FILE_NAME, Entry, Header, Ledger, read_ledger
from mandrake_sessions.cli.errors import CommandError

Run = Callable[..., Ended]
SHOP = Path("workspaces/web-shop/.ws/db.sqlite")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short demo, run from another directory, with a root that it must not touch."""
    base = tmp_path_factory.mktemp("demo")
    ended = run_process(
        "demo", "--seconds", 1, "--directory", base / "shown", "--json",
        cwd=base, MANDRAKE_DIR=base / "mine",
    )  # fmt: skip
    assert ended.code == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert not (base / "mine").exists()
    document: dict[str, Any] = ended.json()
    return document


@pytest.fixture
def copy(demo: dict[str, Any], tmp_path: Path) -> Path:
    """What the demo left, to be tampered with."""
    place = tmp_path / "copy"
    shutil.copytree(demo["directory"], place)
    return place


def tamper(database: Path, sql: str) -> None:
    """Change a database behind the library's back."""
    connection = apsw.Connection(str(database))
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(sql)
    assert connection.changes()
    connection.close()


def test_everything_acknowledged_is_found_again(demo: dict[str, Any]) -> None:
    assert demo["ok"] is True
    assert demo["errors"] == []
    assert demo["found"] == demo["acknowledged"] == demo["verification"]["acknowledged"] > 0
    # Sessions are acknowledged too, and three things are in each.
    assert demo["acknowledged"] == demo["rounds"] + demo["turns"] + demo["updates"] + 9
    assert [each["integrity"] for each in demo["verification"]["databases"]] == ["ok"] * 3
    assert all(each["found"] > 3 for each in demo["verification"]["databases"])


def test_the_signal_comes_in_the_midst_of_the_work(demo: dict[str, Any]) -> None:
    assert demo["signal"] == signal.SIGTERM
    # Each of the agents is refused at its work, and then once at each of the databases.
    assert demo["refused"] == 8 * 4
    assert demo["verification"]["refused_but_stored"] == 0
    assert demo["histories"] > 0


def test_the_databases_stay_and_can_be_looked_at(run: Run, demo: dict[str, Any]) -> None:
    place = demo["directory"]
    assert run("sessions", "list", "--root", place, "--json").json()["total"] == 3
    names = run("workspaces", "list", "--root", place, "--json").json()["workspaces"]
    assert [each["name"] for each in names] == ["data-pipeline", "web-shop"]
    assert run("health", "--root", place).code == 0


def test_the_check_passes_on_a_copy(run: Run, copy: Path) -> None:
    assert run("demo-verify", copy).code == 0


BEFORE_ANOTHER = """
DELETE FROM rounds WHERE rowid = (
    SELECT one.rowid FROM rounds one JOIN rounds next
    ON next.session_id = one.session_id AND next."index" = one."index" + 1 LIMIT 1)
"""
"""Where the machine was slow, a round of any number may be the last of its session."""


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("DELETE FROM turns WHERE rowid = (SELECT max(rowid) FROM turns)", "is not there"),
        (BEFORE_ANOTHER, "have gaps"),
        ("UPDATE turns SET content = substr(content, 2)", "another content"),
        ("UPDATE turns SET revision = 0 WHERE status = 'completed'", "acknowledged was"),
        ("UPDATE turns SET output_tokens = 1 WHERE status = 'completed'", "other fields"),
        ("UPDATE requests SET content = 'same'", "is there twice"),
        ('UPDATE rounds SET "index" = "index" + 1000 WHERE rowid = 1', "at another place"),
        ("DELETE FROM sessions WHERE rowid = 1", "is not there"),
    ],
)
def test_the_check_sees_what_was_tampered_with(
    run: Run, copy: Path, sql: str, problem: str
) -> None:
    tamper(copy / SHOP, sql)
    ended = run("demo-verify", copy, "--json")
    assert ended.code == 1
    found = ended.json()
    assert found["ok"] is False
    assert found["problem_count"] > 0
    assert any(problem in each for each in found["problems"]), found["problems"]


def test_a_fresh_process_reports_a_deleted_row(copy: Path, tmp_path: Path) -> None:
    tamper(copy / SHOP, "DELETE FROM turns WHERE rowid = (SELECT max(rowid) FROM turns)")
    ended = run_process("demo-verify", copy, "--json", cwd=tmp_path)
    assert ended.code == 1
    assert ended.json()["found"] < ended.json()["acknowledged"]


def test_a_refused_call_that_was_carried_out_is_seen(run: Run, copy: Path) -> None:
    header, entries = read_ledger(copy)
    round_ = next(entry for entry in entries if entry.kind == "round")
    ledger = Ledger(copy / "..", header)
    ledger.note([Entry(**{**as_fields(round_), "refused": True})])
    ledger.close()
    with open(copy / FILE_NAME, "ab") as log:
        log.write((copy / ".." / FILE_NAME).read_bytes().split(b"\n")[1] + b"\n")
    assert run("demo-verify", copy, "--json").json()["refused_but_stored"] == 1


def as_fields(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__struct_fields__}


def test_a_database_that_is_gone_is_reported(run: Run, copy: Path) -> None:
    (copy / SHOP).unlink()
    ended = run("demo-verify", copy, "--json")
    assert ended.code == 1
    assert "DatabaseMissingError" in ended.json()["problems"][0]


def test_a_directory_with_something_in_it_is_refused(run: Run, copy: Path) -> None:
    assert run("demo", "--directory", copy, "--json").error()["type"] == "ExistsError"


def test_a_killed_writer_leaves_no_half_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Header({"system": "db.sqlite"}))
    ledger.note([Entry(database="system", call="create_session", kind="session", id="a")])
    ledger.close()
    assert (ledger.acknowledged, ledger.refused) == (1, 0)
    with open(tmp_path / FILE_NAME, "ab") as log:
        log.write(b'{"database":"sys')
    header, entries = read_ledger(tmp_path)
    assert header.databases == {"system": "db.sqlite"}
    assert [entry.id for entry in entries] == ["a"]


def test_another_programs_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("hello\n")
    with pytest.raises(CommandError, match="not a demo's log"):
        read_ledger(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals to a process")
def test_ctrl_c_ends_it_in_good_order(run: Run, tmp_path: Path) -> None:
    """SIGINT to the demo: the agents are shut down gracefully, and nothing of theirs is lost."""
    place = tmp_path / "shown"
    process = subprocess.Popen(
        [*COMMAND, "demo", "--seconds", "30", "--agents", "2", "--directory", str(place)],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "2 agents" in process.stdout.readline()
        # The first figures: the agents are at work.
        assert "rounds" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines() == [
            f"mandrake-sessions: Interrupted; what there is stays in {place}"
        ]
        assert process.wait() == 130
    told = run("demo-verify", place, "--json").json()
    assert told["ok"] is True
    assert told["refused"] == 2 * 4


@pytest.mark.skipif(os.name != "posix", reason="a killed process")
def test_agents_do_not_outlive_a_killed_demo(run: Run, tmp_path: Path) -> None:
    """kill -9 to the demo: the agents' process sees its stdin end, and shuts down gracefully."""
    place = tmp_path / "shown"
    process = subprocess.Popen(
        [*COMMAND, "demo", "--seconds", "30", "--agents", "2", "--directory", str(place)],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.readline()
        process.kill()
        # The agents' process has the same stderr: it ends when they do.
        assert process.stderr.read() == b""
    told = run("demo-verify", place, "--json").json()
    assert told["ok"] is True
    assert told["refused"] == 2 * 4
