"""What the follower does with other processes, gaps, failures, text in flight and forks."""

import os
import threading
from typing import Any

import apsw
import pytest
from kits.waiting import PATIENCE, until
from structlog.testing import capture_logs
from watching_kit import Heard, Watching, nothing_more, shown, take_until, threads_of

from mandrake_sessions import ForkedPoolError, SessionManager, TurnStatus, TurnUpdate
from mandrake_sessions.live.watching import watched
from mandrake_sessions.live.watching.listeners import Listener, ListenerThreads
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.targets import (
    Joining,
    ResponseTarget,
    SessionTarget,
    TurnTarget,
)
from mandrake_sessions.live.watching.turn_states import agreement
from mandrake_sessions.live.watching.updates import RoundUpdate, SessionUpdate
from mandrake_sessions.records import feed

# Another process that does as asked: the name of a method and its arguments.
OTHER = """
from mandrake_sessions import SessionManager
with SessionManager(sys.argv[1]) as sessions:
    send("open")
    while order := receive():
        name, arguments, fields = order
        result = getattr(sessions, name)(*arguments, **fields)
        send(getattr(result, "id", result))
"""
STREAMER = """
from mandrake_sessions import SessionManager
from mandrake_sessions.live.hub import Hub
with SessionManager(sys.argv[1]) as sessions:
    hub = Hub.of(sessions.handle.file)
    with hub.flusher.begin(sys.argv[2], sessions) as writer:
        send(writer.id)
        while text := receive():
            writer.write(text)
            writer.flush()
            send(len(text))
    send("ended")
    receive()
"""


@pytest.fixture
def watching(sessions):
    watching = Watching(sessions)
    yield watching
    follower = watching.follower
    until(lambda: follower.subscriptions == 0)
    until(lambda: threads_of(follower) == 0)


@pytest.fixture
def other(start_child, path, sessions):
    child = start_child(OTHER, path)
    assert child.receive() == "open"

    def call(name, *arguments, **fields):
        child.send([name, arguments, fields])
        return child.receive()

    yield call
    child.send(None)
    child.finish()


# -- other processes ----------------------------------------------------------------------------


def test_changes_and_deletions_of_another_process_are_delivered(
    watching, sessions, response, other
):
    with watching.response(response.id, follow=True) as watch:
        turn_id = other("create_turn", response.id, content="a")
        assert watch.receive(PATIENCE).turn.content == "a"
        other("update_turn", turn_id, content="ab")
        update = watch.receive(PATIENCE)
        assert (update.offset, update.text) == (1, "b")
        other("update_turn", turn_id, status="completed")
        assert watch.receive(PATIENCE).status is TurnStatus.COMPLETED
        other("delete_turn", turn_id)
        assert watch.receive(PATIENCE).is_deleted


def test_a_session_deleted_by_another_process_ends_its_watches(watching, sessions, response, other):
    session = sessions.list_sessions()[0]
    watch = watching.session(session.id, last=0)
    of_response = watching.response(response.id)
    other("delete_session", session.id)
    assert list(watch)[-1] == SessionUpdate(session.id, None)
    assert list(of_response) == []


def test_text_streamed_by_another_process_is_delivered_as_it_is_stored(
    watching, sessions, response, start_child, path
):
    child = start_child(STREAMER, path, response.id)
    turn_id = child.receive()
    watch = watching.response(response.id)
    updates = [watch.receive(PATIENCE)]
    pieces = ["one ", "two ", "drei €"]
    for piece in pieces:
        child.send(piece)
        child.receive()
        updates += take_until(
            watch, lambda update, piece=piece: update.turn.content.endswith(piece)
        )
    child.send("")
    child.receive()
    updates += list(watch)
    assert {update.id for update in updates} == {turn_id}
    assert not any(update.is_in_flight for update in updates)
    assert shown(updates) == "".join(pieces) == updates[-1].turn.content
    assert all(update.offset == len(shown(updates[:n])) for n, update in enumerate(updates))
    child.send(None)
    child.finish()


def test_watchers_see_that_the_host_has_died(watching, sessions, response, start_child, path):
    child = start_child(STREAMER, path, response.id)
    child.receive()
    child.send("kept")
    child.receive()
    watch = watching.response(response.id)
    with capture_logs() as logs:
        child.stop()
        updates = list(watch)
        # It is logged after the COMMIT that the watchers see.
        until(lambda: logs)
    assert updates[-1].status is TurnStatus.INTERRUPTED
    assert updates[-1].turn.content == "kept"
    assert [log["event"] for log in logs] == ["turns_interrupted"]


# -- text in flight -----------------------------------------------------------------------------


def test_text_in_flight_is_delivered_and_marked(watching, sessions, response):
    writer = watching.hub.flusher.begin(response.id, sessions)
    watch = watching.response(response.id)
    updates = [watch.receive(PATIENCE)]
    with sessions.transaction():
        # Nothing can be stored meanwhile.
        writer.write("in ")
        updates += take_until(watch, lambda update: update.turn.content == "in ")
        assert updates[-1].is_in_flight
        writer.write("flight")
        updates += take_until(watch, lambda update: update.turn.content == "in flight")
    writer.complete()
    updates += list(watch)
    assert shown(updates) == "in flight"
    assert updates[-1].offset == len("in flight")
    assert not updates[-1].is_in_flight
    assert updates[-1].status is TurnStatus.COMPLETED


def test_pieces_are_delivered_together_not_one_by_one(watching, sessions, response):
    writer = watching.hub.flusher.begin(response.id, sessions)
    heard = Heard()
    watching.track(response.id, heard)
    for _ in range(20_000):
        writer.write("0123456789")
    writer.complete()
    heard.wait_for(lambda update: update.status is TurnStatus.COMPLETED)
    assert len(heard.updates) < 1000
    assert shown(heard.updates) == "0123456789" * 20_000


# -- gaps and failures --------------------------------------------------------------------------


def write_raw(path, *statements):
    connection = apsw.Connection(str(path))
    try:
        connection.set_busy_timeout(5000)
        connection.execute("PRAGMA foreign_keys = ON; BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(*statement)
        connection.execute("COMMIT")
    finally:
        connection.close()


def test_everything_is_read_anew_after_a_gap(watching, sessions, response, path):
    session = sessions.list_sessions()[0]
    changed = sessions.create_turn(response.id, content="old")
    deleted = sessions.create_turn(response.id)
    watch = watching.response(response.id)
    of_session = watching.session(session.id)
    for _ in range(2):
        watch.receive(PATIENCE)
    take_until(of_session, lambda update: update.id == deleted.id)
    round_ = sessions.create_round(session.id, "next")
    take_until(of_session, lambda update: update.id == round_.id)
    # The follower finds the changes without the rows that would report them.
    write_raw(
        path,
        ("UPDATE turns SET content = 'new', revision = revision + 1 WHERE id = ?", (changed.id,)),
        ("DELETE FROM turns WHERE id = ?", (deleted.id,)),
        ("DELETE FROM rounds WHERE id = ?", (round_.id,)),
        ("UPDATE sessions SET title = 'T', revision = revision + 1",),
        ("DELETE FROM changes",),
        ("INSERT INTO changes VALUES (20000, ?, 'turn', 'x', 'update')", (session.id,)),
    )
    found: dict[str, Any] = {}
    while len(found) < 2:
        update = watch.receive(PATIENCE)
        found[update.id] = update
    assert found[changed.id].turn.content == "new"
    assert found[deleted.id].is_deleted
    found = {}
    while not {changed.id, deleted.id, round_.id, session.id} <= found.keys():
        update = of_session.receive(PATIENCE)
        found[update.id] = update
    assert found[round_.id] == RoundUpdate(round_.id, None)
    assert found[session.id].session.title == "T"
    watch.close()
    of_session.close()


def test_numbers_that_went_back_are_noticed(watching, sessions, response, path):
    turn = sessions.create_turn(response.id)
    with watching.response(response.id) as watch:
        watch.receive(PATIENCE)
        write_raw(
            path,
            ("DELETE FROM changes",),
            ("UPDATE turns SET content = 'new', revision = 9 WHERE id = ?", (turn.id,)),
        )
        assert watch.receive(PATIENCE).turn.content == "new"


def test_more_changes_than_one_read_returns_are_all_delivered(
    watching, sessions, response, monkeypatch
):
    monkeypatch.setattr(watched, "_CHANGES_AT_ONCE", 3)
    turn = sessions.create_turn(response.id)
    with watching.response(response.id) as watch:
        watch.receive(PATIENCE)
        with sessions.transaction() as tx:
            for number in range(20):
                tx.update_turn(turn.id, current_tokens=number)
        update = take_until(watch, lambda update: update.turn.current_tokens == 19)[-1]
    assert update.turn.revision == 20


def test_a_failing_read_is_logged_once_and_tried_again(watching, sessions, response, monkeypatch):
    turn = sessions.create_turn(response.id)
    failures = iter([OSError("no")] * 3)
    read = feed.changes_from

    def fail_at_first(*arguments):
        for failure in failures:
            raise failure
        return read(*arguments)

    with watching.response(response.id) as watch, capture_logs() as logs:
        watch.receive(PATIENCE)
        monkeypatch.setattr(feed, "changes_from", fail_at_first)
        sessions.update_turn(turn.id, content="x")
        assert watch.receive(PATIENCE).text == "x"
    assert [log["event"] for log in logs] == ["follower_failed"]


def test_a_watch_does_not_wait_for_a_writer(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    with sessions.transaction() as tx:
        tx.update_turn(turn.id, content="x")
        found: list[TurnUpdate] = []
        thread = threading.Thread(
            target=lambda: found.extend(
                watch.receive(PATIENCE) for watch in [watching.response(response.id)]
            )
        )
        thread.start()
        thread.join(PATIENCE)
        assert found[0].turn == turn


# -- threads and kept state ---------------------------------------------------------------------


def test_nothing_is_left_when_the_last_watch_ends(watching, sessions, response):
    follower = watching.follower
    for _ in range(3):
        watches = [watching.response(response.id), watching.session(sessions.list_sessions()[0].id)]
        subscription = watching.track(response.id, print)
        assert follower.subscriptions == 3
        assert threads_of(follower) >= 1
        for watch in (*watches, subscription):
            watch.close()
        assert follower.subscriptions == 0
        until(lambda: threads_of(follower) == 0)
        assert not follower._watched._targets
        assert not follower._watched.turns


def test_a_hundred_watchers_cost_one_read(watching, sessions, response):
    sessions.create_turn(response.id)
    with watching.response(response.id):
        nothing_more(watching, watching.response(response.id))
        reads = []
        follower = watching.follower
        fetch = follower._file.fetch

        def counted(work, *rest):
            reads.append(1)
            return fetch(work, *rest)

        follower._file.fetch = counted
        watches = [watching.response(response.id) for _ in range(100)]
        # One look at the changes for each, no state.
        assert len(reads) <= 110
        for watch in watches:
            watch.close()


def test_listeners_are_called_one_at_a_time():
    listener_threads = ListenerThreads()
    overlaps: list[bool] = []
    inside: list[int] = []
    done = threading.Event()

    class Holder:
        pass

    holder = Holder()

    def listen(update):
        overlaps.append(bool(inside))
        inside.append(1)
        threading.Event().wait(0.001)
        inside.pop()
        if update.id == "last":
            done.set()

    listener = Listener(listener_threads, holder, listen)
    for number in range(200):
        listener.mailbox.post(RoundUpdate(str(number), None))
    listener.mailbox.post(RoundUpdate("last", None))
    assert done.wait(PATIENCE)
    assert len(overlaps) == 201
    assert not any(overlaps)
    listener_threads.stop()
    until(lambda: not listener_threads._threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_watch_of_the_parent_raises_in_a_child(watching, sessions, response, path):
    watch = watching.response(response.id)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                next(watch)
            except ForkedPoolError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    turn = sessions.create_turn(response.id)
    assert watch.receive(PATIENCE).id == turn.id
    watch.close()


def test_managers_of_one_file_share_a_follower(path, pool, sessions, response, watching):
    with SessionManager(path, pool=pool) as other:
        assert Watching(other).follower is watching.follower


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("", "", 0), ("abc", "abd", 2), ("abc", "abc", 3), ("a", "abc", 1), ("x", "y", 0)],
)
def test_the_agreement_of_two_texts_is_their_common_length_from_the_beginning(one, other, same):
    assert agreement(one, other) == agreement(other, one) == same


# -- who cannot be let in -----------------------------------------------------------------------


def test_a_subscriber_that_cannot_be_served_harms_no_other(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    good = watching.response(response.id)
    assert good.receive(PATIENCE).id == turn.id
    with capture_logs() as logs:
        for kind in (TurnTarget, ResponseTarget, SessionTarget):
            # Nothing that could be looked for: no boundary lets it in.
            unhashable: Any = ["an id"]
            joining = Joining(Mailbox(sessions), kind, unhashable)
            joining.is_waited_for = True
            watching.follower.subscribe(joining)
            with pytest.raises(TypeError):
                joining.wait()
        sessions.update_turn(turn.id, content="seen", status="completed")
        assert [update.turn.content for update in good] == ["seen"]
    assert logs == []
    assert watching.follower.subscriptions == 0


@pytest.mark.parametrize("kind", [TurnTarget, ResponseTarget, SessionTarget])
@pytest.mark.parametrize("is_watched", [False, True])
def test_a_watch_whose_first_reads_fail_leaves_nothing(
    watching, sessions, response, kind, is_watched
):
    turn = sessions.create_turn(response.id, content="text", status="completed")
    session_id = sessions.get_round(response.round_id).session_id
    id = {TurnTarget: turn.id, ResponseTarget: response.id, SessionTarget: session_id}[kind]
    reads_left = None

    def read(work):
        nonlocal reads_left
        if reads_left is not None:
            reads_left -= 1
            if reads_left < 0:
                raise OSError("a read that fails")
        return watching.hub.file.fetch(work, "test")

    mine = watched.Watched(read, {}, lambda _known: None, lambda _mailbox: None)
    other = Mailbox(sessions)
    if is_watched:
        mine.join(Joining(other, kind, id, follow=True, last=1))
    targets, turns = dict(mine._targets), len(mine.turns)
    failed = 0
    while True:
        reads_left = failed
        mailbox = Mailbox(sessions)
        try:
            mine.join(Joining(mailbox, kind, id, last=1))
        except OSError:
            failed += 1
        else:
            break
        assert mailbox not in mine._of
        assert mine._targets == targets
        assert len(mine.turns) == turns
    # One that is watched already is read no more, but for a session.
    assert failed or (is_watched and kind is TurnTarget)
    reads_left = None
    sessions.update_turn(turn.id, input_tokens=7)
    # A response that is complete is watched no more.
    assert mine.refresh() or (kind is ResponseTarget and not is_watched)
    assert not mailbox.is_empty
    assert not is_watched or not other.is_empty
