"""Makes a fresh file a database of this version from compiled texts, without Alembic.

So frozen programs, zip files and processes that may no longer read their own folder can make new
files too. Migrations make the same schema; ``revisions`` marks their new files with ``marks``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

import apsw

from mandrake_sessions import ids
from mandrake_sessions.database.connection.begin_commit import begin_unmarked, commit, rollback
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.database.file_format import (
    APPLICATION_ID_AT,
    FORMAT_AT,
    USER_VERSION_AT,
    WAL_FORMAT,
)
from mandrake_sessions.database.files.names import HOME, home_of
from mandrake_sessions.database.files.wal_mark import KEY, first_mark
from mandrake_sessions.database.migrations.ddl import CREATED_BY, SCHEMA
from mandrake_sessions.database.retry import pace, pause
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.tables import APPLICATION_ID, HEAD

_OPERATION: Final = "open"
_PATIENCE: Final = 1.0
_HEADER_BITS: Final = 0x7FFFFFFF
_IS_FRESH: Final = (
    "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema) AND user_version = 0 AND application_id = 0 "
    "FROM pragma_user_version, pragma_application_id"
)


def is_fresh(connection: Connection) -> bool:
    """Return whether a file has neither a table nor a mark, so that it never was a database.

    Raises:
        DatabaseError: it cannot be read.
    """
    try:
        return bool(connection.value(_IS_FRESH))
    except apsw.Error as error:
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error


def install(connection: Connection, budget: Budget) -> None:
    """Give a fresh file the schema of this version; leave a file that another process has filled.

    Args:
        connection: the writer, without an open transaction; the caller must hold its lease.
        budget: limits the wait for others.

    Raises:
        DatabaseBusyError: others held the file until the deadline.
        DatabaseError: the disk is full or the like. Nothing was changed.
        CommitOutcomeUnknownError: the COMMIT failed: open the file again to see the outcome.
    """
    begin_unmarked(connection, budget, _OPERATION)
    connection.interruptible = False
    try:
        # Another process may have filled it meanwhile.
        if not is_fresh(connection):
            return
        _fill(connection.execute, connection.path)
        commit(connection, _OPERATION)
    except apsw.Error as error:
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error
    finally:
        rollback(connection)


def settle(connection: Connection, budget: Budget) -> None:
    """Copy the schema from the WAL into the file, unless the file has it.

    A file that has lost its WAL must never look like a fresh one.

    Args:
        connection: as for ``install``.
        budget: limits the wait for other processes that copy or read, which is also at most 1 s.

    Raises:
        DatabaseError: the disk is full or the like.
    """
    if connection.has_schema:
        return
    since = monotonic()
    deadline = min(budget.deadline, since + _PATIENCE)
    while int.from_bytes(connection.header()[APPLICATION_ID_AT], "big") != APPLICATION_ID:
        try:
            connection.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            pass
        except apsw.Error as error:
            raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error
        if not pause(deadline, pace(since)):
            return


def image(path: Path) -> bytes:
    """Return the bytes of a whole new file for a path, each time with new marks."""
    template, marked = _template()
    content = bytearray(template)
    pragmas, facts = marks(path)
    content[USER_VERSION_AT] = pragmas["user_version"].to_bytes(4, "big")
    for key, (start, end) in marked.items():
        value = facts[key].encode()
        assert len(value) == end - start
        content[start:end] = value
    return bytes(content)


@functools.cache
def _template() -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the bytes of a new file, and the positions of the facts that differ in each file.

    These have a fixed length. Making the tables takes ten times as long as writing the facts.
    """
    raw = apsw.Connection(":memory:")
    try:
        raw.execute("BEGIN")
        facts = _fill(raw.execute, Path("/"))
        raw.execute("COMMIT")
        content = bytearray(raw.serialize("main"))
    finally:
        raw.close()
    content[FORMAT_AT] = WAL_FORMAT
    marked = {}
    for key in ("stamp", "created_at", HOME, KEY):
        # In a row of ``meta`` the value follows the key directly.
        start = content.index(f"{key}{facts[key]}".encode()) + len(key)
        marked[key] = start, start + len(facts[key].encode())
    return bytes(content), marked


def _fill(execute: Callable[..., object], path: Path) -> dict[str, str]:
    """Make the tables and the marks in an open transaction; return the rows of ``meta``."""
    for text in SCHEMA:
        execute(text)
    execute("INSERT INTO alembic_version (version_num) VALUES (?)", (HEAD,))
    pragmas, facts = marks(path)
    for name, number in pragmas.items():
        execute(f"PRAGMA {name} = {number}")
    for fact in facts.items():
        execute("INSERT INTO meta (key, value) VALUES (?, ?)", fact)
    return facts


def marks(path: Path | None, kept: int = 0) -> tuple[dict[str, int], dict[str, str]]:
    """Return the marks of a new file: pragmas, and the first rows of ``meta``.

    The stamp distinguishes this file from any other, also from one that is copied over it. All of
    it is in ``meta``, and 31 bits of it in the header, which can be read past the cache.

    Args:
        path: the path of the file; None if it is not known.
        kept: the 31 bits of a file that was reverted to base and stays the same file: its header
            shows them until the next WAL checkpoint.
    """
    stamp = ids.new_stamp()
    in_header = kept or stamp & _HEADER_BITS or 1
    stamp = stamp & ~_HEADER_BITS | in_header
    now = ids.now()
    facts = {
        "stamp": f"{stamp:032x}",
        "created_by": CREATED_BY,
        "created_at": str(now),
        KEY: str(first_mark(now)),
    }
    if path is not None:
        facts[HOME] = home_of(path)
    return {"application_id": APPLICATION_ID, "user_version": in_header}, facts
