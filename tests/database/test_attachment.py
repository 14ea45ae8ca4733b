"""An attachment of an open file hears of each COMMIT, writes last, and ends with the file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_kit import Held, Task, queue_of, queued
from kits.entries import ADD, adding, keys
from kits.waiting import until_set
from sqlalchemy import text
from structlog.testing import capture_logs

from mandrake_sessions import ConnectionPool, DatabaseMovedError, PoolClosedError
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.errors import ReentrantScopeError


class Attachment:
    """Notes each call that it gets.

    Attributes:
        at_close: what it does when the file closes.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self.file = file
        self.calls: list[str] = []
        self.at_close: Callable[[], Any] = lambda: None
        self.deadline = 0.0
        self.held_lease: list[bool] = []
        self.error: Exception | None = None

    def committed(self) -> None:
        self.calls.append("committed")
        self.held_lease.append(self.file.writer.queue.holder == threading.get_ident())
        self._fail()

    is_quiet = False

    def can_rest(self) -> bool:
        return False

    def retired(self) -> None:
        self.calls.append("retired")
        self._fail()

    def close(self, deadline: float) -> None:
        self.calls.append("close")
        self.deadline = deadline
        self.at_close()
        self._fail()

    def forget_after_fork(self) -> None:
        self.calls.append("fork")

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


def attach(handle: FileHandle) -> Attachment:
    return handle.file.attach(Attachment)


def last_write(file: DatabaseFile, key: str, timeout: float | None = None) -> str:
    """Write as an attachment does that closes."""
    return file.transact(adding(key), "close", timeout, even_refused=True)


def test_a_file_has_one_attachment_however_many_ask(
    handle: FileHandle, in_threads: Callable[..., list[Attachment]]
) -> None:
    assert handle.file.attachment is None
    found = in_threads(8, lambda _number: attach(handle))
    assert set(found) == {handle.file.attachment}


def test_an_attachment_lives_as_long_as_its_file(pool: ConnectionPool, path: Path) -> None:
    with file_handle(pool.acquire(path)) as handle:
        first = attach(handle)
        with file_handle(pool.acquire(path)) as another:
            assert attach(another) is first
    assert first.calls == ["close"]
    with file_handle(pool.acquire(path)) as handle:
        assert attach(handle) is not first
    with pytest.raises(PoolClosedError):
        first.file.attach(Attachment)


def test_an_attachment_hears_of_each_commit_while_the_lease_is_held(handle: FileHandle) -> None:
    attachment = attach(handle)
    handle.transact(adding("unit"), delegable=True)
    with handle.write() as tx:
        tx.run(ADD, {"key": "block", "value": ""})
    with handle.sqlalchemy() as connection:
        connection.execute(text("UPDATE meta SET value = 'lent' WHERE key = 'block'"))
    assert attachment.calls == ["committed"] * 3
    assert attachment.held_lease == [True] * 3


def test_an_attachment_hears_nothing_of_reads_and_rollbacks(handle: FileHandle) -> None:
    attachment = attach(handle)
    keys(handle)
    with pytest.raises(ZeroDivisionError), handle.write() as tx:
        tx.run(ADD, {"key": "undone", "value": ""})
        raise ZeroDivisionError
    assert attachment.calls == []


def test_an_attachment_hears_of_a_shared_commit_once_before_any_call_returns(
    grouping: FileHandle,
) -> None:
    attachment = attach(grouping)
    with Held(grouping, kind="unit"):
        waiting = [
            Task(lambda key=key: grouping.transact(adding(key), delegable=True)) for key in "abc"
        ]
        queued(grouping, 3)
    for task in waiting:
        task.result()
    assert attachment.calls == ["committed"]


def test_an_attachment_that_raises_hurts_no_commit(handle: FileHandle) -> None:
    attachment = attach(handle)
    attachment.error = ValueError("of an attachment")
    with capture_logs() as logs:
        handle.transact(adding("stored"))
    assert keys(handle) == {"stored"}
    assert [each["event"] for each in logs] == ["commit_notification_failed"]
    attachment.error = None


def test_an_attachment_writes_last_when_its_file_closes(pool: ConnectionPool, path: Path) -> None:
    with file_handle(pool.acquire(path)) as handle:
        attachment = attach(handle)
        attachment.at_close = lambda: last_write(attachment.file, "last")
        started = monotonic()
    assert attachment.calls == ["close", "committed"]
    assert started <= attachment.deadline <= monotonic() + pool.options.close_timeout / 2
    with pool.acquire(path) as handle:
        assert keys(handle) == {"last"}


@pytest.mark.parametrize("refused_by", ["a signal's handler", "the closing of the pool"])
def test_an_attachment_writes_though_all_others_are_refused(
    make_pool: Callable[..., ConnectionPool], path: Path, refused_by: str
) -> None:
    """::

    handler    refuse_new_work ...............................................
    closer                        close ─ attachment: last write ─ connections
    host                    refused                              refused
    """
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    attachment = attach(handle)
    refused: list[type[Exception]] = []

    def write_and_be_refused() -> None:
        last_write(attachment.file, "last")
        task = Task(lambda: attachment.file.transact(adding("late"), "late"))
        task.join()
        refused.append(type(task.error))

    attachment.at_close = write_and_be_refused
    if refused_by == "a signal's handler":
        pool.refuse_new_work()
        with pytest.raises(PoolClosedError):
            handle.transact(adding("too late"))
    pool.close()
    handle.release()
    assert refused == [PoolClosedError]
    with pytest.raises(PoolClosedError):
        last_write(attachment.file, "after the end")
    with file_handle(make_pool().acquire(path)) as handle:
        assert keys(handle) == {"last"}


def test_nothing_new_is_attached_to_a_file_that_ends(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    pool.refuse_new_work()
    with pytest.raises(PoolClosedError):
        attach(handle)
    # But a transaction that is under way may still make a turn that streams.
    assert handle.file.claim() == handle.file.owner
    handle.file.release_claim()
    pool.close()
    with pytest.raises(PoolClosedError):
        handle.file.claim()
    handle.release()


def test_nothing_new_is_attached_to_a_file_that_is_retired(
    pool: ConnectionPool, path: Path
) -> None:
    with file_handle(pool.acquire(path)) as handle:
        handle.file.retire("a test")
        with pytest.raises((DatabaseMovedError, PoolClosedError)):
            attach(handle)


def test_an_attachment_waits_in_the_queue_behind_work_under_way(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    attachment = attach(handle)
    closing = threading.Event()

    def write_when_it_is_free() -> None:
        closing.set()
        last_write(attachment.file, "last")

    attachment.at_close = write_when_it_is_free
    with Held(handle, adding("first")) as held:
        closer = Task(pool.close)
        until_set(closing)
        queued(handle, 1)
        held.let_go()
        closer.result()
    handle.release()
    assert attachment.calls == ["close", "committed", "committed"]


def test_an_attachment_that_does_not_get_the_lease_does_not_stop_the_closing(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    pool = make_pool(close_timeout=0.4)
    handle = file_handle(pool.acquire(path))
    attachment = attach(handle)
    attachment.at_close = lambda: last_write(
        attachment.file, "last", max(0.0, attachment.deadline - monotonic())
    )
    with Held(handle, adding("first")) as held:
        closer = Task(lambda: pool.close(on_stuck=lambda _thread: held.let_go()))
        closer.join()
    assert "busy" in str(closer.error.exceptions)
    handle.release()
    assert attachment.file.writer.queue.holder


@pytest.mark.parametrize("error", [ValueError("of an attachment"), PoolClosedError()])
def test_an_attachment_that_fails_to_close_is_reported_and_its_file_is_closed(
    make_pool: Callable[..., ConnectionPool], path: Path, error: Exception
) -> None:
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    attach(handle).error = error
    with pytest.raises(ExceptionGroup) as raised:
        pool.close()
    handle.release()
    found: BaseException = raised.value
    while isinstance(found, ExceptionGroup):
        (found,) = found.exceptions
    assert found is error
    with file_handle(make_pool().acquire(path)) as again:
        again.transact(adding("usable"))


def test_an_attachment_hears_that_its_file_is_retired(pool: ConnectionPool, path: Path) -> None:
    with file_handle(pool.acquire(path)) as handle:
        attachment = attach(handle)
        attachment.at_close = lambda: last_write(attachment.file, "last")
        path.rename(path.with_name("elsewhere.sqlite"))
        with pytest.raises(DatabaseMovedError):
            handle.transact(adding("lost"))
        assert attachment.calls[0] == "retired"
        assert attachment.calls.count("retired") == 1
        # What took the place of the file is another one's, with an attachment of its own.
        with file_handle(pool.acquire(path)) as another:
            assert attach(another) is not attachment
            # The last write went nowhere: the file is not ours any more.
            assert attachment.calls == ["retired", "close"]
            assert keys(another) == set()


def test_an_attachment_that_fails_to_retire_does_not_keep_the_file_in_use(
    pool: ConnectionPool, path: Path
) -> None:
    with file_handle(pool.acquire(path)) as handle:
        attachment = attach(handle)
        attachment.error = ValueError("of an attachment")
        with capture_logs() as logs:
            handle.file.retire("a test")
        attachment.error = None
        assert [each["event"] for each in logs] == [
            "retirement_notification_failed",
            "database_retired",
        ]
        with pytest.raises(DatabaseMovedError):
            handle.transact(adding("lost"))


FORK = """
import os
from mandrake_sessions import *
class Attachment:
    calls = []
    def __init__(self, file): pass
    def committed(self): self.calls.append("committed")
    def close(self, deadline): self.calls.append("close")
    def forget_after_fork(self): self.calls.append("fork")
pool = ConnectionPool()
handle = pool.acquire(sys.argv[1])
handle.file.attach(Attachment)
owner = handle.file.claim()
child = os.fork()
if not child:
    try:
        handle.file
    except ForkedPoolError:
        send(Attachment.calls)
    with pool.acquire(sys.argv[1]) as again:
        send([again.file.attachment, again.file.claim() != owner])
    os._exit(0)
os.waitpid(child, 0)
handle.release()
pool.close()
send(Attachment.calls)
"""


def test_a_forked_child_forgets_the_attachment_of_its_parent(
    path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(FORK, path)
    assert child.receive() == ["fork"]
    assert child.receive() == [None, True]
    assert child.receive() == ["close"]
    child.finish()


def test_a_thread_that_holds_the_lease_gets_an_error_in_place_of_a_wait_for_it(
    handle: FileHandle,
) -> None:
    handle.file.require_no_lease("here")
    with handle.write(), pytest.raises(ReentrantScopeError, match="inner"):
        handle.file.require_no_lease("inner")
    with handle.read(), pytest.raises(ReentrantScopeError, match="inner"):
        handle.file.require_no_lease("inner")
    with Held(handle):
        assert queue_of(handle).holder
        handle.file.require_no_lease("another thread holds it")
