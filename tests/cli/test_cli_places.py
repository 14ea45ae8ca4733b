"""Workspaces that were moved, lost, damaged or exchanged for a link, by the command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cli_kit import Ended

from mandrake_sessions import SessionManager
from mandrake_sessions.workspace import workspace_database

Run = Callable[..., Ended]


def make(run: Run, name: str, folder: Path) -> None:
    assert run("workspaces", "create", name, "--path", folder).code == 0
    with SessionManager(workspace_database(folder)) as sessions:
        sessions.create_session(name)


def titles(run: Run, name: str) -> list[str]:
    ended = run("sessions", "list", "-w", name, "--json").json()
    return [each["title"] for each in ended["sessions"]]


def test_a_moved_workspace_is_registered_anew(run: Run, tmp_path: Path) -> None:
    make(run, "shop", tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")

    lost = run("sessions", "list", "-w", "shop")
    assert lost.code == 3
    assert "workspaces move" in lost.stderr
    assert not (tmp_path / "old").exists()
    assert run("workspaces", "move", "shop", tmp_path / "nowhere").code == 5
    assert run("workspaces", "move", "none", tmp_path / "new").code == 3
    moved = run("workspaces", "move", "shop", tmp_path / "new", "--json").json()["workspace"]
    assert (moved["name"], moved["path"]) == ("shop", str(tmp_path / "new"))
    assert titles(run, "shop") == ["shop"]
    assert str(tmp_path / "new") in run("workspaces", "move", "shop", tmp_path / "new").stdout


def test_adopting_a_moved_workspace_under_its_name_registers_it_anew(
    run: Run, tmp_path: Path
) -> None:
    make(run, "shop", tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")

    assert run("workspaces", "adopt", "shop", tmp_path / "new").code == 0
    assert titles(run, "shop") == ["shop"]


def test_unregistering_leaves_the_files(run: Run, tmp_path: Path) -> None:
    make(run, "shop", tmp_path / "shop")

    ended = run("workspaces", "unregister", "shop", "--json").json()

    assert ended["unregistered"]["name"] == "shop"
    assert workspace_database(tmp_path / "shop").exists()
    assert run("workspaces", "unregister", "shop").code == 3
    run("workspaces", "adopt", "shop", tmp_path / "shop")
    assert "files stay" in run("workspaces", "unregister", "shop").stdout


def test_deleting_says_what_became_of_the_database(run: Run, tmp_path: Path) -> None:
    for name in ("whole", "gone", "foreign", "damaged"):
        make(run, name, tmp_path / name)
    shutil.rmtree(tmp_path / "gone")
    workspace_database(tmp_path / "foreign").unlink()
    workspace_database(tmp_path / "foreign").mkdir()
    workspace_database(tmp_path / "damaged").write_bytes(b"no database" * 300)

    for name, said in (
        ("whole", "is deleted with"),
        ("gone", "gone already"),
        ("foreign", "is another program's and stays"),
        ("damaged", "is deleted with"),
    ):
        ended = run("workspaces", "delete", name, "--yes")
        assert ended.code == 0
        assert said in ended.stdout
    assert run("workspaces", "list", "--json").json()["total"] == 0
    assert workspace_database(tmp_path / "foreign").is_dir()
    assert not workspace_database(tmp_path / "damaged").exists()


def test_a_link_in_the_place_of_a_workspace_is_an_error_that_says_what_to_do(
    run: Run, tmp_path: Path
) -> None:
    make(run, "shop", tmp_path / "shop")
    make(run, "victim", tmp_path / "victim")
    (tmp_path / "shop").rename(tmp_path / "aside")
    (tmp_path / "shop").symlink_to(tmp_path / "victim")

    for command in (
        ("workspaces", "delete", "shop", "--yes"),
        ("sessions", "list", "-w", "shop"),
        ("health", "-w", "shop"),
        ("backup", tmp_path / "copy.sqlite", "-w", "shop"),
    ):
        ended = run(*command)
        assert ended.code == 5, ended.stderr
        assert "workspaces move" in ended.stderr
        assert "workspaces unregister" in ended.stderr
    assert titles(run, "victim") == ["victim"]
    assert not (tmp_path / "copy.sqlite").exists()
    assert run("workspaces", "move", "shop", tmp_path / "aside").code == 0
    assert titles(run, "shop") == ["shop"]
