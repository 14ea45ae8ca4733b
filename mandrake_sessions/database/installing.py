"""Makes a fresh file a database of this version from compiled texts, without Alembic.

So a frozen program, a zip and a process that may not read its own folder any more make new files
too. What migrations make is the same; ``revisions`` marks their new files with what stands here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

import apsw

from mandrake_sessions import ids
from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.ddl import CREATED_BY, SCHEMA
from mandrake_sessions.database.faults import translate
from mandrake_sessions.database.header import (
    APPLICATION_ID_AT,
    FORMAT_AT,
    USER_VERSION_AT,
    WAL_FORMAT,
)
from mandrake_sessions.database.mark import KEY, first_mark
from mandrake_sessions.database.names import HOME, home_of
from mandrake_sessions.database.transaction import begin_unmarked, commit, rollback
from mandrake_sessions.database.waiting import Budget, pace, pause
from mandrake_sessions.tables import APPLICATION_ID, HEAD

_OPERATION: Final = "open"
_PATIENCE: Final = 1.0
_HEADER_BITS: Final = 0x7FFFFFFF
_IS_FRESH: Final = (
    "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema) AND user_version = 0 AND application_id = 0 "
    "FROM pragma_user_version, pragma_application_id"
)


def is_fresh(connection: Connection) -> bool:
    """Return whether a file has neither a table nor a mark: it never was a database.

    Raises:
        DatabaseError: it cannot be read.
    """
    try:
        return bool(connection.value(_IS_FRESH))
    except apsw.Error as error:
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error


def install(connection: Connection, budget: Budget) -> None:
    """Give a fresh file the schema of this version; a file that another process has made stays.

    Args:
        connection: the read-write one, with no transaction open; its lease is the caller's.
        budget: for what others hold.

    Raises:
        DatabaseBusyError: others held the file until the deadline.
        DatabaseError: the disk is full or the like. Nothing was changed.
        CommitOutcomeUnknownError: the last moment failed: open it again to see.
    """
    begin_unmarked(connection, budget, _OPERATION)
    connection.interruptible = False
    try:
        # Another process may have made it meanwhile.
        if not is_fresh(connection):
            return
        _fill(connection.execute, connection.path)
        commit(connection, _OPERATION)
    except apsw.Error as error:
        raise translate(error, connection.path, _OPERATION, raw=connection.raw) from error
    finally:
        rollback(connection)


def settle(connection: Connection, budget: Budget) -> None:
    """Copy the schema from the log into the file, unless it is there.

    A file without its log must never look like one that never had anything in it.

    Args:
        connection: as for ``install``.
        budget: for other processes that copy or read; one that reads for long is not waited for.

    Raises:
        DatabaseError: the disk is full or the like.
    """
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
    """Return the bytes of a whole new file at a path, each time with marks of its own."""
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
    """Return the bytes of a new file, and where those facts stand that each file has anew.

    They have a fixed length. To make the tables takes ten times as long as to write these.
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
        # In a row of ``meta`` the value follows the key.
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
    """Return what makes a new file ours, and itself: pragmas, and the first rows of ``meta``.

    The stamp distinguishes this file from any other, also from one copied over it: whole in
    ``meta``, and 31 bits of it in the header, which can be read without the cache.

    Args:
        path: of the file; None where it is not known.
        kept: those 31 bits of a file that was at base again and stays the same file: until the
            next checkpoint its header shows them.
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
