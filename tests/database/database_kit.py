"""What the tests of the database layer share: small statements, threads, a failing disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

import apsw
import pytest
from kits.waiting import PATIENCE, until, until_set
from sqlalchemy import func, insert, literal, select

from mandrake_sessions import DatabaseBusyError, ids, schema
from mandrake_sessions.database.leasing.queue import LeaseQueue
from mandrake_sessions.database.open_file.file import DatabaseFile
from mandrake_sessions.database.pool.file_handle import FileHandle
from mandrake_sessions.engine.statement import Statement
from mandrake_sessions.engine.transaction import WriteTransaction
from tools.generate.compiler import compiled

T = TypeVar("T")

_counter = select(literal(1).label("n")).cte("counter", recursive=True)
_counter = _counter.union_all(select(_counter.c.n + 1).where(_counter.c.n < 10**9))
ENDLESS = compiled(select(func.count()).select_from(_counter))
"""A SELECT that runs for minutes."""


def endless_insert() -> Statement:
    """Return an INSERT that runs for minutes."""
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < 10**9))
    rows = select(func.hex(func.randomblob(8)), literal("x")).select_from(numbers)
    return compiled(insert(schema.meta).from_select(["key", "value"], rows))


def file_of(handle: FileHandle) -> DatabaseFile:
    """Return the open file behind a handle."""
    return handle._file


def queue_of(handle: FileHandle) -> LeaseQueue:
    """Return the queue in front of the read-write connection."""
    return handle._file.writer.queue


def raw_of(handle: FileHandle) -> apsw.Connection:
    """Return the read-write connection itself."""
    return handle._file.writer.connection.raw


def new_key() -> str:
    """Return a key that no other thread has."""
    return ids.new_id()


class Task(Generic[T]):
    """A function in a thread of its own, with its result."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: T | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001  # the one who asks gets it
            self.error = error

    @property
    def is_over(self) -> bool:
        """Whether it has returned or raised."""
        return not self.thread.is_alive()

    def join(self) -> None:
        """Wait for its end."""
        self.thread.join(PATIENCE)
        assert self.is_over, "the thread hangs"

    def result(self) -> T:
        """Wait for its end; return what it returned or raise what it raised."""
        self.join()
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]  # T itself may be None


def ends_in_time(
    call: Callable[[], object],
    seconds: float,
    *,
    slack: float = 0.1,
    error: type[BaseException] = DatabaseBusyError,
) -> list[Any]:
    """Make a call that must end with an error after so many seconds, never sooner.

    What is measured is the shortest of several calls: a machine under load makes some of them late,
    a fault makes all of them late.

    Returns:
        The errors, that of the call that was in time last.
    """
    errors = []
    until = monotonic() + PATIENCE
    while monotonic() < until:
        began = monotonic()
        with pytest.raises(error) as caught:
            call()
        took = monotonic() - began
        errors.append(caught.value)
        assert took >= seconds
        if isinstance(caught.value, DatabaseBusyError):
            assert seconds <= caught.value.waited <= took
        if took < seconds + slack:
            return errors
    pytest.fail(f"it took {took:.3f} s instead of {seconds} s, the last of {len(errors)} times")


def queued(handle: FileHandle, count: int) -> None:
    """Wait until ``count`` threads are in the writers' queue."""
    until(lambda: queue_of(handle).waiting == count)


class Held:
    """A lease on the writer held by a thread of its own until ``let_go``.

    Args:
        handle: whose database.
        work: what it does first; None for nothing.
        kind: ``write`` for a block, ``unit`` for a unit that others may join.
        after: what it does once it is let go.
    """

    def __init__(
        self,
        handle: FileHandle,
        work: Callable[[WriteTransaction], Any] | None = None,
        kind: str = "write",
        after: Callable[[WriteTransaction], Any] | None = None,
    ) -> None:
        self._has_it = threading.Event()
        self._may_go = threading.Event()

        def unit(tx: WriteTransaction) -> Any:
            found = work(tx) if work is not None else None
            if not self._may_go.is_set():
                self._has_it.set()
            until_set(self._may_go)
            return found if after is None else after(tx)

        def block() -> Any:
            with handle.write() as tx:
                return unit(tx)

        def shared() -> Any:
            return handle.transact(unit, "held", delegable=True)

        self.task = Task(block if kind == "write" else shared)
        until(lambda: self._has_it.is_set() or self.task.is_over)

    def let_go(self) -> None:
        """Let the unit end."""
        self._may_go.set()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self.task.join()
