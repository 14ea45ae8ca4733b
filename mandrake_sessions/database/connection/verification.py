"""What SQLite's checks find in a copy of a database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from mandrake_sessions.concurrency.blocks import block, closing
from mandrake_sessions.database.connection.bad_ids import (
    orphan,
    unexplained_orphans,
)
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.sidecars import JOURNAL, WAL
from mandrake_sessions.errors import (
    DatabaseMissingError,
)

_BUSY_TIMEOUT_MS = 1000
CHECK_STEPS = 20_000
# SQLite replays such a file into a database of its name, even into a new one.
LEFTOVERS = (WAL, JOURNAL)


def problems_of(raw: apsw.Connection) -> list[str]:
    """Return the problems that SQLite's two checks find; empty for a sound file.

    Raises:
        apsw.Error: the file is too damaged to be checked.
    """
    # The references of a damaged file are not reliable.
    return damage_of(raw) or [
        orphan(row) for row in raw.execute("PRAGMA foreign_key_check").fetchall()
    ]


def unexplained_problems_of(raw: apsw.Connection) -> list[str]:
    """Return the result of ``problems_of`` without the orphans that a damaged id explains."""
    return damage_of(raw) or unexplained_orphans(
        raw, raw.execute("PRAGMA foreign_key_check").fetchall()
    )


def damage_of(raw: apsw.Connection) -> list[str]:
    """Return the problems that SQLite's integrity check finds; raise as ``problems_of`` does.

    A value that breaks a CHECK constraint is one bad value, and no damage.
    """
    # A connection that only reads ignores them anyway, and a restore must accept what it accepts.
    raw.execute("PRAGMA ignore_check_constraints = on").fetchall()
    found = [str(row[0]) for row in raw.execute("PRAGMA integrity_check").fetchall()]
    return [] if found == ["ok"] else found


def verify(
    path: str | os.PathLike[str],
    stop: Callable[[], bool] | None = None,
    check: Callable[[apsw.Connection], list[str]] = problems_of,
) -> list[str]:
    """Check a database file that no process has open, without a change.

    Args:
        path: the path of the file.
        stop: called repeatedly; True ends the check.
        check: returns the problems.

    Returns:
        The problems, by default those of SQLite's integrity check and foreign key check; empty for
        a sound file.

    Raises:
        DatabaseMissingError: there is no file.
        apsw.InterruptError: ``stop`` has ended the check.
    """
    real = real_path(path)
    if identify(real) is None:
        raise DatabaseMissingError(path=real, operation="verify")
    try:
        with _opened(real) as raw:
            if stop is not None:
                raw.set_progress_handler(stop, CHECK_STEPS)
            return check(raw)
    except apsw.InterruptError:
        raise
    except apsw.Error as error:
        return [str(error)]


@block
def _opened(path: Path) -> Iterator[apsw.Connection]:
    """Open a file that no process has open, for reading."""
    if any(os.path.lexists(f"{path}{suffix}") for suffix in LEFTOVERS):
        # A process died while it used the file: only a connection that may write can recover it.
        raw = apsw.Connection(
            str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        raw.set_busy_timeout(_BUSY_TIMEOUT_MS)
    else:
        # Otherwise even a reader of a file in WAL mode would leave a -wal and a -shm next to it.
        raw = apsw.Connection(
            f"{path.as_uri()}?immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
    with closing(raw):
        # The file may come from any source, and a schema can run functions.
        raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        yield raw
