"""The SqliteDb of Agno.

An exchange is one ``upsert_run`` of a run with its two messages and its place in the session: what
an agent does at the end of a run, but for the session's own row, which the agent writes first, with
a COMMIT of its own, so this is generous. ``get_session`` reads, with ``runs_limit`` for the last
ones; it keeps the objects it made and makes only those anew whose text has changed.

It takes an engine of SQLAlchemy's: WAL is its own, ``synchronous`` is set by the durability and the
busy timeout to 30 s, in the engine's public events and arguments.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from time import time
from typing import Any, ClassVar, Literal
from uuid import uuid4

from benchmarks.stores.store import ANSWERED, ASKED, Append, Read
from mandrake_sessions import Durability

_SYNCHRONOUS = {Durability.FAST: "NORMAL", Durability.DURABLE: "FULL"}
_BUSY_SECONDS = 30
_CONNECTIONS = 16
_AGENT = "benchmark"
_BATCH = 1000


class AgnoStore:
    """SqliteDb: SQLAlchemy's Core, a connection from its pool for each call."""

    name: ClassVar[str] = "agno SqliteDb"
    requires: ClassVar[tuple[str, ...]] = ("agno", "sqlalchemy")
    is_async: ClassVar[Literal[False]] = False
    remark: ClassVar[str] = (
        "An append is one `upsert_run`; an agent writes the session's row too, with a COMMIT of its"
        " own. A history is read from its cache of objects, and only new rows from the file."
    )

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "agno.db"
        self._synchronous = _SYNCHRONOUS[durability]

    def open(self) -> None:
        from agno.db.base import SessionType
        from agno.db.sqlite import SqliteDb
        from agno.db.utils import json_serializer
        from agno.models.message import Message
        from agno.run.agent import RunOutput
        from agno.run.base import RunStatus
        from agno.session import AgentSession
        from sqlalchemy import create_engine, event

        self._run, self._message, self._completed = RunOutput, Message, RunStatus.completed
        self._session, self._agent_sessions = AgentSession, SessionType.AGENT
        engine = create_engine(
            f"sqlite:///{self._path}",
            pool_size=_CONNECTIONS,
            connect_args={"timeout": _BUSY_SECONDS},
            json_serializer=json_serializer,
        )
        event.listen(engine, "connect", self._on_connect)
        self._db: Any = SqliteDb(db_engine=engine)
        # It opens the file and makes its tables when they are needed first.
        if not self._db.table_exists(self._db.runs_table_name):
            self.appender(self.new_conversation())()

    def _on_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")

    def new_conversation(self) -> str:
        session = self._new_session()
        self._db.upsert_session(session)
        return str(session.session_id)

    def _new_session(self) -> Any:
        return self._session(session_id=str(uuid4()), agent_id=_AGENT, created_at=int(time()))

    def appender(self, conversation: str) -> Append:
        place = self._runs(conversation)
        upsert_run = self._db.upsert_run

        def append() -> str:
            nonlocal place
            run = self._exchange(conversation)
            upsert_run(run, conversation, run_index=place)
            place += 1
            return str(run.run_id)

        return append

    def _exchange(self, conversation: str) -> Any:
        message = self._message
        return self._run(
            run_id=str(uuid4()),
            agent_id=_AGENT,
            session_id=conversation,
            messages=[
                message(role="user", content=ASKED),
                message(role="assistant", content=ANSWERED),
            ],
            status=self._completed,
        )

    def _runs(self, conversation: str, **limit: int) -> int:
        session = self._db.get_session(conversation, self._agent_sessions, **limit)
        return len(session.runs or ())

    def reader(self, conversation: str) -> Read:
        return lambda: self._runs(conversation)

    def last_reader(self, conversation: str, last: int) -> Read:
        return lambda: self._runs(conversation, runs_limit=last)

    def turn_reader(self, conversation: str) -> Read:
        newest = self._db.get_session(conversation, self._agent_sessions, runs_limit=1).runs[0]
        return lambda: int(self._db.get_run(newest.run_id) is not None)

    def sessions_reader(self, limit: int) -> Read:
        return lambda: len(
            self._db.get_sessions(
                self._agent_sessions,
                limit=limit,
                page=1,
                sort_by="updated_at",
                sort_order="desc",
                include_runs=False,
            )
        )

    def fill(self, conversation: str, exchanges: int) -> None:
        append = self.appender(conversation)
        for _ in range(exchanges):
            append()

    def fill_sessions(self, sessions: int) -> None:
        for start in range(0, sessions, _BATCH):
            count = min(_BATCH, sessions - start)
            self._db.upsert_sessions([self._new_session() for _ in range(count)], deserialize=False)

    def rest(self) -> None:
        """Nothing goes on in the background."""

    def keys(self) -> set[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            rows = connection.execute(
                "SELECT run_id FROM agno_runs WHERE instr(run_data, ?) AND instr(run_data, ?)",
                (ASKED, ANSWERED),
            )
            return {key for (key,) in rows}

    def close(self) -> None:
        self._db.close()
