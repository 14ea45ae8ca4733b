"""The pool: one connection per file, counted, lingering, closed once."""

from __future__ import annotations

import contextlib
import gc
import linecache
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import apsw
import pytest
from database_kit import ENDLESS, Held, Task, ends_in_time, file_of, queue_of, queued
from kits.descriptors import descriptors, open_connections
from kits.entries import KEYS, adding, keys
from kits.waiting import PATIENCE, SOON, until, until_set
from sqlalchemy import text

from mandrake_sessions import (
    ConnectionPool,
    DatabaseBusyError,
    DatabaseMissingError,
    DatabaseNamesError,
    DatabaseOptions,
    DatabasePathError,
    Durability,
    HandleReleasedError,
    MandrakeSessionsError,
    OptionsConflictError,
    PoolClosedError,
    default_pool,
)
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.folders import Folder
from mandrake_sessions.database.files.paths import identify
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from tools.generate.compiler import compiled

MakePool = Callable[..., ConnectionPool]


# -- counting -------------------------------------------------------------------------------


def test_all_handles_on_a_file_share_its_connection(pool: ConnectionPool, path: Path) -> None:
    handles = [pool.acquire(path) for _ in range(5)]
    assert open_connections(path) == 1
    assert (pool.stats().handles, pool.stats().opened) == (5, 1)
    for left in range(4, -1, -1):
        handles.pop().release()
        assert pool.stats().handles == left
        assert open_connections(path) == (1 if left else 0)
    assert (pool.stats().opened, pool.stats().closed) == (1, 1)


def test_releasing_twice_raises_and_counts_once(pool: ConnectionPool, path: Path) -> None:
    first, second = pool.acquire(path), file_handle(pool.acquire(path))
    first.release()
    with pytest.raises(HandleReleasedError):
        first.release()
    assert pool.stats().handles == 1
    second.transact(adding("a"))
    second.release()


def test_a_handle_may_be_released_inside_its_block(pool: ConnectionPool, path: Path) -> None:
    with pool.acquire(path) as handle:
        handle.release()
    assert pool.stats().handles == 0


def forget_a_handle(pool: ConnectionPool, path: Path) -> None:
    pool.acquire(path)
    gc.collect()


def test_a_forgotten_handle_warns_with_its_place_and_is_reaped(
    make_pool: MakePool, path: Path
) -> None:
    pool = make_pool()
    with pytest.warns(ResourceWarning, match=r"test_pool\.py:\d+"):
        forget_a_handle(pool, path)
    pool.acquire(path).release()
    assert pool.stats().handles == 0
    assert open_connections(path) == 0


def test_a_forgotten_handle_is_reaped_without_another_call(make_pool: MakePool, path: Path) -> None:
    """A host that forgets its only handle calls nothing more."""
    pool = make_pool(linger=0.01)
    with pytest.warns(ResourceWarning):
        forget_a_handle(pool, path)
    until(lambda: open_connections(path) == 0)


def test_two_threads_may_reap_the_same_forgotten_handle(make_pool: MakePool, path: Path) -> None:
    """
    ::

        one thread   is there a forgotten handle? ........... takes it
        another                                    takes it ─┘
    """
    pool = make_pool()
    forgotten = pool._forgotten
    taking, may_go = threading.Event(), threading.Event()

    def stop_at_taking(frame: FrameType, event: str, _what: object) -> Any:
        if frame.f_code is not ConnectionPool._reap_forgotten.__code__:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and "popleft()" in line:
            sys.settrace(None)
            taking.set()
            until_set(may_go)
        return stop_at_taking

    def acquire() -> None:
        sys.settrace(stop_at_taking)
        pool.acquire(path).release()

    with pool.acquire(path) as handle:
        # As a finalizer does, without waking the pool's thread.
        forgotten.append((handle._slot, "no handle"))
        one = Task(acquire)
        until_set(taking)
        pool.acquire(path).release()
        assert not forgotten
        may_go.set()
        one.result()


def test_a_released_handle_keeps_nothing_alive(pool: ConnectionPool, path: Path) -> None:
    handle = pool.acquire(path)
    file = weakref.ref(file_of(handle))
    handle.release()
    del handle
    gc.collect()
    assert file() is None


# -- lingering ------------------------------------------------------------------------------


def test_a_file_lingers_and_is_found_open_again(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(linger=3600.0)
    with pool.acquire(path) as first:
        file = file_of(first)
    assert pool.stats().idle == 1
    assert open_connections(path) == 1
    with pool.acquire(path) as second:
        assert file_of(second) is file
        assert pool.stats().idle == 0
    pool.close()
    assert open_connections(path) == 0


def test_a_file_is_closed_after_its_linger(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(linger=0.05)
    began = monotonic()
    pool.acquire(path).release()
    until(lambda: pool.stats().closed == 1)
    assert monotonic() - began >= 0.05
    assert descriptors(path) == []
    assert pool.stats().idle == 0


def test_an_acquire_ends_the_linger(make_pool: MakePool, path: Path) -> None:
    # Long enough for an acquire to come in time on a machine under load.
    pool = make_pool(linger=1.0)
    pool.acquire(path).release()
    other = path.with_name("other.sqlite")
    with file_handle(pool.acquire(path)) as handle:
        file = file_of(handle)
        # Released a moment later, so once it is closed the first one's time is over too.
        pool.acquire(other).release()
        until(lambda: pool.stats().closed == 1)
        assert open_connections(other) == 0
        handle.transact(adding("a"))
        assert file_of(handle) is file


def test_the_oldest_idle_file_is_closed_above_the_limit(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool(linger=3600.0, max_idle=2)
    paths = [tmp_path / f"{number}.sqlite" for number in range(4)]
    handles = [pool.acquire(path) for path in paths]
    for number in (1, 3, 0, 2):
        handles[number].release()
    assert [open_connections(path) for path in paths] == [1, 0, 1, 0]
    assert pool.stats().idle == 2
    assert pool.stats().closed == 2


def test_the_limit_never_closes_a_file_with_handles(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(linger=3600.0, max_idle=0)
    paths = [tmp_path / f"{number}.sqlite" for number in range(5)]
    handles = [file_handle(pool.acquire(path)) for path in paths]
    for number, handle in enumerate(handles):
        handle.transact(adding(f"{number}"))
    pool.acquire(tmp_path / "other.sqlite").release()
    assert len(pool.stats().databases) == 5
    for handle in handles:
        handle.release()
    assert pool.stats().databases == ()


# -- options --------------------------------------------------------------------------------


def test_options_other_than_those_it_is_open_with_are_a_conflict(
    pool: ConnectionPool, path: Path
) -> None:
    with pool.acquire(path) as handle:
        with pytest.raises(OptionsConflictError):
            pool.acquire(path, options=DatabaseOptions(durability=Durability.DURABLE))
        pool.acquire(path, options=file_of(handle).options).release()
        pool.acquire(path).release()
    with pool.acquire(path, options=DatabaseOptions(busy_timeout=7.0)) as handle:
        assert file_of(handle).options.busy_timeout == 7.0


FAST = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
OTHER = DatabaseOptions(durability=Durability.DURABLE, busy_timeout=60.0)


def test_a_file_that_only_lingers_is_opened_with_the_options_asked_for(
    make_pool: MakePool, path: Path
) -> None:
    pool = make_pool(linger=3600.0)
    with file_handle(pool.acquire(path, options=OTHER)) as handle:
        handle.transact(adding("a"))
        file = file_of(handle)
    # The same options keep it, also from another caller.
    with pool.acquire(path, options=OTHER) as handle:
        assert file_of(handle) is file
    for asked, expected in ((FAST, FAST), (OTHER, OTHER), (None, pool.options.database)):
        with pool.acquire(path, options=asked) as handle:
            assert file_of(handle).options == expected
            assert open_connections(path) == 1
            assert keys(handle) == {"a"}
    assert (pool.stats().opened, pool.stats().closed) == (4, 3)


def test_an_acquire_waits_while_a_file_is_closed_for_other_options(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A: closing … opened with OTHER; B, with FAST: waits … a conflict, for A has a handle."""
    pool = make_pool(linger=3600.0)
    pool.acquire(path, options=FAST).release()
    closing, may_go = threading.Event(), threading.Event()
    really_close = DatabaseFile.close

    def slow(self: DatabaseFile, *args: Any) -> None:
        closing.set()
        until_set(may_go)
        really_close(self, *args)

    monkeypatch.setattr(DatabaseFile, "close", slow)
    first = Task(lambda: pool.acquire(path, options=OTHER))
    until_set(closing)
    second = Task(lambda: pool.acquire(path, options=FAST))
    second.thread.join(0.05)
    # It waits until the first one may go on, whenever it comes.
    assert not second.is_over
    may_go.set()
    first.join()
    second.join()
    # The faster of the two has it once it is closed.
    assert [type(each.error) for each in (first, second) if each.error] == [OptionsConflictError]
    (handle,) = (each.result() for each in (first, second) if each.error is None)
    assert open_connections(path) == 1
    handle.release()


def test_threads_with_options_of_their_own_never_open_a_file_twice(
    make_pool: MakePool, path: Path
) -> None:
    pool = make_pool(linger=3600.0)
    pool.acquire(path).release()

    def come_and_go(number: int) -> int:
        options, had = (FAST, OTHER)[number % 2], 0
        for turn in range(40):
            with (
                contextlib.suppress(OptionsConflictError),
                file_handle(pool.acquire(path, options=options)) as handle,
            ):
                assert file_of(handle).options == options
                assert open_connections(path) == 1
                handle.transact(adding(f"{number} {turn}"), delegable=True)
                had += 1
        return had

    tasks = [Task(lambda number=number: come_and_go(number)) for number in range(6)]
    had = sum(task.result() for task in tasks)
    assert had
    with pool.acquire(path) as handle:
        assert len(keys(handle)) == had
    pool.close()
    assert pool.stats().opened == pool.stats().closed


def test_closing_a_file_for_other_options_takes_no_longer_than_the_callers_budget(
    make_pool: MakePool, path: Path
) -> None:
    """No handle is left, and a check of the file, such as a monitor's, is still under way."""
    pool = make_pool(linger=3600.0, close_timeout=60.0)
    with pool.acquire(path) as handle:
        file = file_of(handle)
    looking = Task(lambda: file.fetch(lambda tx: tx.row(ENDLESS), "look", 600.0))
    until(lambda: file.writer.queue.holder)
    began = monotonic()
    with file_handle(pool.acquire(path, options=DatabaseOptions(busy_timeout=2.0))) as handle:
        # Half of it for the look to end by itself.
        assert 1.0 <= monotonic() - began < SOON
        assert handle.transact(adding("a")) == "a"
    looking.join()
    assert isinstance(looking.error, MandrakeSessionsError)


def test_an_acquire_raises_where_others_reopen_the_file_that_it_has_closed(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mandrake_sessions.database.pool import pool as pool_module

    pool = make_pool(linger=3600.0)
    pool.acquire(path, options=FAST).release()
    looks = 0

    def looking(real: Path) -> Any:
        nonlocal looks
        looks += 1
        if looks == 1:
            pool.acquire(path, options=FAST).release()
        return identify(real)

    monkeypatch.setattr(pool_module, "identify", looking)
    with pytest.raises(OptionsConflictError):
        pool.acquire(path, options=DatabaseOptions(busy_timeout=0))
    pool.acquire(path, options=DatabaseOptions(busy_timeout=0)).release()


# -- opening from several threads -----------------------------------------------------------


def test_two_first_openers_open_once(pool: ConnectionPool, path: Path, in_threads: Any) -> None:
    handles = in_threads(8, lambda _: pool.acquire(path))
    assert len({id(file_of(handle)) for handle in handles}) == 1
    assert pool.stats().opened == 1
    assert open_connections(path) == 1
    for handle in handles:
        handle.release()


def test_a_slow_opening_holds_up_no_other_file(
    pool: ConnectionPool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = threading.Event()
    really_open = DatabaseFile.open

    def slow(opened: Path, *args: Any) -> DatabaseFile:
        if opened == path:
            until_set(may_go)
        return really_open(opened, *args)

    monkeypatch.setattr(DatabaseFile, "open", slow)
    task = Task(lambda: pool.acquire(path))
    until(lambda: path in pool._slots)
    pool.acquire(tmp_path / "other.sqlite").release()
    assert not task.is_over
    may_go.set()
    task.result().release()


@pytest.mark.parametrize("linger", [0.0, 0.001])
def test_acquires_and_last_releases_at_once_never_make_a_second_connection(
    make_pool: MakePool, path: Path, linger: float
) -> None:
    """Eight threads come and go; never is there a second connection, and none is left."""
    pool = make_pool(linger=linger)
    pool.acquire(path).release()
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        # It leaves the core to the others: a look takes the interpreter for itself.
        while not over.wait(0.001):
            # One that is closed and opened again amidst a look is seen twice by it, and not again.
            most = max(most, min(open_connections(path) for _ in range(3)))

    def come_and_go(number: int) -> None:
        chance = random.Random(number)
        for turn in range(40):
            with file_handle(pool.acquire(path)) as handle:
                if chance.random() < 0.3:
                    handle.transact(adding(f"{number} {turn}"), delegable=True)
                    written.append(f"{number} {turn}")

    written: list[str] = []
    watcher = Task(watch)
    with pool.acquire(path):
        until(lambda: most == 1)
    tasks = [Task(lambda number=number: come_and_go(number)) for number in range(8)]
    for task in tasks:
        task.result()
    over.set()
    watcher.result()
    assert most == 1
    until(lambda: open_connections(path) == 0)
    # It is counted when it is closed.
    until(lambda: pool.stats().opened == pool.stats().closed)
    with pool.acquire(path) as handle:
        assert keys(handle) == set(written)


def test_a_file_never_has_two_writer_connections_at_once(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, counted where connections are opened and closed."""
    pool = make_pool()
    living = 0
    most = 0
    mutex = threading.Lock()
    really_open, really_close = DatabaseFile.open, DatabaseFile.close

    def opening(*args: Any) -> DatabaseFile:
        nonlocal living, most
        with mutex:
            living += 1
            most = max(most, living)
        return really_open(*args)

    def closing(self: DatabaseFile, *args: Any) -> None:
        nonlocal living
        really_close(self, *args)
        with mutex:
            living -= 1

    monkeypatch.setattr(DatabaseFile, "open", opening)
    monkeypatch.setattr(DatabaseFile, "close", closing)

    def come_and_go() -> None:
        for _ in range(30):
            pool.acquire(path).release()

    for task in [Task(come_and_go) for _ in range(8)]:
        task.result()
    assert most == 1
    assert living == 0


# -- removing -------------------------------------------------------------------------------


def test_remove_takes_the_file_and_what_belongs_to_it(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(linger=3600.0)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
    pool.remove(path)
    assert list(path.parent.iterdir()) == []
    pool.remove(path)
    with pool.acquire(path) as handle:
        assert keys(handle) == set()


def test_remove_waits_for_handles(pool: ConnectionPool, path: Path) -> None:
    handle = file_handle(pool.acquire(path))
    task = Task(lambda: pool.remove(path, timeout=60))
    ends_in_time(lambda: pool.remove(path, timeout=0.1), 0.1)
    assert path.exists()
    assert not task.is_over
    handle.transact(adding("a"))
    handle.release()
    task.result()
    assert not path.exists()


def test_remove_waits_for_other_processes(
    pool: ConnectionPool, path: Path, start_child: Callable[..., Any]
) -> None:
    pool.acquire(path).release()
    child = start_child(
        """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("SELECT * FROM meta").fetchall()
send("open")
receive()
connection.close()
""",
        path,
    )
    assert child.receive() == "open"
    with pytest.raises(DatabaseBusyError):
        pool.remove(path, timeout=0.1)
    assert path.exists()
    task = Task(lambda: pool.remove(path, timeout=60))
    child.send()
    task.result()
    assert list(path.parent.iterdir()) == []
    assert descriptors(path) == []


def test_an_acquire_while_a_file_is_removed_waits_and_finds_it_gone(
    pool: ConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mandrake_sessions.database.offline import removal

    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
    in_it, may_go = threading.Event(), threading.Event()
    really_remove = removal.remove

    def slow(*args: Any, **options: Any) -> None:
        in_it.set()
        until_set(may_go)
        really_remove(*args, **options)

    monkeypatch.setattr(removal, "remove", slow)
    removing = Task(lambda: pool.remove(path))
    until_set(in_it)
    missing = Task(lambda: pool.acquire(path, create=False))
    until(lambda: not missing.is_over)
    may_go.set()
    removing.result()
    with pytest.raises(DatabaseMissingError):
        missing.result()
    with file_handle(pool.acquire(path)) as handle:
        assert keys(handle) == set()


# -- closing --------------------------------------------------------------------------------


def test_a_closed_pool_refuses_everything(make_pool: MakePool, path: Path) -> None:
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    pool.close()
    assert pool.is_closed
    with pytest.raises(PoolClosedError):
        pool.acquire(path)
    with pytest.raises(PoolClosedError):
        pool.remove(path)
    for attempt in (
        lambda: handle.transact(adding("a")),
        lambda: handle.write().__enter__(),
        lambda: handle.read().__enter__(),
        lambda: handle.fetch(lambda tx: None),
        lambda: handle.query(lambda tx: None),
        lambda: handle.sqlalchemy().__enter__(),
    ):
        with pytest.raises(PoolClosedError):
            attempt()
    handle.release()
    with pytest.raises(HandleReleasedError):
        handle.release()
    assert [each.name for each in path.parent.iterdir()] == ["db.sqlite"]


def test_close_is_idempotent_also_from_many_threads(
    make_pool: MakePool, path: Path, in_threads: Any
) -> None:
    pool = make_pool(linger=3600.0)
    pool.acquire(path).release()
    in_threads(6, lambda _: pool.close())
    pool.close()
    assert pool.stats().closed == pool.stats().opened == 1
    assert descriptors(path) == []


def test_close_lets_work_under_way_end(make_pool: MakePool, path: Path) -> None:
    """Also what waits already; new work is refused at once."""
    pool = make_pool(close_timeout=20.0)
    handle = file_handle(pool.acquire(path))
    held = Held(handle, adding("under way"))
    waiting = [
        Task(lambda key=key: handle.transact(adding(key), delegable=True)) for key in ("b", "c")
    ]
    queued(handle, 2)
    closing = Task(pool.close)
    queued(handle, 3)
    with pytest.raises(PoolClosedError):
        handle.transact(adding("too late"))
    held.let_go()
    held.task.result()
    assert [task.result() for task in waiting] == ["b", "c"]
    closing.result()
    handle.release()
    assert descriptors(path) == []
    with file_handle(make_pool().acquire(path)) as handle:
        assert keys(handle) == {"under way", "b", "c"}


def test_close_interrupts_a_statement_that_does_not_end(make_pool: MakePool, path: Path) -> None:
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    running = threading.Event()

    def endless(tx: Any) -> None:
        running.set()
        tx.rows(ENDLESS)

    tasks = [Task(lambda: handle.transact(endless)), Task(lambda: handle.query(endless))]
    until_set(running)
    until(
        lambda: (
            [leased.queue.holder for leased in file_of(handle).leased_connections()].count(0) == 0
        )
    )
    began = monotonic()
    pool.close(timeout=1.0)
    assert monotonic() - began < SOON
    for task in tasks:
        with pytest.raises(PoolClosedError):
            task.result()
    handle.release()
    assert descriptors(path) == []


def test_close_ends_a_wait_for_a_foreign_lock(
    make_pool: MakePool, path: Path, hold_write_lock: Callable[..., Any]
) -> None:
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    hold_write_lock(path)
    waiting = Task(lambda: handle.transact(adding("a")))
    until(lambda: handle.stats().retries > 2)
    pool.close(timeout=1.0)
    with pytest.raises(PoolClosedError):
        waiting.result()
    handle.release()
    assert open_connections(path) == 0


def test_a_block_that_hangs_costs_close_its_timeout_and_holds_no_other_file_up(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """All errors come in one ExceptionGroup; the other files are closed all the same."""
    pool = make_pool()
    stuck = [file_handle(pool.acquire(tmp_path / f"stuck {number}.sqlite")) for number in range(2)]
    idle = file_handle(pool.acquire(tmp_path / "idle.sqlite"))
    idle.transact(adding("a"))
    helds = [Held(handle, adding("never")) for handle in stuck]
    waiting = Task(lambda: stuck[0].transact(adding("never either")))
    queued(stuck[0], 1)
    began = monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        pool.close(timeout=0.6)
    # The busy timeout of a waiter is 20 s, and nothing else would end the blocks.
    assert 0.6 <= monotonic() - began < SOON
    assert [type(error) for error in caught.value.exceptions] == [DatabaseBusyError] * 2
    with pytest.raises(PoolClosedError):
        waiting.result()
    assert sorted(each.name for each in tmp_path.glob("idle*")) == ["idle.sqlite"]
    for held in helds:
        held.let_go()
        held.task.join()
    pool.close()
    for handle in (*stuck, idle):
        handle.release()


def test_the_next_close_closes_a_connection_whose_holder_let_go_too_late(
    make_pool: MakePool, path: Path
) -> None:
    pool = make_pool()
    handle = pool.acquire(path)
    held = Held(handle, adding("never"))
    with pytest.raises(ExceptionGroup):
        pool.close(timeout=0.1)
    held.let_go()
    held.task.join()
    pool.close()
    handle.release()
    del held, handle
    gc.collect()
    assert descriptors(path) == []


def test_close_is_bounded_while_a_checkpoint_waits_for_a_reader(
    make_pool: MakePool, path: Path
) -> None:
    """The maintenance thread waits for the auxiliary connection, which a reader keeps."""
    pool = make_pool(database={"checkpoint_frames": 1})
    handle = file_handle(pool.acquire(path))
    reading, may_go = threading.Event(), threading.Event()

    def read() -> None:
        with handle.read() as tx:
            tx.rows(KEYS)
            reading.set()
            until_set(may_go)

    reader = Task(read)
    until_set(reading)
    handle.transact(adding("a"))
    until(lambda: file_of(handle).leased_connections()[1].queue.waiting == 1)
    began = monotonic()
    with contextlib.suppress(ExceptionGroup):
        pool.close(timeout=0.6)
    took = monotonic() - began
    may_go.set()
    reader.join()
    pool.close()
    handle.release()
    assert took < SOON


@pytest.fixture
def slow_auxiliary(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Has the opening of auxiliary connections wait: ``(is in it, may go)``."""
    from mandrake_sessions.database.open_file import lifecycle

    in_it, may_go = threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        if options.get("auxiliary"):
            in_it.set()
            until_set(may_go)
        return open_connection(*args, **options)

    monkeypatch.setattr(lifecycle, "open_connection", slow)
    yield in_it, may_go
    may_go.set()


def test_close_is_bounded_while_the_auxiliary_connection_opens(
    make_pool: MakePool, path: Path, slow_auxiliary: tuple[Any, Any]
) -> None:
    in_it, may_go = slow_auxiliary
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    reader = Task(lambda: handle.query(lambda tx: None))
    until_set(in_it)
    began = monotonic()
    closing = Task(lambda: pool.close(timeout=0.4))
    closing.thread.join(SOON)
    took = monotonic() - began
    may_go.set()
    closing.join()
    reader.join()
    handle.release()
    assert took < SOON
    until(lambda: descriptors(path) == [])


def test_a_reader_let_in_before_close_opens_nothing_after_it(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let in, then delayed until the file is closed.

    ::

        reader   admitted ...................... opens the auxiliary connection? no
        closer             close ─ all closed ─┘
    """
    pool = make_pool()
    handle = file_handle(pool.acquire(path))
    file = file_of(handle)
    admitted, may_go = threading.Event(), threading.Event()
    really_look = file._auxiliary_connection

    def late(*args: Any) -> Any:
        admitted.set()
        until_set(may_go)
        return really_look(*args)

    monkeypatch.setattr(file, "_auxiliary_connection", late)
    reader = Task(lambda: handle.query(lambda tx: None))
    until_set(admitted)
    closing = Task(pool.close)
    until(lambda: closing.is_over or file.state.name == "CLOSED" or open_connections(path) == 0)
    may_go.set()
    closing.result()
    with pytest.raises(PoolClosedError):
        reader.result()
    handle.release()
    assert descriptors(path) == []


def test_a_file_whose_opening_ends_after_close_is_closed_too(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_it, may_go = threading.Event(), threading.Event()
    really_open = DatabaseFile.open

    def slow(*args: Any) -> DatabaseFile:
        in_it.set()
        until_set(may_go)
        return really_open(*args)

    monkeypatch.setattr(DatabaseFile, "open", slow)
    pool = make_pool()
    opener = Task(lambda: pool.acquire(path))
    until_set(in_it)
    began = monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        pool.close(timeout=0.2)
    assert monotonic() - began < SOON
    assert isinstance(caught.value.exceptions[0], DatabaseBusyError)
    assert caught.value.exceptions[0].phase == "open"
    may_go.set()
    opener.join()
    if opener.error is None:
        opener.result().release()
    assert isinstance(opener.error, PoolClosedError)
    assert open_connections(path) == 0


def test_a_connection_that_does_not_close_is_reported_and_the_rest_is_closed(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mandrake_sessions.database.connection.connection import Connection

    pool = make_pool(linger=3600.0)
    for name in ("bad", "good"):
        pool.acquire(tmp_path / f"{name}.sqlite").release()
    really_close = Connection.close

    def close(self: Connection, *, abandon: bool = False) -> None:
        really_close(self, abandon=abandon)
        if self.path.name == "bad.sqlite":
            raise apsw.IOError("injected")

    monkeypatch.setattr(Connection, "close", close)
    with pytest.raises(ExceptionGroup) as caught:
        pool.close()
    assert [type(error).__name__ for error in caught.value.exceptions] == ["DatabaseError"]
    assert open_connections(tmp_path / "good.sqlite") == 0
    pool.close()


def test_a_pool_closes_while_threads_come_and_go(make_pool: MakePool, path: Path) -> None:
    """Each error is typed, all that was acknowledged is stored, nothing stays open."""
    for turn in range(5):
        pool = make_pool(linger=0.001)
        acknowledged: list[str] = []
        busy = threading.Event()

        def work(
            number: int,
            turn: int = turn,
            pool: ConnectionPool = pool,
            acknowledged: list[str] = acknowledged,
            busy: threading.Event = busy,
        ) -> None:
            with contextlib.suppress(PoolClosedError):
                for count in range(10_000):
                    with file_handle(pool.acquire(path)) as handle:
                        key = f"{turn} {number} {count}"
                        handle.transact(adding(key), delegable=True)
                        acknowledged.append(key)
                        handle.query(lambda tx: tx.rows(KEYS))
                    if len(acknowledged) > 20:
                        busy.set()

        tasks = [Task(lambda number=number: work(number)) for number in range(6)]
        until_set(busy)
        pool.close(timeout=60)
        for task in tasks:
            task.result()
        assert descriptors(path) == []
        with make_pool().acquire(path) as handle:
            assert set(acknowledged) <= keys(handle)


def test_the_default_pool_is_one_and_is_replaced_when_it_was_closed() -> None:
    pool = default_pool()
    assert default_pool() is pool
    pool.close()
    assert default_pool() is not pool
    default_pool().close()


def test_every_pool_is_closed_at_exit_though_one_fails(
    tmp_path: Path, start_child: Callable[..., Any], ready_database: Any
) -> None:
    for number in range(9):
        ready_database.lay(tmp_path / f"{number}.sqlite")
    child = start_child(
        """
import threading
from mandrake_sessions import ConnectionPool, PoolOptions
pools = [ConnectionPool(PoolOptions(close_timeout=0.3, linger=3600)) for _ in range(9)]
handles = [pool.acquire(f"{sys.argv[1]}/{number}.sqlite") for number, pool in enumerate(pools)]
has_it = threading.Event()
def hang():
    with handles[4].write():
        has_it.set()
        threading.Event().wait()
threading.Thread(target=hang, daemon=True).start()
has_it.wait()
# What is collected at the interpreter's end would close the files too.
import builtins
builtins.kept = (pools, handles)
send("ready")
""",
        tmp_path,
    )
    assert child.receive() == "ready"
    child.process.wait(PATIENCE)
    left = {each.name for each in tmp_path.glob("*-wal")}
    assert left <= {"4.sqlite-wal"}


def test_a_pool_that_is_not_used_starts_no_thread(make_pool: MakePool) -> None:
    before = set(threading.enumerate())
    make_pool(linger=3600.0).close()
    # Those of former tests may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_a_file_that_is_closed_at_once_needs_no_thread(make_pool: MakePool, path: Path) -> None:
    before = set(threading.enumerate())
    pool = make_pool(linger=0)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
    assert open_connections(path) == 0
    assert set(threading.enumerate()) <= before


def test_the_query_planner_is_asked_only_where_something_was_written(
    make_pool: MakePool, path: Path, statements: Any
) -> None:
    pool = make_pool(linger=0)
    with file_handle(pool.acquire(path)) as handle:
        handle.transact(adding("a"))
    assert "PRAGMA optimize" in statements.take()
    with pool.acquire(path) as handle:
        assert keys(handle) == {"a"}
    assert "PRAGMA optimize" not in statements.take()


def test_the_maintenance_thread_ends_with_the_pool(make_pool: MakePool, path: Path) -> None:
    before = set(threading.enumerate())
    pool = make_pool(linger=3600.0)
    pool.acquire(path).release()
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"mandrake-pool"}
    pool.close()
    assert set(threading.enumerate()) <= before


def test_stats_count_what_a_database_did(handle: FileHandle, pool: ConnectionPool) -> None:
    for number in range(3):
        handle.transact(adding(f"{number}"))
    (stats,) = pool.stats().databases
    assert stats == handle.stats()
    assert (stats.path, stats.units, stats.commits, stats.waiting) == (handle.path, 3, 3, 0)
    assert stats.pages_written >= 3
    with Held(handle):
        task = Task(lambda: handle.transact(adding("waits")))
        queued(handle, 1)
        assert handle.stats().waiting == 1
    task.result()
    assert handle.stats().longest_wait > 0
    assert queue_of(handle).operation == "transact"


def test_an_operation_that_fails_is_always_a_typed_error(pool: ConnectionPool, path: Path) -> None:
    with file_handle(pool.acquire(path)) as handle:
        bad = compiled(text("SELEC 1"))
        with pytest.raises(MandrakeSessionsError):
            handle.transact(lambda tx: tx.rows(bad))


def test_an_empty_file_is_no_database_where_none_may_be_made(
    make_pool: MakePool, path: Path
) -> None:
    path.touch()
    with pytest.raises(DatabaseMissingError):
        make_pool().acquire(path, create=False)
    assert path.stat().st_size == 0


def test_a_removal_that_is_interrupted_leaves_no_log_without_its_database(
    make_pool: MakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would replay a log that is left into the next database of the name."""
    pool = make_pool()
    pool.acquire(path).release()
    path.with_name(f"{path.name}-shm").touch()
    removed: list[str] = []
    really_unlink = Folder.unlink

    def unlink(self: Folder, name: str) -> None:
        removed.append(name.removeprefix(path.name))
        really_unlink(self, name)

    monkeypatch.setattr(Folder, "unlink", unlink)
    pool.remove(path)
    assert removed[-1] == ""
    assert sorted(removed) == ["", "-journal", "-shm", "-turnstile", "-wal"]


def test_two_pools_do_not_open_one_file_under_two_names(make_pool: MakePool, path: Path) -> None:
    """Each name has its own WAL: rows in the one are not there under the other."""
    first, second = make_pool(), make_pool()
    other = path.with_name("other.sqlite")
    with file_handle(first.acquire(path)) as handle:
        handle.transact(adding("a"))
        os.link(path, other)
        with pytest.raises(DatabasePathError):
            second.acquire(other)
        with second.acquire(path) as same:
            assert keys(same) == {"a"}
    with pytest.raises(DatabaseNamesError):
        second.acquire(other)
    with second.acquire(path) as handle:
        assert keys(handle) == {"a"}
