"""Streams at bad moments: Ctrl-C anywhere, a file that closes or fails, an end that is unknown."""

import dis
import gc
import itertools
import sys
import threading
import time
from functools import cache
from pathlib import Path

import apsw
import pytest
from kits.locks import lock_held
from kits.waiting import PATIENCE, SOON, until
from stream_kit import flusher_of, rows, stream

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    PoolOptions,
    SessionManager,
    TurnStatus,
)
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    DatabaseMovedError,
    InvalidArgumentError,
    PoolClosedError,
    StorageFullError,
    TurnInterruptedError,
)
from mandrake_sessions.live import text
from mandrake_sessions.live.streaming import lost_turns
from mandrake_sessions.live.streaming.buffers import PendingChunk, TextBuffer, remainders_of
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.records.recovery import interrupt_turns_of
from mandrake_sessions.records.streaming import Chunk
from mandrake_sessions.testing import FaultVFS

LIVE = str(Path(text.__file__).parent)


@cache
def moments(code):
    """Return where the interpreter may run a signal's handler in a function."""
    found, before = set(), ""
    for step in dis.get_instructions(code):
        if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
            found.add(step.offset)
        before = step.opname
    return found


def interrupt_at(number, call):
    """Call something with a Ctrl-C at one of its moments in ``live/``; return whether it came."""
    met = 0

    def at_step(frame, event, _):
        nonlocal met
        if event == "opcode" and frame.f_lasti in moments(frame.f_code):
            met += 1
            if met == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return at_step

    def at_call(frame, _event, _argument):
        if not frame.f_code.co_filename.startswith(LIVE) or frame.f_code.co_name == "__del__":
            return None
        # Before the events are asked for, without which Python 3.13 sends this call none.
        frame.f_trace = at_step
        frame.f_trace_opcodes = True
        return at_step

    before = sys.gettrace()
    # Python 3.12 sends a thread such events only if a frame had asked for them before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(at_call)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def at_every_moment(attempt):
    """Attempt something with a Ctrl-C at each of its moments, one after the other."""
    number = 1
    while attempt(number):
        number += 1
    assert number > 3


@pytest.fixture
def vfs():
    """A file system that can be made to fail."""
    vfs = FaultVFS()
    yield vfs
    vfs.unregister()


def test_an_interrupted_piece_is_in_the_text_or_is_not():
    text = GrowingText("a")
    # What append() may leave behind.
    text._parts[0].append("stray")
    text.append("b")
    assert (text.since(0), text.length) == ("ab", 2)
    text._parts[0].append("whole")
    text._parts[1].append(7)
    text.append("c")
    assert (text.since(0), text.since(6), text.length) == ("abwholec", "ec", 8)


def test_ctrl_c_while_writing_takes_the_piece_or_does_not(sessions, response):
    def attempt(number):
        with stream(sessions, response.id) as writer:
            writer.write("before ")
            came = interrupt_at(number, lambda: writer.write("pïece "))
            writer.write("after")
        assert writer.turn.content in ("before after", "before pïece after")
        return came

    at_every_moment(attempt)


def test_ctrl_c_while_a_tool_is_called_hurts_no_other_call(sessions, response):
    def attempt(number):
        with stream(sessions, response.id) as writer:
            came = interrupt_at(number, lambda: writer.tool_call("one").set_result(1))
            writer.tool_call("two").set_result(2)
        last = writer.turn.tool_calls[-1]
        assert (last.call, last.response, len(writer.turn.tool_calls) <= 2) == ("two", 2, True)
        return came

    at_every_moment(attempt)


@pytest.fixture
def quick_collections():
    """Have the collector look at what the test itself makes only: it is called often."""
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("quick_collections")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ctrl_c_at_the_end_of_a_block_leaves_no_turn_streaming(sessions, response):
    def attempt(number):
        kept = []

        def block():
            with stream(sessions, response.id) as writer:
                kept.append(writer)
                writer.write("text")

        came = interrupt_at(number, block)
        # As when the function that has the block is left: for a Ctrl-C just before the end begins.
        kept.clear()
        gc.collect()
        until(lambda: not flusher_of(sessions).writers)
        statuses = {turn.status for turn in sessions.list_turns(response.id)}
        assert TurnStatus.STREAMING not in statuses
        return came

    at_every_moment(attempt)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ctrl_c_at_the_beginning_leaves_no_turn_streaming(sessions, response):
    def attempt(number):
        kept = []
        came = interrupt_at(number, lambda: kept.append(stream(sessions, response.id)))
        for writer in kept:
            writer.complete()
        until(lambda: not flusher_of(sessions).writers)
        assert not flusher_of(sessions).texts
        statuses = {turn.status for turn in sessions.list_turns(response.id)}
        assert TurnStatus.STREAMING not in statuses
        return came

    at_every_moment(attempt)


def test_an_end_that_was_refused_is_not_the_blocks_end(sessions, response):
    writer = stream(sessions, response.id)
    with pytest.raises(InvalidArgumentError), writer:
        writer.begin_end(TurnStatus.ERROR, 5)
    assert sessions.get_turn(writer.id).status is TurnStatus.ERROR
    other = stream(sessions, response.id)
    with pytest.raises(InvalidArgumentError):
        other.begin_end("streaming")
    assert other.begin_end("completed").result(PATIENCE).status is TurnStatus.COMPLETED


def test_closing_takes_no_longer_than_the_last_flush(path):
    options = DatabaseOptions(flush_interval=1000.0)
    pool = ConnectionPool(PoolOptions(database=options, linger=0, close_timeout=60.0))
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    writer = stream(sessions, response.id)
    writer.write("text")
    since = time.monotonic()
    pool.close()
    assert time.monotonic() - since < SOON
    assert writer.turn.status is TurnStatus.INTERRUPTED


def test_a_turn_that_could_not_be_ended_at_closing_is_ended_at_the_next_opening(path, start_child):
    pool = ConnectionPool(PoolOptions(linger=0, close_timeout=0.5))
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    own = sessions.create_turn(response.id)
    writer = stream(sessions, response.id)
    writer.write("stored")
    writer.flush()
    with lock_held(start_child, path):
        pool.close()
    assert rows(path, "SELECT status FROM turns WHERE id = ?", writer.id) == [("streaming",)]
    with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool) as sessions:
        turn = sessions.get_turn(writer.id)
        assert (turn.status, turn.content) == (TurnStatus.INTERRUPTED, "stored")
        # This one has no writer: its host may go on with it.
        assert sessions.get_turn(own.id).status is TurnStatus.STREAMING
    assert writer.id not in lost_turns.of(lost_turns._by_owner)


def test_turns_of_a_retired_file_are_ended_at_the_next_opening(path, pool):
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    writer = stream(sessions, response.id)
    writer.write("stored")
    writer.flush()
    file_handle(sessions.handle).file.retire("for the test")
    until(lambda: writer.is_finished)
    with pytest.raises(DatabaseMovedError):
        writer.write("more")
    sessions.close()
    with SessionManager(path, pool=pool) as sessions:
        assert sessions.get_turn(writer.id).status is TurnStatus.INTERRUPTED
        assert sessions.recover_interrupted() == []


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (apsw.SQLITE_FULL, StorageFullError),
        (apsw.SQLITE_IOERR_WRITE, CommitOutcomeUnknownError),
    ],
)
def test_a_database_that_cannot_be_recovered_now_can_be_opened(path, pool, vfs, code, error):
    with SessionManager(path, pool=pool) as sessions:
        response = sessions.create_round(sessions.create_session().id, "?").response
        turn = sessions.create_turn(response.id)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE turns SET owner = 'gone'")
    connection.close()
    options = PoolOptions(database=DatabaseOptions(vfs=vfs.name), linger=0)
    with ConnectionPool(options) as failing:
        sessions = SessionManager(path, pool=failing)
        with vfs.failing("wal", "write", code):
            sessions.init()
            assert sessions.get_turn(turn.id).status is TurnStatus.STREAMING
            with pytest.raises(error):
                sessions.recover_interrupted()
        assert [each.id for each in sessions.recover_interrupted()] == [turn.id]
        sessions.close()


def test_an_end_whose_commit_was_unknown_is_known_again_with_its_chunk(
    sessions, response, monkeypatch
):
    flusher = flusher_of(sessions)
    store = flusher._store
    fails = ["before", "after"]

    def unsure(chunks, endings):
        if fails and fails.pop(0) == "before":
            raise CommitOutcomeUnknownError(path=sessions.path)
        outcome = store(chunks, endings)
        if endings and not is_told.is_set():
            is_told.set()
            raise CommitOutcomeUnknownError(path=sessions.path)
        return outcome

    is_told = threading.Event()
    writer = stream(sessions, response.id)
    monkeypatch.setattr(flusher, "_store", unsure)
    writer.write("frozen ")
    with pytest.raises(CommitOutcomeUnknownError):
        writer.flush()
    writer.write("end")
    with pytest.raises(CommitOutcomeUnknownError):
        writer.complete()
    until(lambda: writer.is_finished)
    assert is_told.is_set()
    assert writer.turn.status is TurnStatus.COMPLETED
    assert writer.turn.content == "frozen end"
    assert writer.unstored_text == ""


@pytest.mark.parametrize("status", ["interrupted", "completed"])
def test_a_writer_whose_turn_another_caller_ended_has_all_text_in_the_turn(
    sessions, response, status
):
    writer = sessions.stream_turn(response.id)
    written = []
    with pytest.raises(TurnInterruptedError):
        for number in itertools.count():
            if number == 1_000:
                sessions.update_turn(writer.id, status=status)
            writer.write(f"{number} ")
            written.append(f"{number} ")

    assert writer.unstored_text == ""
    assert writer.turn == sessions.get_turn(writer.id)
    assert writer.turn.content == "".join(written)
    assert writer.turn.status == status


def test_watchers_see_how_a_stream_ended_when_the_pool_closes(path):
    pool = ConnectionPool()
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    writer = sessions.stream_turn(response.id)
    watch = sessions.watch_response(response.id, follow=True)
    writer.write("until the end")
    # As a signal's handler does it.
    pool.refuse_new_work()
    pool.close()

    shown, last = "", None
    with pytest.raises(PoolClosedError):
        for update in watch:
            shown, last = shown[: update.offset] + update.text, update
    assert shown == "until the end"
    assert last is not None
    assert last.status is TurnStatus.INTERRUPTED
    with pytest.raises(TurnInterruptedError):
        writer.write("more")


def test_an_owner_that_was_taken_for_dead_comes_back_and_its_text_is_kept(sessions, response):
    writer = sessions.stream_turn(response.id)
    writer.write("before ")
    writer.flush()
    file = sessions.handle.file
    # As another process does it that has seen no sign of life.
    (ended,) = file.transact(interrupt_turns_of([file.owner]), "recover_interrupted")
    assert ended.content == "before "

    writer.write("and after")
    with pytest.raises(TurnInterruptedError):
        writer.flush()
    assert writer.turn == sessions.get_turn(writer.id)
    assert (writer.turn.status, writer.turn.content) == ("interrupted", "before and after")


def test_a_chunk_that_may_be_stored_is_not_called_unstored_when_it_is():
    content, raw = TextBuffer("text", GrowingText()), TextBuffer("raw text", GrowingText())
    content.text.append("chunk")
    chunk = Chunk("turn", "response", 1, "chunk", "", {}, 0)

    found = remainders_of(content, raw, PendingChunk(chunk, (5, 0), 5, []))

    # Either it is missing whole, or nothing is.
    assert [(each.content_bytes, each.content) for each in found] == [(0, "chunk"), (5, "")]
