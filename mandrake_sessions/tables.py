"""What the tables are, without SQLAlchemy. Made by ``make sql`` from ``schema.py``."""

# fmt: off

from typing import NamedTuple


class Column(NamedTuple):
    """A column.

    Attributes:
        kind: ``TEXT``, ``INTEGER`` or ``REAL``.
        is_key: whether it is part of the primary key.
        is_reference: whether it refers to another table's row.
    """

    name: str
    kind: str
    is_nullable: bool = False
    is_key: bool = False
    is_reference: bool = False


HEAD = "0001"
APPLICATION_ID = 0x4D4E4452

TABLES: dict[str, tuple[Column, ...]] = {
    "sessions": (
        Column("id", "TEXT", is_key=True),
        Column("title", "TEXT", is_nullable=True),
        Column("description", "TEXT", is_nullable=True),
        Column("metadata", "TEXT"),
        Column("next_round_index", "INTEGER"),
        Column("revision", "INTEGER"),
        Column("created_at", "INTEGER"),
        Column("updated_at", "INTEGER"),
    ),
    "rounds": (
        Column("id", "TEXT", is_key=True),
        Column("session_id", "TEXT", is_reference=True),
        Column("index", "INTEGER"),
        Column("created_at", "INTEGER"),
        Column("updated_at", "INTEGER"),
    ),
    "requests": (
        Column("id", "TEXT", is_key=True),
        Column("round_id", "TEXT", is_reference=True),
        Column("content", "TEXT"),
        Column("created_at", "INTEGER"),
        Column("updated_at", "INTEGER"),
    ),
    "responses": (
        Column("id", "TEXT", is_key=True),
        Column("round_id", "TEXT", is_reference=True),
        Column("next_turn_index", "INTEGER"),
        Column("created_at", "INTEGER"),
        Column("updated_at", "INTEGER"),
    ),
    "turns": (
        Column("id", "TEXT", is_key=True),
        Column("response_id", "TEXT", is_reference=True),
        Column("index", "INTEGER"),
        Column("status", "TEXT"),
        Column("owner", "TEXT", is_nullable=True),
        Column("stream_started_at", "INTEGER"),
        Column("stream_ended_at", "INTEGER", is_nullable=True),
        Column("current_tokens", "INTEGER"),
        Column("expected_tokens", "INTEGER", is_nullable=True),
        Column("input_tokens", "INTEGER"),
        Column("output_tokens", "INTEGER"),
        Column("cache_read_tokens", "INTEGER", is_nullable=True),
        Column("cache_write_tokens", "INTEGER", is_nullable=True),
        Column("input_cost", "REAL"),
        Column("output_cost", "REAL"),
        Column("model", "TEXT", is_nullable=True),
        Column("revision", "INTEGER"),
        Column("created_at", "INTEGER"),
        Column("updated_at", "INTEGER"),
        Column("error_message", "TEXT", is_nullable=True),
        Column("tool_calls", "TEXT"),
        Column("content", "TEXT"),
        Column("raw_response", "TEXT"),
    ),
    "turn_chunks": (
        Column("turn_id", "TEXT", is_key=True, is_reference=True),
        Column("seq", "INTEGER", is_key=True),
        Column("content", "TEXT"),
        Column("raw_response", "TEXT"),
    ),
    "changes": (
        Column("seq", "INTEGER", is_key=True),
        Column("session_id", "TEXT"),
        Column("entity", "TEXT"),
        Column("id", "TEXT"),
        Column("op", "TEXT"),
    ),
    "meta": (
        Column("key", "TEXT", is_key=True),
        Column("value", "TEXT"),
    ),
    "workspaces": (
        Column("id", "TEXT", is_key=True),
        Column("name", "TEXT"),
        Column("path", "TEXT"),
        Column("description", "TEXT", is_nullable=True),
        Column("created_at", "INTEGER"),
        Column("last_opened_at", "INTEGER", is_nullable=True),
    ),
}
