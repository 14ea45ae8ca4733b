"""The pool's one thread: nothing that a task or a signal does ends it for good."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from time import monotonic
from types import FrameType
from typing import NoReturn

import pytest
import structlog
from kits.waiting import PATIENCE, SOON, until, until_set

from mandrake_sessions.concurrency import threads
from mandrake_sessions.database.maintenance import Maintenance

NAME = "test-maintenance"


@pytest.fixture
def maintenance() -> Iterator[Maintenance]:
    maintenance = Maintenance(NAME)
    yield maintenance
    maintenance.stop(1.0)


@pytest.fixture
def unwritable_log() -> Iterator[list[str]]:
    """The events that were logged, though they could not be written."""
    tried: list[str] = []

    def fail(_logger: object, _level: str, fields: structlog.typing.EventDict) -> NoReturn:
        tried.append(fields["event"])
        raise BrokenPipeError

    before = structlog.get_config()
    structlog.configure(processors=[fail])
    yield tried
    structlog.configure(**before)


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def run(maintenance: Maintenance, key: str) -> None:
    """Have a task run, and wait for it."""
    over = threading.Event()
    maintenance.call_later(key, 0.0, over.set)
    until_set(over)


def fail() -> NoReturn:
    raise ZeroDivisionError


def test_a_task_that_raises_harms_no_other_though_it_cannot_be_logged(
    maintenance: Maintenance, unwritable_log: list[str]
) -> None:
    maintenance.call_later("fails", 0.0, fail)
    until(lambda: unwritable_log)
    run(maintenance, "next")
    assert unwritable_log == ["maintenance_failed"]
    assert len(running()) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_started_again_and_does_the_waiting_tasks(
    maintenance: Maintenance,
) -> None:
    may_end, waited = threading.Event(), threading.Event()

    def end_thread() -> NoReturn:
        until_set(may_end)
        # It is no Exception.
        raise SystemExit

    maintenance.call_later("waits", 0.05, waited.set)
    maintenance.call_later("ends", 0.0, end_thread)
    may_end.set()
    until(lambda: not running())
    run(maintenance, "next")
    until_set(waited)


def test_ctrl_c_while_the_thread_starts_leaves_one_thread(
    maintenance: Maintenance,
) -> None:
    """
    ::

        interrupted   starts a thread ─ waits for its beginning: Ctrl-C
        the thread                     └─ begins ............................ the only one
        the next task                                 is there one? ─ no ─┘
    """

    waits = itertools.count()

    def look(frame: FrameType, event: str, what: object) -> None:
        is_wait = event == "c_call" and getattr(what, "__name__", "") == "acquire"
        # It takes the lock twice, the second time to wait until the other one has released it.
        if is_wait and frame.f_code is threads._start_elsewhere.__code__ and next(waits):
            sys.setprofile(None)
            raise KeyboardInterrupt

    ran = threading.Event()
    sys.setprofile(look)
    try:
        with pytest.raises(KeyboardInterrupt):
            maintenance.call_later("first", 0.0, ran.set)
    finally:
        sys.setprofile(None)
    # It was queued, and the thread was made.
    until_set(ran)
    run(maintenance, "second")
    run(maintenance, "third")
    assert len(running()) == 1
    began = monotonic()
    maintenance.stop(PATIENCE)
    assert monotonic() - began < SOON
    assert not running()
