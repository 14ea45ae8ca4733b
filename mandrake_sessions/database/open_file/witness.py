"""Keeps the state of an open file when it was last sound, and judges later changes.

Commits go to the WAL; only a WAL checkpoint writes into the file itself. Each lease compares the
file's status with the last one (``seen``). A change is harmless if a WAL checkpoint of any process
explains it: the WAL index shows how far the WAL was copied. Other programs have made the remaining
changes. Other bytes in the header belong to another file, missing pages were cut off, and after any
other change all pages are checked before the next write.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

import apsw

from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.connection.header import difference, is_overwritten
from mandrake_sessions.database.connection.inspection import Inspections
from mandrake_sessions.database.connection.length import lacking_pages, measure
from mandrake_sessions.database.connection.wal_frames import commits_in_wal
from mandrake_sessions.database.error_codes import pass_on_timeout, translate
from mandrake_sessions.database.file_format import HEADER_BYTES, page_size_of, pages_of
from mandrake_sessions.database.files.paths import leads_elsewhere
from mandrake_sessions.database.files.turnstile import FileStatus, Turnstile
from mandrake_sessions.database.files.wal_index import WalIndex, WalState
from mandrake_sessions.database.open_file.displacement import FileCondition, Logs
from mandrake_sessions.database.open_file.refusal import Refusal
from mandrake_sessions.database.retry import FileBudget
from mandrake_sessions.engine.budget import LEAST_BODY, Budget
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    NotADatabaseError,
    PoolClosedError,
)
from mandrake_sessions.log import get_logger

MakeInspections = Callable[[], Inspections]
UNSEEN: Final[FileStatus] = (-1, -1, -1, -1, -1)
"""A status that no file has."""

_PATIENCE: Final = 1.0
"""Seconds for searching missing pages in the WAL, and in all for checks of all pages."""
_PAGES_PATIENCE: Final = 5.0
"""Seconds for checking all pages: about 10 GB of a file that the system has in memory."""
_SMALL: Final = 8 * 1024 * 1024
"""Bytes of a file whose pages are checked in about 3 ms, so that they are checked after a pause."""
_OPERATION: Final = "check"
_CHECK: Final = "PRAGMA quick_check(1)"
_FOREIGN: Final = "another program has written to it without SQLite"
_HEAD: Final = 4096
"""Bytes that are compared if no WAL checkpoint explains a change: the first page."""


def _view_of(found: os.stat_result) -> FileStatus:
    """Return the compared part of a file's status."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Known(NamedTuple):
    """The file at its last check.

    Attributes:
        view: its status.
        head: its first bytes.
        wal: the state of the WAL before that, without a running WAL checkpoint, which changes this
            state before it writes into the file. None if it was not known.
    """

    view: FileStatus
    head: bytes
    wal: WalState | None


class Witness:
    """Judges the changes of one open file, and records its damage in ``refusal``.

    Args:
        connection: an open connection to the file.
        stamp: the random number in its header.
        logs: the sidecars that SQLite has open.
        refusal: refuses writes after damage.
        has_vfs: whether the file is opened through a VFS of the host.

    Attributes:
        seen: the status of the file at the last check; ``UNSEEN`` if it must be checked again.
        index: the index of its WAL.
        is_doubted: whether a change was no WAL checkpoint, so that all pages must be checked.
        at_rest: the status of the file when it was parked; None if it was not.
        turnstile: shows other processes the status of a sound file; None until it is set.
    """

    def __init__(
        self,
        connection: Connection,
        stamp: int,
        logs: Logs,
        refusal: Refusal,
        *,
        has_vfs: bool,
    ) -> None:
        self.seen: FileStatus = UNSEEN
        self.is_doubted: bool = False
        self.at_rest: FileStatus | None = None
        self.turnstile: Turnstile | None = None
        self._path = connection.path
        self._name = str(connection.path)
        self._identity = connection.identity
        self._stamp = stamp
        self._logs = logs
        self._has_vfs = has_vfs
        self._refusal = refusal
        self.index: WalIndex = WalIndex(logs.index)
        self._known: _Known | None = None
        # Seconds that unfinished checks of all pages have taken.
        self._spent = 0.0
        # Salts of the WAL, and the number of its copied frames when these were all.
        self._whole_at: tuple[bytes, int] | None = None

    def rest(self) -> None:
        """Store the status of the file after it was parked."""
        with contextlib.suppress(OSError):
            self.at_rest = _view_of(os.stat(self._name))

    def wake(self, rested: FileStatus, *, is_explained: bool) -> None:
        """Doubt the pages of a file that was changed while it was parked.

        Args:
            rested: its status when it was parked.
            is_explained: whether another process of this library has used it; if so, its pages are
                checked only if the file is small.
        """
        if self.seen != rested and (not is_explained or self.seen[2] <= _SMALL):
            self.is_doubted = True

    def refresh(
        self, connection: Connection, *, may_be_under_way: bool = True, after_pause: bool = False
    ) -> FileCondition:
        """Judge the changes of the file since the last check; takes about ten microseconds.

        Args:
            connection: an open connection to the file; the caller must hold its lease.
            may_be_under_way: whether pages may be missing while a WAL checkpoint seems to run.
            after_pause: whether it was not checked for a while, so that another program may have
                written to it before or after a WAL checkpoint.

        Returns:
            ``MOVED``, ``OVERWRITTEN`` or ``OURS``.
        """
        before = self.index.state()
        try:
            found = os.stat(self._name)
        except OSError as error:
            pass_on_timeout(error)
            # A file that the system cannot examine counts as unchanged: the next lease checks it.
            self.seen = UNSEEN
            return (
                FileCondition.MOVED
                if leads_elsewhere(connection.path, self._identity)
                else FileCondition.OURS
            )
        if (found.st_dev, found.st_ino) != self._identity:
            return FileCondition.MOVED
        view = _view_of(found)
        is_changed = self._known is not None and self._known.view != view
        try:
            condition = self._judge(connection, before, view, may_be_under_way)
        except (apsw.Error, OSError) as error:
            if isinstance(error, OSError):
                pass_on_timeout(error)
            # A file that cannot be read counts as unchanged: the next lease checks it again.
            self.seen = UNSEEN
            return FileCondition.OURS
        if is_changed and after_pause and found.st_size <= _SMALL:
            shown = self.turnstile
            self.is_doubted |= shown is None or not shown.is_noted_sound(view)
        return condition

    def refresh_after_copy(self, connection: Connection) -> None:
        """Judge the file after a WAL checkpoint of this process, and note its status if sound."""
        if self.refresh(connection) is FileCondition.OURS:
            self._note_sound()

    def _note_sound(self) -> None:
        """Spare other processes the check of all pages."""
        is_known = self.seen != UNSEEN and not self.is_doubted and self._refusal.damage is None
        if is_known and self.turnstile is not None:
            self.turnstile.note_sound(self.seen)

    def require_whole(self, inspections: MakeInspections, budget: Budget) -> None:
        """Check, before a write, that the file is sound.

        Args:
            inspections: returns the inspections, which lend a connection past every cache.
            budget: the budget of the call; the check takes at most half of the remaining time.

        Raises:
            CorruptDatabaseError: the file is damaged.
            DatabaseBusyError: there was no time for the check; after several calls it is skipped.
        """
        if self.is_doubted and not self._check_pages(inspections, budget):
            raise budget.exceeded("body", self._path, _OPERATION)
        if self._refusal.damage is not None:
            raise copy.copy(self._refusal.damage)

    def examine(
        self, connection: Connection, inspections: MakeInspections, budget: Budget
    ) -> FileCondition:
        """Return the condition of the file, before a write into the file itself.

        Args:
            connection: an open connection to the file; the caller must hold its lease.
            inspections: returns the inspections, which lend a connection past every cache.
            budget: the time it may take.
        """
        condition = FileCondition.OURS
        if not self._is_as_seen(connection):
            condition = self.refresh(connection, may_be_under_way=False)
        if condition is FileCondition.OURS and self._logs.lost():
            # Checked last: the WAL of a moved file is lost too if another process set it aside.
            return FileCondition.LOG_LOST
        if condition is FileCondition.OURS and self.is_doubted:
            self._check_pages(inspections, budget)
        return condition

    def has_changed(self) -> bool:
        """Return whether the status of the file differs from that of the last check."""
        try:
            return _view_of(os.stat(self._name)) != self.seen
        except OSError:
            return True

    def _is_as_seen(self, connection: Connection) -> bool:
        """Return whether the file is unchanged since the last check."""
        try:
            is_same = not self.has_changed()
            return is_same and difference(connection.header(), self._stamp) is None
        except apsw.Error:
            return False

    def _check_pages(self, inspections: MakeInspections, budget: Budget) -> bool:
        """Check all pages of a doubted file; return False if there was no time for it.

        If the check fails for another reason, the next write repeats it.
        """
        if self._logs.lost():
            # Opening the file would make another WAL.
            return True
        within = FileBudget(min(max(budget.left() / 2, LEAST_BODY), _PAGES_PATIENCE))
        try:
            is_sound = self._is_sound(inspections(), within)
        except apsw.Error as error:
            self._note_error(translate(error, self._path, _OPERATION))
        except DatabaseBusyError:
            self._spent += monotonic() - within.started
            if self._spent < _PATIENCE:
                return False
            # There are too many pages, also for the next write; health checks have more time.
            get_logger(__name__).warning("database_pages_not_looked_at", path=self._name)
            self.is_doubted = False
        except DatabaseError as error:
            self._note_error(error)
        else:
            self.is_doubted = False
            if not is_sound:
                self._note_damage(_FOREIGN)
            self._note_sound()
        if not self.is_doubted:
            self._spent = 0.0
        return True

    def _note_error(self, error: DatabaseError) -> None:
        if isinstance(error, CorruptDatabaseError | NotADatabaseError):
            self._refusal.note(error)

    def _is_sound(self, inspections: Inspections, within: Budget) -> bool:
        """Return whether all pages are sound, also those that newer ones in the WAL hide."""
        with self._connection(inspections, within, with_wal=True) as lent:
            if lent.value(_CHECK) != "ok":
                return False
        before = self.index.state()
        if self._has_vfs or before is None or not self._is_whole(before):
            return True
        try:
            with self._connection(inspections, within, with_wal=False) as lent:
                is_sound = lent.value(_CHECK) == "ok"
        except (apsw.CorruptError, apsw.NotADBError):
            is_sound = False
        # A WAL checkpoint that has begun meanwhile may explain unsound pages.
        after = self.index.state()
        return is_sound or after is None or after[:3] != before[:3]

    def _connection(
        self, inspections: Inspections, within: Budget, *, with_wal: bool
    ) -> contextlib.AbstractContextManager[Connection]:
        return inspections.connection(
            within, lambda: PoolClosedError(path=self._path), with_wal=with_wal
        )

    def _is_whole(self, state: WalState) -> bool:
        """Return whether the file without its WAL is the database after some COMMIT."""
        is_whole = state.copied == 0 or self._whole_at == (state.salts, state.copied)
        return is_whole and state.is_at_rest

    def _note_damage(self, detail: str) -> None:
        self._refusal.note(
            CorruptDatabaseError(
                f"The database file is damaged: {detail}. The library writes to it no more: "
                "close it, and restore a backup or salvage it.",
                path=self._path,
                operation=_OPERATION,
                result_code=apsw.SQLITE_CORRUPT,
            )
        )

    def _judge(
        self,
        connection: Connection,
        before: WalState | None,
        view: FileStatus,
        may_be_under_way: bool,
    ) -> FileCondition:
        known, head = self._known, connection.head(_HEAD)
        # The first check has no earlier state to compare.
        after = before if known is None else self.index.state()
        header = head[:HEADER_BYTES]
        if difference(header, self._stamp) is not None:
            # The next lease checks again, because a WAL checkpoint may have been under way.
            self.seen = UNSEEN
            is_strange = is_overwritten(connection, self._stamp)
            return FileCondition.OVERWRITTEN if is_strange else FileCondition.OURS
        is_foreign = (
            known is not None
            and known.view != view
            and self._is_unexplained(connection, known.wal, after)
        )
        if is_foreign and known is not None and head != known.head and _is_at_rest(after):
            if header != known.head[:HEADER_BYTES]:
                return FileCondition.OVERWRITTEN
            self._note_damage(_FOREIGN)
        if known is not None and _lacks_what_was_copied(before, after, header):
            # An older copy replaced the content after a WAL checkpoint of another process.
            return FileCondition.OVERWRITTEN
        is_under_way = self._is_under_way(before) or (
            after is not before and self._is_under_way(after)
        )
        if lacking_pages(header, view[2]) and not (is_under_way and may_be_under_way):
            length = measure(connection, monotonic() + _PATIENCE)
            if length.is_cut:
                self._note_damage(str(length))
        # A WAL checkpoint makes a file shorter only after a VACUUM, and the pages are sound then.
        # A WAL checkpoint that is under way would make a cut file long again.
        is_cut = known is not None and view[2] < known.view[2]
        self.is_doubted = self.is_doubted or is_foreign or is_cut
        self._known = _Known(view, head, None if is_under_way else before)
        if before is not None and before.is_copied and before.is_at_rest:
            self._whole_at = before.salts, before.copied
        # The last writes of a WAL checkpoint may have the same time.
        self.seen = UNSEEN if is_under_way else view
        return FileCondition.OURS

    def _is_unexplained(
        self, connection: Connection, known: WalState | None, after: WalState | None
    ) -> bool:
        """Return whether no WAL checkpoint can have written between two states of the WAL."""
        if known is None or after is None:
            return False
        if after.salts == known.salts:
            is_same = (after.copied, after.begun) == (known.copied, known.begun)
            return is_same and not self._is_under_way(after)
        # The WAL was restarted. All its frames had been copied then, and if the new WAL has every
        # commit since, no WAL checkpoint had frames to copy before, and none has begun since.
        if not (known.is_copied and known.is_at_rest) or after.copied or after.begun:
            return False
        commits = (after.commits - known.commits) % (1 << 32)
        if commits > after.frames or self._known is None:
            return False
        page_size = page_size_of(self._known.head)
        return commits == commits_in_wal(connection, page_size, after.frames)

    def _is_under_way(self, state: WalState | None) -> bool:
        """Return whether a WAL checkpoint is running; a killed one, which has not ended, is not."""
        return state is not None and not state.is_at_rest and self.index.is_copying()


def _lacks_what_was_copied(before: WalState | None, after: WalState | None, header: bytes) -> bool:
    """Return whether the WAL is copied completely by its index, but not by the first page."""
    if after is None or before != after or not (after.is_copied and after.is_at_rest):
        return False
    return 0 < after.pages != pages_of(header)


def _is_at_rest(state: WalState | None) -> bool:
    return state is not None and state.is_at_rest
