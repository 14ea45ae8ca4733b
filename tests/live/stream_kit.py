"""Shared by the tests of streams: the flusher of a file, and the rows that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw

from mandrake_sessions import SessionManager
from mandrake_sessions.database.pool.file_handle import file_handle
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.streaming.flusher import Flusher
from mandrake_sessions.live.streaming.writer import TurnWriter


def flusher_of(sessions: SessionManager) -> Flusher:
    """Return the flusher of a manager's file."""
    return Hub.of(file_handle(sessions.handle).file).flusher


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
