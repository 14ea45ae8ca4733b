"""What each command does, and its output for people and for machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from cli_kit import Ended

from mandrake_sessions import MandrakeManager, Session, SessionManager
from mandrake_sessions.workspace import workspace_database

Run = Callable[..., Ended]


@pytest.fixture
def database(root: Path, session: Session) -> Path:
    """The database of the workspace ``shop``."""
    return workspace_database(root / "workspaces" / "shop")


def test_sessions_are_listed_for_people_and_machines(run: Run, session: Session) -> None:
    shown = run("sessions", "list", "-w", "shop")
    assert shown.code == 0
    assert f"{session.id[-8:]}  Why [bold]late[/bold]?" in shown.stdout
    assert shown.stdout.endswith("\n1 session\n")
    assert "\x1b" not in shown.stdout
    assert all(line == line.rstrip() for line in shown.stdout.splitlines())

    answer = run("sessions", "list", "-w", "shop", "--json").json()
    assert answer["total"] == 1
    assert answer["sessions"][0]["id"] == session.id
    assert answer["sessions"][0]["metadata"] == {"branch": "main"}
    assert answer["sessions"][0]["created_at"].endswith("Z")


def test_an_id_can_be_copied_from_a_narrow_terminal(
    run: Run, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mandrake_sessions.cli.output.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    with MandrakeManager() as mandrake:
        long = mandrake.sessions.create_session("A title that is longer than a line " * 4)

    shown = run("sessions", "list").stdout

    assert any(line.split()[:1] == [long.id[-8:]] for line in shown.splitlines())
    assert max(map(len, shown.splitlines())) <= 80


def test_help_is_wrapped_for_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(run("doctor", "--help").stdout.split("\n"))
    assert "used as it is, 3 if there is none." in shown


def test_a_command_without_a_workspace_uses_the_system(run: Run, session: Session) -> None:
    answer = run("sessions", "list", "--json").json()
    assert [each["title"] for each in answer["sessions"]] == ["Of the system"]


def test_root_is_preferred_to_the_environment(run: Run, session: Session, tmp_path: Path) -> None:
    assert run("sessions", "list", "--root", tmp_path / "elsewhere").code == 3


def test_a_list_has_a_limit_and_an_offset(run: Run, root: Path) -> None:
    with MandrakeManager(root) as mandrake:
        made = [mandrake.sessions.create_session(f"No. {number}").id for number in range(5)]
    answer = run("sessions", "list", "--limit", 2, "--offset", 1, "--json").json()
    assert answer["total"] == 5
    assert [each["id"] for each in answer["sessions"]] == [made[3], made[2]]


def test_a_session_is_shown_with_its_rounds(run: Run, session: Session) -> None:
    shown = run("sessions", "show", session.id, "-w", "shop")
    assert shown.code == 0
    for text in ("Question 0", "Because of 1.", "16 in, 8 out", "metadata.branch"):
        assert text in shown.stdout

    answer = run("sessions", "show", session.id, "-w", "shop", "--last", 1, "--json").json()
    assert [each["request"]["content"] for each in answer["rounds"]] == ["Question 1"]
    assert answer["rounds"][0]["turns"][0]["status"] == "completed"
    assert answer["usage"]["rounds"] == 2


def test_text_cannot_steer_the_terminal(run: Run, root: Path) -> None:
    with MandrakeManager(root) as mandrake:
        made = mandrake.sessions.create_session("red \x1b[31m\nsecond line")
        mandrake.sessions.create_round(made.id, "clear \x1b[2J the screen\nand go on")
    assert "\x1b" not in run("sessions", "list").stdout
    shown = run("sessions", "show", made.id).stdout
    assert "\x1b" not in shown
    assert "the screen\nand go on" in shown


def test_a_session_is_deleted_with_yes(run: Run, session: Session, database: Path) -> None:
    assert "Not without --yes" in run("sessions", "delete", session.id, "-w", "shop").stderr
    answer = run("sessions", "delete", session.id, "-w", "shop", "--yes", "--json").json()
    assert answer == {"deleted": session.id, "rounds": 2, "turns": 2}
    with SessionManager(database, create=False) as sessions:
        assert sessions.count_sessions() == 0


def test_workspaces_are_created_listed_and_deleted(run: Run, root: Path) -> None:
    made = run("workspaces", "create", "shop", "--description", "sells", "--json").json()
    database = Path(made["workspace"]["database"])
    assert database == root / "workspaces" / "shop" / ".ws" / "db.sqlite"
    assert database.is_file()
    assert run("workspaces", "create", "other").code == 0

    answer = run("workspaces", "list", "--json").json()
    assert [each["name"] for each in answer["workspaces"]] == ["other", "shop"]
    assert answer["total"] == 2
    assert "1 of 2 workspaces" in run("workspaces", "list", "--limit", 1).stdout

    assert run("workspaces", "delete", "other", "--keep-files").code == 0
    assert (root / "workspaces" / "other" / ".ws" / "db.sqlite").is_file()
    assert run("workspaces", "delete", "shop").code == 2
    assert run("workspaces", "delete", "shop", "--yes").code == 0
    assert not database.exists()
    assert run("workspaces", "list", "--json").json() == {"workspaces": [], "total": 0}


def test_a_workspace_can_lie_anywhere(run: Run, tmp_path: Path) -> None:
    run("workspaces", "create", "here", "--path", tmp_path / "project")
    assert (tmp_path / "project" / ".ws" / "db.sqlite").is_file()
    assert run("sessions", "list", "-w", "here", "--json").json()["total"] == 0


def test_a_workspace_that_was_kept_is_adopted_with_its_sessions(run: Run, root: Path) -> None:
    made = run("workspaces", "create", "shop", "--json").json()["workspace"]
    with SessionManager(made["database"]) as sessions:
        sessions.create_session("Kept")
    run("workspaces", "delete", "shop", "--keep-files")

    refused = run("workspaces", "create", "shop")
    assert refused.code == 6
    assert "workspaces adopt" in refused.stderr
    answer = run("workspaces", "adopt", "again", made["path"], "--description", "sells", "--json")
    assert answer.json()["workspace"]["path"] == made["path"]
    assert run("sessions", "list", "-w", "again", "--json").json()["total"] == 1
    assert run("workspaces", "delete", "again", "--keep-files").code == 0
    assert "Adopted workspace shop" in run("workspaces", "adopt", "shop", made["path"]).stdout
    assert run("workspaces", "adopt", "none", root / "nowhere").code != 0


def test_health_names_the_checks_that_it_made(run: Run, database: Path) -> None:
    answer = run("health", "--database", database, "--level", "full", "--json").json()
    assert answer["status"] == "ok"
    assert answer["is_usable"] is True
    assert ("integrity", "ok") in {(each["name"], each["status"]) for each in answer["checks"]}
    shown = run("health", "-w", "shop")
    assert shown.code == 0
    assert "settings_auxiliary" in shown.stdout


def test_health_names_the_remedy(run: Run, database: Path) -> None:
    with SessionManager(database) as sessions:
        sessions.create_session("Lost")
    raw = apsw.Connection(str(database))
    raw.execute("INSERT INTO requests VALUES ('r', 'missing', '', 0, 0)")
    raw.close()
    answer = run("health", "--database", database, "--level", "thorough", "--json").json()
    (found,) = [each for each in answer["checks"] if each["status"] != "ok"]
    assert (answer["level"], found["name"], found["status"]) == (
        "thorough",
        "references",
        "degraded",
    )
    shown = run("health", "--database", database, "--level", "thorough")
    assert shown.code == 0
    assert f"What to do\nreferences  {found['advice']}" in shown.stdout
    assert run("health", "--database", database, "--level", "lease").code == 2


def test_a_backup_can_be_opened(run: Run, session: Session, tmp_path: Path) -> None:
    target = tmp_path / "copy.sqlite"
    answer = run("backup", target, "-w", "shop", "--json").json()
    assert answer["bytes"] == target.stat().st_size
    listed = run("sessions", "list", "--database", target, "--json").json()
    assert [each["id"] for each in listed["sessions"]] == [session.id]
    assert run("backup", target, "-w", "shop").code == 6
    assert run("backup", target, "-w", "shop", "--overwrite").code == 0


def test_migrate_goes_down_with_yes_and_up_again(run: Run, database: Path) -> None:
    at_head = run("migrate", "--database", database, "--json").json()
    assert at_head["from"] == at_head["to"] == at_head["head"]
    down = ("migrate", "--database", database, "--downgrade", "--revision", "base", "--json")
    assert run(*down).code == 2
    assert run("migrate", "--database", database, "--json").json()["from"] == at_head["head"]
    assert run(*down, "--yes").json()["to"] is None
    up = run("migrate", "--database", database, "--json").json()
    assert (up["from"], up["to"]) == (None, at_head["head"])


def test_migrate_prints_sql_and_touches_nothing(run: Run, root: Path) -> None:
    shown = run("migrate", "--sql")
    assert shown.code == 0
    assert "CREATE TABLE sessions" in shown.stdout
    down = run("migrate", "--sql", "--downgrade", "--revision", "base", "--json").json()
    assert "DROP TABLE sessions" in down["sql"]
    assert not root.exists()


@pytest.mark.parametrize(
    "command",
    [
        ("sessions", "list"),
        ("sessions", "list", "-w", "shop"),
        ("sessions", "show", "x"),
        ("sessions", "delete", "x", "--yes"),
        ("workspaces", "list"),
        ("workspaces", "delete", "shop", "--yes"),
        ("health",),
        ("backup", "copy.sqlite"),
        ("migrate",),
    ],
    ids=" ".join,
)
def test_a_database_that_is_not_there_is_not_made(
    run: Run, root: Path, command: tuple[str, ...]
) -> None:
    assert run(*command, "--json").error()["type"] == "DatabaseMissingError"
    run(*command).require_one_line()
    assert not root.exists()


def test_help_names_the_exit_codes(run: Run) -> None:
    shown = run("--help")
    assert shown.code == 0
    for text in ("Exit codes:", "130 SIGINT", "import", "workspaces"):
        assert text in shown.stdout
    assert "demo" not in shown.stdout


def test_no_command_is_a_usage_error_with_help(run: Run) -> None:
    assert run().code == 2
    assert run("sessions").code == 2
