"""Checks of a database's content by SQLite: its schema, its pages, its references, its texts.

A connection to a database in WAL mode makes files next to it. So a file that no process has open
is read as immutable, and a file with a WAL that a crash has left is read from a private copy.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apsw

from mandrake_sessions.concurrency.blocks import block, closing
from mandrake_sessions.database.connection.bad_ids import is_text
from mandrake_sessions.database.connection.verification import damage_of
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.database.files import owner
from mandrake_sessions.database.files.own_wal import (
    UNCHANGED,
    has_wal,
    require_needed_wal,
    require_own_wal,
)
from mandrake_sessions.database.files.raw import copy_database
from mandrake_sessions.database.health.wording import ORPHANS, counted, listed, orphans
from mandrake_sessions.database.migrations.head import STORED_REVISIONS, is_known, revision_of
from mandrake_sessions.database.sidecars import JOURNAL, WAL, sidecar
from mandrake_sessions.engine.health import HealthCheck, HealthStatus
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
_REPLACED: Final = "They are read with U+FFFD in place of the damaged bytes: write them anew"


class Contents:
    """One check of the content of a file.

    Args:
        path: the file.
        in_use: whether a process has it open.
        full: whether indexes are compared with their tables.
        rescue: the advice for a damaged file.
        salvage: the command that reads the readable rows into a new file.
    """

    def __init__(self, path: Path, *, in_use: bool, full: bool, rescue: str, salvage: str) -> None:
        self._path = path
        self._in_use = in_use
        self._full = full
        self._rescue = rescue
        self._salvage = salvage

    def run(self) -> list[HealthCheck]:
        """Return the results; a check that fails does not stop the others.

        If the file cannot be opened, the only result says why.
        """
        try:
            with self._opened() as raw:
                own_log = self._own_wal(raw)
                if own_log.status is FAILED:
                    # The pages do not belong together, so further results would mean nothing.
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
        self, name: str, check: Callable[[str, apsw.Connection], HealthCheck], raw: apsw.Connection
    ) -> HealthCheck:
        try:
            return check(name, raw)
        except apsw.Error as error:
            return self._unreadable(name, error)

    def _unreadable(self, name: str, error: Exception) -> HealthCheck:
        if isinstance(error, OSError):
            # The file is not at fault: the folder for the private copy takes no files.
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
        """Lend a connection that changes no file next to the database."""
        with contextlib.ExitStack() as stack:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            name = self._path.as_uri()
            logs = [sidecar(self._path, suffix) for suffix in (WAL, JOURNAL)]
            if self._in_use:
                pass
            elif any(log.exists() and log.stat().st_size for log in logs):
                # Imported late: it imports modules for compressed files.
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

    def _own_wal(self, raw: apsw.Connection) -> HealthCheck:
        """Check that the WAL belongs to the file, and that no WAL is missing."""
        if self._in_use:
            return HealthCheck("own_log", OK, "in use")
        try:
            if has_wal(self._path):
                require_own_wal(self._path, raw.execute, _OPERATION)
            require_needed_wal(self._path, raw.execute, _OPERATION)
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
                detail = f"revision {revision}, without {', '.join(missing)}"
                return HealthCheck("schema", FAILED, detail, self._rescue)
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
            # Some damage ends the whole check, and SQLite does not say where it is.
            problems = [f"damage in table {table}" for table in self._damaged_tables(raw)]
            problems = problems or ["damage ended the check"]
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
        """Check that every text is valid UTF-8, which SQLite's own checks do not."""
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
        details = [f"rows with a damaged text: {', '.join(bad)}"] if bad else []
        if unread:
            details.append(f"cannot be read to the end: {', '.join(unread)}")
            return HealthCheck(name, FAILED, "; ".join(details), self._rescue)
        if details:
            return HealthCheck(name, DEGRADED, details[0], f"{_REPLACED}, or: {self._salvage}")
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
                f"{counted(dead, 'turn')} still streaming, but the owner process is gone",
                f"Open it once: mandrake-sessions health --database {shlex.quote(str(self._path))}",
            )
        return HealthCheck(name, OK, f"{counted(total, 'turn')} streaming" if total else "")


def _damaged_texts(raw: apsw.Connection, table: str, columns: tuple[Column, ...]) -> int:
    texts = [f'CAST("{c.name}" AS BLOB)' for c in columns if c.kind == "TEXT"]
    rows = raw.execute(f"SELECT {', '.join(texts)} FROM {table}")
    return sum(not all(is_text(cell) for cell in row) for row in rows)
