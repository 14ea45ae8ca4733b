"""The sessions of the OpenAI Agents SDK: SQLiteSession and AdvancedSQLiteSession.

As its documentation shows: one session object for each conversation, kept, and ``add_items`` with
the question and the answer. One call for both, so one COMMIT: its Runner makes two, one when the
question comes and one with the answer. ``get_items`` reads, with a ``limit`` for the last ones.
The messages are plain dictionaries, as in the documentation; the Runner's have more keys.

The methods are coroutines that run SQLite in the event loop's threads, behind one lock for each
file. Neither class lets its user set a pragma: WAL, and SQLite's own ``synchronous``, FULL.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from benchmarks.stores.store import (
    ANSWERED,
    AsyncAppend,
    AsyncRead,
    NotOffered,
    asked,
    new_key,
)
from mandrake_sessions import Durability

_MESSAGES = 2  # of an exchange
_REMARK = (
    "A question and its answer are stored by one `add_items`, where the SDK's own Runner makes two"
    " calls. It has no setting for the journal or `synchronous`: WAL and FULL in both columns."
)


class _Sessions:
    """Both classes; they differ in how a session is made."""

    requires: ClassVar[tuple[str, ...]] = ("openai-agents",)
    is_async: ClassVar[Literal[True]] = True

    def __init__(self, folder: Path, _durability: Durability) -> None:
        self._path = folder / "openai.db"
        self._sessions: dict[str, Any] = {}

    def _make(self, conversation: str) -> Any:
        """Return a new session object for a conversation."""
        raise NotImplementedError

    async def open(self) -> None:
        # A session makes the file, and no one else's appends wait for its tables then.
        self._session(str(uuid4()))

    def _session(self, conversation: str) -> Any:
        if conversation not in self._sessions:
            self._sessions[conversation] = self._make(conversation)
        return self._sessions[conversation]

    async def new_conversation(self) -> str:
        conversation = str(uuid4())
        self._session(conversation)
        return conversation

    async def appender(self, conversation: str) -> AsyncAppend:
        add_items = self._session(conversation).add_items

        async def append() -> str:
            key = new_key()
            await add_items(_exchange(key))
            return key

        return append

    async def reader(self, conversation: str) -> AsyncRead:
        get_items = self._session(conversation).get_items

        async def read() -> int:
            return len(await get_items()) // _MESSAGES

        return read

    async def last_reader(self, conversation: str, last: int) -> AsyncRead:
        get_items = self._session(conversation).get_items

        async def read() -> int:
            return len(await get_items(limit=last * _MESSAGES)) // _MESSAGES

        return read

    async def turn_reader(self, conversation: str) -> AsyncRead:
        raise NotOffered

    async def sessions_reader(self, limit: int) -> AsyncRead:
        raise NotOffered

    async def fill(self, conversation: str, exchanges: int) -> None:
        items = [item for _ in range(exchanges) for item in _exchange(new_key())]
        await self._session(conversation).add_items(items)

    async def fill_sessions(self, sessions: int) -> None:
        raise NotOffered

    async def rest(self) -> None:
        """Nothing goes on in the background."""

    async def keys(self) -> set[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            rows = connection.execute(
                "SELECT session_id, message_data FROM agent_messages ORDER BY session_id, id"
            ).fetchall()
        messages = [(session_id, json.loads(text)) for session_id, text in rows]
        found = set()
        for (one, question), (other, answer) in pairwise(messages):
            key = str(question["content"]).partition(" ")[0]
            if one == other and [question, answer] == _exchange(key):
                found.add(key)
        return found

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()


class OpenAISQLiteStore(_Sessions):
    """SQLiteSession, the one that its documentation begins with."""

    name: ClassVar[str] = "openai-agents SQLiteSession"
    remark: ClassVar[str] = _REMARK

    async def open(self) -> None:
        from agents import SQLiteSession, set_tracing_disabled

        set_tracing_disabled(True)  # or it sends what it did to its maker
        self._make_session = SQLiteSession
        await super().open()

    def _make(self, conversation: str) -> Any:
        return self._make_session(conversation, self._path)


class OpenAIAdvancedStore(_Sessions):
    """AdvancedSQLiteSession, which adds branches and the structure of a conversation."""

    name: ClassVar[str] = "openai-agents AdvancedSQLiteSession"
    remark: ClassVar[str] = _REMARK

    async def open(self) -> None:
        from agents import set_tracing_disabled
        from agents.extensions.memory import AdvancedSQLiteSession

        set_tracing_disabled(True)
        self._make_session = AdvancedSQLiteSession
        await super().open()

    def _make(self, conversation: str) -> Any:
        return self._make_session(session_id=conversation, db_path=self._path, create_tables=True)


def _exchange(key: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": asked(key)},
        {"role": "assistant", "content": ANSWERED},
    ]
