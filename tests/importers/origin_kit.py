"""Files like the origin's, made with APSW here or in another process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import apsw

# As drizzle wrote it, but for the backticks and the table of its migrations.
TABLES = """
CREATE TABLE sessions (
    id text PRIMARY KEY NOT NULL,
    title text,
    description text,
    metadata text DEFAULT '{}' NOT NULL,
    createdAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updatedAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE rounds (
    id text PRIMARY KEY NOT NULL,
    sessionId text NOT NULL,
    requestId text NOT NULL,
    responseId text NOT NULL,
    "index" integer NOT NULL,
    createdAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updatedAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    FOREIGN KEY (sessionId) REFERENCES sessions(id) ON DELETE cascade,
    FOREIGN KEY (requestId) REFERENCES requests(id),
    FOREIGN KEY (responseId) REFERENCES responses(id)
);
CREATE TABLE requests (
    id text PRIMARY KEY NOT NULL,
    content text NOT NULL,
    createdAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updatedAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE responses (
    id text PRIMARY KEY NOT NULL,
    createdAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updatedAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE turns (
    id text PRIMARY KEY NOT NULL,
    responseId text NOT NULL,
    "index" integer NOT NULL,
    rawResponse text NOT NULL,
    content text NOT NULL,
    toolCalls text NOT NULL,
    status text DEFAULT 'streaming' NOT NULL,
    streamStartTime integer NOT NULL,
    streamEndTime integer,
    currentTokens integer DEFAULT 0 NOT NULL,
    expectedTokens integer,
    inputTokens integer NOT NULL,
    outputTokens integer NOT NULL,
    cacheReadTokens integer,
    cacheWriteTokens integer,
    inputCost real NOT NULL,
    outputCost real NOT NULL,
    createdAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updatedAt integer DEFAULT CURRENT_TIMESTAMP NOT NULL,
    FOREIGN KEY (responseId) REFERENCES responses(id) ON DELETE cascade
);
CREATE INDEX idx_rounds_sessionId ON rounds (sessionId);
CREATE INDEX idx_turns_responseId ON turns (responseId);
"""
UNIQUE = """
CREATE UNIQUE INDEX rounds_requestId_unique ON rounds (requestId);
CREATE UNIQUE INDEX rounds_responseId_unique ON rounds (responseId);
"""

WRITTEN = "2026-11-21 00:01:20"
SECONDS = 1795219280
"""The same time as ``WRITTEN``."""


class Origin:
    """The statements that make a database of the origin."""

    def __init__(self, *, journal: str = "wal", unique: bool = True) -> None:
        self.statements: list[tuple[str, Any]] = [(f"PRAGMA journal_mode={journal}", ())]
        self.run(TABLES)
        if unique:
            self.run(UNIQUE)

    def run(self, sql: str, *values: Any) -> None:
        self.statements.append((sql, values))

    def row(self, table: str, **columns: Any) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        marks = ", ".join("?" * len(columns))
        self.run(f"INSERT INTO {table} ({names}) VALUES ({marks})", *columns.values())

    def session(self, id: str, **columns: Any) -> None:
        given = {"id": id, "title": f"title of {id}", "createdAt": WRITTEN, "updatedAt": WRITTEN}
        self.row("sessions", **given | columns)

    def exchange(self, session: str, name: str, turns: int = 1, **columns: Any) -> None:
        """Add a round with the parts ``<name>-request``, ``<name>-response``, ``<name>-turn-0``."""
        times = {"createdAt": WRITTEN, "updatedAt": WRITTEN}
        self.row("requests", id=f"{name}-request", content=f"ask {name}", **times)
        self.row("responses", id=f"{name}-response", **times)
        given = {
            "id": name,
            "sessionId": session,
            "requestId": f"{name}-request",
            "responseId": f"{name}-response",
            "index": 0,
            **times,
        }
        self.row("rounds", **given | columns)
        for index in range(turns):
            self.turn(name, index)

    def turn(self, name: str, number: int, **columns: Any) -> None:
        """Add a turn to ``<name>-response``, in the origin's mix of times."""
        given = {
            "id": f"{name}-turn-{number}",
            "responseId": f"{name}-response",
            "index": number,
            "rawResponse": f"raw {name} {number}",
            "content": f"answer {name} {number}",
            "toolCalls": '{"call":null,"response":null}',
            "status": "completed",
            "streamStartTime": SECONDS,
            "streamEndTime": SECONDS,
            "currentTokens": 3,
            "expectedTokens": 400,
            "inputTokens": 10,
            "outputTokens": 3,
            "cacheReadTokens": 0,
            "cacheWriteTokens": None,
            "inputCost": 0.25,
            "outputCost": 0.5,
            "createdAt": WRITTEN,
            "updatedAt": SECONDS * 1000 + 18,
        }
        self.row("turns", **given | columns)

    def write(self, path: Path) -> Path:
        connection = apsw.Connection(str(path))
        for sql, values in self.statements:
            connection.execute(sql, values).fetchall()
        connection.close()
        return path


def everything_in(folder: Path) -> dict[str, tuple[str, int, int, int]]:
    """What a folder holds, to the byte; its own times too."""
    found = {
        each.name: (
            hashlib.sha256(each.read_bytes()).hexdigest(),
            each.stat().st_size,
            each.stat().st_mtime_ns,
            each.stat().st_ino,
        )
        for each in folder.iterdir()
        if each.is_file()
    }
    stat = folder.stat()
    return found | {".": ("", stat.st_size, stat.st_mtime_ns, stat.st_ino)}
