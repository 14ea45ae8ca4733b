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

from mandrake_sessions import MandrakeManager, Session, SessionManager
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


def test_it_follows_a_stream_of_another_process(
    tail: Tail, sessions: SessionManager, session: Session
) -> None:
    process = tail(session.id, "--last", 0, "--json")
    told = documents(process)
    assert next(told)["session"]["id"] == session.id

    round_ = sessions.create_round(session.id, "Is it live?")
    assert next(told)["round"]["request"]["content"] == "Is it live?"
    shown = ""
    with sessions.stream_turn(round_.response.id) as turn:
        for word in ("Yes, ", "it ", "is."):
            turn.write(word)
            turn.flush()
            while len(shown) < len("Yes, it is.") and not shown.endswith(word):
                update = next(told)["turn"]
                shown = shown[: update["offset"]] + update["text"]
    assert shown == "Yes, it is."
    for each in told:
        if each["turn"]["status"] == "completed":
            break

    process.send_signal(signal.SIGINT)
    assert process.wait(30) == ExitCode.INTERRUPTED


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
    assert lines[-3].startswith("   turn 0")

    sessions.delete_session(session.id)
    rest, error = process.communicate(timeout=30)
    assert "deleted" in rest
    assert process.returncode == ExitCode.NOT_FOUND
    assert len(error.splitlines()) == 1


def test_a_session_that_is_not_there(run: Callable[..., Ended], session: Session) -> None:
    assert run("sessions", "tail", "nobody", "--workspace", "shop").code == ExitCode.NOT_FOUND
    assert run("sessions", "tail", session.id, "--last", -1, "-w", "shop").code == ExitCode.USAGE
