"""Copies an open database into a file of its own, and checks the copy before it gets its name.

The copy is read from one snapshot that the source connection holds meanwhile. Left to itself,
SQLite begins a backup in steps again with every commit of another connection: 300 commits made
300 restarts and no copy. A reader in WAL holds no writer up; what the snapshot costs is that the
WAL is not reset before the copy is done.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.faults import translate, translate_os
from mandrake_sessions.database.paths import identify, real_path
from mandrake_sessions.database.transaction import rollback
from mandrake_sessions.database.waiting import Budget
from mandrake_sessions.errors import (
    BackupError,
    DatabaseError,
    DatabaseMissingError,
    PoolClosedError,
)

_PAGES_PER_STEP = 1024
_BUSY_TIMEOUT_MS = 1000
_OPERATION = "backup"
# What SQLite would replay into a file of this name, whatever it holds by then.
_LEFTOVERS = ("-wal", "-journal")

Progress = Callable[[int, int], None]
"""Told after each step how many pages are copied and how many there are; raising stops it."""


def backup(
    source: Connection,
    target: str | os.PathLike[str],
    budget: Budget,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Copy the database into a file that nobody needs anything else to read.

    The copy holds what was committed when it began, has passed SQLite's integrity check and its
    foreign key check, is not in WAL mode, and is readable by its owner only.

    Args:
        source: any connection of the database with no transaction open; its lease is the caller's.
        target: the file to make; its folder must exist.
        budget: the time copying may take. The checks of the copy come on top.
        overwrite: whether an existing file is replaced.
        progress: told how far it is.

    Returns:
        The real path of the copy.

    Raises:
        BackupError: there is no copy, and the target is as it was. The ``__cause__`` says why.
        PoolClosedError: the connection is being closed.
    """
    path = _require_free(source, target, overwrite=overwrite)
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(8)}")
    try:
        _make_empty(partial)
        _copy(source, partial, budget, progress)
        problems = verify(partial)
        if problems:
            raise BackupError(
                f"The copy is damaged: {'; '.join(problems[:3])}.",
                path=source.path,
                operation=_OPERATION,
            )
        _put_in_place(partial, path, overwrite=overwrite)
    except apsw.Error as error:
        typed = translate(error, path, _OPERATION)
        typed.__cause__ = error
        raise _failed(typed, source) from typed
    except OSError as error:
        typed = translate_os(error, path)
        typed.__cause__ = error
        raise _failed(typed, source) from typed
    finally:
        for each in (partial, *(Path(f"{partial}{suffix}") for suffix in (*_LEFTOVERS, "-shm"))):
            with contextlib.suppress(OSError):
                each.unlink()
    return path


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Check a database file that nobody has open, and leave it as it is.

    Args:
        path: of the file.

    Returns:
        What SQLite's integrity check and foreign key check find; empty if all is well.

    Raises:
        DatabaseMissingError: there is no file.
    """
    real = real_path(path)
    if identify(real) is None:
        raise DatabaseMissingError(path=real, operation="verify")
    try:
        with _opened(real) as raw:
            found = [str(row[0]) for row in raw.execute("PRAGMA integrity_check").fetchall()]
            if found != ["ok"]:
                # What is damaged cannot be trusted to tell its references.
                return found
            return [
                f"row {rowid} of {table} refers to a row of {parent} that is not there"
                for table, rowid, parent, _ in raw.execute("PRAGMA foreign_key_check").fetchall()
            ]
    except apsw.Error as error:
        return [str(error)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[apsw.Connection]:
    """Open a file that nobody has open, for reading."""
    if any(os.path.lexists(f"{path}{suffix}") for suffix in _LEFTOVERS):
        # A process died over it: only a connection that may write can read it right.
        raw = apsw.Connection(
            str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        )
        raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        raw.set_busy_timeout(_BUSY_TIMEOUT_MS)
    else:
        # Even a reader of a file in WAL mode would leave a -wal and a -shm beside it.
        raw = apsw.Connection(
            f"{path.as_uri()}?immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
    with contextlib.closing(raw):
        # The file may be anybody's.
        raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        yield raw


def _require_free(source: Connection, target: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the target's real path if a copy may be put there."""
    try:
        path = real_path(target)
        there = identify(path)
    except DatabaseError as error:
        raise BackupError(error.message, path=source.path, operation=_OPERATION) from error
    if path == source.path or there == source.identity:
        raise BackupError(
            "The target is the database itself.", path=source.path, operation=_OPERATION
        )
    if there is not None and not overwrite:
        raise BackupError("The target exists.", path=path, operation=_OPERATION)
    for suffix in _LEFTOVERS:
        # SQLite would replay it into the copy: it tells by the name whose it is.
        if os.path.lexists(f"{path}{suffix}"):
            raise BackupError(
                f"The target is in use, or was left in use by a crash: its {suffix} is there.",
                path=path,
                operation=_OPERATION,
            )
    return path


def _make_empty(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _copy(source: Connection, partial: Path, budget: Budget, progress: Progress | None) -> None:
    """Copy the database as it is now into an empty file."""
    copy = apsw.Connection(
        str(partial),
        flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW,
        vfs=source.raw.open_vfs or None,
    )
    with contextlib.closing(copy), _snapshot(source, budget):
        # A copy that fails is removed, so there is nothing to roll back to.
        copy.execute("PRAGMA journal_mode=off").fetchall()
        with copy.backup("main", source.raw, "main") as pages:
            done = False
            while not done:
                if source.is_cancelled:
                    raise PoolClosedError(path=source.path, operation=_OPERATION)
                if not budget.left():
                    busy = budget.exceeded("body", source.path, _OPERATION)
                    raise BackupError(
                        "The time was up.", path=source.path, operation=_OPERATION
                    ) from busy
                done = pages.step(_PAGES_PER_STEP)
                if progress is not None:
                    progress(pages.page_count - pages.remaining, pages.page_count)
        # The copy of a database in WAL mode is in WAL mode, and would come with two more files.
        mode = copy.execute("PRAGMA journal_mode=delete").fetchall()
        if mode != [("delete",)]:
            raise BackupError(
                "The copy cannot leave WAL mode.", path=source.path, operation=_OPERATION
            )


@contextlib.contextmanager
def _snapshot(source: Connection, budget: Budget) -> Iterator[None]:
    source.deadline = budget.deadline
    source.interruptible = True
    source.execute("BEGIN").fetchall()
    try:
        # BEGIN alone takes no snapshot.
        source.query_all("SELECT count(*) FROM sqlite_schema")
        yield
    finally:
        rollback(source)


def _put_in_place(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Give the copy its name; a file that came there meanwhile is not replaced unasked."""
    if overwrite:
        os.replace(partial, path)
    else:
        try:
            # Unlike a rename, a link fails where there is something.
            os.link(partial, path)
        except FileExistsError as error:
            raise BackupError("The target exists.", path=path, operation=_OPERATION) from error
        except OSError:
            # A file system without links, where the look must do.
            if os.path.lexists(path):
                raise
            os.rename(partial, path)
    # Not every system can; the copy has its name either way, so a failure here is none of it.
    with contextlib.suppress(OSError, AttributeError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _failed(cause: DatabaseError, source: Connection) -> DatabaseError:
    if source.is_cancelled:
        return PoolClosedError(path=source.path, operation=_OPERATION)
    return BackupError(
        f"The backup could not be made: {cause.message}",
        path=source.path,
        operation=_OPERATION,
        result_code=cause.result_code,
    )
