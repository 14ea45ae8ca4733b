"""What SQLite says of a database's content: its schema, its pages, its references, its texts.

Reading a database that is in WAL mode makes files beside it, so one that nobody has open is read
as one that nobody changes, and one that a crash has left is read from a private copy.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apsw

from mandrake_sessions.database import owner
from mandrake_sessions.database.backup import damage_of
from mandrake_sessions.database.bad_ids import is_text
from mandrake_sessions.database.blocks import block, closing
from mandrake_sessions.database.faults import translate
from mandrake_sessions.database.head import STORED_REVISIONS, is_known, revision_of
from mandrake_sessions.database.health.report import HealthCheck, HealthStatus
from mandrake_sessions.database.health.wording import ORPHANS, counted, listed, orphans
from mandrake_sessions.database.own_log import (
    UNCHANGED,
    has_log,
    require_needed_log,
    require_own_log,
)
from mandrake_sessions.database.raw import copy_database
from mandrake_sessions.database.sidecars import beside
from mandrake_sessions.errors import (
    DatabaseBusyError,
    DatabaseError,
    LostLogError,
    StaleLogError,
)
from mandrake_sessions.tables import HEAD, TABLES, Column

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPERATION: Final = "diagnose"
_NO_COPY: Final = "Name a folder that can be written, with space for a copy: TMPDIR=/FOLDER."
_BUSY_MS: Final = 250
_REPLACED: Final = "They are read with U+FFFD in place of what is damaged: write them anew"


class Contents:
    """One look at the content of a file.

    Args:
        path: the file.
        in_use: whether a process has it open.
        full: whether indexes are compared with their tables.
        rescue: what to do about damage.
        salvage: the command that reads what can be read.
    """

    def __init__(self, path: Path, *, in_use: bool, full: bool, rescue: str, salvage: str) -> None:
        self._path = path
        self._in_use = in_use
        self._full = full
        self._rescue = rescue
        self._salvage = salvage

    def run(self) -> list[HealthCheck]:
        """Make the checks; each says itself where it stopped, unless nothing can be read."""
        try:
            with self._opened() as raw:
                own_log = self._own_log(raw)
                if own_log.status is FAILED:
                    # What else is found would be about pages that do not belong together.
                    return [own_log]
                schema = self._schema(raw)
                checks = [
                    own_log,
                    schema,
                    self._reading("integrity" if self._full else "pages", self._pages, raw),
                    self._reading("references", self._references, raw),
                ]
                if schema.status is OK and schema.detail.startswith("revision"):
                    checks += [
                        self._reading("texts", self._texts, raw),
                        self._reading("streaming", self._streaming, raw),
                    ]
                return checks
        except (apsw.Error, DatabaseError, OSError) as error:
            return [self._unreadable("reading", error)]

    def _reading(
        self, name: str, look: Callable[[str, apsw.Connection], HealthCheck], raw: apsw.Connection
    ) -> HealthCheck:
        try:
            return look(name, raw)
        except apsw.Error as error:
            return self._unreadable(name, error)

    def _unreadable(self, name: str, error: Exception) -> HealthCheck:
        if isinstance(error, OSError):
            # Not the file: where a copy is made, nothing can be.
            return HealthCheck(name, FAILED, str(error), _NO_COPY)
        typed = error
        if isinstance(error, apsw.Error):
            typed = translate(error, self._path, _OPERATION)
        detail = f"{type(typed).__name__}: {getattr(typed, 'message', typed)}"
        if isinstance(typed, DatabaseBusyError):
            return HealthCheck(name, DEGRADED, detail, "Try again.")
        return HealthCheck(name, FAILED, detail, self._rescue)

    @block
    def _opened(self) -> Iterator[apsw.Connection]:
        """Open it so that nothing beside it changes."""
        with contextlib.ExitStack() as stack:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            name = self._path.as_uri()
            logs = [beside(self._path, suffix) for suffix in ("-wal", "-journal")]
            if self._in_use:
                pass
            elif any(log.exists() and log.stat().st_size for log in logs):
                # Late, as are all that bring modules for compressed files.
                import tempfile

                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mandrake-doctor-"))
                copy = Path(folder) / "copy.sqlite"
                copy_database(self._path, copy)
                name = copy.as_uri()
                flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
            else:
                name += "?immutable=1"
            with closing(apsw.Connection(name, flags=flags)) as raw:
                raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
                raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
                raw.set_busy_timeout(_BUSY_MS)
                yield raw

    def _own_log(self, raw: apsw.Connection) -> HealthCheck:
        """Whether the log belongs to the file, and whether none is missing."""
        if self._in_use:
            return HealthCheck("own_log", OK, "in use")
        try:
            if has_log(self._path):
                require_own_log(self._path, raw.execute, _OPERATION)
            require_needed_log(self._path, raw.execute, _OPERATION)
        except (StaleLogError, LostLogError) as error:
            found, _, advice = error.message.partition(UNCHANGED)
            return HealthCheck("own_log", FAILED, found.strip(), advice.strip())
        return HealthCheck("own_log", OK)

    def _schema(self, raw: apsw.Connection) -> HealthCheck:
        tables = {str(row[0]) for row in raw.execute("SELECT name FROM sqlite_schema").fetchall()}
        if not tables:
            return HealthCheck("schema", OK, "no tables yet")
        rows: list[Any] = []
        if "alembic_version" in tables:
            rows = raw.execute(STORED_REVISIONS).fetchall()
        revision = revision_of(rows[0][0]) if rows else "none"
        if revision == HEAD:
            missing = sorted(TABLES.keys() - tables)
            if missing:
                told = f"revision {revision}, without {', '.join(missing)}"
                return HealthCheck("schema", FAILED, told, self._rescue)
            return HealthCheck("schema", OK, f"revision {revision}")
        if rows and is_known(revision):
            return HealthCheck(
                "schema",
                OK,
                f"revision {revision}; the next opening brings it to {HEAD}",
            )
        return HealthCheck(
            "schema",
            FAILED,
            f"revision {revision}, but this version knows up to {HEAD}",
            "pip install --upgrade mandrake-sessions" if rows else self._rescue,
        )

    def _pages(self, name: str, raw: apsw.Connection) -> HealthCheck:
        try:
            problems = self._problems(raw)
        except apsw.CorruptError:
            # It stops at some damage, and does not say where.
            problems = [f"damage in table {table}" for table in self._damaged_tables(raw)]
            problems = problems or ["SQLite stops at damage"]
        if problems:
            return HealthCheck(name, FAILED, " ".join(listed(problems).split()), self._rescue)
        return HealthCheck(name, OK)

    def _problems(self, raw: apsw.Connection) -> list[str]:
        if self._full:
            return damage_of(raw)
        problems = [str(row[0]) for row in raw.execute("PRAGMA quick_check").fetchall()]
        return [] if problems == ["ok"] else problems

    def _damaged_tables(self, raw: apsw.Connection) -> list[str]:
        check = "integrity_check" if self._full else "quick_check"
        tables = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        damaged = []
        for (table,) in tables:
            with contextlib.suppress(apsw.CorruptError):
                quoted = str(table).replace('"', '""')
                if raw.execute(f'PRAGMA {check}("{quoted}")').fetchall() == [("ok",)]:
                    continue
            damaged.append(str(table))
        return damaged

    def _references(self, name: str, raw: apsw.Connection) -> HealthCheck:
        broken = raw.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            return HealthCheck(name, DEGRADED, orphans(broken), f"{ORPHANS}, or: {self._salvage}")
        return HealthCheck(name, OK)

    def _texts(self, name: str, raw: apsw.Connection) -> HealthCheck:
        """Whether every text is one: SQLite's own checks do not look at what texts hold."""
        there = {str(row[0]) for row in raw.execute("SELECT name FROM sqlite_schema").fetchall()}
        bad: list[str] = []
        unread: list[str] = []
        for table, columns in TABLES.items():
            if table in there:
                try:
                    count = _damaged_texts(raw, table, columns)
                except apsw.CorruptError:
                    unread.append(table)
                else:
                    bad += [f"{count} in {table}"] if count else []
        told = [f"rows with a damaged text: {', '.join(bad)}"] if bad else []
        if unread:
            told.append(f"cannot be read to the end: {', '.join(unread)}")
            return HealthCheck(name, FAILED, "; ".join(told), self._rescue)
        if told:
            return HealthCheck(name, DEGRADED, told[0], f"{_REPLACED}, or: {self._salvage}")
        return HealthCheck(name, OK)

    def _streaming(self, name: str, raw: apsw.Connection) -> HealthCheck:
        turns = raw.execute(
            "SELECT CAST(owner AS BLOB), count(*) FROM turns"
            " WHERE stream_ended_at IS NULL GROUP BY owner"
        ).fetchall()
        dead = sum(
            int(str(count))
            for id, count in turns
            if not isinstance(id, bytes)
            or not owner.is_alive(self._path, id.decode(errors="replace"))
        )
        total = sum(int(str(count)) for _, count in turns)
        if dead:
            return HealthCheck(
                name,
                DEGRADED,
                f"{counted(dead, 'turn')} still streaming, but of a process that is gone",
                f"Open it once: mandrake-sessions health --database {shlex.quote(str(self._path))}",
            )
        return HealthCheck(name, OK, f"{counted(total, 'turn')} streaming" if total else "")


def _damaged_texts(raw: apsw.Connection, table: str, columns: tuple[Column, ...]) -> int:
    texts = [f'CAST("{c.name}" AS BLOB)' for c in columns if c.kind == "TEXT"]
    rows = raw.execute(f"SELECT {', '.join(texts)} FROM {table}")
    return sum(not all(is_text(cell) for cell in row) for row in rows)
