"""A timeout that a signal's handler raises is no answer of the system's.

Python's ``TimeoutError`` is an ``OSError``: taken for an answer, it said of a file that it
was moved or damaged. Here it comes at each question that a call asks the system.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Any

import pytest
from interleaving_kit import Thread
from kits.waiting import until
from sqlalchemy import bindparam, insert, select

from mandrake_sessions import ConnectionPool, HealthStatus, SessionManager, schema
from mandrake_sessions.database.files import creation
from mandrake_sessions.database.files.flock import try_lock
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.engine.transaction import WriteTransaction
from tools.generate.compiler import compiled

ADD = compiled(insert(schema.meta).values(key=bindparam("key"), value=""))
KEYS = compiled(select(schema.meta.c.key))

MOST = 4000
"""Questions of one call; a check of health asks about each descriptor of the process."""


class Late(Exception):  # noqa: N818  # as hosts name theirs
    """The timeout of a host that has its own."""


@contextmanager
def interrupted(at: int, kind: type[Exception]) -> Iterator[list[str]]:
    """Raise what a handler would raise at the ``at``-th question to the system."""
    asked: list[str] = []

    def look(_: FrameType, event: str, function: Any) -> None:
        # None comes between the end of a block and the call that closes what it used.
        is_question = event == "c_call" and function.__module__ in ("posix", "fcntl")
        if is_question and function is not os.close:
            asked.append(function.__name__)
            if len(asked) == at:
                raise kind("too late")

    sys.setprofile(look)
    try:
        yield asked
    finally:
        sys.setprofile(None)


def each_question(call: Callable[[], object], kind: type[Exception]) -> Iterator[str]:
    """Call with a timeout at each question; yield after each, with what was asked."""
    for at in range(1, MOST):
        asked: list[str] = []
        try:
            with interrupted(at, kind) as asked:
                call()
        except kind:
            pass
        if len(asked) < at:
            assert at > 1, "nothing was asked"
            return
        yield f"{asked[-1]} ({at})"
    pytest.fail("the call asks without end")


@pytest.mark.skipif(sys.platform == "win32", reason="the questions have other names there")
@pytest.mark.parametrize("kind", [TimeoutError, Late])
@pytest.mark.parametrize("name", ["create_session", "health", "backup", "list_sessions"])
def test_a_timeout_at_any_question_leaves_the_file_open_and_whole(
    ready_path: Path, pool: ConnectionPool, tmp_path: Path, name: str, kind: type[Exception]
) -> None:
    with SessionManager(ready_path, pool=pool) as sessions:

        def create() -> object:
            # The library asks whether the file has changed.
            os.utime(ready_path)
            return sessions.create_session()

        calls: dict[str, Callable[[], object]] = {
            "create_session": create,
            "health": sessions.health,
            "backup": lambda: sessions.backup(tmp_path / "copy.sqlite", overwrite=True),
            "list_sessions": sessions.list_sessions,
        }
        for question in each_question(calls[name], kind):
            assert sessions.create_session(question).title == question
        assert sessions.health().status is HealthStatus.OK
    assert not list(tmp_path.glob("*.of-moved-file-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGUSR1")
def test_a_timeout_in_work_for_another_thread_comes_to_the_caller_that_it_is_for(
    ready_path: Path, pool: ConnectionPool
) -> None:
    """
    ::

        main thread   its own unit ─ the other's unit: a handler raises ─ gets the error
        the other     waits ........................................... runs its unit itself
    """
    ran_in: list[int] = []
    me = get_ident()

    def refuse(*_: object) -> None:
        raise Late

    def other_unit(tx: WriteTransaction) -> str:
        ran_in.append(get_ident())
        tx.run(ADD, {"key": "other"})
        if get_ident() == me:
            signal.raise_signal(signal.SIGUSR1)
        return "done"

    with file_handle(pool.acquire(ready_path)) as handle:
        queue = handle.file.writer.queue
        others: list[Thread] = []

        def my_unit(tx: WriteTransaction) -> None:
            tx.run(ADD, {"key": "mine"})
            others.append(Thread(lambda: handle.transact(other_unit, "other", delegable=True)))
            until(lambda: queue.waiting)

        before = signal.signal(signal.SIGUSR1, refuse)
        try:
            with pytest.raises(Late):
                handle.transact(my_unit, "mine")
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert others[0].result() == "done"
        assert ran_in[0] == me
        assert me not in ran_in[1:]
        assert [
            key for (key,) in handle.fetch(lambda tx: tx.rows(KEYS)) if key in ("mine", "other")
        ] == ["other"]


@pytest.mark.skipif(sys.platform == "win32", reason="the questions have other names there")
def test_a_timeout_while_a_file_is_opened_comes_to_the_host_as_what_it_is(
    ready_path: Path, pool: ConnectionPool, tmp_path: Path
) -> None:
    def open_and_close() -> None:
        with SessionManager(ready_path, pool=pool) as sessions:
            sessions.count_sessions()

    for question in each_question(open_and_close, TimeoutError):
        with SessionManager(ready_path, pool=pool) as sessions:
            assert sessions.create_session(question).title == question
    assert not list(tmp_path.glob("*.of-moved-file-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGUSR1")
def test_a_timeout_while_another_process_makes_a_file_comes_to_the_host(
    tmp_path: Path, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    ::

        main thread      waits for the folder's lock ─ a handler raises ─ gets the error
        another process  has it ............................................
    """
    monkeypatch.setattr(creation, "PATIENCE", 600.0)
    me = get_ident()

    def refuse(*_: object) -> None:
        raise TimeoutError

    def is_waiting() -> bool:
        frame: FrameType | None = sys._current_frames()[me]
        while frame is not None and frame.f_code is not creation._lock.__code__:
            frame = frame.f_back
        return frame is not None

    def interrupt() -> None:
        until(is_waiting)
        signal.pthread_kill(me, signal.SIGUSR1)

    folder = os.open(tmp_path, os.O_RDONLY)
    assert try_lock(folder)
    before = signal.signal(signal.SIGUSR1, refuse)
    try:
        thread = Thread(interrupt)
        with pytest.raises(TimeoutError):
            SessionManager(tmp_path / "db.sqlite", pool=pool).init()
        thread.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(folder)
    assert os.listdir(tmp_path) == []
