"""Revisions of the tests' own after the library's, data in every table, and how both are looked at.

A rebuild of ``sessions`` is among them: with foreign keys on it would delete everything below by
cascade, so a comparison of the rows has a canary.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.dialect import LentCursor
from mandrake_sessions.database.connection.opening import open_connection
from mandrake_sessions.database.files.creation import make_file
from mandrake_sessions.database.files.paths import real_path
from mandrake_sessions.database.migrations import head, migrate, revisions
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.schema import HEAD

BUDGET = 20.0

STEPS = {
    "adds": (
        False,
        """
op.add_column("turns", sa.Column("note", sa.Text()))
op.execute("UPDATE turns SET note = 'of ' || id")
op.create_table(
    "labels",
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("session_id", sa.Text(), sa.ForeignKey("sessions.id", ondelete="CASCADE")),
)
op.execute("INSERT INTO labels SELECT 'label ' || id, id FROM sessions")
""",
        """
op.drop_table("labels")
op.drop_column("turns", "note")
""",
    ),
    "rebuilds_sessions": (
        True,
        """
with op.batch_alter_table("sessions", recreate="always") as batch:
    batch.alter_column("title", new_column_name="headline")
""",
        """
with op.batch_alter_table("sessions", recreate="always") as batch:
    batch.alter_column("headline", new_column_name="title")
""",
    ),
    "rebuilds_rounds": (
        True,
        """
with op.batch_alter_table("rounds", recreate="always") as batch:
    batch.add_column(sa.Column("pinned", sa.Integer(), nullable=False, server_default="0"))
op.create_index("ix_rounds_pinned", "rounds", ["pinned"])
""",
        """
op.drop_index("ix_rounds_pinned", "rounds")
with op.batch_alter_table("rounds", recreate="always") as batch:
    batch.drop_column("pinned")
""",
    ),
}
BASE = "base"
REVISIONS = (BASE, HEAD, *STEPS)
NEWEST = REVISIONS[-1]

ROWS = """
INSERT INTO sessions (id, title, metadata, next_round_index, revision, created_at, updated_at)
    VALUES ('s1', 'first', '{}', 2, 0, 1, 2), ('s2', NULL, '{"a": 1}', 1, 3, 1, 2);
INSERT INTO rounds (id, session_id, "index", created_at, updated_at)
    VALUES ('r1', 's1', 0, 1, 1), ('r2', 's1', 1, 1, 1), ('r3', 's2', 0, 1, 1);
INSERT INTO requests (id, round_id, content, created_at, updated_at)
    SELECT 'q' || id, id, 'question', 1, 1 FROM rounds;
INSERT INTO responses (id, round_id, next_turn_index, created_at, updated_at)
    SELECT 'a' || id, id, 1, 1, 1 FROM rounds;
INSERT INTO turns (id, response_id, "index", status, owner, stream_started_at, stream_ended_at,
        current_tokens, input_tokens, output_tokens, input_cost, output_cost, revision,
        created_at, updated_at, tool_calls, content, raw_response)
    SELECT 't' || id, id, 0, iif(round_id = 'r3', 'streaming', 'completed'), 'someone', 1,
        iif(round_id = 'r3', NULL, 2), 0, 1, 2, 0.5, 0.25, 1, 1, 1, '[]', 'answer', ''
    FROM responses;
INSERT INTO turn_chunks (turn_id, seq, content, raw_response)
    VALUES ('tar3', 1, 'one ', ''), ('tar3', 2, 'two', '');
INSERT INTO changes (seq, session_id, entity, id, op) VALUES (1, 's1', 'session', 's1', 'create');
INSERT INTO workspaces (id, name, path, created_at) VALUES ('w', 'name', '/nowhere', 1);
INSERT INTO meta (key, value) VALUES ('mine', 'too');
"""


def write_scripts(folder: Path) -> Path:
    """Make a folder of migration scripts: the library's, and after them those of ``STEPS``."""
    ours = revisions.script_location()
    versions = folder / "versions"
    versions.mkdir(parents=True)
    (folder / "env.py").write_text((ours / "env.py").read_text())
    (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}\n")
    for each in (ours / "versions").glob("*.py"):
        (versions / each.name).write_text(each.read_text())
    before = HEAD
    for name, (rebuilds, up, down) in STEPS.items():
        (versions / f"{name}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision = {name!r}\ndown_revision = {before!r}\nrebuilds_tables = {rebuilds}\n"
            f"def upgrade():{_indented(up)}\ndef downgrade():{_indented(down)}\n"
        )
        before = name
    return folder


def _indented(code: str) -> str:
    return code.replace("\n", "\n    ").rstrip()


@contextlib.contextmanager
def opened(path: Path, vfs: str | None = None) -> Iterator[Connection]:
    """Open a connection for a block, as a pool would before it migrates."""
    real = real_path(path)
    options = DatabaseOptions() if vfs is None else DatabaseOptions(vfs=vfs)
    connection = open_connection(real, make_file(real), options, Budget(BUDGET))
    try:
        yield connection
    finally:
        with contextlib.suppress(apsw.Error):
            connection.close()


def go_to(connection: Connection, revision: str, scripts: Path) -> None:
    """Upgrade or downgrade to a revision, wherever the database is."""
    current = head.current(connection) or BASE
    is_up = REVISIONS.index(revision) >= REVISIONS.index(current)
    if is_up:
        migrate.upgrade(connection, Budget(BUDGET), revision, scripts=scripts)
    else:
        migrate.downgrade(connection, Budget(BUDGET), revision, scripts=scripts)


def make_databases(folder: Path, scripts: Path) -> dict[str, bytes]:
    """Return a closed database for each revision, with the same data, one from the other."""
    path = folder / "made.sqlite"
    files = {}
    for revision in REVISIONS:
        with opened(path) as connection:
            if revision != BASE:
                go_to(connection, revision, scripts)
            if revision == HEAD:
                connection.execute(ROWS).fetchall()
        files[revision] = path.read_bytes()
    return files


def contents(connection: Connection) -> dict[str, Any]:
    """Return every row of every table by column, the revision, and what marks the file as ours."""
    tables = [
        name
        for (name,) in connection.query_all("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if not name.startswith("sqlite_")
    ]
    found: dict[str, Any] = {
        name: connection.value(f"PRAGMA {name}") for name in ("application_id", "user_version")
    }
    for table in tables:
        columns = [row[1] for row in connection.query_all(f'PRAGMA table_info("{table}")')]
        rows = connection.query_all(f'SELECT * FROM "{table}"')
        if table == "meta":
            # Each migration raises the number in the mark of the log.
            rows = [row for row in rows if row[0] != "log"]
        found[table] = sorted(
            (sorted(zip(columns, row, strict=True), key=repr) for row in rows), key=repr
        )
    return found


def schema(connection: Connection) -> list[tuple[str, str, list[str]]]:
    """Return the schema as SQLite keeps it, without layout.

    Alembic writes the constraints of a table that it rebuilds in another order each time.
    """
    rows = connection.query_all(
        "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'"
    )
    return sorted((kind, name, _parts(sql or "")) for kind, name, sql in rows)


def _parts(sql: str) -> list[str]:
    flat = re.sub(r"\s+", " ", sql).strip()
    head, *constraints = re.split(r",? ?(?=CONSTRAINT )", flat.replace(" ) STRICT", ""))
    return [head, *sorted(constraints)]


def is_whole(connection: Connection) -> bool:
    """Whether SQLite finds nothing wrong, and nothing is left open or switched off."""
    return (
        connection.value("PRAGMA integrity_check") == "ok"
        and connection.query_all("PRAGMA foreign_key_check") == []
        and connection.value("PRAGMA foreign_keys") == 1
        and not connection.in_transaction()
    )


def trace_everything(connection: Connection, trace: Any, patch: pytest.MonkeyPatch) -> None:
    """Call ``trace`` with each statement before it runs, SQLAlchemy's too."""
    connection.raw.exec_trace = trace
    really_look = LentCursor._about_to_run

    def look(self: LentCursor, *arguments: Any) -> bool:
        trace(*arguments)
        return really_look(self, *arguments)

    patch.setattr(LentCursor, "_about_to_run", look)
