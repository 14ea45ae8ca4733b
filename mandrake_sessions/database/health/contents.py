"""What SQLite says of a database's content: its schema, its pages, its references, its texts.

Reading a database that is in WAL mode makes files beside it, so one that nobody has open is read
as one that nobody changes, and one that a crash has left is read from a private copy.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw
from sqlalchemy import Text

from mandrake_sessions.database import owner
from mandrake_sessions.database.backup import problems_of
from mandrake_sessions.database.faults import translate
from mandrake_sessions.database.health.report import HealthCheck, HealthStatus
from mandrake_sessions.database.raw import copy_database
from mandrake_sessions.database.revisions import is_known
from mandrake_sessions.errors import DatabaseBusyError, DatabaseError
from mandrake_sessions.schema import HEAD, metadata

OK, DEGRADED, FAILED = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILED

_OPERATION: Final = "diagnose"
_BUSY_MS: Final = 250
_MOST: Final = 3


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
        """Make the checks; what cannot be read is a check of its own."""
        checks: list[HealthCheck] = []
        try:
            with self._opened() as raw:
                checks.append(self._schema(raw))
                checks += self._integrity(raw)
                if checks[0].detail.startswith("revision") and checks[0].status is OK:
                    checks += [self._texts(raw), self._streaming(raw)]
        except (apsw.Error, DatabaseError, OSError) as error:
            checks.append(self._unreadable(error))
        return checks

    def _unreadable(self, error: Exception) -> HealthCheck:
        if isinstance(error, OSError):
            return HealthCheck("reading", FAILED, os.strerror(error.errno or 0), self._rescue)
        typed = error
        if isinstance(error, apsw.Error):
            typed = translate(error, self._path, _OPERATION)
        detail = f"{type(typed).__name__}: {getattr(typed, 'message', typed)}"
        if isinstance(typed, DatabaseBusyError):
            return HealthCheck("reading", DEGRADED, detail, "Try again.")
        return HealthCheck("reading", FAILED, detail, self._rescue)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[apsw.Connection]:
        """Open it so that nothing beside it changes."""
        with contextlib.ExitStack() as stack:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            name = self._path.as_uri()
            logs = [Path(f"{self._path}{suffix}") for suffix in ("-wal", "-journal")]
            if self._in_use:
                pass
            elif any(log.exists() and log.stat().st_size for log in logs):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mandrake-doctor-"))
                copy = Path(folder) / "copy.sqlite"
                copy_database(self._path, copy)
                name = copy.as_uri()
                flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
            else:
                name += "?immutable=1"
            raw = stack.enter_context(contextlib.closing(apsw.Connection(name, flags=flags)))
            raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            raw.set_busy_timeout(_BUSY_MS)
            yield raw

    def _schema(self, raw: apsw.Connection) -> HealthCheck:
        if not raw.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]:
            return HealthCheck("schema", OK, "no tables yet")
        rows = raw.execute("SELECT version_num FROM alembic_version").fetchall()
        revision = str(rows[0][0]) if rows else "none"
        if revision == HEAD:
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
            "pip install --upgrade mandrake-sessions",
        )

    def _integrity(self, raw: apsw.Connection) -> list[HealthCheck]:
        name = "integrity" if self._full else "pages"
        if self._full:
            problems = problems_of(raw)
        else:
            problems = [str(row[0]) for row in raw.execute("PRAGMA quick_check").fetchall()]
            problems = [] if problems == ["ok"] else problems
        if problems:
            return [HealthCheck(name, FAILED, " ".join(listed(problems).split()), self._rescue)]
        checks = [HealthCheck(name, OK)]
        broken = raw.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            tables = sorted({str(row[0]) for row in broken})
            checks.append(
                HealthCheck(
                    "references",
                    FAILED,
                    f"{len(broken)} rows whose parent is gone, in {', '.join(tables)}",
                    self._salvage,
                )
            )
        else:
            checks.append(HealthCheck("references", OK))
        return checks

    def _texts(self, raw: apsw.Connection) -> HealthCheck:
        """Whether every text is one: SQLite's own checks do not look at what texts hold."""
        there = {str(row[0]) for row in raw.execute("SELECT name FROM sqlite_schema").fetchall()}
        bad: dict[str, int] = {}
        for name, table in metadata.tables.items():
            texts = [f'CAST("{c.name}" AS BLOB)' for c in table.columns if isinstance(c.type, Text)]
            if name in there:
                for row in raw.execute(f"SELECT {', '.join(texts)} FROM {name}"):
                    if not all(_is_text(cell) for cell in row):
                        bad[name] = bad.get(name, 0) + 1
        if bad:
            told = ", ".join(f"{count} in {name}" for name, count in bad.items())
            return HealthCheck("texts", FAILED, f"rows with a damaged text: {told}", self._rescue)
        return HealthCheck("texts", OK)

    def _streaming(self, raw: apsw.Connection) -> HealthCheck:
        turns = raw.execute(
            "SELECT owner, count(*) FROM turns WHERE stream_ended_at IS NULL GROUP BY owner"
        ).fetchall()
        dead = sum(
            int(str(count))
            for id, count in turns
            if id is None or not owner.is_alive(self._path, str(id))
        )
        total = sum(int(str(count)) for _, count in turns)
        if dead:
            return HealthCheck(
                "streaming",
                DEGRADED,
                f"{dead} turns stream although their process is gone",
                f"Open it once: mandrake-sessions health --database {self._path}",
            )
        return HealthCheck("streaming", OK, f"{total} turns" if total else "")


def _is_text(cell: object) -> bool:
    try:
        return not isinstance(cell, bytes) or cell.decode() is not None
    except UnicodeDecodeError:
        return False


def listed(names: list[str]) -> str:
    """Return the first few of some names."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{', '.join(names[:_MOST])}{more}"
