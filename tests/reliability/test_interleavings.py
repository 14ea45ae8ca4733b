"""The races by name, each in every order of its steps."""

from __future__ import annotations

import asyncio
import itertools
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from interleaving_kit import Holding, Orders, Stage, Thread, explore, interrupted_at
from kits.descriptors import open_connections
from kits.entries import KEYS, add, adding, keys
from kits.pools import quick_pool
from kits.waiting import PATIENCE

from mandrake_sessions import (
    CommitOutcomeUnknownError,
    ConnectionPool,
    DatabaseBusyError,
    DatabaseMovedError,
    HandleReleasedError,
    MandrakeManager,
    MandrakeSessionsError,
    NotADatabaseError,
    NotInitializedError,
    PoolClosedError,
    SessionManager,
    TransactionLostError,
)
from mandrake_sessions.aio import AsyncSessionManager, cancelled_call
from mandrake_sessions.aio import calls as calls_module
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.leasing import writer as scope_module
from mandrake_sessions.database.leasing.queue import Group, LeaseQueue
from mandrake_sessions.database.open_file import closing as closing_module
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool import pool as pool_module
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.slots import Slot, SlotState
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.engine.waiters import Waiter
from mandrake_sessions.live.hub import Hub

Play = Callable[[Callable[[Stage], None]], Orders]


@pytest.fixture
def fresh(tmp_path: Path, ready_database: Any) -> Callable[[], Path]:
    """Makes a new database, which no process has open."""
    numbers = itertools.count()
    return lambda: ready_database.lay(tmp_path / f"{next(numbers)}.sqlite")


@pytest.fixture
def every_order(request: pytest.FixtureRequest) -> Play:
    """Plays a story in every order of its steps, and returns how many there are."""

    def play(story: Callable[[Stage], None]) -> Orders:
        began = monotonic()
        orders = explore(story)
        took = monotonic() - began
        print(f"\n{request.node.name}: {len(orders)} orders, {took:.2f} s")  # a result
        return orders

    return play


class Living:
    """How many files are open at once, counted where they are opened and closed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.most = 0
        self.opened = 0
        self._mutex = threading.Lock()
        really_open, really_close = DatabaseFile.open, DatabaseFile.close

        def opening(*args: Any, **options: Any) -> DatabaseFile:
            with self._mutex:
                self.now += 1
                self.opened += 1
                self.most = max(self.most, self.now)
            try:
                return really_open(*args, **options)
            except BaseException:
                with self._mutex:
                    self.now -= 1
                raise

        def closing(file: DatabaseFile, *args: Any, **options: Any) -> None:
            really_close(file, *args, **options)
            with self._mutex:
                self.now -= 1

        patch.setattr(DatabaseFile, "open", opening)
        patch.setattr(DatabaseFile, "close", closing)


# -- 1: acquire against the last release --------------------------------------------------------


def test_an_acquire_and_the_last_release_may_come_in_either_order(
    every_order: Play, fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either order: one connection at a time, and the handle works.

    ::

        release   decides: it was the last one ─ closes ─ closed: who waits may look
        acquire   looks at the path ─ a slot? ─ one handle more
                                     └─ closing: waits ─ looks again ─ opens
    """
    living = Living(monkeypatch)

    def story(stage: Stage) -> None:
        path = fresh()
        with quick_pool() as pool:
            handle = pool.acquire(path)
            living.opened = 0
            stage.watch_event(Slot, "changed")
            pool._slots[path].changed = stage.event(pool._slots[path].changed)
            stage.stop_after(pool_module, "identify")
            stage.stop_before(DatabaseFile, "close", "open")
            stage.stop_after(DatabaseFile, "close", "open")
            release = stage.actor("release", handle.release)
            acquire = stage.actor("acquire", lambda: pool.acquire(path))
            stage.play()

            release.result()
            second = acquire.result()
            second.transact(adding("a"))
            assert keys(second) == {"a"}
            assert (pool.stats().handles, open_connections(path)) == (1, 2)
            second.release()
            assert (pool.stats().databases, open_connections(path)) == ((), 0)

    orders = every_order(story)
    assert (living.now, living.most) == (0, 1)
    # Both happen: it is found open, and it is waited for until it is closed.
    assert orders.having("acquire woken")
    assert [order for order in orders.tried if "acquire open" not in order]


# -- 2: an opening that fails, against those who wait for it ------------------------------------


def test_a_failing_opening_gives_its_waiter_the_error_in_either_order(
    every_order: Play,
    fresh: Callable[[], Path],
    ready_database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each thread gets the cause in its own error, and none waits without end.

    ::

        first    looks ─ makes the slot ─ opens: it is no database ─ the slot is gone ─ raises
        second   looks ─ waits ........................................ woken: raises
                      └─ no slot any more: opens, and fails by itself
    """
    living = Living(monkeypatch)
    opened = []

    def story(stage: Stage) -> None:
        path = fresh()
        path.write_bytes(b"no database" * 100)
        with quick_pool() as pool:
            living.opened = 0
            stage.watch_event(Slot, "changed")
            stage.stop_after(pool_module, "identify")
            stage.stop_before(DatabaseFile, "open")
            stage.stop_after(DatabaseFile, "open")
            actors = [stage.actor(name, lambda: pool.acquire(path)) for name in ("first", "second")]
            stage.play()

            errors = [actor.error for actor in actors]
            assert [type(error) for error in errors] == [NotADatabaseError] * 2
            assert errors[0] is not errors[1]
            opened.append(living.opened)
            assert (pool.stats().databases, pool._slots, open_connections(path)) == ((), {}, 0)
            path.unlink()
            ready_database.lay(path)
            pool.acquire(path).release()

    orders = every_order(story)
    assert orders.having("first open", "second woken")
    assert orders.having("second open", "first woken")
    # One attempt for both, or one for each.
    assert set(opened) == {1, 2}


# -- 3: two first openers -----------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [True, False])
def test_two_first_openers_share_one_opening(
    every_order: Play, fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """One of them opens, or makes, the file; both have the same.

    ::

        first    looks ─ makes the slot ─ opens ─ open ─ works
        second   looks ─ waits .................. woken ─ one handle more ─ works
    """
    living = Living(monkeypatch)

    def story(stage: Stage) -> None:
        path = fresh()
        if not is_there:
            path.unlink()
        with quick_pool() as pool:
            stage.watch_event(Slot, "changed")
            stage.stop_after(pool_module, "identify")
            stage.stop_before(DatabaseFile, "open")
            if is_there:
                stage.stop_after(DatabaseFile, "open")
            actors = [stage.actor(name, lambda: pool.acquire(path)) for name in ("first", "second")]
            stage.play()

            first, second = (actor.result() for actor in actors)
            assert first.file is second.file
            assert (pool.stats().opened, pool.stats().handles) == (1, 2)
            first.release()
            second.transact(adding("a"))
            second.release()
            assert open_connections(path) == 0

    orders = every_order(story)
    assert (living.now, living.most) == (0, 1)
    assert orders.having("first open", "second woken")
    assert orders.having("second open", "first woken")


# -- 4: close against waiting -------------------------------------------------------------------


def test_closing_lets_a_waiter_of_the_lease_work_and_refuses_later_ones(
    every_order: Play, fresh: Callable[[], Path]
) -> None:
    """An earlier waiter works, a later one is refused; each answer agrees with the stored rows.

    ::

        holder   (in its block) ......... ends
        waiter   comes ─ waits ........... woken ─ works
        closer   refuses new work ─ waits ............... woken ─ closes
    """
    conditions = set()

    def story(stage: Stage) -> None:
        path = fresh()
        pool = quick_pool()
        handle = file_handle(pool.acquire(path))
        holding = Holding(handle.write, adding("holder"))
        stage.watch_lock(Waiter, "wake")
        stage.stop_before(LeaseQueue, "acquire")
        holder = stage.actor("holder", holding.let_go)
        waiter = stage.actor("waiter", lambda: handle.transact(adding("waiter")))
        closer = stage.actor("closer", pool.close)
        stage.play()

        holder.result()
        closer.result()
        if waiter.error is not None:
            assert isinstance(waiter.error, PoolClosedError)
        conditions.add(waiter.error is None)
        handle.release()
        assert open_connections(path) == 0
        with quick_pool() as other, other.acquire(path) as again:
            assert keys(again) == ({"holder", "waiter"} if waiter.error is None else {"holder"})

    orders = every_order(story)
    assert conditions == {True, False}
    assert orders.having("waiter acquire", "closer acquire", "holder begin", "waiter woken")


# -- 5: a cancellation between hand-off and acceptance ------------------------------------------


@pytest.mark.parametrize("has_lock", [False, True])
@pytest.mark.parametrize("delegable", [False, True])
def test_ctrl_c_between_hand_off_and_acceptance_leaves_the_lease_free(
    every_order: Play, fresh: Callable[[], Path], has_lock: bool, delegable: bool
) -> None:
    """The lease goes to a thread that was just interrupted, or its work is taken.

    ::

        holder   works ─ takes the waiter's work? ─ COMMIT ─ lease to the waiter ─ sets the outcome
        waiter   (in the queue) .... Ctrl-C, at each of these places ─ raises

    Work that was taken is waited for, a lease that was given is given back. The signal comes before
    the waiting call has its lock, or after.
    """
    conditions = set()

    def story(stage: Stage) -> None:
        with quick_pool() as pool, file_handle(pool.acquire(fresh())) as handle:
            queue = handle.file.writer.queue
            stage.watch_lock(Waiter, "wake", interrupted="waiter", has_lock=has_lock)
            stage.stop_before(scope_module, "commit")
            stage.stop_before(LeaseQueue, "release")
            stage.stop_before(Group, "settle")

            def work(tx: WriteTransaction) -> None:
                add(tx, "holder")
                stage.step("works")

            holder = stage.actor("holder", lambda: handle.transact(work))
            waiter = stage.actor(
                "waiter", lambda: handle.transact(adding("waiter"), delegable=delegable)
            )
            stage.play()

            holder.result()
            assert waiter.error is None or isinstance(waiter.error, KeyboardInterrupt)
            stored = keys(handle)
            assert stored >= ({"holder", "waiter"} if waiter.error is None else {"holder"})
            conditions.add((waiter.error is None, "waiter" in stored))
            assert (queue.holder, queue.waiting) == (0, 0)
            handle.transact(adding("next"))

    orders = every_order(story)
    # Not interrupted, as it did not wait; interrupted, and nothing is stored; delegable work may
    # have been done all the same.
    assert conditions == {(True, True), (False, False)} | ({(False, True)} if delegable else set())
    assert orders.having("holder works", "waiter interrupted", "holder release")
    assert orders.having("holder works", "holder release", "waiter interrupted")
    assert orders.having("holder settle", "waiter interrupted") or not delegable


class UndoError(Exception):
    """What a unit raises."""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("company", ["alone", "before it", "behind it"])
def test_ctrl_c_at_any_call_leaves_the_lease_free(
    fresh: Callable[[], Path], company: str, fails: bool
) -> None:
    """As above, at every place where Python would run a signal's handler.

    ::

        holder       (in its block) ─ ends ─ lease to the one who waits
        interrupted  comes ─ waits ─ woken ─ BEGIN ─ work ─ member's work ─ COMMIT ─ wakes it
                     Ctrl-C at each call of it
        member              waits .................................................. woken
    """
    with quick_pool() as pool, file_handle(pool.acquire(fresh())) as handle:
        queue, connection = handle.file.writer.queue, handle.file.writer.connection

        def store(key: str, fails: bool = False) -> None:
            def work(tx: WriteTransaction) -> None:
                add(tx, key)
                if fails:
                    raise UndoError

            handle.transact(work, "interrupted", delegable=True)

        def queued(thread: Thread, count: int) -> None:
            while queue.waiting < count and not thread.is_over:
                threading.Event().wait(0.0002)

        # Its statement is compiled once.
        store("first of all")
        for number in itertools.count():
            key, other = f"{number}", f"member {number}"
            holding = None if company == "alone" else Holding(handle.write)
            interrupted = Thread(lambda n=number, k=key: interrupted_at(n, lambda: store(k, fails)))
            member = None
            if holding is not None:
                queued(interrupted, 1)
                if company == "behind it":
                    before = queue.waiting
                    member = Thread(lambda k=other: store(k))
                    queued(member, before + 1)
                holding.let_go()
            error = interrupted.result()
            try:
                if member is not None:
                    member.result()
                    assert other in keys(handle)
            except (CommitOutcomeUnknownError, TransactionLostError):
                pass
            except BaseException as of_member:
                of_member.add_note(f"{number}: {error}")
                raise
            assert (queue.holder, queue.waiting) == (0, 0), error
            assert not connection.in_transaction(), error
            assert error is not None or key in keys(handle)
            if not isinstance(error, KeyboardInterrupt):
                assert isinstance(error, UndoError if fails else type(None))
                break
        print(f"\n{number} places")  # a result
        assert number > 40
        handle.transact(adding("next"))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", ["write", "read", "query", "fetch"])
def test_ctrl_c_at_any_call_of_a_scope_leaves_the_lease_free(
    fresh: Callable[[], Path], way: str
) -> None:
    """As above, for a block, a snapshot and a read."""
    with quick_pool() as pool, file_handle(pool.acquire(fresh())) as handle:
        keys(handle)
        connections = handle.file.leased_connections()

        def use(key: str) -> None:
            if way == "write":
                with handle.write() as tx:
                    add(tx, key)
            elif way == "read":
                with handle.read() as snapshot:
                    snapshot.rows(KEYS)
            else:
                getattr(handle, way)(lambda tx: tx.rows(KEYS))

        # Its statement is compiled once.
        use("first of all")
        for number in itertools.count():
            key = f"{number}"
            error = Thread(lambda n=number, k=key: interrupted_at(n, lambda: use(k))).result()
            assert [leased.queue.holder for leased in connections] == [0, 0], error
            assert not any(leased.connection.raw.in_transaction for leased in connections), error
            assert way != "write" or error is not None or key in keys(handle)
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
        assert number > 20
        handle.transact(adding("next"))
        assert handle.file.leased_connections() == connections


@pytest.mark.usefixtures("no_collector")
def test_ctrl_c_at_any_call_of_an_acquire_leaves_no_thread_waiting(tmp_path: Path) -> None:
    """The thread that opens the file is interrupted: the next one opens it, without a wait.

    ::

        interrupted  makes the slot ─ opens the file ─ open: who waits may look
                     Ctrl-C at each call of it
        next                                                waits? ─ looks ─ opens
    """
    with warnings.catch_warnings():
        # A handle that was made, and never came to anybody, says so when it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        for number in itertools.count():
            # Each in a folder of its own: an opening calls for every name that it finds there.
            path = tmp_path / f"{number}" / "db.sqlite"
            path.parent.mkdir()
            pool = quick_pool()
            taken: list[FileHandle] = []

            def take(
                pool: ConnectionPool = pool,
                path: Path = path,
                taken: list[FileHandle] = taken,
            ) -> None:
                taken.append(file_handle(pool.acquire(path)))

            error = Thread(lambda n=number, work=take: interrupted_at(n, work)).result()
            stuck = [slot for slot in pool._slots.values() if slot.state is SlotState.OPENING]
            for slot in stuck:
                # Or the pool's closing would wait for it.
                del pool._slots[slot.path]
            assert not stuck, error
            pool.acquire(path).release()
            for handle in taken:
                handle.release()
            pool.close()
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
    assert number > 100


@pytest.mark.parametrize(
    "moment", ["before it begins", "in its work", "stored, not notified", "notified, not woken"]
)
def test_an_await_that_is_cancelled_after_the_outcome_loses_nothing(
    fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """At each moment of a cancellation ``cancelled_call`` agrees with the stored rows.

    ::

        worker      begins ─ work ─ COMMIT ─ outcome kept ─ wakes the loop
        event loop                                          future done ─ task woken ─ returns
        cancel()   ↑        ↑                              ↑                   ↑
    """
    begun, may_go = threading.Event(), threading.Event()
    really_notify = calls_module.Call.notify

    def work(tx: Any) -> str:
        begun.set()
        if moment == "in its work":
            assert may_go.wait(PATIENCE)
        return str(tx.create_session("made").id)

    async def main() -> None:
        def notify(call: calls_module.Call[Any]) -> None:
            if moment == "stored, not notified" and call.operation == "transact":
                task.cancel()
            really_notify(call)
            if moment == "notified, not woken" and call.operation == "transact":
                task.cancel()

        monkeypatch.setattr(calls_module.Call, "notify", notify)
        with quick_pool() as pool:
            async with AsyncSessionManager(fresh(), pool=pool) as sessions:
                holding = None
                if moment == "before it begins":
                    holding = Holding(sessions.sync.transaction)
                task = asyncio.create_task(sessions.transact(work))
                if moment == "before it begins":
                    await asyncio.sleep(0)
                    task.cancel()
                elif moment == "in its work":
                    await asyncio.to_thread(begun.wait, PATIENCE)
                    task.cancel()
                    await asyncio.sleep(0)
                    may_go.set()
                with pytest.raises(asyncio.CancelledError) as raised:
                    await task
                if holding is not None:
                    holding.let_go()
                outcome = cancelled_call(raised.value)
                stored = [session.id for session in await sessions.list_sessions()]
                assert outcome is not None
                assert outcome.is_committed is (moment != "before it begins")
                assert stored == ([outcome.result] if outcome.is_committed else [])
                assert file_handle(sessions.sync.handle).file.writer.queue.holder == 0
                await sessions.create_session("next")

    asyncio.run(main(), debug=True)


# -- 6: an interrupt against the next lease -----------------------------------------------------


def test_an_interrupt_at_a_deadline_never_hits_the_next_holder(
    every_order: Play, fresh: Callable[[], Path]
) -> None:
    """A thread is made to give up its waiting at the moment when it stops to wait.

    ::

        holder   comes ─ BEGIN (may wait for other processes) ─ works ─ COMMIT
        giver    is it in the queue? ─ no; is it in BEGIN? ─ ends that
        next     waits ............................................... BEGIN ─ works ─ COMMIT
    """
    conditions = set()

    def story(stage: Stage) -> None:
        with quick_pool() as pool, file_handle(pool.acquire(fresh())) as handle:
            writer = handle.file.writer
            stage.watch_lock(Waiter, "wake")
            stage.stop_after(scope_module, "begin_immediate")
            stage.stop_after(LeaseQueue, "give_up")
            holder = stage.actor("holder", lambda: handle.transact(adding("holder")))
            following = stage.actor("next", lambda: handle.transact(adding("next")))
            giver = stage.actor("giver", lambda: writer.give_up(holder.ident))
            stage.play()

            giver.result()
            following.result()
            assert holder.error is None or isinstance(holder.error, DatabaseBusyError)
            conditions.add(getattr(holder.error, "phase", None))
            assert keys(handle) == ({"next"} if holder.error else {"next", "holder"})
            assert writer.queue.holder == 0

    orders = every_order(story)
    assert conditions >= {None, "queue"}
    assert orders.having("holder begin_immediate done", "giver give_up done")


def test_the_interrupt_of_a_closing_hits_the_holder_of_the_lease_and_no_later_one(
    every_order: Play, fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted thread learns that the pool is closed; the work of the others is stored.

    ::

        closer   no patience left ─ refuses who waits ─ interrupts ─ waits for the lease ─ closes
        holder   (in its block) ── another statement ── ends
        next     (in the queue) ........................... refused, or its turn
    """
    monkeypatch.setattr(closing_module, "_LAST_PATIENCE", PATIENCE)
    conditions = set()

    def story(stage: Stage) -> None:
        path = fresh()
        pool = quick_pool()
        handle = file_handle(pool.acquire(path))
        stage.watch_lock(Waiter, "wake")
        stage.stop_before(Connection, "cancel")

        def hold() -> None:
            with handle.write() as tx:
                add(tx, "holder")
                stage.step("in its block")
                add(tx, "holder too")

        holder = stage.actor("holder", hold)
        following = stage.actor("next", lambda: handle.transact(adding("next")))
        closer = stage.actor("closer", lambda: pool.close(timeout=0.0))
        stage.play()

        closer.result()
        for actor in (holder, following):
            assert actor.error is None or isinstance(actor.error, PoolClosedError)
        conditions.add((holder.error is None, following.error is None))
        handle.release()
        assert open_connections(path) == 0
        with quick_pool() as other, other.acquire(path) as again:
            stored = {"holder", "holder too"} if holder.error is None else set()
            assert keys(again) == stored | ({"next"} if following.error is None else set())

    orders = every_order(story)
    assert conditions >= {(True, True), (False, False), (True, False)}
    assert orders.having("holder in its block", "closer cancel")
    assert orders.having("closer cancel", "holder in its block")


# -- 7: fork while leased -----------------------------------------------------------------------

FORKS = """
import os, threading, warnings
from pathlib import Path
from sqlalchemy import insert, select
from mandrake_sessions import ConnectionPool, ForkedPoolError, PoolOptions, schema
from mandrake_sessions.database.leasing import writer
from mandrake_sessions.database.leasing.queue import LeaseQueue
from tools.generate.compiler import compiled
warnings.simplefilter("ignore")
KEYS = compiled(select(schema.meta.c.key))
path = Path(sys.argv[1])
pool = ConnectionPool(PoolOptions(linger=0))
handle = pool.acquire(path)
steps, may_go = [threading.Event() for _ in range(5)], [threading.Event() for _ in range(5)]
worker = None
def stop(number):
    if threading.current_thread() is worker:
        steps[number].set()
        may_go[number].wait()
def after(owner, name, number):
    real = getattr(owner, name)
    def stopping(*arguments, **options):
        result = real(*arguments, **options)
        stop(number)
        return result
    setattr(owner, name, stopping)
after(LeaseQueue, "acquire", 0)
after(writer, "begin_immediate", 1)
after(writer, "commit", 3)
after(LeaseQueue, "release", 4)
def work(tx):
    tx.run(compiled(insert(schema.meta).values(key="forked", value="")))
    stop(2)
worker = threading.Thread(target=lambda: handle.transact(work))
worker.start()
for number in range(5):
    steps[number].wait()
    pid = os.fork()
    if pid == 0:
        try:
            handle.fetch(lambda tx: tx.rows(KEYS))
            send("not refused")
        except ForkedPoolError:
            try:
                with pool.acquire(path) as mine:
                    send(["opened", ["forked"] in [list(row) for row in
                                     mine.query(lambda tx: tx.rows(KEYS))]])
            except ForkedPoolError:
                send(["refused"])
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    may_go[number].set()
worker.join()
rows = [row[0] for row in handle.fetch(lambda tx: tx.rows(KEYS))]
handle.transact(lambda tx: None)
handle.release()
pool.close()
send("forked" in rows)
"""


def test_a_child_works_that_is_forked_at_any_step_of_a_lease(
    fresh: Callable[[], Path], start_child: Callable[..., Any]
) -> None:
    """The child takes nothing from its parent and waits for no thread; the parent goes on.

    ::

        worker   lease ─ BEGIN ─ work ─ COMMIT ─ gives it back
        main          fork    fork   fork     fork           fork
    """
    path = fresh()
    child = start_child(FORKS, path)
    answers = [child.receive() for _ in range(5)]
    # In use at the fork: what SQLite knows of the file is the parent's. Afterwards it opens anew.
    assert answers == [["refused"]] * 4 + [["opened", True]]
    assert child.receive() is True
    child.finish()
    with quick_pool() as pool, pool.acquire(path) as handle:
        assert keys(handle) == {"forked"}


# -- 8: a checkpoint against a long reader ------------------------------------------------------


@pytest.mark.parametrize("is_foreign", [False, True])
def test_a_checkpoint_and_a_long_reader_do_not_harm_each_other(
    every_order: Play, fresh: Callable[[], Path], is_foreign: bool
) -> None:
    """The reader keeps its snapshot, the writer never waits for either, nothing is lost.

    ::

        reader       snapshot ............ reads again ─ ends
        writer       COMMIT ──── COMMIT
        checkpoint        copies what the reader lets it, or waits for the reader's connection
    """

    def story(stage: Stage) -> None:
        path = fresh()
        with quick_pool() as pool, file_handle(pool.acquire(path)) as handle:
            file = handle.file
            handle.transact(adding("before"))
            stage.watch_lock(Waiter, "wake")

            def read() -> None:
                if is_foreign:
                    # Of another program, as far as our queues know.
                    raw = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
                    raw.execute("BEGIN")
                    sql = "SELECT key FROM meta ORDER BY key"
                    first = raw.execute(sql).fetchall()
                    stage.step("reads again")
                    assert raw.execute(sql).fetchall() == first
                    raw.close()
                else:
                    with handle.read() as tx:
                        first = tx.rows(KEYS)
                        stage.step("reads again")
                        assert tx.rows(KEYS) == first

            def write() -> None:
                handle.transact(adding("a"))
                stage.step("commits")
                handle.transact(adding("b"))

            actors = [
                stage.actor("reader", read),
                stage.actor("writer", write),
                stage.actor("checkpoint", file.checkpoint),
            ]
            stage.play()

            for actor in actors:
                actor.result()
            assert keys(handle) == {"before", "a", "b"}
            file.checkpoint()
            assert file.checkpointer.failure is None
            frames, done = file.writer.connection.wal_backlog()
            assert frames == done

    orders = every_order(story)
    reading = orders.having("reader begin", "checkpoint begin", "reader reads again")
    assert reading
    assert [order for order in reading if "checkpoint woken" in order] or is_foreign


# -- 9: retire against a commit under way -------------------------------------------------------


def test_a_retirement_during_a_commit_loses_no_acknowledged_row(
    every_order: Play, fresh: Callable[[], Path], tmp_path: Path
) -> None:
    """Acknowledged rows are in the file that went away, and nothing is in the new one.

    ::

        writer   lease: is it our file? ─ BEGIN ─ work ─ COMMIT ─ lease back
        mover    the file is renamed ─ a reader sees it: retired ─ closed ─ a new one is opened
    """
    conditions = set()

    def story(stage: Stage) -> None:
        path = fresh()
        away = path.with_name(f"{path.name}.away")
        with quick_pool() as pool:
            handle = file_handle(pool.acquire(path))
            keys(handle)
            stage.watch_lock(Waiter, "wake")
            stage.stop_before(scope_module, "begin_immediate", "commit")
            stage.stop_after(scope_module, "commit")

            def work(tx: WriteTransaction) -> None:
                add(tx, "a")
                stage.step("in its work")

            def move() -> None:
                path.rename(away)
                stage.step("moved")
                # Closed by now, perhaps: the writer may have seen it first.
                with pytest.raises((DatabaseMovedError, PoolClosedError)):
                    keys(handle)

            writer = stage.actor("writer", lambda: handle.transact(work))
            mover = stage.actor("mover", move)
            stage.play()

            mover.result()
            refused = (DatabaseMovedError, PoolClosedError)
            assert writer.error is None or isinstance(writer.error, refused)
            conditions.add(writer.error is None)
            handle.release()
            with pool.acquire(path) as new:
                assert keys(new) == set()
        family = [each.name for each in tmp_path.iterdir() if each.name.startswith(path.name)]
        assert sorted(family) == [path.name, away.name]
        raw = apsw.Connection(str(away), flags=apsw.SQLITE_OPEN_READONLY)
        stored = raw.execute("SELECT count(*) FROM meta WHERE key = 'a'").get
        raw.close()
        assert stored == (writer.error is None)

    orders = every_order(story)
    assert conditions == {True, False}
    assert orders.having("writer commit", "mover moved", "writer commit done")


def test_a_handle_on_a_retired_file_says_so_also_after_it_is_closed(
    fresh: Callable[[], Path],
) -> None:
    """The error of a late caller says to open it again, not that the pool is closed: it is not."""
    path = fresh()
    with quick_pool() as pool, file_handle(pool.acquire(path)) as handle:
        path.rename(path.with_name("away"))
        for _ in range(2):
            with pytest.raises(DatabaseMovedError):
                handle.transact(adding("a"))
            while pool.stats().databases:
                threading.Event().wait(0.0005)


# -- 10: closing twice --------------------------------------------------------------------------


def test_two_threads_may_close_a_pool_at_once(
    every_order: Play, fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither fails; when both have returned everything is closed, once.

    ::

        first    takes the files ─ closes one ─ done
        second   nothing left to take: waits for the first, or finds it closed
    """
    living = Living(monkeypatch)

    def story(stage: Stage) -> None:
        path = fresh()
        pool = quick_pool(linger=3600.0)
        pool.acquire(path).release()
        slot = pool._slots[path]
        slot.changed = stage.event(slot.changed)
        stage.stop_before(DatabaseFile, "close")
        stage.stop_after(DatabaseFile, "close")
        actors = [stage.actor(name, pool.close) for name in ("first", "second")]
        stage.play()

        for actor in actors:
            actor.result()
        assert (pool.stats().closed, living.now, open_connections(path)) == (1, 0, 0)

    assert every_order(story).having("first close", "second begin", "first close done")


def test_two_threads_may_close_a_manager_at_once(
    every_order: Play, fresh: Callable[[], Path]
) -> None:
    """Its handle is given back once.

    ::

        first    takes the handle ─ leaves the hub ─ releases
        second   nothing left to take
    """

    def story(stage: Stage) -> None:
        path = fresh()
        with quick_pool() as pool, file_handle(pool.acquire(path)) as handle:
            manager = SessionManager(path, pool=pool).init()
            stage.stop_before(Hub, "leave")
            stage.stop_before(DatabaseHandle, "release")
            actors = [stage.actor(name, manager.close) for name in ("first", "second")]
            stage.play()

            for actor in actors:
                actor.result()
            assert pool.stats().handles == 1
            handle.transact(adding("a"))

    every_order(story)


def test_two_threads_may_release_a_handle_at_once(
    every_order: Play, fresh: Callable[[], Path]
) -> None:
    """One gives the handle back, the other gets an error that it was; each line is a step.

    ::

        first    released before? ─ no ─ released now ─ one handle less
        second   released before? ─ ... each of these between the first one's
    """

    def story(stage: Stage) -> None:
        path = fresh()
        with quick_pool() as pool, file_handle(pool.acquire(path)) as other:
            handle = pool.acquire(path)
            lines = (DatabaseHandle.release,)
            actors = [
                stage.actor(name, handle.release, lines_of=lines) for name in ("first", "second")
            ]
            stage.play()

            errors = sorted(type(actor.error).__name__ for actor in actors)
            assert errors == [HandleReleasedError.__name__, "NoneType"]
            assert pool.stats().handles == 1
            other.transact(adding("a"))

    every_order(story)


# -- and what else met ----------------------------------------------------------------------


def test_health_during_a_closing_is_a_report_or_a_typed_error(
    every_order: Play, fresh: Callable[[], Path]
) -> None:
    """A report, or a typed error; never one of SQLite's.

    ::

        closer   refuses ─ takes the lease ─ closes the connection ─ closed
        looker   looks at each fact in turn
    """

    def story(stage: Stage) -> None:
        path = fresh()
        pool = quick_pool()
        handle = pool.acquire(path)
        keys(handle)
        stage.watch_lock(Waiter, "wake")
        stage.stop_before(Connection, "close")
        stage.stop_before(LeaseQueue, "try_acquire")
        closer = stage.actor("closer", pool.close)
        looker = stage.actor("looker", handle.health)
        stage.play()

        closer.result()
        if looker.error is not None:
            assert isinstance(looker.error, MandrakeSessionsError), repr(looker.error)
        handle.release()
        assert open_connections(path) == 0

    every_order(story)


def test_a_host_may_be_closed_while_a_workspace_is_opened(
    every_order: Play, tmp_path: Path, ready_database: Any
) -> None:
    """Nothing stays open behind the closed host.

    ::

        closer   takes what is open ─ closes each
        getter   asks the registry ─ opens the workspace ─ keeps it
    """
    numbers = itertools.count()

    def story(stage: Stage) -> None:
        root = tmp_path / f"root {next(numbers)}"
        for folder in (root, root / "workspaces" / "w" / ".ws"):
            ready_database.lay(folder / "db.sqlite")
        with quick_pool() as pool:
            host = MandrakeManager(root, pool=pool).init()
            id = host.create_workspace("w").id
            assert id is not None
            host.close()
            host.init()
            stage.stop_before(SessionManager, "close", "init")
            closer = stage.actor("closer", host.close)
            getter = stage.actor("getter", lambda: host.get_workspace(id))
            stage.play()

            closer.result()
            assert getter.error is None or isinstance(getter.error, NotInitializedError)
            assert pool.stats().handles == 0

    every_order(story)


def test_a_group_whose_error_cannot_be_made_leaves_no_thread_asleep() -> None:
    """Each member is woken with the error; the thread that settles does not try without end."""

    def cannot(_waiter: Waiter) -> BaseException:
        raise ValueError("no such error")

    group = Group(10, 600.0)
    for _ in range(2):
        member = Waiter(Budget(PATIENCE), "member", lambda _tx: None)
        member.is_taken = True
        group.members.append(member)
    group.decide(cannot)
    Thread(group.settle).result()
    for member in group.members:
        member.wait_for_outcome()
        with pytest.raises(ValueError, match="no such error"):
            member.outcome()
