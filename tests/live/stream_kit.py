"""Shared by the tests of streams: the flusher of a file, and a process that holds the lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw

from mandrake_sessions import SessionManager
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.streaming.flusher import Flusher
from mandrake_sessions.live.streaming.writer import TurnWriter

FOREIGN = """
import apsw
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READWRITE)
connection.set_busy_timeout(20000)
connection.execute("BEGIN IMMEDIATE")
send("held")
receive()
connection.execute("ROLLBACK")
connection.close()
send("gone")
"""
"""Holds the write lock until the test asks it to release it."""


@contextlib.contextmanager
def lock_held(start_child: Callable[..., Any], path: Path) -> Iterator[None]:
    """Have another process hold the write lock."""
    child = start_child(FOREIGN, path)
    assert child.receive() == "held"
    try:
        yield
    finally:
        child.send()
        assert child.receive() == "gone"


def flusher_of(sessions: SessionManager) -> Flusher:
    """Return the flusher of a manager's file."""
    return Hub.of(sessions.handle.file).flusher


def stream(sessions: SessionManager, response_id: str, **fields: Any) -> TurnWriter:
    """Begin a turn."""
    return sessions.stream_turn(response_id, **fields)


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Return what another reader of the file sees."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(5000)
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()
