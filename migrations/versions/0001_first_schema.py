"""The first schema.

Revision 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

rebuilds_tables = False


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("title", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("metadata", sa.Text(), nullable=False),
        _count("sessions", "next_round_index"),
        sa.Column("revision", sa.Integer(), nullable=False),
        *_times(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_sessions_updated_at_id"), "sessions", ["updated_at", "id"])
    op.create_table(
        "rounds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        _count("rounds", "index"),
        *_times(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("session_id", "index", name=op.f("uq_rounds_session_id_index")),
        _parent("rounds", "session_id", "sessions"),
        sqlite_strict=True,
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("round_id", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        *_times(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
        sa.UniqueConstraint("round_id", name=op.f("uq_requests_round_id")),
        _parent("requests", "round_id", "rounds"),
        sqlite_strict=True,
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("round_id", sa.Text(), nullable=False),
        _count("responses", "next_turn_index"),
        *_times(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_responses")),
        sa.UniqueConstraint("round_id", name=op.f("uq_responses_round_id")),
        _parent("responses", "round_id", "rounds"),
        sqlite_strict=True,
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("response_id", sa.Text(), nullable=False),
        _count("turns", "index"),
        sa.Column(
            "status",
            sa.Text(),
            sa.CheckConstraint(
                "status IN ('streaming', 'completed', 'error', 'interrupted')",
                name=op.f("ck_turns_status"),
            ),
            nullable=False,
        ),
        sa.Column("owner", sa.Text()),
        sa.Column("stream_started_at", sa.Integer(), nullable=False),
        sa.Column("stream_ended_at", sa.Integer()),
        _count("turns", "current_tokens"),
        _count("turns", "expected_tokens", nullable=True),
        _count("turns", "input_tokens"),
        _count("turns", "output_tokens"),
        _count("turns", "cache_read_tokens", nullable=True),
        _count("turns", "cache_write_tokens", nullable=True),
        sa.Column("input_cost", sa.REAL(), nullable=False),
        sa.Column("output_cost", sa.REAL(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("revision", sa.Integer(), nullable=False),
        *_times(),
        sa.Column("error_message", sa.Text()),
        sa.Column("tool_calls", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("raw_response", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turns")),
        sa.UniqueConstraint("response_id", "index", name=op.f("uq_turns_response_id_index")),
        sa.CheckConstraint(
            "(status = 'streaming') = (stream_ended_at IS NULL)",
            name=op.f("ck_turns_ended_when_finished"),
        ),
        _parent("turns", "response_id", "responses"),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_turns_streaming"),
        "turns",
        ["response_id"],
        sqlite_where=sa.text("status = 'streaming'"),
    )
    op.create_table(
        "turn_chunks",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("raw_response", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("turn_id", "seq", name=op.f("pk_turn_chunks")),
        _parent("turn_chunks", "turn_id", "turns"),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column(
            "entity",
            sa.Text(),
            sa.CheckConstraint(
                "entity IN ('session', 'round', 'request', 'turn')",
                name=op.f("ck_changes_entity"),
            ),
            nullable=False,
        ),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column(
            "op",
            sa.Text(),
            sa.CheckConstraint("op IN ('create', 'update', 'delete')", name=op.f("ck_changes_op")),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_changes")),
        sqlite_strict=True,
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("last_opened_at", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workspaces")),
        sa.UniqueConstraint("name", name=op.f("uq_workspaces_name")),
        sa.UniqueConstraint("path", name=op.f("uq_workspaces_path")),
        sqlite_strict=True,
    )


def downgrade() -> None:
    op.drop_table("workspaces")
    op.drop_table("meta")
    op.drop_table("changes")
    op.drop_table("turn_chunks")
    op.drop_table("turns")
    op.drop_table("responses")
    op.drop_table("requests")
    op.drop_table("rounds")
    op.drop_table("sessions")


def _times() -> tuple[sa.Column[int], sa.Column[int]]:
    return (
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Integer(), nullable=False),
    )


def _count(table: str, name: str, *, nullable: bool = False) -> sa.Column[int]:
    at_least_0 = sa.CheckConstraint(f'"{name}" >= 0', name=op.f(f"ck_{table}_{name}"))
    return sa.Column(name, sa.Integer(), at_least_0, nullable=nullable)


def _parent(table: str, name: str, parent: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [name], [f"{parent}.id"], name=op.f(f"fk_{table}_{name}_{parent}"), ondelete="CASCADE"
    )
