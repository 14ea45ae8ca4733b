"""Bare APSW running the statements of ours: the limit that ours is measured against.

It is as fast as we could make it: one cursor for each connection, APSW's statement cache, ids
from one clock and one random number for each append, no check of any argument, no typed result,
no deadline. What it shares with ours is what decides over the file: the schema (our migrated
file), the pragmas, and how checkpoints are made: PASSIVE above the same number of frames, TRUNCATE
above the same size, on a second connection in a thread, so that neither pays for them in its
COMMIT. With ``autocheckpoint`` it leaves them to SQLite, inside the COMMIT, as it is out of the
box: no thread beside it, and a WAL that begins anew and stays small, where fsyncs are cheaper.
Either can be the faster one, so ours is held against the one that is.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from time import time_ns
from typing import Any

import apsw

from benchmarks.stores.mandrake import MandrakeStore, round_keys
from benchmarks.stores.store import Append, Read
from benchmarks.trace import AppendScript, Traced
from mandrake_sessions.database.connection import pragmas
from mandrake_sessions.options import DatabaseOptions, Durability

_BUSY_MILLISECONDS = 30_000
_TRUNCATE_MILLISECONDS = 100
_FRAME_BYTES = 4096 + 24


class BareStore:
    """Bare APSW on a file of our schema.

    Args:
        folder: where the file is made.
        durability: decides over ``synchronous``.
        script: what an append runs.
        history: what reading a conversation runs, the parameters included.
        shared: one connection behind a ``threading.Lock``; otherwise one for each thread.
        autocheckpoint: leave checkpoints to SQLite.
    """

    def __init__(
        self,
        folder: Path,
        durability: Durability,
        *,
        script: AppendScript | None = None,
        history: Traced | None = None,
        shared: bool = False,
        autocheckpoint: bool = False,
    ) -> None:
        self.name = "bare APSW"
        if shared:
            self.name += ", one connection and a lock"
        if autocheckpoint:
            self.name += ", SQLite's autocheckpoint"
        self._folder = folder
        self._durability = durability
        self._options = DatabaseOptions(durability=durability)
        maker = MandrakeStore(folder, durability)
        self._path = maker.path
        maker.close()
        self._script = script
        self._history = history
        self._connections: list[apsw.Connection] = []
        # Open as long as we are, so that threads may come and go and the WAL stays.
        keeper = self._connect()
        self._checkpoints = None if autocheckpoint else _Checkpoints(keeper, self._options)
        self._shared = self._connect(for_writing=True) if shared else None
        self._lock = threading.Lock()

    def _connect(self, *, for_writing: bool = False) -> apsw.Connection:
        connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connections.append(connection)
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        for name, wanted in pragmas(self._options, auxiliary=False).items():
            connection.pragma(name, wanted)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        if for_writing and self._checkpoints is not None:
            connection.set_wal_hook(self._checkpoints.note)
        elif for_writing:
            connection.pragma("wal_autocheckpoint", self._options.checkpoint_frames)
        return connection

    def new_conversation(self) -> str:
        maker = MandrakeStore(self._folder, self._durability)
        try:
            return maker.new_conversation()
        finally:
            maker.close()

    def appender(self, conversation: str) -> Append:
        assert self._script is not None
        connection = self._shared or self._connect(for_writing=True)
        append = _appender(connection, self._script, conversation)
        if self._shared is None:
            return append
        lock = self._lock

        def append_locked() -> str:
            with lock:
                return append()

        return append_locked

    def reader(self, conversation: str) -> Read:
        execute = (self._shared or self._connect()).cursor().execute
        history = self._history
        assert history is not None

        def read() -> int:
            most = 0
            for sql, bindings in history:
                most = max(most, len(execute(sql, bindings).fetchall()))
            return most

        return read

    def rest(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.run()

    def keys(self) -> set[str]:
        return round_keys(self._path)

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.stop()
        for connection in self._connections:
            connection.close()


def _appender(connection: apsw.Connection, script: AppendScript, conversation: str) -> Append:
    execute = connection.cursor().execute
    begin, commit, constants = script.begin, script.commit, script.constants
    take_index, pick_index = script.take_index.sql, script.take_index.bind
    assert pick_index is not None
    inserts: list[tuple[str, Callable[[tuple[Any, ...]], tuple[Any, ...]] | None, bool]]
    inserts = [(step.sql, step.bind, step.returns) for step in script.inserts]

    def append() -> str:
        ids = _new_ids(4)
        moment = time_ns() // 1000
        execute(begin)
        try:
            values = (*constants, conversation, *ids, moment, 0)
            next_index: Any = execute(take_index, pick_index(values)).fetchall()[0][0]
            values = (*constants, conversation, *ids, moment, next_index - 1)
            for sql, pick, returns in inserts:
                cursor = execute(sql, pick(values) if pick is not None else None)
                if returns:
                    cursor.fetchall()
            execute(commit)
        except BaseException:
            if connection.in_transaction:
                execute("ROLLBACK")
            raise
        return ids[0]

    return append


def _new_ids(count: int) -> list[str]:
    """Return ids of the shape of UUIDv7, from one clock and one random number."""
    milliseconds = time_ns() // 1_000_000
    head = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7"
    tail = f"-8{random.getrandbits(60):015x}"
    tail = f"{tail[:5]}-{tail[5:]}"
    return [f"{head}{number:03x}{tail}" for number in range(count)]


class _Checkpoints:
    """Makes checkpoints in a thread of its own, by the rule of ours."""

    def __init__(self, connection: apsw.Connection, options: DatabaseOptions) -> None:
        self._connection = connection
        self._connection.set_busy_timeout(_TRUNCATE_MILLISECONDS)
        self._frames = options.checkpoint_frames
        self._limit_bytes = options.wal_limit_bytes
        self._ask_above: float = self._frames
        self._noted = 0
        self._wanted = threading.Semaphore(0)
        self._one_at_a_time = threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def note(self, _connection: apsw.Connection, _schema: str, frames: int) -> int:
        if frames < self._noted:
            self._ask_above = self._frames
        self._noted = frames
        if frames >= self._ask_above:
            self._ask_above = math.inf
            self._wanted.release()
        return apsw.SQLITE_OK

    def run(self) -> None:
        with self._one_at_a_time:
            frames, _ = self._connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
            if frames * _FRAME_BYTES > self._limit_bytes:
                with contextlib.suppress(apsw.BusyError):
                    frames, _ = self._connection.wal_checkpoint(
                        "main", apsw.SQLITE_CHECKPOINT_TRUNCATE
                    )
        self._ask_above = frames + self._frames

    def stop(self) -> None:
        self._is_stopping = True
        self._wanted.release()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._wanted.acquire()
            if self._is_stopping:
                return
            self.run()
