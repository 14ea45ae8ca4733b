"""The thread that stores streams: locks of others, failures, a full disk, the file's end."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import apsw
import pytest
import structlog.testing
from kits.locks import lock_held
from kits.waiting import PATIENCE, SOON, until
from stream_kit import flusher_of, rows, stream

from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    PoolOptions,
    SessionManager,
    TurnFinishedError,
    TurnInterruptedError,
    TurnNotFoundError,
    TurnStatus,
)
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseMovedError,
    PoolClosedError,
    StorageFullError,
)
from mandrake_sessions.models import ChangeOp
from mandrake_sessions.records.streaming import (
    Chunk,
    Ending,
    Remainder,
    append_remainder,
    start_stream,
    store_streams,
)
from mandrake_sessions.testing import FaultVFS


@pytest.fixture
def hold_lock(start_child):
    """Has another process hold the write lock while a block runs."""
    return partial(lock_held, start_child)


@pytest.fixture
def make_pool():
    """Makes pools with other options; they are closed in the end."""
    pools = []

    def make(**options):
        pools.append(ConnectionPool(PoolOptions(database=DatabaseOptions(**options), linger=0)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def flusher_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "mandrake-flusher"]


def limit_pages(sessions: SessionManager, more: int | None) -> None:
    """Let the database grow by so many pages and no more, as a full disk would."""
    with file_handle(sessions.handle).file.exclusive("test", Budget(10)) as connection:
        pages = connection.value("PRAGMA page_count")
        most = 1_000_000 if more is None else pages + more
        connection.value(f"PRAGMA max_page_count={most}")


def test_the_thread_lives_as_long_as_there_are_writers(sessions, response):
    assert not flusher_threads()
    with stream(sessions, response.id):
        (thread,) = flusher_threads()
        with stream(sessions, response.id):
            assert flusher_threads() == [thread]
    thread.join(60)
    assert not flusher_threads()
    with stream(sessions, response.id) as writer:
        writer.write("once more")
    assert writer.turn.content == "once more"


def test_writing_never_waits_for_a_lock_of_another_process(sessions, response, path, hold_lock):
    with stream(sessions, response.id) as writer:
        with hold_lock(path):
            writer.write("first ")
            # The flusher waits for the lock now.
            until(lambda: sessions.handle.file.writer.queue.holder)
            longest = 0.0
            for number in range(2_000):
                since = time.perf_counter()
                writer.write(f"{number} ")
                longest = max(longest, time.perf_counter() - since)
            # The lock is held meanwhile.
            assert longest < SOON
            with pytest.raises(DatabaseBusyError):
                writer.flush(timeout=0.05)
            assert rows(path, "SELECT sum(length(content)) FROM turn_chunks") == [(0,)]
        writer.flush()
        expected = "first " + "".join(f"{number} " for number in range(2_000))
        assert sessions.get_turn(writer.id).content == expected


def test_an_end_that_takes_too_long_is_done_in_the_background(sessions, response, path, hold_lock):
    writer = stream(sessions, response.id)
    with hold_lock(path):
        writer.write("text")
        with pytest.raises(DatabaseBusyError):
            writer.complete(timeout=0.05)
        assert not writer.is_finished
        with pytest.raises(TurnFinishedError):
            writer.write("more")
        with pytest.raises(TurnFinishedError):
            writer.interrupt()
        with pytest.raises(DatabaseBusyError):
            writer.complete(timeout=0.05)
        # Waiting once more for the same end is allowed.
        again = writer.begin_end(TurnStatus.COMPLETED)

    def is_ended() -> bool:
        # An attempt of the flusher that began under the lock may still fail.
        with contextlib.suppress(DatabaseBusyError):
            return writer.complete(timeout=PATIENCE) == writer.turn
        return False

    until(is_ended)
    assert again.exception(PATIENCE) is None or isinstance(again.exception(), DatabaseBusyError)
    assert writer.is_finished
    assert sessions.get_turn(writer.id).status is TurnStatus.COMPLETED
    assert sessions.get_turn(writer.id).content == "text"


def test_a_block_whose_end_cannot_be_stored_raises_its_own_exception(path, pool, hold_lock):
    options = DatabaseOptions(busy_timeout=0.5)
    with SessionManager(path, pool=pool, options=options) as sessions:
        response = sessions.create_round(sessions.create_session().id, "?").response
        error = ValueError("the host's")
        writer, other = stream(sessions, response.id), stream(sessions, response.id)
        with hold_lock(path), structlog.testing.capture_logs() as logs:
            with pytest.raises(ValueError, match="the host's"), writer:
                writer.write("text")
                raise error
            (note,) = error.__notes__
            assert writer.id in note
            # A block that is left normally has no other exception to raise.
            with pytest.raises(DatabaseBusyError), other:
                other.write("other")
        events = [each["event"] for each in logs]
        assert events.count("stream_flush_failed") == 1
        assert events.count("stream_end_failed") == 1
        until(lambda: writer.is_finished and other.is_finished)
        assert sessions.get_turn(other.id).content == "other"
        turn = sessions.get_turn(writer.id)
        assert (turn.status, turn.content) == (TurnStatus.ERROR, "text")
        assert turn.error_message == "ValueError: the host's"


def test_a_full_disk_loses_no_text(path, pool):
    with SessionManager(path, pool=pool) as sessions:
        response = sessions.create_round(sessions.create_session().id, "?").response
        writer = stream(sessions, response.id)
        writer.write("before, ")
        writer.flush()
        limit_pages(sessions, 5)
        with structlog.testing.capture_logs() as logs:
            writer.write("x" * 100_000)
            with pytest.raises(StorageFullError):
                writer.flush()
            writer.write(" more")
            with pytest.raises(StorageFullError):
                writer.complete()
        failed = [each for each in logs if each["event"] == "stream_flush_failed"]
        assert len(failed) == 1
        assert sessions.get_turn(writer.id).content == "before, "
        assert len(writer.unstored_text) == 100_005
        limit_pages(sessions, None)
        # No caller asks again: the turn of a living process does not stay streaming.
        until(lambda: writer.is_finished)
        turn = sessions.get_turn(writer.id)
        assert turn.status is TurnStatus.COMPLETED
        assert turn.content == "before, " + "x" * 100_000 + " more"


@pytest.fixture
def vfs():
    """A file system that can be made to fail."""
    vfs = FaultVFS()
    yield vfs
    vfs.unregister()


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("sync", apsw.SQLITE_IOERR_FSYNC),
        ("write", apsw.SQLITE_IOERR_WRITE),
        ("write", apsw.SQLITE_FULL),
    ],
)
def test_a_failing_disk_neither_loses_nor_doubles_text(path, make_pool, vfs, operation, code):
    pool = make_pool(vfs=vfs.name, durability=Durability.DURABLE)
    with SessionManager(path, pool=pool) as sessions:
        response = sessions.create_round(sessions.create_session().id, "?").response
        one, two = stream(sessions, response.id), stream(sessions, response.id)
        one.write("before ")
        one.flush()
        with vfs.failing("wal", operation, code):
            one.write("frozen ")
            two.write("other")
            one.set_usage(output_tokens=4)
            for writer in (one, two):
                with pytest.raises(DatabaseError):
                    writer.flush()
            one.write("fresh")
            with pytest.raises(DatabaseError):
                one.complete()
        until(lambda: one.is_finished)
        assert one.turn.content == "before frozen fresh"
        assert one.turn.output_tokens == 4
        assert sessions.get_turn(one.id) == one.turn
        assert two.complete().content == "other"


def test_storing_a_chunk_again_changes_nothing(sessions, response, path):
    file = sessions.handle.file
    owner = file.claim()
    turn = file.transact(start_stream(response.id, id="mine"), "test")
    chunks = [Chunk("mine", response.id, 1, "text", "raw", {"output_tokens": 3}, 1)]
    for _ in range(2):
        outcome = file.transact(store_streams(owner, chunks, []), "test")
        assert not outcome.failed
        assert sessions.get_turn("mine").content == "text"
    more = Chunk("mine", response.id, 2, " more", "", {}, 1)
    ending = Ending("mine", response.id, TurnStatus.ERROR, " end", "", {"error_message": "so"}, 5)
    ended = []
    for _ in range(2):
        # The second time the chunk finds an ended turn: by this very end, so it is stored too.
        outcome = file.transact(store_streams(owner, [more], [ending]), "test")
        assert not outcome.failed
        ended.append(outcome.ended["mine"])
    assert ended[0] == ended[1] == sessions.get_turn("mine")
    assert ended[0].content == "text more end"
    # A clock that went back does not let it end before it began.
    assert ended[0].stream_ended_us == turn.stream_started_us
    changes = rows(path, "SELECT op FROM changes WHERE id = 'mine'")
    assert changes.count((ChangeOp.CREATE,)) == 1


def test_remaining_text_is_appended_exactly_to_the_text_before_it(sessions, response):
    turn = sessions.create_turn(response.id, content="stored", status="interrupted")
    fits, does_not = Remainder(6, 0, " rest", ""), Remainder(11, 0, "t", "")
    append = partial(sessions.handle.file.transact, operation="test")
    assert append(append_remainder(turn.id, [does_not, fits], {}, 1))
    assert sessions.get_turn(turn.id).content == "stored rest"
    assert sessions.get_turn(turn.id).revision == turn.revision + 1
    # What an attempt of unknown outcome has stored is not added once more.
    assert not append(append_remainder(turn.id, [fits], {}, 1))
    assert append(append_remainder(turn.id, [fits, does_not], {}, 1))
    assert sessions.get_turn(turn.id).content == "stored restt"
    with pytest.raises(TurnNotFoundError):
        append(append_remainder("nothing", [fits], {}, 1))
    # Other columns are stored whether or not a text fits.
    assert not append(append_remainder(turn.id, [fits], {"output_tokens": 7}, 1))
    assert append(append_remainder(turn.id, [], {"input_tokens": 5}, 1))
    with pytest.raises(TurnNotFoundError):
        append(append_remainder("nothing", [], {"input_tokens": 5}, 1))
    found = sessions.get_turn(turn.id)
    assert (found.content, found.output_tokens, found.input_tokens) == ("stored restt", 7, 5)
    streaming = sessions.create_turn(response.id, content="stored")
    assert not append(append_remainder(streaming.id, [fits], {}, 1))


def test_long_turns_that_end_at_once_end_one_after_the_other(sessions, response):
    writers = [stream(sessions, response.id) for _ in range(4)]
    short = stream(sessions, response.id)
    for number, writer in enumerate(writers):
        for _ in range(20):
            writer.write(f"{number}" * 100_000)
    short.write("short")
    ends = [each.begin_end(TurnStatus.COMPLETED) for each in (*writers, short)]
    contents = [end.result().content for end in ends]
    assert contents == [f"{number}" * 2_000_000 for number in range(4)] + ["short"]


def test_the_log_stays_small(path, pool):
    options = DatabaseOptions(checkpoint_frames=10**6, wal_limit_bytes=10**10)
    with SessionManager(path, pool=pool, options=options) as sessions:
        response = sessions.create_round(sessions.create_session().id, "?").response
        writer = stream(sessions, response.id)
        log = path.with_name(f"{path.name}-wal")
        size, commits = log.stat().st_size, sessions.stats().commits
        for number in range(50_000):
            writer.write("20 characters, ascii")
            if number % 1_000 == 0:
                writer.flush()
        writer.complete()
        flushes = sessions.stats().commits - commits
        assert log.stat().st_size - size <= 3 * 1_000_000 + flushes * 16 * 1024


def test_an_interrupted_beginning_leaves_nothing_behind(sessions, response, path, hold_lock):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hold_lock(path):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                stream(sessions, response.id)
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: flusher_of(sessions).writers == 0)
    assert flusher_of(sessions).texts == {}
    assert sessions.list_turns(response.id) == []


def test_closing_a_manager_interrupts_its_own_turns_only(path, pool):
    with SessionManager(path, pool=pool) as one, SessionManager(path, pool=pool) as two:
        response = one.create_round(one.create_session().id, "?").response
        first, second = stream(one, response.id), stream(two, response.id)
        first.write("first")
        second.write("second")
        flusher_of(one).close_holder(one)
        assert first.turn.status is TurnStatus.INTERRUPTED
        assert first.turn.content == "first"
        with pytest.raises(TurnInterruptedError):
            first.write("more")
        second.write(" goes on")
        assert second.complete().content == "second goes on"


def test_closing_the_file_stores_all_text_and_interrupts_its_turns(path):
    pool = ConnectionPool(PoolOptions(linger=0))
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    writers = [stream(sessions, response.id) for _ in range(3)]
    calls = [writer.tool_call({"name": "ls"}) for writer in writers]
    for writer in writers:
        writer.write("until the end")
    pool.close()
    assert not flusher_threads()
    for writer, call in zip(writers, calls, strict=True):
        assert writer.turn.status is TurnStatus.INTERRUPTED
        assert writer.turn.content == "until the end"
        assert writer.turn.tool_calls[0].is_interrupted
        with pytest.raises(TurnInterruptedError):
            writer.write("more")
        with pytest.raises(TurnInterruptedError):
            call.set_result(1)
    assert rows(path, "SELECT count(*) FROM turns WHERE status = 'interrupted'") == [(3,)]
    assert not list(path.parent.glob("*-owner-*"))


def test_closing_is_bounded_while_another_process_holds_the_lock(path, hold_lock):
    options = DatabaseOptions(busy_timeout=600.0)
    pool = ConnectionPool(PoolOptions(database=options, linger=0, close_timeout=1.0))
    sessions = SessionManager(path, pool=pool).init()
    response = sessions.create_round(sessions.create_session().id, "?").response
    writer = stream(sessions, response.id)
    writer.write("stored ")
    writer.flush()
    with hold_lock(path):
        writer.write("lost")
        since = time.monotonic()
        pool.close()
        assert time.monotonic() - since < SOON
    until(lambda: not flusher_threads())
    with pytest.raises(PoolClosedError):
        writer.write("more")
    with pytest.raises(PoolClosedError):
        writer.complete()
    assert writer.unstored_text == "lost"


def test_a_file_that_was_moved_fails_its_writers(sessions, response, path):
    writer = stream(sessions, response.id)
    for each in path.parent.glob("db.sqlite*"):
        each.rename(each.with_name(f"moved-{each.name}"))
    writer.write("where to?")
    with pytest.raises(DatabaseMovedError):
        writer.flush()
    with pytest.raises(DatabaseMovedError):
        writer.write("x")
    assert writer.unstored_text == "where to?"


def test_a_forked_child_has_no_writers(ready_path):
    script = """
import os, sys, warnings
sys.path.insert(0, sys.argv[2])
warnings.simplefilter("ignore", DeprecationWarning)
from stream_kit import stream
from mandrake_sessions import SessionManager
from mandrake_sessions.errors import ForkedPoolError
with SessionManager(sys.argv[1]) as sessions:
    response = sessions.create_round(sessions.create_session().id, "?").response
    writer = stream(sessions, response.id)
    writer.write("parent ")
    child = os.fork()
    if not child:
        try:
            writer.write("child")
        except ForkedPoolError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    writer.write("goes on")
    assert writer.complete().content == "parent goes on"
"""
    command = [sys.executable, "-c", script, str(ready_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=120)


def test_another_process_finds_text_that_is_not_old(sessions, response, path, start_child):
    child = start_child(
        """
import apsw
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY)
connection.set_busy_timeout(20000)
send("ready")
expected = receive()
while True:
    texts = connection.execute("SELECT content FROM turn_chunks ORDER BY seq").fetchall()
    if "".join(text for text, in texts) == expected:
        break
send("seen")
""",
        path,
    )
    assert child.receive() == "ready"
    with stream(sessions, response.id) as writer:
        for _ in range(10):
            writer.write("token ")
        child.send("token " * 10)
        assert child.receive() == "seen"


def test_a_clock_that_jumps_stops_nothing(sessions, response, monkeypatch):
    writer = stream(sessions, response.id)
    present = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: present - 10**15)
    writer.write("back")
    until(lambda: writer.unstored_text == "")
    monkeypatch.setattr(time, "time_ns", lambda: present + 10**15)
    writer.write(" and ahead")
    until(lambda: writer.unstored_text == "")
    monkeypatch.setattr(time, "time_ns", lambda: present - 10**15)
    turn = writer.complete()
    assert turn.content == "back and ahead"
    assert turn.stream_ended_at == turn.stream_started_at
