"""Checkpoints off the commit path, on the auxiliary connection.

On the writer's own connection 1,000 frames took 10 ms in the median and 300 at worst. A
checkpoint that fails is a fact for health, never the error of a COMMIT.
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
# Seconds of copying below which writers hardly notice it.
_CHEAP = 0.001
# How much rarer it is made where it costs more. A page that is written again and again is copied
# once in each, and beside the disk's work an fsync of the writer takes longer: appends gained 5 %,
# with eight threads 8, and 99 % of them waited half as long.
_RARER = 4
_LONGEST_HOLD = 0.1


class Checkpointer:
    """Decides when the WAL is copied into the database, and remembers how it went.

    Args:
        options: the backlog above which a checkpoint is asked for, and the size of the WAL file
            above which it is truncated too.
        look: returns the frames in the WAL and how many of them are in the database already.
        ask: has ``run`` called soon, in another thread.

    Attributes:
        backlog: frames that are not in the database file yet, as of the last checkpoint.
        written: pages that the writer has put into the WAL in all.
        wal_frames: frames in the WAL, as of the last checkpoint.
        is_outrun: whether, with a checkpoint under way, another ``limit_bytes`` were written.
        is_cheap: whether the last one had next to nothing to copy, as where the same few pages are
            written again and again.
        is_pieced: whether the last one has copied all of the log, and that in several pieces.
        failure: extended result code of the last checkpoint if it failed.
        runs: how many checkpoints were made.
    """

    def __init__(
        self,
        options: DatabaseOptions,
        look: Callable[[], tuple[int, int]],
        ask: Callable[[], None],
    ) -> None:
        self._frames = options.checkpoint_frames
        self._limit_bytes = options.wal_limit_bytes
        self._look: Callable[[], tuple[int, int]] | None = look
        self._ask = ask
        self._outrun_frames = _most_frames(options)
        self._outrun_at = self._outrun_frames
        self._is_copying = False
        self._ended = Gate()
        self.is_outrun: bool = False
        self.is_cheap: bool = True
        self.is_pieced: bool = False
        self.written: int = 0
        # The first commit looks what others have left.
        self._ask_at = 0
        self.backlog: int = 0
        self.wal_frames: int = 0
        self.failure: int | None = None
        self.runs: int = 0

    def note(self, written: int) -> None:
        """Take note, after a commit, of the pages its connection has written in all."""
        self.written = written
        if written >= self._ask_at:
            self._note_due(written)
        # Only while one copies: where it waits for a reader, holding writers up would not help.
        self.is_outrun = self._is_copying and written >= self._outrun_at

    def _note_due(self, written: int) -> None:
        # First of all, and not for ever: should what is asked for get lost, it is asked for again.
        self._ask_at = written + self._frames
        look, self._look = self._look, None
        if look is not None:
            # Processes that end before they have written enough never ask. Who goes on where they
            # ended counts what they left.
            with contextlib.suppress(apsw.Error):
                frames, done = look()
                self._ask_at -= max(0, frames - done)
            if self._ask_at > written:
                return
            self._ask_at = written + self._frames
        self._ask()

    def hold(self, seconds: float) -> None:
        """Hold a writer up that is faster than the disk, until the checkpoint under way has ended.

        Without it the WAL grows as long as the disk takes to copy it: half of all that was
        written on a slow one.

        Args:
            seconds: that the writer has left; it is held for 0.1 at most.
        """
        self._ended.wait(min(seconds, _LONGEST_HOLD))

    def postpone(self) -> None:
        """Ask again at the next commit: the checkpoint could not begin."""
        self._end(self.written)

    def _end(self, ask_at: int) -> None:
        self._ask_at = ask_at
        self._outrun_at = self.written + self._outrun_frames
        self._is_copying = self.is_outrun = False
        self._ended.set()

    @property
    def is_worth_finishing(self) -> bool:
        """Whether the WAL is so long that writers should wait until nothing of it is left.

        Then it begins anew. In a file that grows each fsync is about twice as dear; to wait costs
        the writers one or two milliseconds, and less where copying is cheap.
        """
        return self.wal_frames >= self._frames * (1 if self.is_cheap else _RARER)

    @property
    def is_held_back(self) -> bool:
        """Whether a reader, or a busy writer, has kept much of the log from being copied."""
        return self.backlog > self._frames // 4

    def run(
        self,
        auxiliary: Connection,
        deadline: float,
        *,
        finishes: bool = False,
        is_shared: bool = False,
    ) -> None:
        """Copy what is in the WAL into the database, and truncate the file if it is too large.

        A passive checkpoint copies what it finds at its beginning. A busy writer adds frames
        meanwhile, fewer each time because there is less to copy: so it is repeated until little
        is left, a few times at most, for readers can hold frames back for long.

        Truncating waits for readers with the write lock held. So it is tried where they hold
        nothing back and nobody writes; elsewhere the file is cut when the WAL begins anew.

        Args:
            auxiliary: the connection that copies.
            deadline: when truncating must be done.
            finishes: whether it comes right after another one, while nobody writes.
            is_shared: whether other processes write too: they see only what they have written
                themselves, and nobody would see in time how long the WAL is.
        """
        since = monotonic()
        self.runs += 1
        self._ended.clear()
        self._is_copying = True
        # Until it has ended, it need not be asked for.
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
            # The next commit asks again.
            self._note(error)
            self.postpone()
            return
        if not finishes:
            self.is_cheap = monotonic() - since < _CHEAP
        # Readers can hold frames back for long: ask again only when as many new ones have come.
        self._end(self.written + self._frames * (1 if self.is_cheap or is_shared else _RARER))

    def copy(self, auxiliary: Connection) -> bool:
        """Copy what a reader has held back; return whether that reader has gone.

        It waits for no other connection, so it can be tried again and again.

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
        """Copy what is left, and cut the log; return whether that could be tried.

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
        # Beside a busy writer even looking can be BUSY.
        if primary_code(error) != apsw.SQLITE_BUSY:
            self.failure = extended_code(error)

    def _passive(self, auxiliary: Connection) -> None:
        auxiliary.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._measure(auxiliary)

    def _truncate(self, auxiliary: Connection, deadline: float) -> None:
        auxiliary.deadline = min(deadline, monotonic() + _TRUNCATE_PATIENCE)
        # Somebody reads or writes after all: the next checkpoint tries again.
        with contextlib.suppress(apsw.BusyError):
            auxiliary.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._measure(auxiliary)

    def _measure(self, auxiliary: Connection) -> None:
        """Take note of how long the WAL is and how much is left to copy."""
        self.wal_frames, done = auxiliary.wal_backlog()
        self.backlog = max(0, self.wal_frames - done)


def copy_at_closing(connection: Connection, options: DatabaseOptions) -> None:
    """Copy a WAL that has become long, before its writer goes: perhaps none of the others writes.

    Whoever closes last leaves no WAL, but where a process that only reads stays, nobody does. One
    so long that a checkpoint beside other work has not coped with it is left to the next of those.

    Args:
        connection: the writer's, with no transaction open; its lease is the caller's.
        options: how long is too long.
    """
    # What fails does not keep the file from being closed.
    with contextlib.suppress(apsw.Error):
        frames, done = connection.wal_backlog()
        if frames >= options.checkpoint_frames and 0 < frames - done <= _most_frames(options):
            connection.raw.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)


def _most_frames(options: DatabaseOptions) -> int:
    """Return how many frames the WAL should have at most."""
    return max(options.checkpoint_frames, options.wal_limit_bytes // _FRAME_BYTES)
