"""The checkpointers of LangGraph: SqliteSaver and AsyncSqliteSaver.

An exchange is one ``put`` of a checkpoint that holds this exchange alone, so a conversation is the
list of its checkpoints. That is generous. A graph puts a checkpoint after every step, at least two
for an exchange, with ``put_writes`` between them, and each holds all messages so far; the messages
are plain dictionaries here, where LangChain's own are classes that take longer to store.

Both are made on a connection that the user opens, so it has ``synchronous`` by the durability and a
busy timeout of 30 s; WAL is the saver's own. SqliteSaver is used as its documentation says: one
saver on one connection with ``check_same_thread=False`` for all threads, behind the saver's lock.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from benchmarks.stores.store import (
    ANSWERED,
    ASKED,
    Append,
    AsyncAppend,
    AsyncRead,
    NotOffered,
    Read,
)
from mandrake_sessions import Durability

_SYNCHRONOUS = {Durability.FAST: "NORMAL", Durability.DURABLE: "FULL"}
_BUSY_SECONDS = 30
_MESSAGES = [
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": ANSWERED},
]
_METADATA = {"source": "loop", "step": 1, "parents": {}}
_REMARK = (
    "An append is one `put` of a checkpoint with the newest exchange alone: one row with one blob."
    " A graph puts several for an exchange, each with all messages so far."
)


class SqliteSaverStore:
    """SqliteSaver: one connection for all threads."""

    name: ClassVar[str] = "langgraph SqliteSaver"
    requires: ClassVar[tuple[str, ...]] = ("langgraph-checkpoint-sqlite",)
    is_async: ClassVar[Literal[False]] = False
    remark: ClassVar[str] = _REMARK

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "langgraph.db"
        self._synchronous = _SYNCHRONOUS[durability]

    def open(self) -> None:
        from langgraph.checkpoint.base import empty_checkpoint
        from langgraph.checkpoint.sqlite import SqliteSaver

        self._empty_checkpoint = empty_checkpoint
        self._connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, check_same_thread=False
        )
        self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        self._saver: Any = SqliteSaver(self._connection)
        self._saver.get_tuple(_config("none"))  # makes the tables

    def new_conversation(self) -> str:
        return str(uuid4())

    def appender(self, conversation: str) -> Append:
        put, empty_checkpoint = self._saver.put, self._empty_checkpoint
        config = _config(conversation)

        def append() -> str:
            nonlocal config
            # The config that comes back names the checkpoint: the parent of the next one.
            config = put(config, _filled(empty_checkpoint()), _METADATA, {})
            return str(config["configurable"]["checkpoint_id"])

        return append

    def reader(self, conversation: str) -> Read:
        config = _config(conversation)
        return lambda: len(list(self._saver.list(config)))

    def last_reader(self, conversation: str, last: int) -> Read:
        config = _config(conversation)
        return lambda: len(list(self._saver.list(config, limit=last)))

    def turn_reader(self, conversation: str) -> Read:
        config = self._saver.get_tuple(_config(conversation)).config
        return lambda: int(self._saver.get_tuple(config) is not None)

    def sessions_reader(self, limit: int) -> Read:
        raise NotOffered

    def fill(self, conversation: str, exchanges: int) -> None:
        append = self.appender(conversation)
        for _ in range(exchanges):
            append()

    def fill_sessions(self, sessions: int) -> None:
        raise NotOffered

    def rest(self) -> None:
        """Nothing goes on in the background."""

    def keys(self) -> set[str]:
        return _keys(self._path)

    def close(self) -> None:
        self._connection.close()


class AsyncSqliteSaverStore:
    """AsyncSqliteSaver: one aiosqlite connection, with a thread of its own, for all tasks."""

    name: ClassVar[str] = "langgraph AsyncSqliteSaver"
    requires: ClassVar[tuple[str, ...]] = ("langgraph-checkpoint-sqlite", "aiosqlite")
    is_async: ClassVar[Literal[True]] = True
    remark: ClassVar[str] = _REMARK

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "langgraph.db"
        self._synchronous = _SYNCHRONOUS[durability]

    async def open(self) -> None:
        import aiosqlite
        from langgraph.checkpoint.base import empty_checkpoint
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        self._empty_checkpoint = empty_checkpoint
        self._connection = await aiosqlite.connect(self._path, timeout=_BUSY_SECONDS)
        await self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        self._saver: Any = AsyncSqliteSaver(self._connection)
        await self._saver.aget_tuple(_config("none"))  # makes the tables

    async def new_conversation(self) -> str:
        return str(uuid4())

    async def appender(self, conversation: str) -> AsyncAppend:
        aput, empty_checkpoint = self._saver.aput, self._empty_checkpoint
        config = _config(conversation)

        async def append() -> str:
            nonlocal config
            config = await aput(config, _filled(empty_checkpoint()), _METADATA, {})
            return str(config["configurable"]["checkpoint_id"])

        return append

    async def reader(self, conversation: str) -> AsyncRead:
        config = _config(conversation)

        async def read() -> int:
            return len([each async for each in self._saver.alist(config)])

        return read

    async def last_reader(self, conversation: str, last: int) -> AsyncRead:
        config = _config(conversation)

        async def read() -> int:
            return len([each async for each in self._saver.alist(config, limit=last)])

        return read

    async def turn_reader(self, conversation: str) -> AsyncRead:
        newest = await self._saver.aget_tuple(_config(conversation))
        config = newest.config

        async def read() -> int:
            return int(await self._saver.aget_tuple(config) is not None)

        return read

    async def sessions_reader(self, limit: int) -> AsyncRead:
        raise NotOffered

    async def fill(self, conversation: str, exchanges: int) -> None:
        append = await self.appender(conversation)
        for _ in range(exchanges):
            await append()

    async def fill_sessions(self, sessions: int) -> None:
        raise NotOffered

    async def rest(self) -> None:
        """Nothing goes on in the background."""

    async def keys(self) -> set[str]:
        return _keys(self._path)

    async def close(self) -> None:
        await self._connection.close()


def _config(conversation: str) -> Any:
    return {"configurable": {"thread_id": conversation, "checkpoint_ns": ""}}


def _filled(checkpoint: Any) -> Any:
    checkpoint["channel_values"] = {"messages": _MESSAGES}
    return checkpoint


def _keys(path: Path) -> set[str]:
    # Both texts stand in the blob as they are: MessagePack, UTF-8.
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT checkpoint_id FROM checkpoints"
            " WHERE instr(checkpoint, ?) AND instr(checkpoint, ?)",
            (ASKED.encode(), ANSWERED.encode()),
        )
        return {key for (key,) in rows}
