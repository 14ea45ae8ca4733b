"""The session services of Google's ADK: SqliteSessionService and DatabaseSessionService.

An exchange is two events, one of the user and one of the model, each stored by ``append_event`` as
the Runner does, on a session object that is kept: the Runner reads the whole session anew for every
question, because the services refuse a session that is older than the file. ``get_session`` reads,
with ``num_recent_events`` for the last ones. There are no pages of sessions: ``list_sessions``
gives all there are.

DatabaseSessionService takes what ``create_async_engine`` takes, and its engine is public, so it has
WAL, ``synchronous`` by the durability and a busy timeout of 30 s. SqliteSessionService takes a path
and connects anew for each call: SQLite's rollback journal and FULL, 5 s, at either durability.

Neither has a call that stores many at once, so ``fill`` appends one exchange and copies its rows,
each a second older than the one before.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from benchmarks.stores.store import ANSWERED, ASKED, AsyncAppend, AsyncRead, NotOffered
from mandrake_sessions import Durability

_SYNCHRONOUS = {Durability.FAST: "NORMAL", Durability.DURABLE: "FULL"}
_BUSY_SECONDS = 30
_EVENTS = 2  # of an exchange
_OWNER = {"app_name": "benchmark", "user_id": "user"}
_REMARK = (
    "An exchange is two events, each an `append_event` with a COMMIT of its own, on a session that"
    " is kept between them, where its Runner reads the session anew for each question."
)


class _Service:
    """Both services; they differ in how they are made."""

    requires: ClassVar[tuple[str, ...]]
    is_async: ClassVar[Literal[True]] = True

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "adk.db"
        self._synchronous = _SYNCHRONOUS[durability]
        self._sessions: dict[str, Any] = {}

    async def _make(self) -> Any:
        """Return the service, its tables made."""
        raise NotImplementedError

    def _stamp(self, seconds: float) -> float | str:
        """Return a time as it stands in the file."""
        raise NotImplementedError

    async def open(self) -> None:
        from google.adk.events import Event
        from google.adk.sessions.base_session_service import GetSessionConfig
        from google.genai.types import Content, Part

        self._event, self._content, self._part = Event, Content, Part
        self._config = GetSessionConfig
        self._service = await self._make()

    async def new_conversation(self) -> str:
        session = await self._service.create_session(**_OWNER)
        self._sessions[session.id] = session
        return str(session.id)

    async def _session(self, conversation: str) -> Any:
        if conversation not in self._sessions:
            self._sessions[conversation] = await self._service.get_session(
                **_OWNER, session_id=conversation
            )
        return self._sessions[conversation]

    def _message(self, invocation: str, author: str, role: str, text: str) -> Any:
        content = self._content(role=role, parts=[self._part(text=text)])
        return self._event(invocation_id=invocation, author=author, content=content)

    async def appender(self, conversation: str) -> AsyncAppend:
        session = await self._session(conversation)
        append_event, message = self._service.append_event, self._message

        async def append() -> str:
            invocation = f"e-{uuid4()}"  # as the Runner makes them
            await append_event(session, message(invocation, "user", "user", ASKED))
            await append_event(session, message(invocation, "agent", "model", ANSWERED))
            return invocation

        return append

    async def reader(self, conversation: str) -> AsyncRead:
        return self._reader(conversation, None)

    async def last_reader(self, conversation: str, last: int) -> AsyncRead:
        return self._reader(conversation, self._config(num_recent_events=last * _EVENTS))

    def _reader(self, conversation: str, config: Any) -> AsyncRead:
        get_session = self._service.get_session

        async def read() -> int:
            session = await get_session(**_OWNER, session_id=conversation, config=config)
            return len(session.events) // _EVENTS

        return read

    async def turn_reader(self, conversation: str) -> AsyncRead:
        raise NotOffered

    async def sessions_reader(self, limit: int) -> AsyncRead:
        raise NotOffered

    async def fill(self, conversation: str, exchanges: int) -> None:
        append = await self.appender(conversation)
        invocation = await append()
        del self._sessions[conversation]  # it would be older than the file
        with closing(sqlite3.connect(self._path)) as connection:
            connection.row_factory = sqlite3.Row
            originals = [
                dict(row)
                for row in connection.execute(
                    "SELECT * FROM events WHERE invocation_id = ?", (invocation,)
                )
            ]
            values = ", ".join(f":{column}" for column in originals[0])
            for age in range(1, exchanges):
                copied = f"e-{uuid4()}"
                connection.executemany(
                    f"INSERT INTO events VALUES ({values})",
                    [self._copied(original, copied, -age) for original in originals],
                )
            connection.commit()

    def _copied(self, original: dict[str, Any], invocation: str, seconds: float) -> dict[str, Any]:
        """Return an event's row as one of another exchange, moved in time."""
        data = json.loads(original["event_data"])
        timestamp = data["timestamp"] + seconds
        data |= {"id": str(uuid4()), "invocation_id": invocation, "timestamp": timestamp}
        return {
            **original,
            "id": data["id"],
            "invocation_id": invocation,
            "timestamp": self._stamp(timestamp),
            "event_data": json.dumps(data),
        }

    async def fill_sessions(self, sessions: int) -> None:
        raise NotOffered

    async def rest(self) -> None:
        """Nothing goes on in the background."""

    async def keys(self) -> set[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            rows = connection.execute(
                "SELECT invocation_id FROM events GROUP BY invocation_id"
                " HAVING max(instr(event_data, ?)) AND max(instr(event_data, ?))",
                (ASKED, ANSWERED),
            )
            return {key for (key,) in rows}

    async def close(self) -> None:
        await self._service.close()


class AdkSqliteStore(_Service):
    """SqliteSessionService: aiosqlite, a connection for each call."""

    name: ClassVar[str] = "google-adk SqliteSessionService"
    requires: ClassVar[tuple[str, ...]] = ("google-adk", "aiosqlite")
    remark: ClassVar[str] = (
        f"{_REMARK} It takes a path and no setting: a connection for each call, SQLite's rollback"
        " journal and `synchronous` FULL in both columns, a busy timeout of 5 s."
    )

    async def _make(self) -> Any:
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        service: Any = SqliteSessionService(str(self._path))
        await service.get_session(**_OWNER, session_id="none")  # makes the tables
        return service

    def _stamp(self, seconds: float) -> float:
        return seconds


class AdkDatabaseStore(_Service):
    """DatabaseSessionService: SQLAlchemy's asyncio engine on aiosqlite."""

    name: ClassVar[str] = "google-adk DatabaseSessionService"
    requires: ClassVar[tuple[str, ...]] = ("google-adk", "sqlalchemy", "aiosqlite", "greenlet")
    remark: ClassVar[str] = (
        f"{_REMARK} Its engine is given WAL, `synchronous` and a busy timeout of 30 s; out of the"
        " box it runs with SQLite's rollback journal."
    )

    async def _make(self) -> Any:
        from google.adk.sessions import DatabaseSessionService
        from sqlalchemy import event

        service = DatabaseSessionService(
            f"sqlite+aiosqlite:///{self._path}", connect_args={"timeout": _BUSY_SECONDS}
        )
        event.listen(service.db_engine.sync_engine, "connect", self._on_connect)
        await service.prepare_tables()
        return service

    def _stamp(self, seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")

    def _on_connect(self, connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {self._synchronous}")
        cursor.close()
