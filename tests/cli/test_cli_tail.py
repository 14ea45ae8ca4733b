"""``sessions tail``: a process of its own follows what another one writes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import COMMAND, Ended, environment

from mandrake_sessions import (
    MandrakeManager,
    RoundUpdate,
    Session,
    SessionManager,
    Turn,
    TurnUpdate,
)
from mandrake_sessions.cli import tail as tail_command
from mandrake_sessions.cli.errors import ExitCode

Tail = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def sessions(root: Path, session: Session) -> Iterator[SessionManager]:
    """The SessionManager of the session that is followed."""
    with MandrakeManager(root) as mandrake:
        shop = mandrake.find_workspace("shop")
        assert shop is not None
        yield mandrake.get_workspace(shop.id).sessions


@pytest.fixture
def tail(root: Path) -> Iterator[Tail]:
    """Starts the command, and ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, "sessions", "tail", *map(str, arguments), "--workspace", "shop"],
            env=environment(MANDRAKE_DIR=root),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def documents(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_tail_follows_a_stream_of_another_process(
    tail: Tail, sessions: SessionManager, session: Session
) -> None:
    process = tail(session.id, "--last", 0, "--json")
    lines = documents(process)
    assert next(lines)["session"]["id"] == session.id

    round_ = sessions.create_round(session.id, "Is it live?")
    assert next(lines)["round"]["request"]["content"] == "Is it live?"
    shown = ""
    with sessions.stream_turn(round_.response.id) as turn:
        for word in ("Yes, ", "it ", "is."):
            turn.write(word)
            turn.flush()
            while len(shown) < len("Yes, it is.") and not shown.endswith(word):
                update = next(lines)["turn"]
                shown = shown[: update["offset"]] + update["text"]
    assert shown == "Yes, it is."
    for each in lines:
        if each["turn"]["status"] == "completed":
            break

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == ExitCode.INTERRUPTED


def test_people_see_the_last_round_then_what_is_new(
    tail: Tail, sessions: SessionManager, session: Session
) -> None:
    process = tail(session.id)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.strip() == "completed":
            break
    assert [line for line in lines if line][1:] == [
        "Question 1",
        lines[-3],
        "Because of 1.",
        "   completed",
    ]
    assert lines[-3].startswith("   round 1 · turn 0 · ")
    assert "\n\n\n" not in "\n".join(lines)

    sessions.delete_session(session.id)
    rest, error = process.communicate(timeout=120)
    assert "deleted" in rest
    assert process.returncode == ExitCode.NOT_FOUND
    assert len(error.splitlines()) == 1


def test_turns_that_grow_at_once_are_printed_apart(
    sessions: SessionManager, session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tail_command._Page()
    rounds = [sessions.create_round(session.id, f"Both {number}?") for number in range(2)]
    for round_ in rounds:
        page.show(RoundUpdate(round_.id, round_))
    begun = [
        sessions.create_turn(round_.response.id, status="streaming", model="any")
        for round_ in rounds
    ]

    def show(turn: Turn, offset: int, text: str) -> None:
        page.show(
            TurnUpdate(
                turn,
                None,
                offset=offset,
                length=offset + len(text),
                text=text,
                is_in_flight=False,
                is_deleted=False,
            )
        )

    for turn in begun:
        show(turn, 0, "")
    show(begun[0], 0, "One ")
    show(begun[0], 4, "and ")
    show(begun[1], 0, "Two.\n\n")
    show(begun[0], 8, "more.\n")
    show(sessions.update_turn(begun[1].id, status="completed"), 6, "")
    show(sessions.update_turn(begun[0].id, status="interrupted"), 14, "")

    assert (
        capfd.readouterr().out
        == f"""\
── round 2 · {rounds[0].id}
Both 0?

── round 3 · {rounds[1].id}
Both 1?

   round 2 · turn 0 · any
One and\x20

   round 3 · turn 0 · any
Two.

   round 2 · turn 0 · any
more.

   round 3 · turn 0 · any
   completed

   round 2 · turn 0 · any
   interrupted
"""
    )


def test_a_turn_that_ends_without_text_has_one_head(
    sessions: SessionManager, session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tail_command._Page()
    response = sessions.create_round(session.id, "Silent?").response
    with sessions.watch_response(response.id) as watch:
        with sessions.stream_turn(response.id) as writer:
            first = watch.receive(10)
            assert first is not None
            page.show(first)
        for update in watch:
            page.show(update)
    # Its round was not delivered: the turn is named by its id.
    assert capfd.readouterr().out == f"   turn 0 · {writer.id}\n   completed\n"


def test_tail_of_a_missing_session_is_an_error(run: Callable[..., Ended], session: Session) -> None:
    assert run("sessions", "tail", "missing", "--workspace", "shop").code == ExitCode.NOT_FOUND
    assert run("sessions", "tail", session.id, "--last", -1, "-w", "shop").code == ExitCode.USAGE
