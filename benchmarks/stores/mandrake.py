"""Ours, as its users call it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import ClassVar, Literal

import apsw

from benchmarks.stores.store import ANSWERED, ASKED, Append, AsyncAppend, AsyncRead, Read, new_key
from benchmarks.stores.tokens import TOKEN, TOKENS_OF_A_TURN
from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    DatabaseStats,
    Durability,
    MandrakeManager,
    NewTurn,
    PoolOptions,
    SessionManager,
    default_pool,
)
from mandrake_sessions.aio import AsyncSessionManager

_FILLED_AT_ONCE = 500
_LONGEST_LINGER = 5.0


class MandrakeStore:
    """A SessionManager with the options it has by default, but for the durability.

    Attributes:
        sessions: the manager, open after ``open()``.
    """

    name: ClassVar[str] = "mandrake_sessions"
    requires: ClassVar[tuple[str, ...]] = ()
    is_async: ClassVar[Literal[False]] = False
    remark: ClassVar[str] = ""

    def __init__(self, folder: Path, durability: Durability) -> None:
        self.path = folder / "db.sqlite"
        # Without lingering, so that a close has closed when it returns.
        self._pool = self.pool()
        options = DatabaseOptions(durability=durability)
        self.sessions = SessionManager(self.path, pool=self._pool, options=options)

    @staticmethod
    def pool() -> ConnectionPool:
        return ConnectionPool(PoolOptions(linger=0))

    def open(self) -> None:
        self.sessions.init()

    def new_conversation(self) -> str:
        return self.sessions.create_session().id

    def appender(self, conversation: str) -> Append:
        record_round = self.sessions.record_round

        def append() -> str:
            return record_round(conversation, ASKED, [NewTurn(content=ANSWERED)]).id

        return append

    def updater(self, conversation: str) -> Append:
        """Return what lengthens a streaming turn by a token, and says which turn."""
        update_turn, new_turn = self.sessions.update_turn, self._new_turn
        turn = new_turn(conversation)
        text = ""

        def update() -> str:
            nonlocal turn, text
            if len(text) == TOKENS_OF_A_TURN * len(TOKEN):
                turn, text = new_turn(conversation), ""
            text += TOKEN
            update_turn(turn, content=text)
            return turn

        return update

    def streamer(self, conversation: str, tokens: int) -> Read:
        """Return what streams a whole turn of so many tokens."""
        stream_turn, create_round = self.sessions.stream_turn, self.sessions.create_round

        def stream() -> int:
            with stream_turn(create_round(conversation, ASKED).response.id) as turn:
                write = turn.write
                for _ in range(tokens):
                    write(TOKEN)
            return tokens

        return stream

    @classmethod
    @contextlib.contextmanager
    def workspace_maker(cls, folder: Path, durability: Durability) -> Iterator[Append]:
        """Give what makes a workspace of a system in the folder; they stay open until the end."""
        options = DatabaseOptions(durability=durability)
        with cls.pool() as pool, MandrakeManager(folder, pool=pool, options=options) as host:
            create_workspace = host.create_workspace
            yield lambda: str(create_workspace(new_key()).path)

    def _new_turn(self, conversation: str) -> str:
        response = self.sessions.create_round(conversation, ASKED).response.id
        return self.sessions.create_turn(response).id

    def reader(self, conversation: str) -> Read:
        render = self.sessions.render_session_history
        return lambda: len(render(conversation).rounds)

    def last_reader(self, conversation: str, last: int) -> Read:
        render = self.sessions.render_session_history
        return lambda: len(render(conversation, last=last).rounds)

    def turn_reader(self, conversation: str) -> Read:
        get_turn = self.sessions.get_turn
        last = self.sessions.render_session_history(conversation, last=1).rounds[0].turns[-1].id
        return lambda: int(get_turn(last).id == last)

    def sessions_reader(self, limit: int) -> Read:
        list_sessions = self.sessions.list_sessions
        return lambda: len(list_sessions(limit=limit))

    def fill(self, conversation: str, exchanges: int) -> None:
        while exchanges > 0:
            with self.sessions.transaction() as tx:
                for _ in range(min(exchanges, _FILLED_AT_ONCE)):
                    tx.record_round(conversation, ASKED, [NewTurn(content=ANSWERED)])
            exchanges -= _FILLED_AT_ONCE

    def fill_sessions(self, sessions: int) -> None:
        while sessions > 0:
            with self.sessions.transaction() as tx:
                for _ in range(min(sessions, _FILLED_AT_ONCE)):
                    tx.create_session()
            sessions -= _FILLED_AT_ONCE

    def rest(self) -> None:
        self.sessions.handle._file.checkpoint()

    def keys(self) -> set[str]:
        return round_keys(self.path)

    def figures(self) -> dict[str, float]:
        """Return how many units shared a COMMIT since it was opened."""
        return shared_commits(self.sessions.stats())

    def connections(self) -> list[apsw.Connection]:
        """Return the APSW connections underneath, for tracing."""
        return [leased.connection.raw for leased in self.sessions.handle._file.leased_connections()]

    def close(self) -> None:
        self.sessions.close()
        self._pool.close()


class MandrakePublicStore(MandrakeStore):
    """By public names alone, which another version of the library has too.

    Each piece has files of its own, so there is nothing that has to rest before another one.
    """

    def rest(self) -> None:
        pass


class MandrakeHostStore(MandrakeStore):
    """A SessionManager on the process's own pool, where a file lingers open for a second."""

    @staticmethod
    def pool() -> ConnectionPool:
        return default_pool()

    def close(self) -> None:
        self.sessions.close()

    @staticmethod
    def settle() -> None:
        """Wait until no file lingers, so that the next store is measured alone."""
        until = monotonic() + _LONGEST_LINGER
        while default_pool().stats().idle and monotonic() < until:
            sleep(0.01)


class MandrakeAsyncStore:
    """An AsyncSessionManager with the options it has by default, but for the durability."""

    name: ClassVar[str] = "mandrake_sessions.aio"
    requires: ClassVar[tuple[str, ...]] = ()
    is_async: ClassVar[Literal[True]] = True
    remark: ClassVar[str] = ""

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "db.sqlite"
        self._pool = ConnectionPool(PoolOptions(linger=0))
        options = DatabaseOptions(durability=durability)
        self._sessions = AsyncSessionManager(self._path, pool=self._pool, options=options)

    async def open(self) -> None:
        await self._sessions.init()

    async def new_conversation(self) -> str:
        return (await self._sessions.create_session()).id

    async def appender(self, conversation: str) -> AsyncAppend:
        record_round = self._sessions.record_round

        async def append() -> str:
            return (await record_round(conversation, ASKED, [NewTurn(content=ANSWERED)])).id

        return append

    async def reader(self, conversation: str) -> AsyncRead:
        render = self._sessions.render_session_history

        async def read() -> int:
            return len((await render(conversation)).rounds)

        return read

    async def last_reader(self, conversation: str, last: int) -> AsyncRead:
        render = self._sessions.render_session_history

        async def read() -> int:
            return len((await render(conversation, last=last)).rounds)

        return read

    async def turn_reader(self, conversation: str) -> AsyncRead:
        get_turn = self._sessions.get_turn
        history = await self._sessions.render_session_history(conversation, last=1)
        last = history.rounds[0].turns[-1].id

        async def read() -> int:
            return int((await get_turn(last)).id == last)

        return read

    async def sessions_reader(self, limit: int) -> AsyncRead:
        list_sessions = self._sessions.list_sessions

        async def read() -> int:
            return len(await list_sessions(limit=limit))

        return read

    async def fill(self, conversation: str, exchanges: int) -> None:
        append = await self.appender(conversation)
        for _ in range(exchanges):
            await append()

    async def fill_sessions(self, sessions: int) -> None:
        for _ in range(sessions):
            await self._sessions.create_session()

    async def rest(self) -> None:
        self._sessions.sync.handle._file.checkpoint()

    async def keys(self) -> set[str]:
        return round_keys(self._path)

    def figures(self) -> dict[str, float]:
        """Return how many units shared a COMMIT since it was opened."""
        return shared_commits(self._sessions.sync.stats())

    async def close(self) -> None:
        await self._sessions.close()
        self._pool.close()


def shared_commits(stats: DatabaseStats) -> dict[str, float]:
    """Return how many units shared a COMMIT, if they did."""
    if stats.units <= stats.commits:
        return {}
    return {"units per COMMIT": stats.units / stats.commits}


def round_keys(path: Path) -> set[str]:
    """Return the ids of the rounds that are whole: with their request, response and turn."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        rows = connection.execute(
            "SELECT rounds.id FROM rounds JOIN requests ON requests.round_id = rounds.id"
            " JOIN responses ON responses.round_id = rounds.id"
            " JOIN turns ON turns.response_id = responses.id"
            " WHERE requests.content = ? AND turns.content = ?",
            (ASKED, ANSWERED),
        ).fetchall()
    finally:
        connection.close()
    return {str(row[0]) for row in rows}
