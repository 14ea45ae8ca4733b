"""``import``: the report, the workspace it makes, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from cli_kit import Ended

Run = Callable[..., Ended]

# The origin's tables, as far as its rows need them.
_TABLES = """
CREATE TABLE sessions (id text PRIMARY KEY NOT NULL, title text, description text,
  metadata text DEFAULT '{}' NOT NULL, createdAt integer NOT NULL, updatedAt integer NOT NULL);
CREATE TABLE rounds (id text PRIMARY KEY NOT NULL, sessionId text NOT NULL,
  requestId text NOT NULL, responseId text NOT NULL, "index" integer NOT NULL,
  createdAt integer NOT NULL, updatedAt integer NOT NULL);
CREATE TABLE requests (id text PRIMARY KEY NOT NULL, content text NOT NULL,
  createdAt integer NOT NULL, updatedAt integer NOT NULL);
CREATE TABLE responses (id text PRIMARY KEY NOT NULL,
  createdAt integer NOT NULL, updatedAt integer NOT NULL);
CREATE TABLE turns (id text PRIMARY KEY NOT NULL, responseId text NOT NULL,
  "index" integer NOT NULL, rawResponse text NOT NULL, content text NOT NULL,
  toolCalls text NOT NULL, status text NOT NULL, streamStartTime integer NOT NULL,
  streamEndTime integer, currentTokens integer NOT NULL, expectedTokens integer,
  inputTokens integer NOT NULL, outputTokens integer NOT NULL, cacheReadTokens integer,
  cacheWriteTokens integer, inputCost real NOT NULL, outputCost real NOT NULL,
  createdAt integer NOT NULL, updatedAt integer NOT NULL);
"""
_TIME = "2025-11-21 00:01:20"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database of the origin: a session with two rounds, and a request of a deleted one."""
    path = tmp_path / "origin.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute(_TABLES)
    times = (_TIME, _TIME)
    connection.execute("INSERT INTO sessions VALUES ('s', 'Old talk', NULL, '{}', ?, ?)", times)
    for n in ("0", "1"):
        connection.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", (f"q{n}", f"Q {n}", *times))
        connection.execute("INSERT INTO responses VALUES (?, ?, ?)", (f"a{n}", *times))
        connection.execute(
            "INSERT INTO rounds VALUES (?, 's', ?, ?, 0, ?, ?)", (f"r{n}", f"q{n}", f"a{n}", *times)
        )
        connection.execute(
            "INSERT INTO turns VALUES (?, ?, 0, 'raw', ?, '[]', 'completed', 1763683280,"
            " 1763683281, 1, NULL, 2, 3, NULL, NULL, 0.1, 0.2, ?, ?)",
            (f"t{n}", f"a{n}", f"A {n}", *times),
        )
    connection.execute("INSERT INTO requests VALUES ('lost', 'Who am I?', ?, ?)", times)
    connection.close()
    return path


def test_an_import_makes_the_workspace_and_reports(run: Run, source: Path) -> None:
    before = source.read_bytes()
    report = run("import", source, "--workspace", "old", "--json").json()
    assert (report["sessions"], report["rounds"], report["turns"]) == (1, 2, 2)
    assert report["orphans_found"] == 1
    assert report["workspace"] == "old"
    assert source.read_bytes() == before

    answer = run("sessions", "show", "s", "-w", "old", "--json").json()
    assert [each["index"] for each in answer["rounds"]] == [0, 1]
    assert [each["turns"][0]["content"] for each in answer["rounds"]] == ["A 0", "A 1"]


def test_a_second_import_adds_nothing(run: Run, source: Path) -> None:
    run("import", source, "-w", "old")
    again = run("import", source, "-w", "old")
    assert again.code == 0
    assert "sessions already there" in again.stdout
    assert run("sessions", "list", "-w", "old", "--json").json()["total"] == 1


def test_orphans_are_printed_for_people(run: Run, source: Path) -> None:
    assert "--recover-orphans" in run("import", source, "-w", "old").stdout
    assert run("import", source, "-w", "old", "--recover-orphans").code == 0
    titles = [
        each["title"] for each in run("sessions", "list", "-w", "old", "--json").json()["sessions"]
    ]
    assert "Recovered from origin.sqlite" in titles


def test_an_import_without_a_workspace_goes_into_the_system(run: Run, source: Path) -> None:
    assert run("import", source, "--json").json()["workspace"] is None
    assert run("sessions", "list", "--json").json()["total"] == 1


def test_an_unusable_source_leaves_no_workspace(run: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("No database. " * 100)
    assert run("import", notes, "-w", "old").code == 5
    assert run("workspaces", "list", "--json").json()["total"] == 0


def test_a_missing_source_creates_nothing(run: Run, root: Path) -> None:
    assert run("import", "nowhere.sqlite", "-w", "old").code == 3
    assert not root.exists()
