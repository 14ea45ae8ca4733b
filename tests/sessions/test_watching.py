"""Listeners, trackers and watchers, and the updates that each of them receives."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
import structlog.testing
from kits.waiting import PATIENCE

from mandrake_sessions import (
    InvalidArgumentError,
    ResponseNotFoundError,
    SessionNotFoundError,
    TurnNotFoundError,
    TurnStatus,
)

TOOL = {"call": {"name": "sleep"}, "response": {"ok": True}}


class Listener:
    """A listener that keeps its updates, for the test to wait for."""

    def __init__(self):
        self.updates: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.seen = []

    def __call__(self, update):
        self.updates.put(update)

    def until(self, found):
        """Wait for an update of which ``found`` is true, and return it."""
        while True:
            self.seen.append(self.updates.get(timeout=PATIENCE))
            if found(self.seen[-1]):
                return self.seen[-1]


def finished(update):
    return update.turn.status.is_finished


def test_a_listener_receives_the_new_turn(sessions, response):
    turn = sessions.create_turn(response.id)
    listener = Listener()

    subscription = sessions.add_turn_update_listener(turn.id, listener)
    sessions.update_turn(turn.id, content="Hel")
    assert listener.until(lambda update: update.turn.content == "Hel").turn.revision == 1
    sessions.update_turn(turn.id, content="Hello", status="completed")
    last = listener.until(finished)

    assert last.turn == sessions.get_turn(turn.id)
    assert (last.offset, last.text) == (3, "lo")
    assert not last.is_in_flight
    # Usage often arrives late: an update of a turn that has ended is still delivered.
    sessions.update_turn(turn.id, output_tokens=7)
    assert listener.until(lambda update: update.turn.output_tokens == 7).text == ""
    subscription.close()


def test_a_listener_receives_updates_of_its_own_turn_only(sessions, response):
    mine, other = sessions.create_turn(response.id), sessions.create_turn(response.id)
    listener = Listener()

    with sessions.add_turn_update_listener(mine.id, listener):
        sessions.update_turn(other.id, content="not mine")
        sessions.update_turn(mine.id, status="completed")
        listener.until(finished)

    assert {update.turn.id for update in listener.seen} == {mine.id}


def test_a_raising_listener_is_logged_and_stops_nothing(sessions, response):
    turn = sessions.create_turn(response.id)
    listener = Listener()

    def raising(update):
        raise RuntimeError("this listener is broken")

    with structlog.testing.capture_logs() as events:
        broken = sessions.add_turn_update_listener(turn.id, raising)
        sound = sessions.add_turn_update_listener(turn.id, listener)
        sessions.update_turn(turn.id, content="one")
        listener.until(lambda update: update.turn.content == "one")
        sessions.update_turn(turn.id, status="completed")
        listener.until(finished)
        broken.close()
        sound.close()

    assert {event["event"] for event in events} >= {"listener_failed"}


def test_a_listener_may_close_itself_and_call_the_manager(sessions, response):
    turn = sessions.create_turn(response.id)
    listener = Listener()
    opened = threading.Event()

    def once(update):
        opened.wait(PATIENCE)
        subscription.close()
        listener(update)

    subscription = sessions.add_turn_update_listener(turn.id, once)
    opened.set()
    sessions.update_turn(turn.id, content="one")
    listener.until(lambda update: True)
    assert subscription.is_closed
    sessions.update_turn(turn.id, status="completed")

    assert listener.updates.empty()


def test_a_closed_subscription_receives_nothing_more(sessions, response):
    turn = sessions.create_turn(response.id)
    listener, witness = Listener(), Listener()

    subscription = sessions.add_turn_update_listener(turn.id, listener)
    other = sessions.add_turn_update_listener(turn.id, witness)
    subscription()
    sessions.update_turn(turn.id, status="completed")
    witness.until(finished)
    other.close()
    subscription.close()

    assert listener.updates.empty()
    assert subscription.is_closed


def test_a_tracker_receives_the_present_state_then_every_later_one(sessions, response):
    first = sessions.create_turn(response.id, content="Let me ", tool_calls=[TOOL])
    listener = Listener()

    tracker = sessions.track_streaming_turns(response.id, listener)
    assert listener.until(lambda update: True).turn == first
    sessions.update_turn(first.id, content="Let me look.", status="completed")
    assert listener.until(finished).text == "look."
    # The tool has run: the next turn is seen, however long that took.
    second = sessions.create_turn(response.id)
    assert listener.until(lambda update: update.turn.id == second.id).turn == second
    sessions.update_turn(second.id, content="It is the lock.", status="completed")
    last = listener.until(lambda update: update.turn.id == second.id and finished(update))

    assert last.turn.content == "It is the lock."
    assert tracker.wait(PATIENCE)
    assert tracker.is_closed


def test_a_second_tracker_receives_the_same_updates(sessions, response):
    turn = sessions.create_turn(response.id)
    several = [Listener() for _ in range(5)]
    trackers = [sessions.track_streaming_turns(response.id, listener) for listener in several]

    sessions.update_turn(turn.id, content="for all", status="completed")

    for listener in several:
        assert listener.until(finished).turn.content == "for all"
    assert all(tracker.wait(PATIENCE) for tracker in trackers)


@pytest.mark.parametrize("status", ["completed", "error", "interrupted"])
def test_a_watch_ends_with_its_response(sessions, response, status):
    turn = sessions.create_turn(response.id)

    with sessions.watch_response(response.id) as watch:
        assert watch.receive(PATIENCE).turn == turn
        sessions.update_turn(turn.id, status=status)
        *_, last = watch

    assert last.turn.status is TurnStatus(status)
    assert watch.is_closed


def test_a_watch_of_a_complete_response_delivers_it_and_ends_at_once(sessions, response):
    turn = sessions.create_turn(response.id, content="done", status="completed")

    assert [update.turn for update in sessions.watch_response(response.id)] == [turn]


def test_tool_calls_keep_a_watch_open_and_follow_always_does(sessions, response):
    asked = sessions.create_turn(response.id, tool_calls=[TOOL], status="completed")
    followed = sessions.create_round(
        sessions.get_round_by_response(response.id).session_id, "And?"
    ).response
    answered = sessions.create_turn(followed.id, status="completed")

    with (
        sessions.watch_response(response.id) as waiting,
        sessions.watch_response(followed.id, follow=True) as following,
    ):
        assert waiting.receive(PATIENCE).turn == asked
        assert following.receive(PATIENCE).turn == answered
        late, later = sessions.create_turn(response.id), sessions.create_turn(followed.id)
        assert waiting.receive(PATIENCE).turn == late
        assert following.receive(PATIENCE).turn == later
        sessions.update_turn(later.id, status="error")
        assert following.receive(PATIENCE).turn.status is TurnStatus.ERROR
        assert following.receive(0.0) is None
        assert not following.is_closed


def test_an_empty_response_is_watched_until_it_has_ended(sessions, response):
    with sessions.watch_response(response.id) as watch:
        assert watch.receive(0.05) is None
        assert sessions.get_streaming_status(response.id).is_empty
        turn = sessions.create_turn(response.id)
        assert watch.receive(PATIENCE).turn == turn
        sessions.update_turn(turn.id, status="completed")
        assert [update.turn.status for update in watch] == [TurnStatus.COMPLETED]

    assert sessions.get_streaming_status(response.id).is_complete


def test_a_watch_reports_a_deleted_turn(sessions, response):
    kept, gone = sessions.create_turn(response.id), sessions.create_turn(response.id)

    with sessions.watch_response(response.id) as watch:
        assert {watch.receive(PATIENCE).turn.id for _ in range(2)} == {kept.id, gone.id}
        sessions.delete_turn(gone.id)
        update = watch.receive(PATIENCE)
        assert (update.turn.id, update.is_deleted) == (gone.id, True)
        sessions.delete_session(sessions.get_round_by_response(response.id).session_id)
        assert [(each.turn.id, each.is_deleted) for each in watch] == [(kept.id, True)]


def test_a_watch_delivers_unstored_text_of_a_writer_as_in_flight(sessions, response):
    with sessions.stream_turn(response.id) as turn:
        watch = sessions.watch_response(response.id)
        watch.receive(PATIENCE)
        turn.write("Hel")
        shown = ""
        while shown != "Hel":
            update = watch.receive(PATIENCE)
            shown = shown[: update.offset] + update.text
        turn.write("lo")

    rest = list(watch)
    for update in rest:
        shown = shown[: update.offset] + update.text
    assert shown == rest[-1].turn.content == "Hello"
    assert not rest[-1].is_in_flight


def test_closing_the_manager_ends_every_subscription(sessions, response):
    turn = sessions.create_turn(response.id)
    listener = Listener()
    watch = sessions.watch_response(response.id)
    watch.receive(PATIENCE)
    listening = sessions.add_turn_update_listener(turn.id, listener)
    assert sessions.subscriptions == 2

    sessions.close()

    assert list(watch) == []
    assert watch.is_closed
    assert listening.wait(PATIENCE)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.watch_response("missing").receive(PATIENCE), ResponseNotFoundError),
        (lambda s: s.watch_session("missing").receive(PATIENCE), SessionNotFoundError),
        (lambda s: s.track_streaming_turns("missing", print), ResponseNotFoundError),
        (lambda s: s.add_turn_update_listener("missing", print), TurnNotFoundError),
        (lambda s: s.watch_response(7), InvalidArgumentError),
        (lambda s: s.watch_session("missing", last=-1), InvalidArgumentError),
        (lambda s: s.add_turn_update_listener("missing", "print"), InvalidArgumentError),
    ],
)
def test_bad_arguments_are_refused_and_leave_no_subscription(sessions, call, error):
    with structlog.testing.capture_logs() as events, pytest.raises(error):
        call(sessions)

    assert sessions.subscriptions == 0
    assert events == []
