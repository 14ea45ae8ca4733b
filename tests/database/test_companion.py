"""What is kept with an open file hears of each COMMIT, writes last, and ends with the file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_kit import ADD, Held, Task, adding, keys, queue_of, queued
from sqlalchemy import text
from structlog.testing import capture_logs
from waiting_kit import until_set

from mandrake_sessions import ConnectionPool, DatabaseMovedError, PoolClosedError
from mandrake_sessions.database.file import DatabaseFile
from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.errors import ReentrantScopeError


class Companion:
    """Notes what it is told.

    Attributes:
        at_close: what it does when the file closes.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self.file = file
        self.told: list[str] = []
        self.at_close: Callable[[], Any] = lambda: None
        self.deadline = 0.0
        self.held_lease: list[bool] = []
        self.error: Exception | None = None

    def committed(self) -> None:
        self.told.append("committed")
        self.held_lease.append(self.file.writer.queue.holder == threading.get_ident())
        self._fail()

    def retired(self) -> None:
        self.told.append("retired")
        self._fail()

    def close(self, deadline: float) -> None:
        self.told.append("close")
        self.deadline = deadline
        self.at_close()
        self._fail()

    def forget_after_fork(self) -> None:
        self.told.append("fork")

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


def companion_of(handle: DatabaseHandle) -> Companion:
    return handle.file.companion_of(Companion)


def last_write(file: DatabaseFile, key: str, timeout: float | None = None) -> str:
    """Write as a companion does that closes."""
    return file.transact(adding(key), "close", timeout, even_refused=True)


def test_a_file_has_one_companion_however_many_ask(
    handle: DatabaseHandle, in_threads: Callable[..., list[Companion]]
) -> None:
    assert handle.file.companion is None
    found = in_threads(8, lambda _number: companion_of(handle))
    assert set(found) == {handle.file.companion}


def test_a_companion_lives_as_long_as_its_file(pool: ConnectionPool, path: Path) -> None:
    with pool.acquire(path) as handle:
        first = companion_of(handle)
        with pool.acquire(path) as another:
            assert companion_of(another) is first
    assert first.told == ["close"]
    with pool.acquire(path) as handle:
        assert companion_of(handle) is not first
    with pytest.raises(PoolClosedError):
        first.file.companion_of(Companion)


def test_each_commit_is_told_while_the_lease_is_held(handle: DatabaseHandle) -> None:
    companion = companion_of(handle)
    handle.transact(adding("unit"), delegable=True)
    with handle.write() as tx:
        tx.run(ADD, {"key": "block", "value": ""})
    with handle.sqlalchemy() as connection:
        connection.execute(text("UPDATE meta SET value = 'lent' WHERE key = 'block'"))
    assert companion.told == ["committed"] * 3
    assert companion.held_lease == [True] * 3


def test_what_is_read_or_undone_is_not_told(handle: DatabaseHandle) -> None:
    companion = companion_of(handle)
    keys(handle)
    with pytest.raises(ZeroDivisionError), handle.write() as tx:
        tx.run(ADD, {"key": "undone", "value": ""})
        raise ZeroDivisionError
    assert companion.told == []


def test_a_shared_commit_is_told_once_before_anybody_returns(grouping: DatabaseHandle) -> None:
    companion = companion_of(grouping)
    with Held(grouping, kind="unit"):
        waiting = [
            Task(lambda key=key: grouping.transact(adding(key), delegable=True)) for key in "abc"
        ]
        queued(grouping, 3)
    for task in waiting:
        task.result()
    assert companion.told == ["committed"]


def test_a_companion_that_raises_hurts_no_commit(handle: DatabaseHandle) -> None:
    companion = companion_of(handle)
    companion.error = ValueError("of a companion")
    with capture_logs() as logs:
        handle.transact(adding("stored"))
    assert keys(handle) == {"stored"}
    assert [each["event"] for each in logs] == ["commit_not_told"]
    companion.error = None


def test_a_companion_writes_last_when_its_file_closes(pool: ConnectionPool, path: Path) -> None:
    with pool.acquire(path) as handle:
        companion = companion_of(handle)
        companion.at_close = lambda: last_write(companion.file, "last")
        started = monotonic()
    assert companion.told == ["close", "committed"]
    assert started <= companion.deadline <= monotonic() + pool.options.close_timeout / 2
    with pool.acquire(path) as handle:
        assert keys(handle) == {"last"}


@pytest.mark.parametrize("refused_by", ["a signal's handler", "the closing of the pool"])
def test_a_companion_writes_though_all_others_are_refused(
    make_pool: Callable[..., ConnectionPool], path: Path, refused_by: str
) -> None:
    """::

    handler    refuse_new_work ...............................................
    closer                        close ─ companion: last write ─ connections
    host                    refused                              refused
    """
    pool = make_pool()
    handle = pool.acquire(path)
    companion = companion_of(handle)
    refused: list[type[Exception]] = []

    def write_and_be_refused() -> None:
        last_write(companion.file, "last")
        task = Task(lambda: companion.file.transact(adding("late"), "late"))
        task.join()
        refused.append(type(task.error))

    companion.at_close = write_and_be_refused
    if refused_by == "a signal's handler":
        pool.refuse_new_work()
        with pytest.raises(PoolClosedError):
            handle.transact(adding("too late"))
    pool.close()
    handle.release()
    assert refused == [PoolClosedError]
    with pytest.raises(PoolClosedError):
        last_write(companion.file, "after the end")
    with make_pool().acquire(path) as handle:
        assert keys(handle) == {"last"}


def test_nothing_new_is_attached_to_a_file_that_ends(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    pool = make_pool()
    handle = pool.acquire(path)
    pool.refuse_new_work()
    with pytest.raises(PoolClosedError):
        companion_of(handle)
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
    with pool.acquire(path) as handle:
        handle.file.retire("a test")
        with pytest.raises((DatabaseMovedError, PoolClosedError)):
            companion_of(handle)


def test_a_companion_waits_for_its_turn_behind_work_under_way(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    pool = make_pool()
    handle = pool.acquire(path)
    companion = companion_of(handle)
    closing = threading.Event()

    def write_when_it_is_free() -> None:
        closing.set()
        last_write(companion.file, "last")

    companion.at_close = write_when_it_is_free
    with Held(handle, adding("first")) as held:
        closer = Task(pool.close)
        until_set(closing)
        queued(handle, 1)
        held.let_go()
        closer.result()
    handle.release()
    assert companion.told == ["close", "committed", "committed"]


def test_a_companion_that_does_not_get_the_lease_does_not_stop_the_closing(
    make_pool: Callable[..., ConnectionPool], path: Path
) -> None:
    pool = make_pool(close_timeout=0.4)
    handle = pool.acquire(path)
    companion = companion_of(handle)
    companion.at_close = lambda: last_write(
        companion.file, "last", max(0.0, companion.deadline - monotonic())
    )
    with Held(handle, adding("first")) as held:
        closer = Task(lambda: pool.close(on_stuck=lambda _thread: held.let_go()))
        closer.join()
    assert "busy" in str(closer.error.exceptions)
    handle.release()
    assert companion.file.writer.queue.holder


@pytest.mark.parametrize("error", [ValueError("of a companion"), PoolClosedError()])
def test_a_companion_that_fails_to_close_is_reported_and_the_file_closed(
    make_pool: Callable[..., ConnectionPool], path: Path, error: Exception
) -> None:
    pool = make_pool()
    handle = pool.acquire(path)
    companion_of(handle).error = error
    with pytest.raises(ExceptionGroup) as raised:
        pool.close()
    handle.release()
    found: BaseException = raised.value
    while isinstance(found, ExceptionGroup):
        (found,) = found.exceptions
    assert found is error
    with make_pool().acquire(path) as again:
        again.transact(adding("usable"))


def test_a_companion_is_told_when_its_file_is_retired(pool: ConnectionPool, path: Path) -> None:
    with pool.acquire(path) as handle:
        companion = companion_of(handle)
        companion.at_close = lambda: last_write(companion.file, "last")
        path.rename(path.with_name("elsewhere.sqlite"))
        with pytest.raises(DatabaseMovedError):
            handle.transact(adding("lost"))
        assert companion.told[0] == "retired"
        assert companion.told.count("retired") == 1
        # What took the place of the file is another one's, with a companion of its own.
        with pool.acquire(path) as another:
            assert companion_of(another) is not companion
            # The last write went nowhere: the file is not ours any more.
            assert companion.told == ["retired", "close"]
            assert keys(another) == set()


def test_a_companion_that_fails_to_retire_does_not_keep_the_file_in_use(
    pool: ConnectionPool, path: Path
) -> None:
    with pool.acquire(path) as handle:
        companion = companion_of(handle)
        companion.error = ValueError("of a companion")
        with capture_logs() as logs:
            handle.file.retire("a test")
        companion.error = None
        assert [each["event"] for each in logs] == ["retirement_not_told", "database_retired"]
        with pytest.raises(DatabaseMovedError):
            handle.transact(adding("lost"))


FORK = """
import os
from mandrake_sessions import *
class Companion:
    told = []
    def __init__(self, file): pass
    def committed(self): self.told.append("committed")
    def close(self, deadline): self.told.append("close")
    def forget_after_fork(self): self.told.append("fork")
pool = ConnectionPool()
handle = pool.acquire(sys.argv[1])
handle.file.companion_of(Companion)
owner = handle.file.claim()
child = os.fork()
if not child:
    try:
        handle.file
    except ForkedPoolError:
        tell(Companion.told)
    with pool.acquire(sys.argv[1]) as again:
        tell([again.file.companion, again.file.claim() != owner])
    os._exit(0)
os.waitpid(child, 0)
handle.release()
pool.close()
tell(Companion.told)
"""


def test_rule_18_a_forked_child_forgets_its_parents_companion(
    path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(FORK, path)
    assert child.hear() == ["fork"]
    assert child.hear() == [None, True]
    assert child.hear() == ["close"]
    child.finish()


def test_one_who_holds_a_lease_is_told_that_it_cannot_wait(handle: DatabaseHandle) -> None:
    handle.file.require_no_lease("here")
    with handle.write(), pytest.raises(ReentrantScopeError, match="inner"):
        handle.file.require_no_lease("inner")
    with handle.read(), pytest.raises(ReentrantScopeError, match="inner"):
        handle.file.require_no_lease("inner")
    with Held(handle):
        assert queue_of(handle).holder
        handle.file.require_no_lease("another thread holds it")
