"""Several processes stream into one session, and everybody sees everything."""

from __future__ import annotations

from collections.abc import Callable

from mandrake_sessions import SessionManager, TurnStatus, TurnUpdate

STREAMER = """
from mandrake_sessions import SessionManager

with SessionManager(sys.argv[1], create=False) as sessions:
    receive()
    for number in range(10):
        with sessions.stream_turn(sys.argv[2]) as turn:
            for piece in range(50):
                turn.write(f"{sys.argv[3]}{number}.{piece} ")
        send([turn.id, turn.turn.index])
"""

WATCHER = """
from mandrake_sessions import SessionManager, TurnUpdate

with SessionManager(sys.argv[1], create=False) as sessions:
    watch = sessions.watch_session(sys.argv[2], last=0)
    send("watching")
    shown, ended = {}, {}
    for event in watch:
        if isinstance(event, TurnUpdate):
            id = event.turn.id
            shown[id] = shown.get(id, "")[: event.offset] + event.text
            assert shown[id] == event.turn.content
            if event.turn.status.is_finished:
                ended[id] = shown[id]
            if len(ended) == 20:
                break
    send(ended)
"""


def test_two_processes_stream_into_one_session(
    sessions: SessionManager, start_child: Callable
) -> None:
    session = sessions.create_session("Shared")
    response = sessions.create_round(session.id, "Question").response
    watcher = start_child(WATCHER, sessions.path, session.id)
    assert watcher.receive() == "watching"
    streamers = [start_child(STREAMER, sessions.path, response.id, name) for name in "ab"]

    ended: dict[str, str] = {}
    with sessions.watch_session(session.id, last=0) as watch:
        for streamer in streamers:
            streamer.send()
        for event in watch:
            if isinstance(event, TurnUpdate) and event.turn.status.is_finished:
                ended[event.turn.id] = event.turn.content
                if len(ended) == 20:
                    break

    written = [streamer.receive() for streamer in streamers for _ in range(10)]
    turns = sessions.list_turns(response.id)
    assert sorted(index for _, index in written) == list(range(20))
    assert [turn.index for turn in turns] == list(range(20))
    assert {turn.status for turn in turns} == {TurnStatus.COMPLETED}
    assert {turn.id for turn in turns} == {id for id, _ in written}
    assert ended == {turn.id: turn.content for turn in turns}
    assert watcher.receive() == ended
    for child in (watcher, *streamers):
        child.finish()


def test_a_deletion_in_another_process_ends_a_watch(
    sessions: SessionManager, start_child: Callable
) -> None:
    session = sessions.create_session("Deleted")
    response = sessions.create_round(session.id, "Question").response
    sessions.create_turn(response.id)
    script = """
from mandrake_sessions import SessionManager

with SessionManager(sys.argv[1], create=False) as sessions:
    sessions.delete_session(sys.argv[2])
"""

    with sessions.watch_response(response.id) as watch:
        first = watch.receive(timeout=60)
        start_child(script, sessions.path, session.id).finish()
        rest = list(watch)

    assert first is not None
    assert not first.is_deleted
    assert [update.is_deleted for update in rest][-1:] == [True]
