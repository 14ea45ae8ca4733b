"""A TurnWriter: any written text is stored, and the turn ends as its block does."""

import asyncio
import concurrent.futures
import gc
import threading
import warnings
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import structlog.testing
from kits.locks import lock_held
from kits.waiting import until
from stream_kit import flusher_of, rows, stream

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    InvalidArgumentError,
    ResponseNotFoundError,
    SessionManager,
    ToolCall,
    TurnAlreadyExistsError,
    TurnFinishedError,
    TurnNotFoundError,
    TurnStatus,
)
from mandrake_sessions.errors import (
    ReentrantScopeError,
    StreamBackpressureError,
    TurnInterruptedError,
)


@pytest.fixture
def hold_lock(start_child):
    """Has another process hold the write lock while a block runs."""
    return partial(lock_held, start_child)


def test_a_block_completes_its_turn(sessions, response):
    with stream(sessions, response.id, model="any", index=3) as writer:
        assert writer.turn.status is TurnStatus.STREAMING
        assert sessions.get_turn(writer.id) == writer.turn
        writer.write("Hello ")
        writer.write_raw("<raw>")
        writer.write("wörld")
        assert not writer.is_finished
    turn = sessions.get_turn(writer.id)
    assert turn == writer.turn
    assert (turn.content, turn.raw_response) == ("Hello wörld", "<raw>")
    assert (turn.status, turn.index, turn.model) == (TurnStatus.COMPLETED, 3, "any")
    assert turn.stream_ended_at >= turn.stream_started_at
    assert writer.is_finished
    assert writer.unstored_text == ""


def test_text_is_stored_without_another_token(sessions, response, path):
    with stream(sessions, response.id) as writer:
        writer.write("all there is")
        until(lambda: sessions.get_turn(writer.id).content == "all there is")
        assert sessions.get_turn(writer.id).revision == 0
        assert rows(path, "SELECT count(*) FROM turn_chunks") == [(2,)]
        until(lambda: writer.unstored_text == "")
    assert rows(path, "SELECT count(*) FROM turn_chunks") == [(0,)]
    assert rows(path, "SELECT owner FROM turns") == [(None,)]


def test_flush_returns_when_everything_is_stored(sessions, response):
    with stream(sessions, response.id) as writer:
        for number in range(100):
            writer.write(f"{number} ")
            if number % 10 == 0:
                writer.flush()
                content = "".join(f"{each} " for each in range(number + 1))
                assert sessions.get_turn(writer.id).content == content
        writer.write("")
        writer.flush()
        writer.flush()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\ud83d", "\ude00b"], "a😀b"),
        (["a\ud83d\ude00b"], "a😀b"),
        (["\ud83d", "", "\ude00"], "😀"),
        (["\ud83d", "x"], "\ufffdx"),
        (["\ud83d", "\ud83d", "\ude00"], "\ufffd😀"),
        (["\ude00", "y"], "\ufffdy"),
        (["x", "\ud83d"], "x\ufffd"),
        (["\0", "a\0"], "\0a\0"),
        (["é" * 30_000, "\U0010ffff"], "é" * 30_000 + "\U0010ffff"),
    ],
)
def test_any_text_is_stored(sessions, response, pieces, expected):
    with stream(sessions, response.id) as writer:
        for piece in pieces:
            writer.write(piece)
            writer.write_raw(piece)
    turn = sessions.get_turn(writer.id)
    assert (turn.content, turn.raw_response) == (expected, expected)


def test_half_a_pair_waits_for_the_other_half_across_a_flush(sessions, response):
    with stream(sessions, response.id) as writer:
        writer.write("a\ud83d")
        writer.flush()
        assert sessions.get_turn(writer.id).content == "a"
        writer.write("\ude00")
    assert sessions.get_turn(writer.id).content == "a😀"


@pytest.mark.parametrize("piece", [None, b"bytes", 1, ["a"]])
def test_a_value_that_is_no_text_is_refused_and_nothing_else_is_lost(sessions, response, piece):
    with stream(sessions, response.id) as writer:
        writer.write("kept\ud83d")
        with pytest.raises(InvalidArgumentError):
            writer.write(piece)
        writer.write("\ude00")
    assert sessions.get_turn(writer.id).content == "kept😀"


def test_memory_is_capped_and_accepted_text_stays(path, pool, hold_lock):
    options = DatabaseOptions(max_buffered_bytes=1_000, flush_bytes=100)
    with SessionManager(path, pool=pool, options=options) as sessions:
        response = sessions.create_round(sessions.create_session().id, "?").response
        with stream(sessions, response.id) as writer:
            with hold_lock(path):
                for _ in range(100):
                    writer.write("0123456789")
                with pytest.raises(StreamBackpressureError):
                    writer.write("x")
                with pytest.raises(StreamBackpressureError):
                    writer.write_raw("x")
                assert len(writer.unstored_text) == 1_000
            writer.flush()
            # By itself it is more than the limit: there is no other moment to take it.
            writer.write("y" * 2_000)
        assert sessions.get_turn(writer.id).content == "0123456789" * 100 + "y" * 2_000


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("it broke"), TurnStatus.ERROR, "ValueError: it broke"),
        (ValueError("half \ud83d"), TurnStatus.ERROR, "ValueError: half \ufffd"),
        (KeyError(), TurnStatus.ERROR, "KeyError"),
        (KeyboardInterrupt(), TurnStatus.INTERRUPTED, None),
        (SystemExit(1), TurnStatus.INTERRUPTED, None),
        (GeneratorExit(), TurnStatus.INTERRUPTED, None),
        (asyncio.CancelledError(), TurnStatus.INTERRUPTED, None),
        (concurrent.futures.CancelledError(), TurnStatus.INTERRUPTED, None),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), TurnStatus.INTERRUPTED, None),
    ],
)
def test_a_block_left_by_an_exception_ends_its_turn(sessions, response, error, status, message):
    with pytest.raises(BaseException) as raised, stream(sessions, response.id) as writer:  # noqa: PT011
        writer.write("so far")
        raise error
    assert raised.value is error
    turn = sessions.get_turn(writer.id)
    assert (turn.status, turn.error_message, turn.content) == (status, message, "so far")


def test_an_exception_that_has_no_readable_message_is_stored_by_its_type(sessions, response):
    class SilentError(Exception):
        def __str__(self):
            raise RuntimeError("no message")

    with pytest.raises(SilentError), stream(sessions, response.id) as writer:
        raise SilentError
    assert sessions.get_turn(writer.id).error_message == "SilentError"


def test_a_long_message_is_cut(sessions, response):
    writer = stream(sessions, response.id)
    turn = writer.fail("x" * 50_000)
    assert len(turn.error_message) == 10_000
    assert turn.status is TurnStatus.ERROR


@pytest.mark.parametrize("end", ["complete", "interrupt", "fail"])
def test_a_turn_that_was_ended_accepts_nothing_more(sessions, response, end):
    with stream(sessions, response.id) as writer:
        call = writer.tool_call({"name": "ls"})
        turn = writer.fail("so") if end == "fail" else getattr(writer, end)()
        attempts = [
            lambda: writer.write("x"),
            lambda: writer.write(""),
            lambda: writer.write_raw("x"),
            lambda: writer.tool_call({}),
            lambda: call.set_result(1),
            lambda: writer.set_usage(output_tokens=1),
            writer.flush,
            lambda: writer.fail("again"),
            *(getattr(writer, other) for other in {"complete", "interrupt"} - {end}),
        ]
        for attempt in attempts:
            with pytest.raises(TurnFinishedError):
                attempt()
        # A caller asks for the same end again after a timeout.
        assert (writer.fail("so") if end == "fail" else getattr(writer, end)()) == turn
    assert sessions.get_turn(writer.id) == turn == writer.turn


def test_a_block_that_has_ended_its_turn_is_left_alone(sessions, response):
    with pytest.raises(ZeroDivisionError), stream(sessions, response.id) as writer:
        writer.complete()
        raise ZeroDivisionError
    assert sessions.get_turn(writer.id).status is TurnStatus.COMPLETED


def test_tool_calls_are_paired_with_their_results(sessions, response):
    with stream(sessions, response.id) as writer:
        first = writer.tool_call({"name": "first"})
        second = writer.tool_call({"name": "second"})
        third = writer.tool_call({"name": "third"})
        revision = sessions.get_turn(writer.id).revision
        worker = threading.Thread(target=second.set_result, args=({"found": [1]},))
        worker.start()
        worker.join()
        writer.flush()
        turn = sessions.get_turn(writer.id)
        assert [call.response for call in turn.tool_calls] == [None, {"found": [1]}, None]
        assert not any(call.is_interrupted for call in turn.tool_calls)
        assert turn.revision > revision
        third.set_result(None)
        with pytest.raises(InvalidArgumentError):
            third.set_result(2)
        with pytest.raises(InvalidArgumentError):
            first.set_result(object(), strict=True)
    calls = sessions.get_turn(writer.id).tool_calls
    assert [call.call["name"] for call in calls] == ["first", "second", "third"]
    # None is a result too; what never came is marked.
    assert [call.is_interrupted for call in calls] == [True, False, False]


def test_a_tool_call_is_what_it_was_when_it_was_made(sessions, response):
    call: dict[str, Any] = {"name": "ls", "arguments": ["a"]}
    with stream(sessions, response.id) as writer:
        pending = writer.tool_call(call)
        call["arguments"].append("b")
        result = [1]
        pending.set_result(result)
        result.append(2)
        with pytest.raises(InvalidArgumentError):
            writer.tool_call({1: 2}, strict=True)
    (stored,) = sessions.get_turn(writer.id).tool_calls
    assert (stored.call["arguments"], stored.response) == (["a"], [1])


def test_usage_is_stored_with_the_next_flush_and_with_the_end(sessions, response, path):
    with stream(sessions, response.id, expected_tokens=9) as writer:
        writer.set_usage(output_tokens=1)
        writer.set_usage(output_tokens=2, input_cost=0.5, expected_tokens=None)
        writer.flush()
        turn = sessions.get_turn(writer.id)
        assert (turn.output_tokens, turn.input_cost, turn.expected_tokens) == (2, 0.5, None)
        assert turn.revision == 1
        assert rows(path, "SELECT count(*) FROM changes WHERE id = ?", writer.id) == [(2,)]
        with pytest.raises(InvalidArgumentError):
            writer.set_usage(output_tokens=-1)
        writer.set_usage()
        writer.set_usage(input_tokens=7)
    turn = sessions.get_turn(writer.id)
    assert (turn.output_tokens, turn.input_tokens) == (2, 7)


def test_one_flush_stores_the_text_of_all_writers(sessions, response, path, hold_lock):
    writers = [stream(sessions, response.id) for _ in range(40)]
    commits = sessions.stats().commits
    # The first flush may be waiting with a part of it already, the second takes the rest.
    with hold_lock(path):
        for number, writer in enumerate(writers):
            writer.write(f"text {number}")
        flushes = [writer.begin_flush() for writer in writers]
    for future in flushes:
        future.result()
    assert sessions.stats().commits - commits <= 2
    for number, writer in enumerate(writers):
        assert sessions.get_turn(writer.id).content == f"text {number}"
    commits = sessions.stats().commits
    with hold_lock(path):
        ends = [writer.begin_end(TurnStatus.COMPLETED) for writer in writers]
    for future in ends:
        assert future.result().status is TurnStatus.COMPLETED
    assert sessions.stats().commits - commits <= 2


def test_many_threads_write_one_turn(sessions, response, in_threads):
    with stream(sessions, response.id) as writer:

        def write(number):
            for each in range(2_000):
                writer.write(f"<{number}:{each}>")

        in_threads(6, write)
    content = sessions.get_turn(writer.id).content
    for number in range(6):
        places = [content.index(f"<{number}:{each}>") for each in range(2_000)]
        assert all(before < after for before, after in pairwise(places))


def test_ids_and_indexes_are_assigned_once(sessions, response):
    with stream(sessions, response.id, id="mine") as writer:
        text = flusher_of(sessions).texts["mine"]
        for id in ("mine", sessions.create_turn(response.id).id):
            with pytest.raises(TurnAlreadyExistsError):
                stream(sessions, response.id, id=id)
        assert flusher_of(sessions).texts == {"mine": text}
        with pytest.raises(TurnAlreadyExistsError):
            stream(sessions, response.id, index=0)
        with pytest.raises(ResponseNotFoundError):
            stream(sessions, "nothing")
        with pytest.raises(InvalidArgumentError):
            stream(sessions, response.id, id="")
        assert flusher_of(sessions).texts == {"mine": text}
        writer.write("still ours")
    assert sessions.get_turn("mine").content == "still ours"
    assert flusher_of(sessions).texts == {}
    assert flusher_of(sessions).writers == 0


def test_a_turn_that_another_caller_ends_keeps_its_text(sessions, response):
    with pytest.raises(TurnInterruptedError), stream(sessions, response.id) as writer:
        writer.write("stored, ")
        writer.flush()
        sessions.update_turn(writer.id, status="interrupted")
        writer.write("and not stored")
        with pytest.raises(TurnInterruptedError):
            writer.flush()
        assert writer.is_finished
        assert writer.unstored_text == ""
        writer.write("too late")
    turn = sessions.get_turn(writer.id)
    assert turn.content == "stored, and not stored"
    assert turn.status is TurnStatus.INTERRUPTED
    assert flusher_of(sessions).texts == {}


@pytest.mark.parametrize("ends_itself", [False, True])
def test_all_accepted_text_is_in_a_turn_that_another_caller_ends(path, ends_itself):
    options = DatabaseOptions(flush_interval=30.0)
    with ConnectionPool() as pool, SessionManager(path, pool=pool, options=options) as sessions:
        session = sessions.create_session()
        writer = stream(sessions, sessions.create_round(session.id, "asked").response.id)
        writer.write("text")
        answered = writer.tool_call("answered")
        writer.tool_call("pending")
        writer.set_usage(output_tokens=99, output_cost=1.5)
        sessions.update_turn(writer.id, status="interrupted", input_tokens=7)
        # The writer has not noticed yet.
        answered.set_result("paid for")
        with pytest.raises(TurnInterruptedError):
            writer.complete() if ends_itself else writer.flush()
        turn = sessions.get_turn(writer.id)
        assert turn == writer.turn
        assert (turn.status, turn.content) == (TurnStatus.INTERRUPTED, "text")
        assert (turn.input_tokens, turn.output_tokens, turn.output_cost) == (7, 99, 1.5)
        assert turn.tool_calls == (
            ToolCall("answered", "paid for"),
            ToolCall("pending", is_interrupted=True),
        )


def test_unstored_text_is_in_a_turn_that_another_process_ends(
    sessions, response, path, start_child
):
    writer = stream(sessions, response.id)
    child = start_child(
        "import apsw\n"
        "connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READWRITE)\n"
        "connection.set_busy_timeout(20000)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "send('held')\nreceive()\n"
        "connection.execute(\"UPDATE turns SET status='interrupted', owner=NULL,\"\n"
        "    \" stream_ended_at=stream_started_at WHERE status = 'streaming'\")\n"
        "connection.execute('COMMIT')\n"
        "connection.close()",
        path,
    )
    assert child.receive() == "held"
    writer.write("text")
    writer.set_usage(output_tokens=99)
    writer.tool_call("answered").set_result(None)
    flushed = writer.begin_flush()
    # It is in a chunk by now, which waits for the lock.
    until(lambda: writer._stream._pending is not None)
    child.send()
    with pytest.raises(TurnInterruptedError):
        flushed.result()
    turn = sessions.get_turn(writer.id)
    assert (turn.content, turn.output_tokens) == ("text", 99)
    assert turn.tool_calls == (ToolCall("answered"),)


def test_text_that_another_caller_changed_is_left_alone(sessions, response):
    writer = stream(sessions, response.id)
    writer.write("stored")
    writer.flush()
    sessions.update_turn(writer.id, status="completed")
    sessions.update_turn(writer.id, content="summary")
    writer.write(" and lost")
    with pytest.raises(TurnInterruptedError):
        writer.complete()
    assert writer.unstored_text == " and lost"
    assert sessions.get_turn(writer.id).content == "summary"


def test_a_thread_that_sees_a_finished_writer_finds_how_its_turn_ended(sessions, response):
    for _ in range(20):
        writer = stream(sessions, response.id)
        writer.write("text")
        sessions.update_turn(writer.id, status="interrupted")
        writer.begin_flush()
        # Again and again, to meet the moment in between.
        while not writer.is_finished:
            pass
        assert (writer.turn.status, writer.turn.content) == (TurnStatus.INTERRUPTED, "text")


def test_figures_are_stored_also_where_another_caller_changed_the_text(sessions, response):
    writer = stream(sessions, response.id)
    sessions.update_turn(writer.id, status="completed")
    sessions.update_turn(writer.id, content="summary")
    writer.write("lost")
    writer.set_usage(output_tokens=99)
    with pytest.raises(TurnInterruptedError):
        writer.complete()
    turn = sessions.get_turn(writer.id)
    assert (turn.content, turn.output_tokens) == ("summary", 99)


def test_writing_to_a_deleted_turn_raises(sessions, response):
    writer = stream(sessions, response.id)
    other = stream(sessions, response.id)
    sessions.delete_turn(writer.id)
    writer.write("for the deleted turn")
    other.write("for the other turn")
    with pytest.raises(TurnNotFoundError):
        writer.flush()
    with pytest.raises(TurnNotFoundError):
        writer.write("x")
    assert writer.unstored_text == "for the deleted turn"
    assert other.complete().content == "for the other turn"


def test_two_ends_at_once_do_not_hurt_each_other(sessions, response, path, hold_lock):
    gone, good = stream(sessions, response.id), stream(sessions, response.id)
    good.write("good")
    sessions.delete_turn(gone.id)
    with hold_lock(path):
        ends = [each.begin_end(TurnStatus.COMPLETED) for each in (gone, good)]
    with pytest.raises(TurnNotFoundError):
        ends[0].result()
    assert ends[1].result().content == "good"


def test_inside_an_own_transaction_waiting_is_refused_at_once(sessions, response):
    writer = stream(sessions, response.id)
    with sessions.transaction():
        writer.write("taken")
        with pytest.raises(ReentrantScopeError):
            writer.flush()
        with pytest.raises(ReentrantScopeError):
            stream(sessions, response.id)
        with pytest.raises(ReentrantScopeError):
            writer.complete()
    # It was asked for, and is done when the lease is free.
    until(lambda: writer.is_finished)
    assert sessions.get_turn(writer.id).content == "taken"


def test_a_forgotten_writer_has_its_turn_interrupted(sessions, response):
    writer = sessions.stream_turn(response.id)
    writer.write("left behind")
    id = writer.id
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del writer
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]
    assert "test_writer.py" in str(caught[0].message)
    until(lambda: sessions.get_turn(id).status is TurnStatus.INTERRUPTED)
    assert sessions.get_turn(id).content == "left behind"
    until(lambda: flusher_of(sessions).writers == 0)


def test_no_text_is_logged(sessions, response):
    secret = "a secret"
    with structlog.testing.capture_logs() as logs:
        writer = stream(sessions, response.id)
        writer.write(secret)
        sessions.update_turn(writer.id, status="error")
        sessions.update_turn(writer.id, content=secret)
        with pytest.raises(TurnInterruptedError):
            writer.complete()
    assert secret not in repr(logs)
    assert secret not in repr(writer)
