"""The tables: the only place where a column is named.

A database has the same schema whether it is the system's or a workspace's; the registry of
workspaces is filled in the system database only (docs/adr/0004). Times are integer microseconds
since the epoch, UTC. JSON columns hold JSON text. ``make sql`` compiles the library's statements
from this module (docs/adr/0021).
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import (
    DOUBLE_PRECISION,
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from mandrake_sessions.models import ChangeOp, Entity, TurnStatus

HEAD = "0001"
"""The newest revision; a test compares it with the migration scripts."""

APPLICATION_ID = 0x4D4E4452
"""``MNDR`` in the header of the file: identifies the library's databases without reading rows."""

# Eight bytes on both databases: PostgreSQL's INTEGER and REAL have four.
INTEGER = Integer().with_variant(BigInteger(), "postgresql")
DOUBLE: REAL[float] = REAL().with_variant(DOUBLE_PRECISION(), "postgresql")
# The columns by which rows are ordered or joined: ids, names, keys. SQLite orders texts by their
# bytes, PostgreSQL by the rules of a language unless the column says otherwise.
NAME = Text().with_variant(Text(collation="C"), "postgresql")

metadata: MetaData = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    return CheckConstraint(
        f"{column} IN ({', '.join(repr(str(value)) for value in values)})", name=column
    )


def _id() -> Column[str]:
    return Column("id", NAME, primary_key=True, nullable=False)


def _parent(name: str, target: str, *, unique: bool = False) -> Column[str]:
    return Column(name, NAME, ForeignKey(target, ondelete="CASCADE"), nullable=False, unique=unique)


def _times() -> tuple[Column[int], Column[int]]:
    return (
        Column("created_at", INTEGER, nullable=False),
        Column("updated_at", INTEGER, nullable=False),
    )


def _count(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, INTEGER, CheckConstraint(f'"{name}" >= 0', name=name), nullable=nullable)


sessions: Table = Table(
    "sessions",
    metadata,
    _id(),
    Column("title", Text),
    Column("description", Text),
    Column("metadata", Text, nullable=False),
    _count("next_round_index"),
    Column("revision", INTEGER, nullable=False),
    *_times(),
    # "Most recent first" walks this index backwards.
    Index("ix_sessions_updated_at_id", "updated_at", "id"),
    sqlite_strict=True,
)

rounds: Table = Table(
    "rounds",
    metadata,
    _id(),
    _parent("session_id", "sessions.id"),
    _count("index"),
    *_times(),
    UniqueConstraint("session_id", "index"),
    sqlite_strict=True,
)

requests: Table = Table(
    "requests",
    metadata,
    _id(),
    _parent("round_id", "rounds.id", unique=True),
    Column("content", Text, nullable=False),
    *_times(),
    sqlite_strict=True,
)

responses: Table = Table(
    "responses",
    metadata,
    _id(),
    _parent("round_id", "rounds.id", unique=True),
    _count("next_turn_index"),
    *_times(),
    sqlite_strict=True,
)

turns: Table = Table(
    "turns",
    metadata,
    _id(),
    _parent("response_id", "responses.id"),
    _count("index"),
    Column("status", Text, _one_of("status", TurnStatus), nullable=False),
    Column("owner", Text),
    Column("stream_started_at", INTEGER, nullable=False),
    Column("stream_ended_at", INTEGER),
    _count("current_tokens"),
    _count("expected_tokens", nullable=True),
    _count("input_tokens"),
    _count("output_tokens"),
    _count("cache_read_tokens", nullable=True),
    _count("cache_write_tokens", nullable=True),
    Column("input_cost", DOUBLE, nullable=False),
    Column("output_cost", DOUBLE, nullable=False),
    Column("model", Text),
    Column("revision", INTEGER, nullable=False),
    *_times(),
    # Long texts last: columns behind them are reached through their overflow pages (totals
    # over 1,000 turns of 100 KB took 13 to 18 ms with the counters behind, 1.0 to 1.5 before).
    # A column that a migration adds comes behind them all the same: ALTER TABLE puts it there.
    Column("error_message", Text),
    Column("tool_calls", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("raw_response", Text, nullable=False),
    UniqueConstraint("response_id", "index"),
    # A turn is streaming exactly as long as it has no end.
    CheckConstraint(
        "(status = 'streaming') = (stream_ended_at IS NULL)", name="ended_when_finished"
    ),
    sqlite_strict=True,
)
# Recovery and the streaming status read never more than a few rows of it.
_is_streaming = turns.c.status == TurnStatus.STREAMING.value
Index(
    "ix_turns_streaming",
    turns.c.response_id,
    sqlite_where=_is_streaming,
    postgresql_where=_is_streaming,
)

turn_chunks: Table = Table(
    "turn_chunks",
    metadata,
    Column(
        "turn_id",
        NAME,
        ForeignKey("turns.id", ondelete="CASCADE"),
        primary_key=True,
        nullable=False,
    ),
    Column("seq", INTEGER, primary_key=True, nullable=False),
    Column("content", Text, nullable=False),
    Column("raw_response", Text, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

# No AUTOINCREMENT: trimming keeps the newest row, so no number is given twice without its second
# table to write on every change.
changes: Table = Table(
    "changes",
    metadata,
    Column("seq", INTEGER, primary_key=True, nullable=False),
    Column("session_id", NAME, nullable=False),
    Column("entity", Text, _one_of("entity", Entity), nullable=False),
    Column("id", NAME, nullable=False),
    Column("op", Text, _one_of("op", ChangeOp), nullable=False),
    sqlite_strict=True,
)

meta: Table = Table(
    "meta",
    metadata,
    Column("key", NAME, primary_key=True, nullable=False),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

workspaces: Table = Table(
    "workspaces",
    metadata,
    _id(),
    Column("name", NAME, nullable=False, unique=True),
    Column("path", Text, nullable=False, unique=True),
    Column("description", Text),
    Column("created_at", INTEGER, nullable=False),
    Column("last_opened_at", INTEGER),
    sqlite_strict=True,
)
