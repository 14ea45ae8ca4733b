"""Knows how an open file was when it was last whole, and judges what has changed it since.

Commits go to the log; only a checkpoint writes into the file itself. Each lease asks the path what
the file looks like (``seen``). A change is nothing if a checkpoint explains it, of this or another
process: the log's index tells how far it was copied. What no checkpoint explains was written by
something else: other bytes in the header are another file's, pages that are gone were cut off, and
for the rest every page has to be looked at before the next write.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

import apsw

from mandrake_sessions.database.connection import Connection
from mandrake_sessions.database.fate import Fate, Logs
from mandrake_sessions.database.faults import pass_on_timeout, translate
from mandrake_sessions.database.header import (
    HEADER_BYTES,
    is_overwritten,
    page_size_of,
    strangeness,
)
from mandrake_sessions.database.health.inspection import Inspections
from mandrake_sessions.database.length import lacking_pages, measure, pages_of
from mandrake_sessions.database.log_frames import commits_in_log
from mandrake_sessions.database.log_index import LogIndex, LogState
from mandrake_sessions.database.paths import leads_elsewhere
from mandrake_sessions.database.refusal import Refusal
from mandrake_sessions.database.waiting import LEAST_BODY, Budget
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseError,
    NotADatabaseError,
    PoolClosedError,
)
from mandrake_sessions.log import get_logger

MakeInspections = Callable[[], Inspections]
Look = tuple[int, int, int, int, int]
"""What a path says of its file: device, inode, size, and when it was written and changed last."""

UNSEEN: Final[Look] = (-1, -1, -1, -1, -1)
"""What no file looks like."""

_PATIENCE: Final = 1.0
"""Seconds for looking through the log for pages that the file lacks; and those after which looking
at every page is given up."""
_PAGES_PATIENCE: Final = 5.0
"""Seconds for looking at every page: some 10 GB of a file that the system has in memory."""
_SMALL: Final = 8 * 1024 * 1024
"""Bytes of a file whose pages are looked at in some 3 ms, so that it is done after a pause."""
_OPERATION: Final = "look"
_CHECK: Final = "PRAGMA quick_check(1)"
_FOREIGN: Final = "something has written to it beside SQLite"
_HEAD: Final = 4096
"""Bytes that are compared where no checkpoint explains a change: the first page."""


def _look_at(found: os.stat_result) -> Look:
    """Return what is compared of a file's state."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Known(NamedTuple):
    """The file when it was looked at last.

    Attributes:
        look: what its path said.
        head: its first bytes.
        log: how far the log was copied before that, with no checkpoint under way; whatever one
            writes into the file later, it changes this first. None if that was not known.
    """

    look: Look
    head: bytes
    log: LogState | None


class Witness:
    """Judges the changes of one open file; what damage it finds, ``refusal`` remembers.

    Args:
        connection: one on the file.
        stamp: the random number that its header carries.
        logs: the files that SQLite keeps beside it.
        refusal: refuses writes once there is damage.
        has_vfs: whether the file is opened through a VFS of the host's.

    Attributes:
        seen: the state of the file that has been judged; ``UNSEEN`` if it must be looked at again.
        index: of the log.
        is_doubted: whether something has written to it that is no checkpoint, so that its pages
            have to be looked at.
        at_rest: what its path said when it was closed for a while; None if it was not.
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
        self.seen: Look = UNSEEN
        self.is_doubted = False
        self.at_rest: Look | None = None
        self._path = connection.path
        self._name = str(connection.path)
        self._identity = connection.identity
        self._stamp = stamp
        self._logs = logs
        self._has_vfs = has_vfs
        self._refusal = refusal
        self.index = LogIndex(logs.index)
        self._known: _Known | None = None
        # Seconds that looking at the pages has taken in vain.
        self._spent = 0.0
        # Salts of the log, and how much of it was copied when that was all.
        self._whole_at: tuple[bytes, int] | None = None

    def rest(self) -> None:
        """Remember the file as it is when it has been closed, to be opened again."""
        with contextlib.suppress(OSError):
            self.at_rest = _look_at(os.stat(self._name))

    def wake(self, rested: Look, *, is_explained: bool) -> None:
        """Doubt the pages of a file that was changed while it was closed.

        Args:
            rested: what its path said then.
            is_explained: whether another process has used it as we do; then its pages are looked
                at only if that takes no time.
        """
        if self.seen != rested and (not is_explained or self.seen[2] <= _SMALL):
            self.is_doubted = True

    def look(
        self, connection: Connection, *, may_be_under_way: bool = True, after_pause: bool = False
    ) -> Fate:
        """Look what has become of the file since it was looked at last; about ten microseconds.

        Args:
            connection: one on the file; its lease is the caller's.
            may_be_under_way: whether pages may be missing while a checkpoint seems under way.
            after_pause: whether it was not looked at for a while, so that something may have
                written to it after a checkpoint, or before one.

        Returns:
            ``MOVED``, ``OVERWRITTEN`` or ``OURS``.
        """
        before = self.index.state()
        try:
            found = os.stat(self._name)
        except OSError as error:
            pass_on_timeout(error)
            # What cannot be looked at is not judged: the next lease looks again.
            self.seen = UNSEEN
            return Fate.MOVED if leads_elsewhere(connection.path, self._identity) else Fate.OURS
        if (found.st_dev, found.st_ino) != self._identity:
            return Fate.MOVED
        look = _look_at(found)
        is_changed = self._known is not None and self._known.look != look
        try:
            fate = self._judge(connection, before, look, may_be_under_way)
        except (apsw.Error, OSError) as error:
            if isinstance(error, OSError):
                pass_on_timeout(error)
            # What cannot be read is not judged: the next lease looks again.
            self.seen = UNSEEN
            return Fate.OURS
        if is_changed and after_pause and found.st_size <= _SMALL:
            self.is_doubted = True
        return fate

    def require_whole(self, inspections: MakeInspections, budget: Budget) -> None:
        """Make sure, before a write, that what is written will be found again.

        Args:
            inspections: returns what lends a connection that sees what is on disk.
            budget: of the call; half of what is left is taken at most.

        Raises:
            CorruptDatabaseError: the file is damaged.
            DatabaseBusyError: there was no time to look; after several calls it is given up.
        """
        if self.is_doubted and not self._look_at_pages(inspections, budget):
            raise budget.exceeded("body", self._path, _OPERATION)
        if self._refusal.damage is not None:
            raise copy.copy(self._refusal.damage)

    def examine(self, connection: Connection, inspections: MakeInspections, budget: Budget) -> Fate:
        """Find out, before anything is written into the file itself, what has become of it.

        Args:
            connection: one on the file; its lease is the caller's.
            inspections: returns what lends a connection that sees what is on disk.
            budget: the time it may take.
        """
        fate = Fate.OURS
        if not self._is_as_seen(connection):
            fate = self.look(connection, may_be_under_way=False)
        if fate is Fate.OURS and self._logs.lost():
            # Asked after it: the log is lost as well where another process has set it aside.
            return Fate.LOG_LOST
        if fate is Fate.OURS and self.is_doubted:
            self._look_at_pages(inspections, budget)
        return fate

    def has_changed(self) -> bool:
        """Return whether the path says anything else of the file than when it was looked at."""
        try:
            return _look_at(os.stat(self._name)) != self.seen
        except OSError:
            return True

    def _is_as_seen(self, connection: Connection) -> bool:
        """Whether nothing has changed the file since it was looked at."""
        try:
            is_same = not self.has_changed()
            return is_same and strangeness(connection.header(), self._stamp) is None
        except apsw.Error:
            return False

    def _look_at_pages(self, inspections: MakeInspections, budget: Budget) -> bool:
        """Look at every page of a file that is doubted; return whether there was the time for it.

        What could not be looked at for another reason is looked at by the next write.
        """
        if self._logs.lost():
            # To open the file would make another log.
            return True
        within = Budget(min(max(budget.left() / 2, LEAST_BODY), _PAGES_PATIENCE))
        try:
            is_sound = self._is_sound(inspections(), within)
        except apsw.Error as error:
            self._heed(translate(error, self._path, _OPERATION))
        except DatabaseBusyError:
            self._spent += monotonic() - within.started
            if self._spent < _PATIENCE:
                return False
            # There are too many, and would be for the next write: health takes longer.
            get_logger(__name__).warning("database_pages_not_looked_at", path=self._name)
            self.is_doubted = False
        except DatabaseError as error:
            self._heed(error)
        else:
            self.is_doubted = False
            if not is_sound:
                self._note_damage(_FOREIGN)
        if not self.is_doubted:
            self._spent = 0.0
        return True

    def _heed(self, error: DatabaseError) -> None:
        if isinstance(error, CorruptDatabaseError | NotADatabaseError):
            self._refusal.note(error)

    def _is_sound(self, inspections: Inspections, within: Budget) -> bool:
        """Whether every page is what it should be, also those that the log has written anew."""
        with self._connection(inspections, within, with_log=True) as lent:
            if lent.value(_CHECK) != "ok":
                return False
        before = self.index.state()
        if self._has_vfs or before is None or not self._is_whole(before):
            return True
        try:
            with self._connection(inspections, within, with_log=False) as lent:
                is_sound = lent.value(_CHECK) == "ok"
        except (apsw.CorruptError, apsw.NotADBError):
            is_sound = False
        # A checkpoint that has begun meanwhile may have been met half way.
        after = self.index.state()
        return is_sound or after is None or after[:3] != before[:3]

    def _connection(
        self, inspections: Inspections, within: Budget, *, with_log: bool
    ) -> contextlib.AbstractContextManager[Connection]:
        return inspections.connection(
            within, lambda: PoolClosedError(path=self._path), with_log=with_log
        )

    def _is_whole(self, state: LogState) -> bool:
        """Whether the file alone is the database as some COMMIT has left it."""
        is_whole = state.copied == 0 or self._whole_at == (state.salts, state.copied)
        return is_whole and state.is_at_rest

    def _note_damage(self, detail: str) -> None:
        self._refusal.note(
            CorruptDatabaseError(
                f"The database file is damaged: {detail}. Nothing more is written into it: "
                "close it, and restore a backup or salvage it.",
                path=self._path,
                operation=_OPERATION,
                result_code=apsw.SQLITE_CORRUPT,
            )
        )

    def _judge(
        self, connection: Connection, before: LogState | None, look: Look, may_be_under_way: bool
    ) -> Fate:
        known, head = self._known, connection.head(_HEAD)
        # At first there is nothing to compare.
        after = before if known is None else self.index.state()
        header = head[:HEADER_BYTES]
        if strangeness(header, self._stamp) is not None:
            # Once more from the beginning, should a checkpoint have been met half way.
            self.seen = UNSEEN
            is_strange = is_overwritten(connection, self._stamp)
            return Fate.OVERWRITTEN if is_strange else Fate.OURS
        is_foreign = (
            known is not None
            and known.look != look
            and self._is_unexplained(connection, known.log, after)
        )
        if is_foreign and known is not None and head != known.head and _is_at_rest(after):
            if header != known.head[:HEADER_BYTES]:
                return Fate.OVERWRITTEN
            self._note_damage(_FOREIGN)
        if known is not None and _lacks_what_was_copied(before, after, header):
            # An older copy, which came after a checkpoint of another process.
            return Fate.OVERWRITTEN
        is_under_way = self._is_under_way(before) or (
            after is not before and self._is_under_way(after)
        )
        if lacking_pages(header, look[2]) and not (is_under_way and may_be_under_way):
            length = measure(connection, monotonic() + _PATIENCE)
            if length.is_cut:
                self._note_damage(str(length))
        # No checkpoint makes a file shorter, and one that is under way would make it long again:
        # but for one that follows a VACUUM, whose pages are sound.
        is_cut = known is not None and look[2] < known.look[2]
        self.is_doubted = self.is_doubted or is_foreign or is_cut
        self._known = _Known(look, head, None if is_under_way else before)
        if before is not None and before.is_copied and before.is_at_rest:
            self._whole_at = before.salts, before.copied
        # What a checkpoint writes last may have the same time.
        self.seen = UNSEEN if is_under_way else look
        return Fate.OURS

    def _is_unexplained(
        self, connection: Connection, known: LogState | None, after: LogState | None
    ) -> bool:
        """Whether no checkpoint can have written into the file between two states of the log."""
        if known is None or after is None:
            return False
        if after.salts == known.salts:
            is_same = (after.copied, after.begun) == (known.copied, known.begun)
            return is_same and not self._is_under_way(after)
        # It has begun anew. All was copied then, and if it has every commit since, a checkpoint
        # had nothing to copy before, and has not begun since.
        if not (known.is_copied and known.is_at_rest) or after.copied or after.begun:
            return False
        commits = (after.commits - known.commits) % (1 << 32)
        if commits > after.frames or self._known is None:
            return False
        page_size = page_size_of(self._known.head)
        return commits == commits_in_log(connection, page_size, after.frames)

    def _is_under_way(self, state: LogState | None) -> bool:
        """Whether a checkpoint is; one that was killed is not, though it has not ended."""
        return state is not None and not state.is_at_rest and self.index.is_copying()


def _lacks_what_was_copied(before: LogState | None, after: LogState | None, header: bytes) -> bool:
    """Whether the whole log is in the file, by its index, and not by the file's first page."""
    if after is None or before != after or not (after.is_copied and after.is_at_rest):
        return False
    return 0 < after.pages != pages_of(header)


def _is_at_rest(state: LogState | None) -> bool:
    return state is not None and state.is_at_rest
