"""When a watch ends and when it goes on, the last update of a turn, and a lack of threads."""

import subprocess
import sys
import threading

import pytest
from kits.waiting import PATIENCE, until
from watching_kit import Heard, Watching, nothing_more, take_until, threads_of

from mandrake_sessions import PoolClosedError, ThreadStartError, TurnStatus
from mandrake_sessions.live.watching import watched
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.updates import RoundUpdate


@pytest.fixture
def watching(sessions):
    watching = Watching(sessions)
    yield watching
    follower = watching.follower
    until(lambda: follower.subscriptions == 0)
    until(lambda: threads_of(follower) == 0)


@pytest.fixture
def response_id(sessions):
    return sessions.create_round(sessions.create_session("watched").id, "question").response.id


def test_an_error_between_two_reads_of_an_iterator_is_not_taken_for_the_end(sessions):
    mailbox = Mailbox(sessions)
    assert mailbox.take() is None
    mailbox.end(PoolClosedError("closed"))
    assert not mailbox.is_over
    with pytest.raises(PoolClosedError):
        mailbox.take()
    assert mailbox.is_over


def test_a_watch_goes_on_when_the_next_turn_begins_far_behind_in_the_same_transaction(
    sessions, watching, response_id, monkeypatch
):
    monkeypatch.setattr(watched, "_CHANGES_AT_ONCE", 5)
    first = sessions.create_turn(response_id)
    with watching.response(response_id) as watch:
        take_until(watch, lambda update: update.id == first.id)
        with sessions.transaction() as tx:
            tx.update_turn(first.id, status=TurnStatus.COMPLETED)
            for tokens in range(20):
                tx.update_turn(first.id, output_tokens=tokens)
            second = tx.create_turn(response_id)
        take_until(watch, lambda update: update.id == second.id)
        assert not watch.is_closed
        sessions.update_turn(second.id, status=TurnStatus.COMPLETED)
        take_until(watch, lambda update: update.status is TurnStatus.COMPLETED)
        assert watch.receive(PATIENCE) is None
        assert watch.is_closed


def test_a_watch_goes_on_when_a_turn_is_replaced_in_one_transaction(
    sessions, watching, response_id
):
    sessions.create_turn(response_id, content="an answer", status=TurnStatus.COMPLETED)
    second = sessions.create_turn(response_id)
    with watching.response(response_id) as watch:
        take_until(watch, lambda update: update.id == second.id)
        with sessions.transaction() as tx:
            tx.delete_turn(second.id)
            third = tx.create_turn(response_id)
        take_until(watch, lambda update: update.id == third.id)
        assert not watch.is_closed


def test_turns_of_one_commit_are_delivered_in_index_order(sessions, watching, response_id):
    with watching.response(response_id) as watch:
        with sessions.transaction() as tx:
            for id in ("turn-c", "turn-a", "turn-b"):
                tx.create_turn(response_id, id=id)
        updates = take_until(watch, lambda update: update.index == 2)
    assert [update.id for update in updates] == ["turn-c", "turn-a", "turn-b"]


def test_the_last_update_reaches_a_listener_behind_one_that_never_returns(
    sessions, watching, response_id
):
    may_return = threading.Event()

    def block(update):
        if update.status.is_finished:
            may_return.wait(PATIENCE)

    turn = sessions.create_turn(response_id)
    heard = [Heard() for _ in range(4)]
    try:
        watching.track(response_id, block)
        for listener in heard:
            watching.track(response_id, listener)
        sessions.update_turn(turn.id, status=TurnStatus.COMPLETED)
        for listener in heard:
            listener.wait_for(lambda update: update.status is TurnStatus.COMPLETED)
    finally:
        may_return.set()


def test_a_request_that_changes_while_the_clock_stands_still_is_delivered(
    sessions, watching, monkeypatch
):
    session = sessions.create_session("watched")
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    round_ = sessions.create_round(session.id, "first")
    with watching.session(session.id) as watch:
        for content in ("second", "third"):
            sessions.update_request(round_.request.id, content=content)
            take_until(
                watch,
                lambda event, content=content: (
                    isinstance(event, RoundUpdate)
                    and event.round is not None
                    and event.round.request.content == content
                ),
            )


def test_watching_where_the_system_has_no_more_threads_leaves_nothing_behind(
    sessions, watching, response_id, monkeypatch
):
    start = threading.Thread.start

    def fail(self):
        if self.name.startswith("mandrake-"):
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", fail)
        with pytest.raises(ThreadStartError):
            watching.response(response_id)
        assert sessions.subscriptions == 0
        assert threads_of(watching.follower) == 0
    with watching.response(response_id) as watch:
        turn = sessions.create_turn(response_id)
        assert take_until(watch, lambda update: update.id == turn.id)
        assert nothing_more(watching, watch) is None


def test_a_watch_that_outlives_the_interpreters_modules_is_silent(sessions, path, response_id):
    script = (
        "import builtins, sys\n"
        "from mandrake_sessions import SessionManager\n"
        "sessions = SessionManager(sys.argv[1]).init()\n"
        "builtins.watch = sessions.watch_response(sys.argv[2])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(path), response_id],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert ended.stderr == b""
