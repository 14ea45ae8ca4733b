"""Bare APSW with the statements of this library: the limit for comparisons.

It is as fast as possible: one cursor for each connection, APSW's statement cache, ids from one
clock and one random number for each append, no check of any argument, no typed result, no deadline.
It shares with this library what determines the cost of the file: the schema (the migrated file),
the pragmas, and the checkpoints: PASSIVE above the same number of frames, TRUNCATE above the same
size, on a second connection in a thread, so that neither pays for them in its COMMIT. With
``autocheckpoint`` it leaves them to SQLite, inside the COMMIT, which is SQLite's default: without
another thread, and with a WAL that begins anew and stays small, where fsyncs are cheaper. Either
can be faster, so this library is compared with the faster one.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from time import time_ns
from typing import Any, ClassVar, Literal

import apsw

from benchmarks.stores.mandrake import MandrakeStore, round_keys
from benchmarks.stores.store import Append, Read
from benchmarks.stores.tokens import TOKEN, TOKENS_OF_A_TURN
from benchmarks.trace import Script, Step, Traced, trace_append, trace_reading, trace_update
from mandrake_sessions import DatabaseOptions, Durability
from mandrake_sessions.database.connection.settings import pragmas

_BUSY_MILLISECONDS = 30_000
_TRUNCATE_MILLISECONDS = 100
_FRAME_BYTES = 4096 + 24


class BareStore:
    """Bare APSW on a file with the library's schema, a connection for each thread.

    Attributes:
        is_shared: whether one connection behind a ``threading.Lock`` is used by all threads.
        autocheckpoint: whether checkpoints are left to SQLite.
    """

    name: ClassVar[str] = "bare APSW"
    requires: ClassVar[tuple[str, ...]] = ("apsw",)
    is_async: ClassVar[Literal[False]] = False
    remark: ClassVar[str] = (
        "The statements that a trace of mandrake_sessions recorded, on our schema with our pragmas;"
        " no argument is checked, no record made, no queue kept. A connection for each thread;"
        " checkpoints on a connection of their own, in a thread."
    )
    is_shared: ClassVar[bool] = False
    autocheckpoint: ClassVar[bool] = False

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._folder = folder
        self._durability = durability
        self._options = DatabaseOptions(durability=durability)
        self._path = folder / "db.sqlite"
        self._connections: list[apsw.Connection] = []
        self._writers: dict[threading.Thread, apsw.Connection] = {}
        self._checkpoints: _Checkpoints | None = None
        self._shared: apsw.Connection | None = None
        self._maker: MandrakeStore | None = None
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        self._reading: apsw.Connection | None = None

    def open(self) -> None:
        if not self._path.exists():
            self._ours()
            self._let_go()
        # At head, as the library ensures when it opens; and the WAL stays while threads come.
        self._connect().execute("SELECT version_num FROM alembic_version").fetchall()

    def _ours(self) -> MandrakeStore:
        """Return the library on the file: to make it, to fill it, to trace its reads."""
        if self._maker is None:
            self._maker = MandrakeStore(self._folder, self._durability)
            self._maker.open()
        return self._maker

    def _let_go(self) -> None:
        """Close the library before anything is measured."""
        if self._maker is not None:
            self._maker.close()
            self._maker = None

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connections.append(connection)
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        for name, wanted in pragmas(self._options, auxiliary=False).items():
            connection.pragma(name, wanted)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        return connection

    def _writer(self) -> apsw.Connection:
        """Return this thread's connection, or the shared one, warm."""
        with self._lock:
            self._let_go()
            if self._shared is not None:
                return self._shared
            thread = threading.current_thread()
            if thread not in self._writers:
                self._writers[thread] = connection = self._connect()
                if self.autocheckpoint:
                    connection.pragma("wal_autocheckpoint", self._options.checkpoint_frames)
                else:
                    if self._checkpoints is None:
                        self._checkpoints = _Checkpoints(self._connect(), self._options)
                    connection.set_wal_hook(self._checkpoints.note)
                if self.is_shared:
                    self._shared = connection
            return self._writers[thread]

    def new_conversation(self) -> str:
        return self._ours().new_conversation()

    def appender(self, conversation: str) -> Append:
        append = _appender(self._writer(), conversation)
        if not self.is_shared:
            return append
        lock = self._turn

        def append_locked() -> str:
            with lock:
                return append()

        return append_locked

    def updater(self, conversation: str) -> Append:
        """Return a function that appends a token to a streaming turn, and returns the turn."""
        turns = iter(self._new_turns(conversation))
        script = trace_update()
        run = _runner(self._writer(), script)
        response, turn = next(turns)
        text = ""

        def update() -> str:
            nonlocal response, turn, text
            if len(text) == TOKENS_OF_A_TURN * len(TOKEN):
                response, turn = next(turns)
                text = ""
            text += TOKEN
            run(script.constants, (response, turn, text, time_ns() // 1000))
            return turn

        return update

    def _new_turns(self, conversation: str) -> list[tuple[str, str]]:
        """Return more streaming turns than a piece will fill."""
        with self._ours().sessions.transaction() as tx:
            made = [tx.create_round(conversation, "").response.id for _ in range(500)]
            return [(response, tx.create_turn(response).id) for response in made]

    def reader(self, conversation: str) -> Read:
        return self._replay(lambda ours: ours.reader(conversation))

    def last_reader(self, conversation: str, last: int) -> Read:
        return self._replay(lambda ours: ours.last_reader(conversation, last))

    def turn_reader(self, conversation: str) -> Read:
        return self._replay(lambda ours: ours.turn_reader(conversation))

    def sessions_reader(self, limit: int) -> Read:
        return self._replay(lambda ours: ours.sessions_reader(limit))

    def _replay(self, reader: Callable[[MandrakeStore], Read]) -> Read:
        """Return a function that runs the statements of one read, and fetches and counts rows."""
        ours = self._ours()
        statements: Traced = trace_reading(ours, reader(ours))
        self._let_go()
        self._reading = self._reading or self._connect()
        execute = self._reading.cursor().execute

        def read() -> int:
            most = 0
            for sql, bindings in statements:
                most = max(most, len(execute(sql, bindings).fetchall()))
            return most

        return read

    def fill(self, conversation: str, exchanges: int) -> None:
        self._ours().fill(conversation, exchanges)

    def fill_sessions(self, sessions: int) -> None:
        self._ours().fill_sessions(sessions)

    def rest(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.run()

    def keys(self) -> set[str]:
        return round_keys(self._path)

    def close(self) -> None:
        self._let_go()
        if self._checkpoints is not None:
            self._checkpoints.stop()
        for connection in self._connections:
            connection.close()


class BareAutocheckpoint(BareStore):
    """SQLite's own checkpoints, inside the COMMIT."""

    name: ClassVar[str] = "bare APSW, autocheckpoint"
    remark: ClassVar[str] = "The same, with SQLite's own checkpoints inside the COMMIT."
    autocheckpoint: ClassVar[bool] = True


class BareLocked(BareStore):
    """One connection for all threads."""

    name: ClassVar[str] = "bare APSW, one connection"
    remark: ClassVar[str] = "The same, with one connection for all threads and a lock around it."
    is_shared: ClassVar[bool] = True


class BareLockedAutocheckpoint(BareLocked):
    """One connection for all threads, and SQLite's own checkpoints."""

    name: ClassVar[str] = "bare APSW, one connection, autocheckpoint"
    remark: ClassVar[str] = "Both."
    autocheckpoint: ClassVar[bool] = True


_Inserts = list[tuple[str, Callable[[tuple[Any, ...]], tuple[Any, ...]] | None, bool]]


def _unpacked(steps: tuple[Step, ...]) -> _Inserts:
    return [(step.sql, step.bind, step.returns) for step in steps]


def _runner(connection: apsw.Connection, script: Script) -> Callable[..., None]:
    execute = connection.cursor().execute
    begin, commit, steps = script.begin, script.commit, _unpacked(script.steps)

    def run(constants: tuple[Any, ...], variables: tuple[Any, ...]) -> None:
        values = (*constants, *variables)
        execute(begin)
        try:
            for sql, pick, returns in steps:
                cursor = execute(sql, pick(values) if pick is not None else None)
                if returns:
                    cursor.fetchall()
            execute(commit)
        except BaseException:
            if connection.in_transaction:
                execute("ROLLBACK")
            raise

    return run


def _appender(connection: apsw.Connection, conversation: str) -> Append:
    script = trace_append()
    execute = connection.cursor().execute
    begin, commit, constants = script.begin, script.commit, script.constants
    take_index, pick_index = script.steps[0].sql, script.steps[0].bind
    assert pick_index is not None
    inserts = _unpacked(script.steps[1:])

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
    """Makes checkpoints in another thread, by the library's rule."""

    def __init__(self, connection: apsw.Connection, options: DatabaseOptions) -> None:
        self.connection = connection
        self.connection.set_busy_timeout(_TRUNCATE_MILLISECONDS)
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
        frames = self._noted
        # Busy: another process makes one.
        with self._one_at_a_time, contextlib.suppress(apsw.BusyError):
            frames, _ = self.connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
            if frames * _FRAME_BYTES > self._limit_bytes:
                frames, _ = self.connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
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
