"""The updates of a watched response, turn and session, and when they end."""

import asyncio
import gc
import threading

import pytest
from kits.waiting import PATIENCE, until
from structlog.testing import capture_logs
from watching_kit import Heard, Watching, nothing_more, shown, take_until, threads_of

from mandrake_sessions import (
    InvalidArgumentError,
    NewTurn,
    PoolClosedError,
    ReentrantScopeError,
    ResponseNotFoundError,
    SessionManager,
    SessionNotFoundError,
    Subscription,
    TurnNotFoundError,
    TurnStatus,
)
from mandrake_sessions.live.watching.updates import RoundUpdate, SessionUpdate, TurnUpdate

CALL = {"call": {"name": "grep"}}


@pytest.fixture
def watching(sessions):
    watching = Watching(sessions)
    yield watching
    follower = watching.follower
    until(lambda: follower.subscriptions == 0)
    until(lambda: threads_of(follower) == 0)


# -- a response ---------------------------------------------------------------------------------


def test_present_states_come_first_then_each_change_then_the_end(watching, sessions, response):
    first = sessions.create_turn(response.id, content="a", tool_calls=[CALL], status="completed")
    second = sessions.create_turn(response.id, content="b")
    watch = watching.response(response.id)
    assert [watch.receive(PATIENCE).turn for _ in range(2)] == [first, second]
    changed = sessions.update_turn(second.id, content="bc")
    update = watch.receive(PATIENCE)
    assert (update.turn, update.offset, update.text) == (changed, 1, "c")
    ended = sessions.update_turn(second.id, status="completed")
    assert [update.turn for update in watch] == [ended]
    assert watch.is_closed
    assert watch.receive(0) is None


def test_a_watch_of_a_response_that_is_complete_delivers_it_and_ends(watching, sessions, response):
    turn = sessions.create_turn(response.id, status="completed")
    assert [update.turn for update in watching.response(response.id)] == [turn]


@pytest.mark.parametrize("status", ["error", "interrupted"])
def test_a_failed_turn_ends_the_response_also_with_tool_calls(watching, sessions, response, status):
    sessions.create_turn(response.id, tool_calls=[CALL], status=status)
    assert len(list(watching.response(response.id))) == 1


def test_a_hundred_watchers_see_first_state_later_turns_and_end(watching, sessions, response):
    first = sessions.create_turn(response.id, content="0")
    watches = [watching.response(response.id) for _ in range(100)]
    received: list[list[TurnUpdate]] = [[] for _ in watches]
    first_seen = threading.Barrier(101)

    def follow(number):
        received[number].append(watches[number].receive(PATIENCE))
        first_seen.wait()
        received[number].extend(watches[number])

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    first_seen.wait()
    sessions.update_turn(first.id, tool_calls=[CALL], status="completed")
    second = sessions.create_turn(response.id, content="1", tool_calls=[CALL], status="completed")
    third = sessions.create_turn(response.id, content="2")
    sessions.update_turn(third.id, status="completed")
    for thread in threads:
        thread.join(PATIENCE)
    for updates in received:
        assert updates[0].turn == first
        newest = {update.id: update.turn for update in updates}
        assert [turn.status for turn in newest.values()] == ["completed"] * 3
        assert list(newest) == [first.id, second.id, third.id]


def test_a_turn_after_a_tool_call_is_seen_at_once(watching, sessions, response):
    sessions.create_turn(response.id, tool_calls=[CALL], status="completed")
    watch = watching.response(response.id)
    watch.receive(PATIENCE)
    assert nothing_more(watching, watch) is None
    assert not watch.is_closed
    later = sessions.create_turn(response.id, status="completed")
    assert [update.id for update in watch] == [later.id]


@pytest.mark.long
def test_a_turn_five_seconds_after_a_tool_call_is_seen_at_once(watching, sessions, response):
    sessions.create_turn(response.id, tool_calls=[CALL], status="completed")
    watch = watching.response(response.id)
    watch.receive(PATIENCE)
    assert watch.receive(5.0) is None
    later = sessions.create_turn(response.id, status="completed")
    assert watch.receive(PATIENCE).id == later.id
    assert watch.receive(0.5) is None
    assert watch.is_closed


def test_follow_goes_on_after_the_end_until_the_response_is_deleted(watching, sessions, response):
    turn = sessions.create_turn(response.id, status="completed")
    watch = watching.response(response.id, follow=True)
    watch.receive(PATIENCE)
    later = sessions.create_turn(response.id, content="x", status="completed")
    assert watch.receive(PATIENCE).id == later.id
    sessions.delete_round(response.round_id)
    updates = list(watch)
    assert {update.id for update in updates} == {turn.id, later.id}
    assert all(update.is_deleted and not update.turn.content for update in updates)


def test_a_deleted_turn_is_reported_to_each_watch_that_knew_it(watching, sessions, response):
    turn = sessions.create_turn(response.id, content="gone")
    watch = watching.response(response.id)
    watch.receive(PATIENCE)
    sessions.delete_turn(turn.id)
    update = watch.receive(PATIENCE)
    assert (update.id, update.is_deleted, update.offset, update.text) == (turn.id, True, 0, "")
    other = sessions.create_turn(response.id)
    watch.receive(PATIENCE)
    unknown = sessions.create_turn(response.id)
    sessions.delete_turn(unknown.id)
    sessions.update_turn(other.id, status="completed")
    assert [update.is_deleted for update in watch if update.id == unknown.id] in ([], [False, True])


def test_a_slow_consumer_receives_the_newest_state_only(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    watch = watching.response(response.id)
    watch.receive(PATIENCE)
    for number in range(50):
        sessions.update_turn(turn.id, content="x" * number)
    ended = sessions.update_turn(turn.id, status="completed", tool_calls=[CALL])
    assert nothing_more(watching, watch).turn == ended
    assert watch.receive(0) is None
    watch.close()


def test_text_that_is_replaced_begins_where_it_differs(watching, sessions, response):
    turn = sessions.create_turn(response.id, content="one two")
    watch = watching.response(response.id)
    updates = [watch.receive(PATIENCE)]
    for content in ("one three", "one three four", "other", ""):
        sessions.update_turn(turn.id, content=content)
        updates.append(watch.receive(PATIENCE))
        assert shown(updates) == content == updates[-1].turn.content
    assert [update.offset for update in updates] == [0, 5, 9, 1, 0]
    watch.close()


def test_a_change_of_another_field_repeats_no_text(watching, sessions, response):
    turn = sessions.create_turn(response.id, content="text")
    with watching.response(response.id) as watch:
        watch.receive(PATIENCE)
        sessions.update_turn(turn.id, input_tokens=7)
        update = watch.receive(PATIENCE)
    assert (update.offset, update.text, update.turn.content) == (4, "", "text")
    assert update.turn.input_tokens == 7


def test_revisions_go_forward_under_eight_writers(watching, sessions, response, in_threads):
    turns = [sessions.create_turn(response.id) for _ in range(4)]
    watch = watching.response(response.id, follow=True)
    received: dict[str, list[int]] = {turn.id: [] for turn in turns}

    def collect():
        for update in watch:
            received[update.id].append(update.turn.revision)

    thread = threading.Thread(target=collect)
    thread.start()

    def write(number):
        for step in range(50):
            sessions.update_turn(turns[(number + step) % 4].id, current_tokens=step)

    in_threads(8, write)
    last = {turn.id: sessions.get_turn(turn.id).revision for turn in turns}
    until(lambda: all(received[id] and received[id][-1] == last[id] for id in received))
    watch.close()
    thread.join(PATIENCE)
    assert all(revisions == sorted(set(revisions)) for revisions in received.values())


def test_rolled_back_changes_are_not_delivered(watching, sessions, response):
    watch = watching.response(response.id)
    with pytest.raises(ZeroDivisionError), sessions.transaction() as tx:
        tx.create_turn(response.id)
        raise ZeroDivisionError
    assert nothing_more(watching, watch) is None
    watch()
    assert watch.is_closed


# -- bad input ----------------------------------------------------------------------------------


def test_a_missing_target_raises_in_the_caller(watching):
    with pytest.raises(ResponseNotFoundError):
        watching.response("none")
    with pytest.raises(SessionNotFoundError):
        watching.session("none")
    with pytest.raises(TurnNotFoundError):
        watching.turn("none", print)
    with pytest.raises(ResponseNotFoundError):
        watching.track("none", print)


def test_bad_arguments_are_refused(watching, response):
    for bad in (
        lambda: watching.response(7),
        lambda: watching.response(response.id, follow=1),
        lambda: watching.session("x", last=-1),
        lambda: watching.session("x", last=True),
        lambda: watching.track(response.id, "no function"),
        lambda: watching.response(response.id, follow=True).receive(-1),
    ):
        with pytest.raises(InvalidArgumentError):
            bad()
    gc.collect()


def test_watching_inside_a_transaction_is_refused(watching, sessions, response):
    with sessions.transaction(), pytest.raises(ReentrantScopeError):
        watching.response(response.id)


# -- the end ------------------------------------------------------------------------------------


def test_closing_the_manager_ends_its_watches_normally_after_the_last_state(
    path, pool, sessions, response, watching
):
    with SessionManager(path, pool=pool) as other:
        theirs = Watching(other)
        turn = sessions.create_turn(response.id)
        watch = theirs.response(response.id)
        ours = watching.response(response.id)
        heard = Heard()
        subscription = theirs.turn(turn.id, heard)
        watch.receive(PATIENCE)
        sessions.update_turn(turn.id, content="last")
        theirs.hub.leave(other)
    assert [update.turn.content for update in watch] == ["last"]
    heard.wait_for(lambda update: update.text == "last")
    until(lambda: subscription.is_closed)
    assert not ours.is_closed
    ours.close()


def test_closing_the_pool_raises_in_the_iterator(path, pool, sessions, response):
    watch = Watching(sessions).response(response.id)
    pool.close()
    with pytest.raises(PoolClosedError):
        next(watch)
    assert list(watch) == []


def test_a_moved_file_raises_in_the_iterator(path, pool, tmp_path):
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    watch = Watching(sessions).response(response.id)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="moved"):
        while watch.receive(PATIENCE) is None and not watch.is_closed:
            pass
    sessions.close()


def test_closing_a_watch_wakes_its_waiting_thread(watching, response):
    watch = watching.response(response.id)
    ended = threading.Event()

    def wait():
        assert list(watch) == []
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    watch.close()
    watch.close()
    assert ended.wait(PATIENCE)
    thread.join()


def test_an_abandoned_watch_is_forgotten(watching, response):
    follower = watching.follower
    watch = watching.response(response.id)
    assert follower.subscriptions == 1
    del watch
    gc.collect()
    until(lambda: follower.subscriptions == 0)


def test_a_listener_goes_on_without_its_subscription(watching, sessions, response):
    heard = Heard()
    watching.track(response.id, heard)
    gc.collect()
    turn = sessions.create_turn(response.id, status="completed")
    assert heard.wait_for(lambda update: update.id == turn.id).turn == turn


# -- listeners ----------------------------------------------------------------------------------


def test_a_listener_of_a_turn_receives_changes_also_after_its_end(watching, sessions, response):
    turn = sessions.create_turn(response.id, content="before")
    sessions.create_turn(response.id)
    heard = Heard()
    with watching.turn(turn.id, heard):
        sessions.update_turn(turn.id, status="completed")
        heard.wait_for(lambda update: update.status is TurnStatus.COMPLETED)
        sessions.update_turn(turn.id, input_tokens=5)
        assert heard.wait_for(lambda update: update.turn.input_tokens == 5).turn.content == "before"
    assert {update.id for update in heard.updates} == {turn.id}
    assert shown(heard.updates) == "before"


def test_a_listener_of_a_deleted_turn_ends(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    heard = Heard()
    subscription = watching.turn(turn.id, heard)
    sessions.update_turn(turn.id, content="x")
    heard.wait_for(lambda update: update.text == "x")
    sessions.delete_turn(turn.id)
    assert subscription.wait(PATIENCE)
    assert subscription.is_closed
    assert heard.updates[-1].is_deleted


def test_a_raising_listener_is_logged_without_text_and_called_again(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    heard, other = Heard(), Heard()

    def fail(update):
        heard(update)
        raise ValueError("secret " + update.text)

    with capture_logs() as logs, watching.turn(turn.id, fail), watching.turn(turn.id, other):
        sessions.update_turn(turn.id, content="secret 1")
        heard.wait_for(lambda update: update.text == "secret 1")
        sessions.update_turn(turn.id, content="secret 12")
        heard.wait_for(lambda update: update.text == "2")
        other.wait_for(lambda update: update.turn.content == "secret 12")
        until(lambda: len(logs) == 2)
    assert {log["event"] for log in logs} == {"listener_failed"}
    assert logs[0]["error"] == "ValueError"
    assert "in fail" in logs[0]["traceback"]
    assert "secret 1" not in str(logs)


def test_a_listener_may_close_its_own_subscription(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    heard = Heard()
    subscriptions: list[Subscription] = []

    def once(update):
        subscriptions[0].close()
        heard(update)

    subscriptions.append(watching.turn(turn.id, once))
    sessions.update_turn(turn.id, content="x")
    heard.wait_for(lambda update: True)
    sessions.update_turn(turn.id, content="xy")
    nothing_more(watching, watching.response(response.id))
    assert len(heard.updates) == 1


def test_a_listener_may_call_the_manager_that_calls_it(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    seen = Heard()

    def answer(update):
        if not update.text.endswith("!"):
            sessions.update_turn(turn.id, content=update.turn.content + "!")
            with watching.response(response.id) as watch:
                seen(watch.receive(PATIENCE))

    with watching.turn(turn.id, answer):
        sessions.update_turn(turn.id, content="x")
        assert seen.wait_for(lambda update: True).turn.content == "x!"


def test_a_listener_that_blocks_delays_no_other(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    go_on = threading.Event()
    stuck = [Heard() for _ in range(3)]
    heard = Heard()

    def block(which):
        def listen(update):
            which(update)
            assert go_on.wait(PATIENCE)

        return listen

    for which in stuck:
        watching.turn(turn.id, block(which))
    watching.turn(turn.id, heard)
    watch = watching.response(response.id)
    watch.receive(PATIENCE)
    sessions.update_turn(turn.id, content="x")
    heard.wait_for(lambda update: update.text == "x")
    assert watch.receive(PATIENCE).text == "x"
    for which in stuck:
        which.wait_for(lambda update: True)
    sessions.update_turn(turn.id, content="xy")
    heard.wait_for(lambda update: update.text == "y")
    assert all(len(which.updates) == 1 for which in stuck)
    go_on.set()
    for which in stuck:
        which.wait_for(lambda update: update.text == "y")
    sessions.delete_turn(turn.id)
    watch.close()


# -- asyncio ------------------------------------------------------------------------------------


def test_async_iteration_works_in_debug_mode(watching, sessions, response):
    async def follow():
        watch = watching.response(response.id, wait=False)
        turn = await asyncio.to_thread(sessions.create_turn, response.id, content="x")
        first = await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.to_thread(sessions.update_turn, turn.id, status="completed")
        return [first, await waiting, *[update async for update in watch]]

    updates = asyncio.run(follow(), debug=True)
    assert [update.status for update in updates] == ["streaming", "completed"]


def test_a_missing_response_raises_at_the_first_async_step(watching):
    async def follow():
        watch = watching.response("none", wait=False)
        with pytest.raises(ResponseNotFoundError):
            await anext(watch)
        return [update async for update in watch]

    assert asyncio.run(follow(), debug=True) == []


def test_a_cancelled_await_leaves_the_watch_usable(watching, sessions, response):
    async def follow():
        async with watching.response(response.id, wait=False) as watch:
            for _ in range(3):
                waiting = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            turn = await asyncio.to_thread(sessions.create_turn, response.id)
            assert (await anext(watch)).id == turn.id

    asyncio.run(follow(), debug=True)


def test_a_closed_loop_does_not_break_the_follower(watching, sessions, response):
    turn = sessions.create_turn(response.id)
    watch = watching.response(response.id)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(anext(watch)).id == turn.id
    task = loop.create_task(anext(watch))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    sessions.update_turn(turn.id, content="x")
    assert watch.receive(PATIENCE).text == "x"
    watch.close()


# -- a session ----------------------------------------------------------------------------------


def test_a_watched_session_is_delivered_with_its_rounds_and_turns(watching, sessions, response):
    session = sessions.list_sessions()[0]
    turn = sessions.create_turn(response.id, content="x", status="completed")
    watch = watching.session(session.id)
    first = take_until(watch, lambda update: isinstance(update, TurnUpdate))
    assert [type(update) for update in first] == [SessionUpdate, RoundUpdate, TurnUpdate]
    assert first[0].session.id == session.id
    assert first[1].round.response.id == response.id
    assert first[2].turn == turn
    sessions.update_session(session.id, title="New")
    assert watch.receive(PATIENCE).session.title == "New"
    second = sessions.create_round(session.id, "More?")
    assert watch.receive(PATIENCE).round == second
    sessions.update_request(second.request.id, content="Much more?")
    assert watch.receive(PATIENCE).round.request.content == "Much more?"
    later = sessions.create_turn(second.response.id, content="y")
    assert watch.receive(PATIENCE).turn == later
    sessions.delete_round(second.id)
    deleted = take_until(watch, lambda update: isinstance(update, RoundUpdate))
    assert [update.id for update in deleted] == [later.id, second.id]
    assert deleted[1].round is None
    sessions.delete_session(session.id)
    rest = list(watch)
    assert rest[-1] == SessionUpdate(session.id, None)
    assert [update.id for update in rest[:-1]] == [turn.id]


def test_a_recorded_round_is_delivered_with_its_turns(watching, sessions, response):
    session = sessions.list_sessions()[0]
    with watching.session(session.id, last=0) as watch:
        assert isinstance(watch.receive(PATIENCE), SessionUpdate)
        exchange = sessions.record_round(session.id, "?", [NewTurn(content="!")])
        updates = take_until(watch, lambda update: isinstance(update, TurnUpdate))
        assert [update.id for update in updates] == [exchange.id, exchange.turns[0].id]
        with sessions.transaction() as tx:
            round_ = tx.create_round(session.id, "??")
            turn = tx.create_turn(round_.response.id, content="!!", status="completed")
        updates = take_until(watch, lambda update: isinstance(update, TurnUpdate))
        assert [update.id for update in updates] == [round_.id, turn.id]


def test_texts_of_finished_turns_are_not_kept_for_sessions(watching, sessions, response):
    session = sessions.list_sessions()[0]
    with watching.session(session.id) as watch:
        turn = sessions.create_turn(response.id, content="x" * 1000)
        take_until(watch, lambda update: isinstance(update, TurnUpdate))
        sessions.update_turn(turn.id, status="completed")
        ended = watch.receive(PATIENCE)
        assert (ended.offset, ended.text) == (1000, "")
        known = watching.follower._watched.turns.find(turn.id)
        until(lambda: known.state is None)
        sessions.update_turn(turn.id, input_tokens=3)
        update = watch.receive(PATIENCE)
        assert (update.offset, update.text) == (1000, "")
        assert update.turn.content == "x" * 1000
        # A watch that joins later reads the text that is not kept.
        with watching.response(response.id) as other:
            assert other.receive(PATIENCE).turn.content == "x" * 1000
