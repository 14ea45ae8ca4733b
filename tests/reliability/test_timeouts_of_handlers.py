"""A timeout that a signal's handler raises is no answer of the system's.

Python's ``TimeoutError`` is an ``OSError``: taken for an answer, it said of a file that it
was moved or damaged. Here it comes at each question that a call asks the system.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mandrake_sessions import ConnectionPool, HealthStatus, SessionManager

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
        calls: dict[str, Callable[[], object]] = {
            "create_session": lambda: (os.utime(ready_path), sessions.create_session()),
            "health": sessions.health,
            "backup": lambda: sessions.backup(tmp_path / "copy.sqlite", overwrite=True),
            "list_sessions": sessions.list_sessions,
        }
        for question in each_question(calls[name], kind):
            assert sessions.create_session(question).title == question
        assert sessions.health().status is HealthStatus.OK
    assert not list(tmp_path.glob("*.of-moved-file-*"))


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
