"""Copies an open database into a file of its own, and checks the copy before it gets its name.

The copy is read from one snapshot, which the source connection holds meanwhile. Without a snapshot,
SQLite restarts a backup in steps at each commit of another connection: 300 commits made 300
restarts and no copy. A reader in WAL mode delays no writer; the cost of the snapshot is that the
WAL is not reset before the copy is done.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import apsw

from mandrake_sessions.concurrency.blocks import block, closing
from mandrake_sessions.database.connection.bad_ids import (
    reindex,
)
from mandrake_sessions.database.connection.begin_commit import rollback
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.verification import (
    CHECK_STEPS,
    LEFTOVERS,
    damage_of,
    problems_of,
    unexplained_problems_of,
    verify,
)
from mandrake_sessions.database.error_codes import pass_on_timeout, translate, translate_os
from mandrake_sessions.database.files.atomic import partial_file, replace, sync_file, tidy
from mandrake_sessions.database.files.paths import identify, real_path
from mandrake_sessions.database.files.wal_mark import make_new
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import (
    BackupError,
    DatabaseError,
    DatabaseFolderError,
    PoolClosedError,
    StorageFullError,
)

_PAGES_PER_STEP = 1024
_OPERATION = "backup"

Progress = Callable[[int, int], None]
"""Called after each step with the pages copied and the pages in all; raising stops the backup."""

Lend = Callable[[], contextlib.AbstractContextManager[Connection]]
"""Lends a connection of the database without an open transaction, as long as the copy takes."""


def backup(
    source: Connection,
    target: str | os.PathLike[str],
    budget: Budget,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Copy a database through a connection that the caller has leased; see ``back_up``."""
    return back_up(
        lambda: contextlib.nullcontext(source),
        source.path,
        target,
        budget,
        overwrite=overwrite,
        progress=progress,
        is_ended=lambda: source.is_cancelled,
    )


def back_up(
    lend: Lend,
    database: Path,
    target: str | os.PathLike[str],
    budget: Budget,
    *,
    is_ended: Callable[[], bool],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Copy the database into one private file that can be read without any other file.

    The copy holds the commits up to its beginning, has passed SQLite's integrity check and its
    foreign key check, and is not in WAL mode.

    Args:
        lend: lends a connection of the database, which is released before the copy is checked.
        database: the real path of the database.
        target: the file to make; its folder must exist.
        budget: the time that the copying and the checks may take.
        is_ended: whether the database is being closed, so that the copy has to stop.
        overwrite: whether an existing file is replaced.
        progress: called with the progress.

    Returns:
        The real path of the copy.

    Raises:
        BackupError: there is no copy, and the target is unchanged. The ``__cause__`` is the reason.
        PoolClosedError: the connection is being closed.
        DatabaseError: the connection cannot be lent; each reason has its own subclass.
    """
    path = _require_free(database, target, overwrite=overwrite)
    tidy(database)
    errors = _BackupErrors(database, path, budget, is_ended)
    with errors, partial_file(path) as partial:
        with lend() as source:
            errors.source = source
            # Inside the lease: its holder must not see a full disk of the copy as the database's.
            with errors:
                _copy(source, partial, budget, progress)
        # After the lease: readers need the connection, and the checks may take longer than copying.
        _require_whole(partial, database, errors.must_stop, is_backup=True)
        sync_file(partial)
        replace(partial, path, overwrite=overwrite)
    return path


def check_copy(source: Connection, budget: Budget) -> None:
    """Check a temporary copy next to a database; raise the errors of ``back_up``."""
    errors = _BackupErrors(source.path, source.path, budget, lambda: source.is_cancelled)
    errors.source = source
    # Under a name of the database, so that the leftover of a killed process counts as unfinished.
    with errors, partial_file(source.path) as partial:
        _copy(source, partial, budget, None)
        _require_whole(partial, source.path, errors.must_stop, is_backup=False)


class _BackupErrors:
    """Turns errors inside its block into BackupError, or PoolClosedError if the pool closes."""

    def __init__(
        self, database: Path, target: Path, budget: Budget, is_ended: Callable[[], bool]
    ) -> None:
        self.source: Connection | None = None
        self._database = database
        self._target = target
        self._budget = budget
        self._is_ended = is_ended

    def must_stop(self) -> bool:
        """Return whether the database is being closed or the time is up."""
        return self._was_closed() or not self._budget.left()

    def _was_closed(self) -> bool:
        return self._is_ended() or (self.source is not None and self.source.is_cancelled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, FileExistsError):
            raise BackupError("The target exists.", path=self._target, operation=_OPERATION)
        if not isinstance(error, (apsw.Error, OSError, DatabaseFolderError, StorageFullError)):
            return
        if isinstance(error, apsw.Error) and self._was_closed():
            raise PoolClosedError(path=self._database, operation=_OPERATION)
        if isinstance(error, apsw.InterruptError):
            raise _late(self._budget, self._database)
        if isinstance(error, DatabaseError):
            raise _failed(error, self._target) from error
        if isinstance(error, OSError):
            typed = translate_os(error, self._target)
            typed.__cause__ = error
            raise _failed(typed, self._target) from typed
        raw = None if self.source is None else self.source.raw
        typed = translate(error, self._target, _OPERATION, raw=raw)
        typed.__cause__ = error
        raise _failed(typed, self._database) from typed


def _require_whole(
    partial: Path, database: Path, must_stop: Callable[[], bool], *, is_backup: bool
) -> None:
    """Check a copy; in a backup, problems that come from a text that is not UTF-8 are accepted.

    Raises:
        BackupError: the copy is damaged, or has rows without their parents.
    """
    check = unexplained_problems_of if is_backup else problems_of
    problems = verify(partial, must_stop, check)
    if problems and is_backup and _is_rebuilt(partial, database, must_stop, problems):
        problems = verify(partial, must_stop, check)
    if problems:
        is_damaged = verify(partial, must_stop, damage_of)
        raise BackupError(
            f"The copy is damaged: {'; '.join(problems[:3])}.",
            path=database,
            operation=_OPERATION,
            result_code=apsw.SQLITE_CORRUPT if is_damaged else apsw.SQLITE_CONSTRAINT_FOREIGNKEY,
        )


def _is_rebuilt(
    partial: Path, database: Path, must_stop: Callable[[], bool], problems: list[str]
) -> bool:
    """Rebuild indexes if texts that are not UTF-8 are their only problem; return whether."""
    # For a damaged copy the error has the problems that were found first.
    with contextlib.suppress(apsw.CorruptError, apsw.ConstraintError), _writable(partial) as raw:
        raw.set_progress_handler(must_stop, CHECK_STEPS)
        return reindex(raw, problems, database)
    return False


@block
def _writable(partial: Path) -> Iterator[apsw.Connection]:
    """Open a copy that no other connection has open, for writing."""
    raw = apsw.Connection(
        str(partial), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    )
    with closing(raw):
        yield raw


def _failed(cause: DatabaseError, path: Path) -> BackupError:
    return BackupError(
        f"The backup could not be made: {cause.message}",
        path=path,
        operation=_OPERATION,
        result_code=cause.result_code,
    )


def _late(budget: Budget, database: Path) -> BackupError:
    error = BackupError("The time was up.", path=database, operation=_OPERATION)
    error.__cause__ = budget.exceeded("body", database, _OPERATION)
    return error


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        pass_on_timeout(error)
        return False


def _require_free(database: Path, target: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the target's real path; raise BackupError if no copy may be put there."""
    try:
        path = real_path(target)
        there = identify(path)
    except DatabaseError as error:
        raise BackupError(error.message, path=database, operation=_OPERATION) from error
    if path == database or (there is not None and there == identify(database)):
        raise BackupError("The target is the database itself.", path=database, operation=_OPERATION)
    if not _is_folder(path.parent):
        raise BackupError("The target's folder does not exist.", path=path, operation=_OPERATION)
    if there is not None and not overwrite:
        raise BackupError("The target exists.", path=path, operation=_OPERATION)
    for suffix in LEFTOVERS:
        if os.path.lexists(f"{path}{suffix}"):
            raise BackupError(
                f"The target is in use, or was in use at a crash: its {suffix} exists.",
                path=path,
                operation=_OPERATION,
            )
    return path


def _copy(source: Connection, partial: Path, budget: Budget, progress: Progress | None) -> None:
    """Copy the present state of the database into an empty file."""
    copy = apsw.Connection(
        str(partial),
        flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW,
        # The file layer of a source that is read unshared cannot write.
        vfs=None if source.unshared is not None else source.raw.open_vfs or None,
    )
    with closing(copy), _snapshot(source, budget):
        # A copy that fails is removed, so there is nothing to roll back to.
        copy.execute("PRAGMA journal_mode=off").fetchall()
        with copy.backup("main", source.raw, "main") as pages:
            done = False
            while not done:
                if source.is_cancelled:
                    raise PoolClosedError(path=source.path, operation=_OPERATION)
                if not budget.left():
                    raise _late(budget, source.path)
                done = pages.step(_PAGES_PER_STEP)
                if progress is not None:
                    progress(pages.page_count - pages.remaining, pages.page_count)
        # A database at another revision may have other tables.
        with contextlib.suppress(apsw.SQLError):
            make_new(copy.execute)
        # The copy of a database in WAL mode is in WAL mode, and would come with two more files.
        mode = copy.execute("PRAGMA journal_mode=delete").fetchall()
        if mode != [("delete",)]:
            raise BackupError(
                "The copy cannot leave WAL mode.", path=source.path, operation=_OPERATION
            )


@block
def _snapshot(source: Connection, budget: Budget) -> Iterator[None]:
    source.deadline = budget.deadline
    source.interruptible = True
    # An open transaction belongs to the caller, and BEGIN is refused.
    was_open = source.raw.in_transaction
    try:
        source.execute("BEGIN").fetchall()
        # BEGIN alone takes no snapshot.
        source.query_all("SELECT count(*) FROM sqlite_schema")
        yield
    finally:
        try:
            if not was_open:
                rollback(source)
        finally:
            # signal-safe release: an open transaction would have the file retired.
            if not was_open:
                rollback(source)
