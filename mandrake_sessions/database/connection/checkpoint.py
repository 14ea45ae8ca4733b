"""WAL checkpoints off the commit path, on the auxiliary connection.

On the writer's own connection 1,000 frames took 10 ms in the median and 300 at worst. A failed WAL
checkpoint is a finding of health checks, never the error of a COMMIT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic

import apsw

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import extended_code, primary_code
from mandrake_sessions.database.file_format import FRAME_HEADER_BYTES
from mandrake_sessions.options import DatabaseOptions

_TRUNCATE_PATIENCE = 0.1
_FRAME_BYTES = 4096 + FRAME_HEADER_BYTES
_ROUNDS = 4
# Seconds of copying below which a WAL checkpoint hardly delays writers.
_CHEAP = 0.001
# How much rarer it runs where it costs more. Each run copies a page once that was written many
# times, and an fsync of the writer takes longer during the disk's work. Rarer runs made appends 5 %
# faster, with eight threads 8 %, and halved the wait of their 99th percentile.
_RARER = 4
_LONGEST_HOLD = 0.1


class Checkpointer:
    """Decides when the WAL is copied into the database, and keeps the results.

    Args:
        options: the backlog above which a WAL checkpoint is requested, and the size of the WAL
            above which it is truncated too.
        measure: returns the frames in the WAL and how many of them are in the database already.
        ask: lets another thread call ``run`` soon.

    Attributes:
        backlog: frames that are not in the database file yet, as of the last WAL checkpoint.
        written: pages that the writer has put into the WAL in all.
        wal_frames: frames in the WAL, as of the last WAL checkpoint.
        is_outrun: whether ``limit_bytes`` more were written during the present WAL checkpoint.
        is_cheap: whether the last one had almost nothing to copy, because the same few pages were
            written many times.
        is_pieced: whether the last one has copied the whole WAL, in several pieces.
        failure: extended result code of the last WAL checkpoint if it failed.
        runs: how many WAL checkpoints were made.
    """

    def __init__(
        self,
        options: DatabaseOptions,
        measure: Callable[[], tuple[int, int]],
        ask: Callable[[], None],
    ) -> None:
        self._frames = options.checkpoint_frames
        self._limit_bytes = options.wal_limit_bytes
        self._measure_first: Callable[[], tuple[int, int]] | None = measure
        self._ask = ask
        self._outrun_frames = _most_frames(options)
        self._outrun_at = self._outrun_frames
        self._is_copying = False
        self._ended = Gate()
        self.is_outrun: bool = False
        self.is_cheap: bool = True
        self.is_pieced: bool = False
        self.written: int = 0
        # The first commit measures the backlog that others have left.
        self._ask_at = 0
        self.backlog: int = 0
        self.wal_frames: int = 0
        self.failure: int | None = None
        self.runs: int = 0

    def note(self, written: int) -> None:
        """Record, after a commit, the pages that its connection has written in all."""
        self.written = written
        if written >= self._ask_at:
            self._note_due(written)
        # Only during a copy: if a reader holds frames back, delaying writers would not help.
        self.is_outrun = self._is_copying and written >= self._outrun_at

    def _note_due(self, written: int) -> None:
        # Raised first, and by a finite step: if the request gets lost, a later commit repeats it.
        self._ask_at = written + self._frames
        measure, self._measure_first = self._measure_first, None
        if measure is not None:
            # Processes that end before they have written enough never request one. The next process
            # counts the frames that they left.
            with contextlib.suppress(apsw.Error):
                frames, done = measure()
                self._ask_at -= max(0, frames - done)
            if self._ask_at > written:
                return
            self._ask_at = written + self._frames
        self._ask()

    def hold(self, seconds: float) -> None:
        """Delay a writer that is faster than the disk, until the present WAL checkpoint has ended.

        Without this the WAL grows while the disk copies it: on a slow disk, to half of all writes.

        Args:
            seconds: the time left to the writer; it is delayed for 0.1 at most.
        """
        self._ended.wait(min(seconds, _LONGEST_HOLD))

    def postpone(self) -> None:
        """Request the WAL checkpoint again at the next commit, because it could not begin."""
        self._end(self.written)

    def _end(self, ask_at: int) -> None:
        self._ask_at = ask_at
        self._outrun_at = self.written + self._outrun_frames
        self._is_copying = self.is_outrun = False
        self._ended.set()

    @property
    def is_worth_finishing(self) -> bool:
        """Whether the WAL is so long that writers should wait until it is copied completely.

        SQLite then restarts the WAL. An fsync of a growing WAL takes about twice as long, while the
        wait costs the writers one or two milliseconds, and less where copying is cheap.
        """
        return self.wal_frames >= self._frames * (1 if self.is_cheap else _RARER)

    @property
    def is_held_back(self) -> bool:
        """Whether a reader, or a busy writer, has kept much of the WAL from being copied."""
        return self.backlog > self._frames // 4

    def run(
        self,
        auxiliary: Connection,
        deadline: float,
        *,
        finishes: bool = False,
        is_shared: bool = False,
    ) -> None:
        """Copy the WAL into the database, and truncate the WAL if it is too large.

        A passive WAL checkpoint copies the frames that exist at its beginning. A busy writer adds
        frames meanwhile, fewer each time because there is less to copy. So it is repeated until
        few are left, a few times at most, because readers can hold frames back for long.

        Truncating holds the write lock while it waits for readers. So it is tried only if readers
        hold no frame back and no thread writes; otherwise the WAL is truncated when it restarts.

        Args:
            auxiliary: the connection that copies.
            deadline: the monotonic time in seconds at which truncating gives up.
            finishes: whether this is the second run in succession, while no thread writes.
            is_shared: whether other processes write too. Each of them counts only its own frames,
                so the next WAL checkpoint is then not put off.
        """
        since = monotonic()
        self.runs += 1
        self._ended.clear()
        self._is_copying = True
        # No commit requests another one until this one has ended.
        self._ask_at = self.written + self._outrun_frames
        try:
            for piece in range(_ROUNDS):
                before = self.backlog
                self._passive(auxiliary)
                self.is_pieced = piece > 0 and not self.backlog
                if not self.is_held_back or self.backlog == before:
                    break
            is_too_large = self.wal_frames * _FRAME_BYTES > self._limit_bytes
            if is_too_large and not self.backlog and not finishes:
                self._truncate(auxiliary, deadline)
            self.failure = None
        except apsw.Error as error:
            # The next commit requests it again.
            self._note(error)
            self.postpone()
            return
        if not finishes:
            self.is_cheap = monotonic() - since < _CHEAP
        # Readers can hold frames back for long: the next request needs as many new frames.
        self._end(self.written + self._frames * (1 if self.is_cheap or is_shared else _RARER))

    def copy(self, auxiliary: Connection) -> bool:
        """Copy the frames that a reader has held back; return whether that reader has ended.

        It waits for no other connection, so it can be repeated.

        Args:
            auxiliary: the connection that copies.
        """
        try:
            self._passive(auxiliary)
        except apsw.Error as error:
            self._note(error)
            return False
        return not self.is_held_back

    def cut(self, auxiliary: Connection) -> bool:
        """Copy the remaining frames, and truncate the WAL; return whether that could be tried.

        Args:
            auxiliary: the connection that copies.
        """
        if not self.copy(auxiliary):
            return False
        try:
            self._truncate(auxiliary, monotonic())
        except apsw.Error as error:
            self._note(error)
            return False
        return True

    def _note(self, error: apsw.Error) -> None:
        # While a writer is busy, even measuring the backlog can be BUSY.
        if primary_code(error) != apsw.SQLITE_BUSY:
            self.failure = extended_code(error)

    def _passive(self, auxiliary: Connection) -> None:
        auxiliary.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._measure(auxiliary)

    def _truncate(self, auxiliary: Connection, deadline: float) -> None:
        auxiliary.deadline = min(deadline, monotonic() + _TRUNCATE_PATIENCE)
        # A connection reads or writes after all: the next WAL checkpoint tries again.
        with contextlib.suppress(apsw.BusyError):
            auxiliary.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._measure(auxiliary)

    def _measure(self, auxiliary: Connection) -> None:
        """Record the length of the WAL and the frames that are left to copy."""
        self.wal_frames, done = auxiliary.wal_backlog()
        self.backlog = max(0, self.wal_frames - done)


def copy_at_closing(connection: Connection, options: DatabaseOptions) -> None:
    """Copy a long WAL before its writer closes: the remaining processes may only read.

    The connection that closes last leaves no WAL, but a process that only reads and stays open
    copies none. A WAL that is too long even for background checkpoints is left to the next of them.

    Args:
        connection: the writer's, without an open transaction; the caller must hold its lease.
        options: the lengths from which a WAL is long and too long.
    """
    # A failure does not keep the file from being closed.
    with contextlib.suppress(apsw.Error):
        frames, done = connection.wal_backlog()
        if frames >= options.checkpoint_frames and 0 < frames - done <= _most_frames(options):
            connection.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)


def _most_frames(options: DatabaseOptions) -> int:
    """Return how many frames the WAL should have at most."""
    return max(options.checkpoint_frames, options.wal_limit_bytes // _FRAME_BYTES)
