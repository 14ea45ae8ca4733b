"""What people see: lines that fit, ids that can be typed, and no text that steers the terminal."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import apsw
import pytest
import typer
from cli_kit import PROJECT, Ended, environment, run_process
from rich.cells import cell_len

from mandrake_sessions import (
    MandrakeManager,
    NewTurn,
    Session,
    SessionManager,
    ToolCall,
    TurnUpdate,
    default_pool,
)
from mandrake_sessions.cli import tail as tail_command
from mandrake_sessions.cli.app import app
from mandrake_sessions.cli.errors import ExitCode
from mandrake_sessions.cli.output import ago, printable
from mandrake_sessions.database.health.wording import counted
from mandrake_sessions.visible import escaped, visible

Run = Callable[..., Ended]

EVIL = "\x1b[2J\x9b31m\x7f\u202egpj.exe\u2066\u200b\u061c\ufeff\u2028\U000e0041\x00\r"
"""Clears the screen, changes its colour, turns the direction of text, hides."""


@pytest.fixture
def sessions(root: Path) -> Iterator[SessionManager]:
    with MandrakeManager(root) as mandrake:
        yield mandrake.sessions


def steering(text: str) -> set[str]:
    """Return the characters of an output that are no signs; those between emoji are none."""
    return {
        each
        for each in text
        if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Cs") and each not in "\n\u200d"
    }


# -- the list --------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["pasted " * 20_000, "漢字" * 500, "👩‍👩‍👧" * 200, "\n" * 500])
def test_a_long_title_changes_nothing_for_the_others(
    run: Run, sessions: SessionManager, title: str
) -> None:
    for number in range(3):
        sessions.create_session(f"short {number}")
    before = run("sessions", "list").stdout.splitlines()
    sessions.create_session(title)

    lines = run("sessions", "list").stdout.splitlines()

    assert max(map(cell_len, lines)) <= 80
    assert [line.split("  ")[0:2] for line in lines[2:5]] == [
        line.split("  ")[0:2] for line in before[1:4]
    ]
    assert len(lines) == len(before) + 1


CLUSTERS = (
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f",
)
"""Several characters that a terminal shows as one sign, two columns wide."""


def test_graphemes_of_several_characters_keep_columns_aligned_and_stay_whole(
    run: Run, sessions: SessionManager
) -> None:
    sessions.create_session("plain")
    for sign in CLUSTERS:
        sessions.create_session(f"{sign} short")
        sessions.create_session(sign * 60)
    lines = run("sessions", "list").stdout.splitlines()
    for sign in CLUSTERS:
        assert any(line.count(sign) > 10 for line in lines)
        # By this count alone, and by none of the library that the command has.
        lines = [line.replace(sign, "##") for line in lines]
    assert all(line.replace("…", "#").isascii() for line in lines)
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.endswith("just now")]
    assert len(rows) == 1 + 2 * len(CLUSTERS)
    assert len({len(row) for row in rows}) == 1


def test_the_required_rich_measures_graphemes_of_several_characters() -> None:
    """rich 14.2 takes a family of four for eight columns, 14.3 for two."""
    (wanted,) = [each for each in requires("mandrake-sessions") or () if each.startswith("rich")]
    assert wanted.startswith("rich>=14.3")


def test_a_list_fits_as_many_columns_as_there_are(
    run: Run, sessions: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.create_session("a title " * 50)
    for columns, expected in (("", 80), ("120", 120), ("60", 60), ("nonsense", 80)):
        monkeypatch.setenv("COLUMNS", columns)
        assert max(map(cell_len, run("sessions", "list").stdout.splitlines())) == expected
    monkeypatch.delenv("COLUMNS")
    assert max(map(cell_len, run("sessions", "list").stdout.splitlines())) == 80


def test_columns_stand_below_each_other(run: Run, sessions: SessionManager) -> None:
    for title in ("plain", "漢字", "👩‍👩‍👧", None, "x" * 200):
        session = sessions.create_session(title)
        sessions.record_round(session.id, "q")
    head, *lines = run("sessions", "list").stdout.splitlines()[:6]
    at = head.index("updated")
    for line in lines:
        assert cell_len(line[: line.index("just now")]) == at


def test_times_are_printed_as_how_long_ago_they_are(run: Run, sessions: SessionManager) -> None:
    session = sessions.create_session()
    shown = run("sessions", "list").stdout
    assert "just now" in shown
    assert run("sessions", "list", "--json").json()["sessions"][0]["updated_at"].endswith("Z")
    assert f"{session.created_at:%Y-%m-%d %H:%M:%S} UTC, just now" in (
        run("sessions", "show", session.id).stdout
    )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "just now"),
        (30, "30 seconds ago"),
        (60, "1 minute ago"),
        (7_200, "2 hours ago"),
        (86_400, "1 day ago"),
        (40 * 86_400, "1 month ago"),
        (800 * 86_400, "2 years ago"),
    ],
)
def test_each_age_has_its_unit(seconds: int, expected: str) -> None:
    assert ago(datetime.now(UTC) - timedelta(seconds=seconds)) == expected


def test_a_time_in_the_future_is_printed_as_it_is() -> None:
    moment = datetime.now(UTC) + timedelta(days=1)
    assert ago(moment) == f"{moment:%Y-%m-%d %H:%M:%S}"


def test_one_is_singular_everywhere(run: Run, sessions: SessionManager) -> None:
    session = sessions.create_session()
    sessions.record_round(session.id, "q", [NewTurn()])
    assert run("sessions", "list").stdout.endswith("\n1 session\n")
    assert "with 1 round and 1 turn? Not" in run("sessions", "delete", session.id).stderr
    other = sessions.create_session()
    assert run("sessions", "list").stdout.endswith("\n2 sessions\n")
    assert "\n1 of 2 sessions\n" in run("sessions", "list", "--limit", 1).stdout
    assert "with 0 rounds and 0 turns." in run("sessions", "delete", other.id, "--yes").stdout
    run("workspaces", "create", "one")
    assert run("workspaces", "list").stdout.endswith("\n1 workspace\n")
    assert (counted(1, "row"), counted(0, "row")) == ("1 row", "0 rows")


# -- short ids -------------------------------------------------------------------------------


def test_every_command_takes_the_id_that_is_listed(run: Run, sessions: SessionManager) -> None:
    made = [sessions.create_session(f"No. {number}") for number in range(12)]
    listed = [line.split()[0] for line in run("sessions", "list").stdout.splitlines()[1:13]]
    assert sorted(made[11 - at].id[-8:] for at in range(12)) == sorted(listed)
    for short in listed:
        answer = run("sessions", "show", short, "--json").json()
        assert answer["session"]["id"].endswith(short)
        beginning = answer["session"]["id"]
        assert run("sessions", "show", beginning).code == 0
    assert run("sessions", "delete", listed[0], "--yes", "--json").json()["deleted"] == made[11].id
    assert run("sessions", "tail", listed[0]).code == ExitCode.NOT_FOUND


def test_ids_that_end_alike_are_listed_longer(run: Run, sessions: SessionManager) -> None:
    for id in ("aaaa-aaaa-1-same-end", "bbbb-bbbb-2-same-end", "same-end", "short", "c" * 255):
        sessions.create_session(id=id)
    listed = {line.split()[0] for line in run("sessions", "list").stdout.splitlines()[1:6]}
    assert listed == {"1-same-end", "2-same-end", "same-end", "short", "c" * 8}
    for short in listed:
        answer = run("sessions", "show", short, "--json").json()["session"]["id"]
        assert answer.endswith(short)
    # A whole id names its own session, also where other ids end with it.
    assert run("sessions", "show", "same-end", "--json").json()["session"]["id"] == "same-end"


def test_an_id_that_may_mean_several_names_them(run: Run, sessions: SessionManager) -> None:
    for number in range(7):
        sessions.create_session(id=f"conversation-{number}")
    ended = run("sessions", "delete", "conversation", "--yes", "--json")
    assert (ended.code, ended.error()["type"]) == (ExitCode.USAGE, "UsageError")
    assert "conversation-0, conversation-1" in ended.error()["message"]
    assert "conversation-6" not in ended.error()["message"]
    assert sessions.count_sessions() == 7
    assert run("sessions", "show", "conversation-3").code == 0
    # Fewer characters may mean another one tomorrow.
    assert run("sessions", "show", "n-3").code == ExitCode.NOT_FOUND
    assert run("sessions", "show", "on-3").code == 0
    assert run("sessions", "show", "nothing like it").code == ExitCode.NOT_FOUND


# -- text that steers ------------------------------------------------------------------------


@pytest.fixture
def evil(sessions: SessionManager) -> Session:
    """A session whose every text is written to steer a terminal."""
    session = sessions.create_session(
        EVIL, EVIL, {f"key {EVIL}": EVIL, "nested": {EVIL: [EVIL]}}, id=f"evil-{EVIL[:-2]}-session"
    )
    call = ToolCall({EVIL: EVIL}, [EVIL])
    turns = [
        NewTurn(
            content=EVIL,
            raw_response=EVIL,
            model=EVIL,
            status="error",
            error_message=EVIL,
            tool_calls=[call],
        )
    ]
    exchange = sessions.record_round(session.id, EVIL, turns)
    with sessions.handle.sqlalchemy() as connection:
        connection.exec_driver_sql(
            'INSERT INTO turns (id, "index", tool_calls, response_id, status, stream_started_at,'
            " stream_ended_at, current_tokens, input_tokens, output_tokens, input_cost,"
            " output_cost, model, revision, created_at, updated_at, error_message, content,"
            " raw_response) SELECT 'unreadable', 9, ?, response_id, status, stream_started_at,"
            " stream_ended_at, 0, 0, 0, 0.0, 0.0, model, 0, created_at, updated_at,"
            " error_message, content, raw_response FROM turns",
            (f"not json {EVIL}",),
        )
    assert exchange.turns
    return session


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "machines"])
def test_no_control_character_of_a_stored_value_is_printed(
    run: Run, evil: Session, root: Path, options: list[str]
) -> None:
    for command in (
        ("sessions", "list"),
        ("sessions", "show", evil.id),
        ("sessions", "show", "evil-"),
        ("sessions", "delete", evil.id),
        ("sessions", "show", f"missing {EVIL[:-2]}"),
        ("sessions", "list", "--database", root / f"none {EVIL[:1]}\u202e"),
        ("health",),
        ("workspaces", "create", "place", "--description", EVIL.replace("\0", "")),
        ("workspaces", "list"),
        ("sessions", "list", "--workspace", f"a\u202e{EVIL[:2]}"),
    ):
        ended = run(*command, *options)
        assert steering(ended.stdout + ended.stderr) == set(), command
        assert ended.stdout + ended.stderr
    if options:
        answer = run("sessions", "show", evil.id, "--json").json()["session"]
        assert (answer["title"], answer["id"]) == (EVIL, evil.id)
        assert answer["metadata"] == evil.metadata


def test_nothing_that_is_followed_steers_the_terminal(
    sessions: SessionManager, evil: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tail_command._Page()
    with sessions.watch_session(evil.id, last=5) as watch:
        for event in itertools.islice(watch, 4):
            page.show(event)
            if isinstance(event, TurnUpdate):
                tail_command._print_line(event)
    shown = capfd.readouterr().out
    assert steering(shown) == set()
    assert "tool call {" in shown


def test_a_terminal_gets_no_more_than_a_file(root: Path, evil: Session, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mandrake_sessions", "sessions", "show", evil.id],
        env=environment(MANDRAKE_DIR=root, TERM="xterm"),
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 10_000):
            shown += piece
    except OSError:
        # How a pseudo-terminal ends.
        pass
    assert process.wait(60) == 0
    os.close(ours)
    # The styles of the command itself, and line ends.
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")
    assert steering(text) == set()
    assert "gpj.exe" in text


def test_every_character_that_is_no_sign_is_replaced() -> None:
    left = {
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")
        and visible(character) == character
    }
    # Arabic signs that are seen, and the joiners that make one sign of several.
    assert left == set(map(chr, [*range(0x600, 0x606), 0x6DD, 0x200C, 0x200D]))
    signs = "a \u00e9 e\u0301 漢 👩‍👩‍👧 🏳️ \ue000 \ufffe"
    assert visible(signs) == signs == printable(signs)
    assert visible("a\nb\tc\rd") == "a b c d"
    assert visible("a\r\nb\tc\rd", lines=True) == "a\nb\tc\ufffdd"


def test_a_document_without_such_characters_says_the_same() -> None:
    document = json.dumps({EVIL: [EVIL, "👩‍👩‍👧"]}, ensure_ascii=False)
    assert steering(escaped(document)) == set()
    assert json.loads(escaped(document)) == json.loads(document)


def test_the_log_of_a_command_does_not_steer_either(
    root: Path, sessions: SessionManager, tmp_path: Path
) -> None:
    sessions.create_session(id=f"evil-{EVIL[:-2]}")
    raw = apsw.Connection(str(root / "db.sqlite"))
    raw.execute("UPDATE sessions SET metadata = 'not json'")
    raw.close()
    ended = run_process("sessions", "list", cwd=tmp_path, MANDRAKE_DIR=root)
    assert "metadata_unreadable" in ended.stderr
    assert steering(ended.stderr) == set()


def test_tool_calls_and_metadata_are_shown_as_json(run: Run, sessions: SessionManager) -> None:
    session = sessions.create_session(metadata={"tags": ["a", None], "deep": {"b": True}})
    calls = [
        ToolCall({"name": "ls", "args": ["/"]}, {"found": [True, None]}),
        ToolCall("expected", is_interrupted=True),
    ]
    sessions.record_round(session.id, "q", [NewTurn(tool_calls=calls)])
    shown = run("sessions", "show", session.id).stdout
    assert '   tool call {"name":"ls","args":["/"]} → {"found":[true,null]}\n' in shown
    assert '   tool call "expected" → interrupted\n' in shown
    assert 'metadata.tags  ["a",null]\n' in shown
    assert 'metadata.deep  {"b":true}\n' in shown


# -- what to do ------------------------------------------------------------------------------


def test_the_first_use_says_what_to_do(run: Run, root: Path) -> None:
    for command in (
        ("sessions", "list"),
        ("sessions", "list", "-w", "shop"),
        ("workspaces", "list"),
        ("health",),
    ):
        ended = run(*command)
        assert ended.code == ExitCode.NOT_FOUND
        printed = ended.require_one_line()
        assert f"Nothing is stored in {root} yet" in printed
        assert "mandrake-sessions workspaces create NAME" in printed
    elsewhere = root.parent / "it's elsewhere"
    printed = run("workspaces", "list", "--root", elsewhere).stderr
    assert "workspaces create NAME --root '" in printed
    assert "Check the path" in run("sessions", "list", "--database", root / "no.sqlite").stderr

    assert run("workspaces", "create", "shop").code == 0
    assert "No sessions yet" in run("sessions", "list").stdout
    run("workspaces", "delete", "shop", "--yes")
    assert "workspaces create NAME` makes one" in run("workspaces", "list").stdout


def test_hints_keep_the_options_that_name_the_database(
    run: Run, session: Session, root: Path
) -> None:
    printed = run("sessions", "show", "missing", "-w", "shop").stderr
    assert "`mandrake-sessions sessions list -w shop`" in printed
    printed = run("sessions", "show", "missing", "-w", "shop", "--root", root).stderr
    assert f"`mandrake-sessions sessions list --root {root} -w shop`" in printed
    file = root / "workspaces" / "shop" / ".ws" / "db.sqlite"
    printed = run("sessions", "delete", "missing", "--yes", "--database", file).stderr
    assert f"`mandrake-sessions sessions list --database {file}`" in printed
    printed = run("sessions", "list", "-w", "nowhere", "--root", root).stderr
    assert f"`mandrake-sessions workspaces list --root {root}`" in printed
    with SessionManager(file, create=False) as sessions:
        sessions.create_session("Another")
    printed = run("sessions", "list", "-w", "shop", "--limit", 1).stdout
    assert "`mandrake-sessions sessions list -w shop --limit 1 --offset 1` shows more." in printed


def test_a_hint_names_the_damaged_file(run: Run, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "my notes.txt"
    path.write_text("These are notes and no database. " * 100)
    printed = run("sessions", "list", "--database", path).stderr
    assert f"`mandrake-sessions doctor '{path}'`" in printed


def test_a_file_with_a_second_name_is_no_wrong_argument(run: Run, tmp_path: Path) -> None:
    path, name = tmp_path / "chat.sqlite", tmp_path / "link.sqlite"
    with SessionManager(path) as sessions:
        sessions.create_session()
    default_pool().close()
    name.hardlink_to(path)
    shown = run("sessions", "list", "--database", name)
    assert shown.code == 5
    assert f"`mandrake-sessions doctor {name}`" in shown.stderr
    assert "Name a file" not in shown.stderr
    assert str(path) in run("doctor", name).stdout.replace("\n", "")


# -- the program -----------------------------------------------------------------------------


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=" ".join)
def test_each_command_has_help_in_two_spellings_and_flags_without_a_type(
    run: Run, path: tuple[str, ...]
) -> None:
    short, long = run(*path, "-h"), run(*path, "--help")
    assert (short.code, long.code) == (0, 0)
    assert short.stdout == long.stdout
    assert "<bool>" not in short.stdout
    if "--json" in short.stdout:
        assert re.search(r"--json +Print one JSON document", short.stdout)


def test_the_command_prints_the_completion_of_each_shell(tmp_path: Path, root: Path) -> None:
    shown = run_process("--show-completion", "bash", cwd=tmp_path, MANDRAKE_DIR=root)
    assert "COMPREPLY" in shown.stdout
    completed = run_process(
        cwd=tmp_path,
        command=[sys.executable, "-m", "mandrake_sessions"],
        _MANDRAKE_SESSIONS_COMPLETE="complete_bash",
        COMP_WORDS="mandrake-sessions sess",
        COMP_CWORD="1",
    )
    assert (completed.code, completed.stdout.split()) == (0, ["sessions"])
    assert "--install-completion" in run_process("-h", cwd=tmp_path).stdout


def test_the_package_is_the_program(tmp_path: Path) -> None:
    here = run_process(
        "--version", command=[sys.executable, "-m", "mandrake_sessions"], cwd=tmp_path
    )
    assert here.stdout.startswith("mandrake-sessions ")


def test_where_lines_are_promised_an_error_is_a_line_too(
    run: Run, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (
        ("sessions", "tail", "missing", "-w", "shop", "--json"),
        ("-v", "sessions", "tail", "--json"),
        ("sessions", "tail", session.id, "--nonsense", "--json"),
    ):
        (line,) = run(*arguments).stdout.splitlines()
        assert json.loads(line)["error"]["exit_code"]
    assert len(run("sessions", "show", "tail", "--json").stdout.splitlines()) > 1


def test_the_page_names_the_exit_codes_as_they_are() -> None:
    page = (PROJECT / "docs" / "howto" / "command.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert named == [(str(code.value), code.meaning) for code in ExitCode]
