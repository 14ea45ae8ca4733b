"""The demo: what it promises holds, and its check can fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
import structlog

from examples.demo.__main__ import main
from examples.demo.ledger import FILE_NAME, DemoError, Entry, Header, Ledger, read_ledger
from mandrake_sessions import HealthStatus, MandrakeManager
from mandrake_sessions.database.pool.pool import default_pool

PROJECT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "examples.demo"]
SHOP = Path("workspaces/web-shop/.ws/db.sqlite")


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "MANDRAKE_DIR"}
    return kept | {"PYTHONPATH": str(PROJECT)} | variables


def run_process(
    *arguments: object, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(**variables),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def verified(capsys: pytest.CaptureFixture[str], place: Path, *, code: int = 0) -> dict[str, Any]:
    """Return what the check of a demo's directory prints as JSON."""
    assert main(["verify", str(place), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(autouse=True)
def host_without_structlog() -> None:
    """Let events go to stderr: another test's ``capture_logs()`` counts as a configuration."""
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short demo, run from another directory, with a root that it must not touch."""
    base = tmp_path_factory.mktemp("demo")
    ended = run_process(
        "--seconds", 2, "--directory", base / "shown", "--json",
        cwd=base, MANDRAKE_DIR=str(base / "mine"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert not (base / "mine").exists()
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


@pytest.fixture
def copy(demo: dict[str, Any], tmp_path: Path) -> Path:
    """What the demo left, to be tampered with."""
    place = tmp_path / "copy"
    # A check in this process has left its files open for a moment: they would go while copied.
    default_pool().close()
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


def test_the_signal_comes_during_the_work(demo: dict[str, Any]) -> None:
    assert demo["signal"] == signal.SIGTERM
    # Each of the agents is refused at its work, and then once at each of the databases.
    assert demo["refused"] == 8 * 4
    assert demo["verification"]["refused_but_stored"] == 0
    assert demo["histories"] > 0


def test_the_databases_stay_and_can_be_looked_at(demo: dict[str, Any]) -> None:
    with MandrakeManager(demo["directory"]) as mandrake:
        assert mandrake.sessions.count_sessions() == 3
        names = [workspace.name for workspace in mandrake.list_workspaces()]
        assert names == ["data-pipeline", "web-shop"]
        assert mandrake.sessions.health().status is HealthStatus.OK


def test_the_check_passes_on_a_copy(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy)]) == 0
    assert "web-shop            integrity ok" in capsys.readouterr().out


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
def test_the_check_finds_each_change_that_was_made_to_a_database(
    copy: Path, capsys: pytest.CaptureFixture[str], sql: str, problem: str
) -> None:
    tamper(copy / SHOP, sql)
    found = verified(capsys, copy, code=1)
    assert found["ok"] is False
    assert found["problem_count"] > 0
    assert any(problem in each for each in found["problems"]), found["problems"]


def test_a_fresh_process_reports_a_deleted_row(copy: Path, tmp_path: Path) -> None:
    tamper(copy / SHOP, "DELETE FROM turns WHERE rowid = (SELECT max(rowid) FROM turns)")
    ended = run_process("verify", copy, "--json", cwd=tmp_path)
    assert ended.returncode == 1
    found = json.loads(ended.stdout)
    assert found["found"] < found["acknowledged"]


def test_a_damaged_page_is_reported(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = apsw.Connection(str(copy / SHOP))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    index = "SELECT rootpage FROM sqlite_schema WHERE name = 'ix_turns_streaming'"
    page: Any = connection.execute(index).fetchall()[0][0]
    size: Any = connection.pragma("page_size")
    connection.close()
    with open(copy / SHOP, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)

    found = verified(capsys, copy, code=1)

    assert any(each.startswith("web-shop: integrity: ") for each in found["problems"])


def test_a_refused_call_that_was_carried_out_is_seen(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, entries = read_ledger(copy)
    round_ = next(entry for entry in entries if entry.kind == "round")
    ledger = Ledger(copy / "..", header)
    ledger.note([Entry(**{**as_fields(round_), "refused": True})])
    ledger.close()
    with open(copy / FILE_NAME, "ab") as log:
        log.write((copy / ".." / FILE_NAME).read_bytes().split(b"\n")[1] + b"\n")
    main(["verify", str(copy), "--json"])
    assert json.loads(capsys.readouterr().out)["refused_but_stored"] == 1


def as_fields(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__struct_fields__}


def test_a_database_that_is_gone_is_reported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / SHOP).unlink()
    assert "DatabaseMissingError" in verified(capsys, copy, code=1)["problems"][0]


def test_a_directory_with_something_in_it_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--directory", str(copy)]) == 1
    assert capsys.readouterr().err == f"demo: {copy} is not empty: name a new directory, or none.\n"


def test_a_directory_without_a_demo_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert FILE_NAME in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--durability", "none"], ["--agents", "0"], ["--seconds", "long"], ["nonsense"]]
)
def test_a_wrong_argument_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


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
    with pytest.raises(DemoError, match="not a demo's log"):
        read_ledger(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals to a process")
def test_ctrl_c_ends_it_in_good_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGINT to the demo: the agents are shut down gracefully, and none of their rows is lost."""
    place = tmp_path / "shown"
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "30", "--agents", "2", "--directory", str(place)],
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
            f"demo: Interrupted; what there is stays in {place}"
        ]
        assert process.wait() == 130
    found = verified(capsys, place)
    assert found["ok"] is True
    assert found["refused"] == 2 * 4


@pytest.mark.skipif(os.name != "posix", reason="a killed process")
def test_agents_do_not_outlive_a_killed_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 to the demo: the agents' process sees its stdin end, and shuts down gracefully."""
    place = tmp_path / "shown"
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "30", "--agents", "2", "--directory", str(place)],
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
    found = verified(capsys, place)
    assert found["ok"] is True
    assert found["refused"] == 2 * 4
