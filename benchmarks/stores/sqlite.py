"""Python's own sqlite3, tuned: the code that a careful person writes for five tables.

WAL, ``synchronous`` by the durability, a busy timeout of 30 s, ``BEGIN IMMEDIATE``, foreign keys, a
connection for each thread, one script of prepared statements, ids that grow with time so that an
insert goes to the end of its index. The tables have the columns, keys and indexes of this library,
without the checks. A conversation is read by one join, in one snapshot, into named tuples.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from time import time_ns
from typing import Any, ClassVar, Literal, NamedTuple

from benchmarks.stores.store import ANSWERED, ASKED, Append, Read
from mandrake_sessions import Durability

_SYNCHRONOUS = {Durability.FAST: "NORMAL", Durability.DURABLE: "FULL"}
_BUSY_SECONDS = 30

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY NOT NULL,
    title TEXT,
    description TEXT,
    metadata TEXT NOT NULL,
    next_round_index INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS ix_sessions_updated_at_id ON sessions (updated_at, id);
CREATE TABLE IF NOT EXISTS rounds (
    id TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    "index" INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (session_id, "index")
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY NOT NULL,
    round_id TEXT NOT NULL UNIQUE REFERENCES rounds (id) ON DELETE CASCADE,
    content TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY NOT NULL,
    round_id TEXT NOT NULL UNIQUE REFERENCES rounds (id) ON DELETE CASCADE,
    next_turn_index INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY NOT NULL,
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    "index" INTEGER NOT NULL,
    status TEXT NOT NULL,
    owner TEXT,
    stream_started_at INTEGER NOT NULL,
    stream_ended_at INTEGER,
    current_tokens INTEGER NOT NULL,
    expected_tokens INTEGER,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER,
    cache_write_tokens INTEGER,
    input_cost REAL NOT NULL,
    output_cost REAL NOT NULL,
    model TEXT,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    error_message TEXT,
    tool_calls TEXT NOT NULL,
    content TEXT NOT NULL,
    raw_response TEXT NOT NULL,
    UNIQUE (response_id, "index")
) STRICT;
"""

_ADD_SESSION = "INSERT INTO sessions VALUES (?, NULL, NULL, '{}', 0, 0, ?, ?)"
_TAKE_INDEX = (
    "UPDATE sessions SET next_round_index = next_round_index + 1, updated_at = ?"
    " WHERE id = ? RETURNING next_round_index - 1"
)
_ADD_ROUND = "INSERT INTO rounds VALUES (?, ?, ?, ?, ?)"
_ADD_REQUEST = "INSERT INTO requests VALUES (?, ?, ?, ?, ?)"
_ADD_RESPONSE = "INSERT INTO responses VALUES (?, ?, 1, ?, ?)"
_ADD_TURN = (
    "INSERT INTO turns VALUES"
    " (?, ?, 0, 'completed', NULL, ?, ?, 0, NULL, 0, 0, NULL, NULL, 0, 0, NULL, 0, ?, ?, NULL,"
    " '[]', ?, '')"
)

_ROUND = (
    'rounds.id, rounds."index", rounds.created_at, rounds.updated_at, requests.id,'
    " requests.content, requests.created_at, requests.updated_at, responses.id,"
    " responses.created_at, responses.updated_at"
)
_TURN = (
    'turns.id, turns."index", turns.status, turns.stream_started_at, turns.stream_ended_at,'
    " turns.current_tokens, turns.expected_tokens, turns.input_tokens, turns.output_tokens,"
    " turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, turns.output_cost,"
    " turns.model, turns.revision, turns.created_at, turns.updated_at, turns.error_message,"
    " turns.tool_calls, turns.content, turns.raw_response"
)
_ROUND_COLUMNS = _ROUND.count(",") + 1
_READ = (
    f"SELECT {_ROUND}, {_TURN} FROM rounds"
    " JOIN requests ON requests.round_id = rounds.id"
    " JOIN responses ON responses.round_id = rounds.id"
    " LEFT JOIN turns ON turns.response_id = responses.id"
)
_IN_ORDER = ' ORDER BY rounds."index", turns."index"'
_READ_ALL = f"{_READ} WHERE rounds.session_id = ?{_IN_ORDER}"
# Numbers have no gaps here, as nothing is deleted; by ORDER BY … DESC LIMIT it would be a subquery.
_READ_LAST = (
    f'{_READ} WHERE rounds.session_id = ?1 AND rounds."index" >='
    f" (SELECT next_round_index FROM sessions WHERE id = ?1) - ?2{_IN_ORDER}"
)
_READ_TURN = f"SELECT {_TURN} FROM turns WHERE id = ?"
_LAST_TURN = (
    "SELECT turns.id FROM rounds JOIN responses ON responses.round_id = rounds.id"
    " JOIN turns ON turns.response_id = responses.id WHERE rounds.session_id = ?"
    ' ORDER BY rounds."index" DESC, turns."index" DESC LIMIT 1'
)
_READ_SESSIONS = (
    "SELECT id, title, description, metadata, next_round_index, revision, created_at, updated_at"
    " FROM sessions ORDER BY updated_at DESC, id DESC LIMIT ?"
)
_WHOLE = (
    "SELECT rounds.id FROM rounds JOIN requests ON requests.round_id = rounds.id"
    " JOIN responses ON responses.round_id = rounds.id"
    " JOIN turns ON turns.response_id = responses.id"
    " WHERE requests.content = ? AND turns.content = ?"
)


class Session(NamedTuple):
    """One conversation."""

    id: str
    title: str | None
    description: str | None
    metadata: str
    next_round_index: int
    revision: int
    created_at: int
    updated_at: int


class Turn(NamedTuple):
    """One part of an answer."""

    id: str
    number: int
    status: str
    stream_started_at: int
    stream_ended_at: int | None
    current_tokens: int
    expected_tokens: int | None
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    input_cost: float
    output_cost: float
    model: str | None
    revision: int
    created_at: int
    updated_at: int
    error_message: str | None
    tool_calls: str
    content: str
    raw_response: str


class Round(NamedTuple):
    """A question and its answer."""

    id: str
    number: int
    created_at: int
    updated_at: int
    request_id: str
    asked: str
    request_created_at: int
    request_updated_at: int
    response_id: str
    response_created_at: int
    response_updated_at: int
    turns: list[Turn]


class SqliteStore:
    """Five tables, written by hand for the standard sqlite3."""

    name: ClassVar[str] = "sqlite3, tuned, a connection per thread"
    requires: ClassVar[tuple[str, ...]] = ()
    is_async: ClassVar[Literal[False]] = False
    remark: ClassVar[str] = (
        "The standard library's sqlite3 with five tables like ours, WAL, BEGIN IMMEDIATE, a busy"
        " timeout of 30 s and a connection for each thread; no queue is kept."
    )

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "sqlite.db"
        self._synchronous = _SYNCHRONOUS[durability]
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}

    def open(self) -> None:
        # Of the worker's main thread: open all the time, so that the WAL stays between threads.
        self._connection().executescript(_SCHEMA)

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection, and close those of threads that have ended."""
        thread = threading.current_thread()
        with self._lock:
            if thread not in self._connections:
                for ended in [each for each in self._connections if not each.is_alive()]:
                    self._connections.pop(ended).close()
                self._connections[thread] = self._connect()
            return self._connections[thread]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -16384")
        return connection

    def new_conversation(self) -> str:
        session_id, moment = _new_id(), _now()
        self._connection().execute(_ADD_SESSION, (session_id, moment, moment))
        return session_id

    def appender(self, conversation: str) -> Append:
        execute = self._connection().cursor().execute

        def append() -> str:
            execute("BEGIN IMMEDIATE")
            try:
                key = _add_exchange(execute, conversation)
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise
            return key

        return append

    def reader(self, conversation: str) -> Read:
        execute = self._connection().cursor().execute
        return lambda: len(_rounds(execute(_READ_ALL, (conversation,)).fetchall()))

    def last_reader(self, conversation: str, last: int) -> Read:
        execute = self._connection().cursor().execute
        return lambda: len(_rounds(execute(_READ_LAST, (conversation, last)).fetchall()))

    def turn_reader(self, conversation: str) -> Read:
        execute = self._connection().cursor().execute
        (turn_id,) = execute(_LAST_TURN, (conversation,)).fetchone()
        return lambda: int(bool(Turn._make(execute(_READ_TURN, (turn_id,)).fetchone())))

    def sessions_reader(self, limit: int) -> Read:
        execute = self._connection().cursor().execute
        return lambda: len(list(map(Session._make, execute(_READ_SESSIONS, (limit,)))))

    def fill(self, conversation: str, exchanges: int) -> None:
        execute = self._connection().execute
        execute("BEGIN IMMEDIATE")
        for _ in range(exchanges):
            _add_exchange(execute, conversation)
        execute("COMMIT")

    def fill_sessions(self, sessions: int) -> None:
        connection = self._connection()
        rows = [(_new_id(), moment, moment) for moment in (_now() for _ in range(sessions))]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_ADD_SESSION, rows)
        connection.execute("COMMIT")

    def rest(self) -> None:
        """Nothing goes on in the background."""

    def keys(self) -> set[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            return {key for (key,) in connection.execute(_WHOLE, (ASKED, ANSWERED))}

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


def _add_exchange(execute: Any, conversation: str) -> str:
    moment = _now()
    round_id, request_id, response_id, turn_id = _new_id(), _new_id(), _new_id(), _new_id()
    ((index,),) = execute(_TAKE_INDEX, (moment, conversation)).fetchall()
    execute(_ADD_ROUND, (round_id, conversation, index, moment, moment))
    execute(_ADD_REQUEST, (request_id, round_id, ASKED, moment, moment))
    execute(_ADD_RESPONSE, (response_id, round_id, moment, moment))
    execute(_ADD_TURN, (turn_id, response_id, moment, moment, moment, moment, ANSWERED))
    return round_id


def _rounds(rows: list[tuple[Any, ...]]) -> list[Round]:
    found: list[Round] = []
    for row in rows:
        if not found or found[-1].id != row[0]:
            found.append(Round._make((*row[:_ROUND_COLUMNS], [])))
        turn = row[_ROUND_COLUMNS:]
        if turn[0] is not None:
            found[-1].turns.append(Turn._make(turn))
    return found


def _now() -> int:
    return time_ns() // 1000


def _new_id() -> str:
    return f"{time_ns():016x}{random.getrandbits(64):016x}"
