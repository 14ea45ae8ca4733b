"""A host that is killed while it streams: all flushed text is stored, and only its turns end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mandrake_sessions import ConnectionPool, SessionManager, TurnStatus

# Streams two turns at once and sends how much of them it has flushed, until it is killed.
HOST = """
from mandrake_sessions import SessionManager

sessions = SessionManager(sys.argv[1], create=False).init()
turns = [
    sessions.stream_turn(sessions.create_round(sys.argv[2], "Question").response.id)
    for _ in range(2)
]
plain = sessions.create_turn(sessions.create_round(sys.argv[2], "Question").response.id)
send([turn.id for turn in turns] + [plain.id])
number = 0
while True:
    for turn in turns:
        turn.write(f"{number} ")
    number += 1
    if number % 7 == 0:
        for turn in turns:
            turn.flush()
            send([turn.id, number])
"""

# Streams a turn for as long as it lives.
LIVING = """
from mandrake_sessions import SessionManager

with SessionManager(sys.argv[1], create=False) as sessions:
    response = sessions.create_round(sys.argv[2], "Question").response
    plain = sessions.create_turn(response.id)
    with sessions.stream_turn(response.id) as turn:
        turn.write("I live")
        turn.flush()
        send([plain.id, turn.id])
        receive()
        turn.write(" on")
    sessions.update_turn(plain.id, status="completed")
"""


def text_up_to(number: int) -> str:
    return "".join(f"{each} " for each in range(number))


def is_beginning(text: str) -> bool:
    """Whether a text is a beginning of what every host writes, cut anywhere."""
    return text_up_to(text.count(" ") + 1).startswith(text)


@pytest.mark.parametrize(
    "kills", [4, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(300)])]
)
def test_a_killed_host_leaves_every_flushed_prefix(
    kills: int, path: Path, pool: ConnectionPool, start_child: Callable
) -> None:
    chance = random.Random(kills)
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.create_session("Killed")
    living = start_child(LIVING, path, session.id)
    plain_id, living_id = living.receive()

    for _ in range(kills):
        host = start_child(HOST, path, session.id)
        ids = host.receive()
        # Not waiting for anything: a random moment is what is tested.
        time.sleep(chance.uniform(0.0, 0.15))
        host.process.kill()
        flushed = dict(json.loads(line) for line in host.process.stdout if line.endswith("]\n"))

        with SessionManager(path, pool=pool) as sessions:
            for id in ids[:2]:
                turn = sessions.get_turn(id)
                assert turn.status is TurnStatus.INTERRUPTED
                assert turn.stream_ended_at is not None
                assert turn.content.startswith(text_up_to(flushed.get(id, 0)))
                assert is_beginning(turn.content)
            assert sessions.get_turn(ids[2]).status is TurnStatus.INTERRUPTED
            assert sessions.get_turn(plain_id).status is TurnStatus.STREAMING
            assert sessions.get_turn(living_id).status is TurnStatus.STREAMING
            assert sessions.get_turn(living_id).content == "I live"
            assert sessions.recover_interrupted() == []

    living.send()
    living.finish()
    with SessionManager(path, pool=pool) as sessions:
        assert sessions.get_turn(living_id).content == "I live on"
        assert sessions.get_turn(living_id).status is TurnStatus.COMPLETED
        assert sessions.get_turn(plain_id).status is TurnStatus.COMPLETED
    assert [each.name for each in path.parent.glob("*owner*")] == []


def test_a_watcher_notices_that_the_host_has_died(
    sessions: SessionManager, start_child: Callable
) -> None:
    session = sessions.create_session("Killed")
    host = start_child(HOST, sessions.path, session.id)
    ids = host.receive()
    response_id = sessions.get_turn(ids[0]).response_id
    host.receive()

    with sessions.watch_response(response_id) as watch:
        first = watch.receive(timeout=60)
        assert first is not None
        assert first.turn.status is TurnStatus.STREAMING
        host.process.kill()
        *_, last = watch

    assert last.turn.status is TurnStatus.INTERRUPTED
    assert is_beginning(last.turn.content)


def test_a_host_that_closes_and_opens_again_keeps_its_streaming_turns(
    path: Path, pool: ConnectionPool
) -> None:
    with SessionManager(path, pool=pool) as sessions:
        session = sessions.create_session()
        turn = sessions.create_turn(sessions.create_round(session.id, "Question").response.id)

    with SessionManager(path, pool=pool) as sessions:
        assert sessions.get_turn(turn.id).status is TurnStatus.STREAMING
        assert sessions.update_turn(turn.id, status="completed").status is TurnStatus.COMPLETED
