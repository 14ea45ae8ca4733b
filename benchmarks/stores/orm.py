"""SQLAlchemy's ORM on the standard sqlite3: five declarative models like our five tables.

As its documentation shows: a ``sessionmaker``, a session for each call, ``get``, a changed
attribute and ``add`` of a new object with its related ones for an append, ``selectinload`` and
``joinedload`` for a history. The pragmas are set in the ``connect`` event and BEGIN is our own, as
the chapter on SQLite's transactions has it: IMMEDIATE for a writer, because it reads the session
before it writes. The pool has a connection for every thread, so that none waits for the pool.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from time import time_ns
from typing import Any, ClassVar, Literal

from sqlalchemy import (
    Connection,
    ForeignKey,
    Index,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
    sessionmaker,
)

from benchmarks.stores.store import ANSWERED, ASKED, Append, Read
from mandrake_sessions import Durability

_SYNCHRONOUS = {Durability.FAST: "NORMAL", Durability.DURABLE: "FULL"}
_BUSY_SECONDS = 30
_CONNECTIONS = 16
_WHOLE = (
    "SELECT rounds.id FROM rounds JOIN requests ON requests.round_id = rounds.id"
    " JOIN responses ON responses.round_id = rounds.id"
    " JOIN turns ON turns.response_id = responses.id"
    " WHERE requests.content = ? AND turns.content = ?"
)


def _now() -> int:
    return time_ns() // 1000


def _new_id() -> str:
    """Return an id that grows with time, so that an insert goes to the end of its index."""
    return f"{time_ns():016x}{random.getrandbits(64):016x}"


class Base(DeclarativeBase):
    """What every table has."""

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    created_at: Mapped[int] = mapped_column(default=_now)
    updated_at: Mapped[int] = mapped_column(default=_now)


class Conversation(Base):
    """One conversation."""

    __tablename__ = "sessions"
    __table_args__ = (Index("ix_sessions_updated_at_id", "updated_at", "id"),)

    title: Mapped[str | None]
    description: Mapped[str | None]
    meta: Mapped[str] = mapped_column("metadata", default="{}")
    next_round_index: Mapped[int] = mapped_column(default=0)
    revision: Mapped[int] = mapped_column(default=0)


class Round(Base):
    """A question and its answer."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("session_id", "index"),)

    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    index: Mapped[int]
    request: Mapped[Request] = relationship(back_populates="round")
    response: Mapped[Response] = relationship(back_populates="round")


class Request(Base):
    """The question."""

    __tablename__ = "requests"

    round_id: Mapped[str] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"), unique=True)
    content: Mapped[str]
    round: Mapped[Round] = relationship(back_populates="request")


class Response(Base):
    """The answer: a sequence of turns."""

    __tablename__ = "responses"

    round_id: Mapped[str] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"), unique=True)
    next_turn_index: Mapped[int] = mapped_column(default=0)
    round: Mapped[Round] = relationship(back_populates="response")
    turns: Mapped[list[Turn]] = relationship(back_populates="response", order_by="Turn.index")


class Turn(Base):
    """One part of an answer."""

    __tablename__ = "turns"
    __table_args__ = (UniqueConstraint("response_id", "index"),)

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"))
    index: Mapped[int]
    status: Mapped[str] = mapped_column(default="completed")
    owner: Mapped[str | None]
    stream_started_at: Mapped[int] = mapped_column(default=_now)
    stream_ended_at: Mapped[int | None] = mapped_column(default=_now)
    current_tokens: Mapped[int] = mapped_column(default=0)
    expected_tokens: Mapped[int | None]
    input_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)
    cache_read_tokens: Mapped[int | None]
    cache_write_tokens: Mapped[int | None]
    input_cost: Mapped[float] = mapped_column(default=0.0)
    output_cost: Mapped[float] = mapped_column(default=0.0)
    model: Mapped[str | None]
    revision: Mapped[int] = mapped_column(default=0)
    error_message: Mapped[str | None]
    tool_calls: Mapped[str] = mapped_column(default="[]")
    content: Mapped[str]
    raw_response: Mapped[str] = mapped_column(default="")
    response: Mapped[Response] = relationship(back_populates="turns")


_EXCHANGES = (
    select(Round)
    .options(
        joinedload(Round.request, innerjoin=True),
        joinedload(Round.response, innerjoin=True).selectinload(Response.turns),
    )
    .order_by(Round.index)
)


class OrmStore:
    """Five models of SQLAlchemy's ORM."""

    name: ClassVar[str] = "SQLAlchemy ORM"
    requires: ClassVar[tuple[str, ...]] = ("sqlalchemy",)
    is_async: ClassVar[Literal[False]] = False
    remark: ClassVar[str] = (
        "Declarative models of five tables like ours on the standard library's sqlite3: WAL, BEGIN"
        " IMMEDIATE, a busy timeout of 30 s, a session of the ORM for each call."
    )

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._path = folder / "orm.db"
        self._synchronous = _SYNCHRONOUS[durability]

    def open(self) -> None:
        engine = create_engine(
            f"sqlite:///{self._path}",
            pool_size=_CONNECTIONS,
            connect_args={"timeout": _BUSY_SECONDS},
        )
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "begin", _on_begin)
        self._engine = engine
        self._reading = sessionmaker(engine)
        self._writing = sessionmaker(engine.execution_options(begin="BEGIN IMMEDIATE"))
        with self._writing() as session:
            Base.metadata.create_all(session.connection())
            session.commit()

    def _on_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -16384")

    def new_conversation(self) -> str:
        with self._writing.begin() as session:
            conversation = Conversation()
            session.add(conversation)
            session.flush()
            return conversation.id

    def appender(self, conversation: str) -> Append:
        open_session = self._writing

        def append() -> str:
            with open_session() as session:
                key = _add_exchange(session, conversation)
                session.commit()
            return key

        return append

    def reader(self, conversation: str) -> Read:
        statement = _EXCHANGES.where(Round.session_id == conversation)

        def read() -> int:
            with self._reading() as session:
                return len(session.scalars(statement).all())

        return read

    def last_reader(self, conversation: str, last: int) -> Read:
        statement = _EXCHANGES.where(Round.session_id == conversation).order_by(None)
        statement = statement.order_by(Round.index.desc()).limit(last)

        def read() -> int:
            with self._reading() as session:
                return len(session.scalars(statement).all()[::-1])

        return read

    def turn_reader(self, conversation: str) -> Read:
        newest = (
            select(Turn.id)
            .join(Turn.response)
            .join(Response.round)
            .where(Round.session_id == conversation)
            .order_by(Round.index.desc(), Turn.index.desc())
            .limit(1)
        )
        with self._reading() as session:
            turn_id = session.scalars(newest).one()

        def read() -> int:
            with self._reading() as session:
                return int(session.get(Turn, turn_id) is not None)

        return read

    def sessions_reader(self, limit: int) -> Read:
        newest = (Conversation.updated_at.desc(), Conversation.id.desc())
        statement = select(Conversation).order_by(*newest).limit(limit)

        def read() -> int:
            with self._reading() as session:
                return len(session.scalars(statement).all())

        return read

    def fill(self, conversation: str, exchanges: int) -> None:
        with self._writing.begin() as session:
            for _ in range(exchanges):
                _add_exchange(session, conversation)

    def fill_sessions(self, sessions: int) -> None:
        with self._writing.begin() as session:
            session.execute(insert(Conversation), [{} for _ in range(sessions)])

    def rest(self) -> None:
        """Nothing goes on in the background."""

    def keys(self) -> set[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            return {key for (key,) in connection.execute(_WHOLE, (ASKED, ANSWERED))}

    def close(self) -> None:
        self._engine.dispose()


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _add_exchange(session: Session, conversation_id: str) -> str:
    conversation: Any = session.get(Conversation, conversation_id)
    key = _new_id()
    session.add(
        Round(
            id=key,
            session_id=conversation_id,
            index=conversation.next_round_index,
            request=Request(content=ASKED),
            response=Response(next_turn_index=1, turns=[Turn(index=0, content=ANSWERED)]),
        )
    )
    conversation.next_round_index += 1
    conversation.updated_at = _now()
    return key
