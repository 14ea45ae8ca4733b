"""Stores what the TurnWriters of one open file hold: one thread, one transaction for all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from time import monotonic
from typing import Any, Final

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.threads import start
from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.engine.transaction import WriteTransaction, WriteUnit
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    DatabaseMovedError,
    ForkedPoolError,
    MandrakeSessionsError,
    PoolClosedError,
    ReentrantScopeError,
    StorageFullError,
    TurnAlreadyExistsError,
    TurnInterruptedError,
    TurnNotFoundError,
)
from mandrake_sessions.live.streaming import lost_turns
from mandrake_sessions.live.streaming.endings import (
    FATAL,
    ending_now,
    ends_of,
    require_ended,
)
from mandrake_sessions.live.streaming.late_text import keep_text
from mandrake_sessions.live.streaming.outcome import wait_for_all
from mandrake_sessions.live.streaming.stream import Stream
from mandrake_sessions.live.streaming.writer import TurnWriter
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import Turn
from mandrake_sessions.records.streaming import (
    Chunk,
    Ending,
    Outcome,
    start_stream,
    store_streams,
)
from mandrake_sessions.records.turns import get_turn

# Seconds until the next attempt after the disk was full, and at most while the file closes.
_FULL_DISK_PAUSE: Final = 1.0
_CLOSING_PAUSE: Final = 0.05


class Flusher:
    """The thread that stores and ends the streams of one open file, while there are any.

    Args:
        file: the open file.
        texts: by turn, the text of each stream, for the watchers of this process.
    """

    def __init__(self, file: Database, texts: dict[str, GrowingText]) -> None:
        self._file = file
        self.texts = texts
        self._mutex = threading.Lock()
        self._streams: dict[str, Stream] = {}
        # The streams that are being begun. Keys, so that a step that a signal cut can be repeated.
        self._beginnings: set[object] = set()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_retired = False
        # Releasing it wakes the thread without a lock: writers, finalizers and handlers may do so.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._abandoned: deque[Stream] = deque()
        self._has_failed = False
        self._retry_at = 0.0

    @property
    def writers(self) -> int:
        """How many turns are being written."""
        return len(self._streams)

    # -- called by hosts --------------------------------------------------------------------

    def begin(
        self,
        response_id: str,
        holder: object,
        *,
        id: str | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> TurnWriter:
        """Add a streaming turn to a response, and return its writer.

        Args:
            response_id: the response.
            holder: the manager; closing it ends the stream.
            id: the id of the turn, 1 to 255 characters; a new UUIDv7 when None.
            timeout: seconds; None for the ``busy_timeout``.
            fields: the other arguments of ``records.streaming.start_stream``.

        Raises:
            TurnAlreadyExistsError: the id or the index is taken.
            ThreadStartError: no thread can be started to store the text; the turn is not made.
            MandrakeSessionsError: any other error of ``create_turn``.
        """
        turn_id = arguments.fresh_id("id", id)
        unit = start_stream(response_id, id=turn_id, **fields)
        file = self._file
        file.require_no_lease("stream_turn")
        if id is not None:
            # Watchers can read the text before the turn exists: it must not hide another text.
            with contextlib.suppress(TurnNotFoundError):
                file.fetch(get_turn(turn_id), "stream_turn", timeout)
                raise TurnAlreadyExistsError(turn_id)
        with self._thread_kept():
            file.claim()
            return self._begin(turn_id, unit, holder, timeout)

    @block
    def _thread_kept(self) -> Iterator[None]:
        """Keep the thread running for a block, after which it may have a stream to store."""
        key = object()
        try:
            with self._mutex:
                self._beginnings.add(key)
                self._start_thread()
            yield
        finally:
            self._beginnings.discard(key)
            if not self._streams:
                self.wake()

    def _begin(
        self, turn_id: str, unit: WriteUnit[Turn], holder: object, timeout: float | None
    ) -> TurnWriter:
        """Store the turn and add its stream: both, or neither."""
        file = self._file
        text = GrowingText()
        begun: list[Turn] = []

        def work(tx: WriteTransaction) -> Turn:
            begun.append(unit(tx))
            return begun[-1]

        try:
            with self._mutex:
                if self._is_closed:
                    raise PoolClosedError(path=file.path)
                if self.texts.setdefault(turn_id, text) is not text:
                    raise TurnAlreadyExistsError(turn_id)
            turn = file.transact(work, "stream_turn", timeout)
            stream = Stream(turn, holder, file.options, self.wake, text)
            self._add(stream)
            return TurnWriter(stream, file, self.abandon)
        except BaseException as error:
            # An exception from a signal's handler, of any type, may come after the COMMIT.
            is_undone = isinstance(error, MandrakeSessionsError) and not isinstance(
                error, CommitOutcomeUnknownError
            )
            if begun and not is_undone:
                # It may be stored: then no other thread would end it.
                self._add_abandoned(Stream(begun[-1], self, file.options, self.wake, text))
            elif self.texts.get(turn_id) is text:
                del self.texts[turn_id]
            raise

    def _add(self, stream: Stream) -> None:
        with self._mutex:
            is_closed = self._is_closed
            if not is_closed:
                self._streams[stream.turn.id] = stream
                self._start_thread()
        if is_closed:
            # Closed in the same moment: the next opening ends the turn.
            self._lose(stream, PoolClosedError(path=self._file.path))

    def _start_thread(self) -> None:
        # A thread that never started, after Ctrl-C or because the system has none, is replaced.
        if self._thread is None or self._thread.ident is None:
            self._thread = threading.Thread(target=self._run, name="mandrake-flusher", daemon=True)
            start(self._thread)

    def _add_abandoned(self, stream: Stream) -> None:
        """Interrupt the turn of a stream whose beginning failed, if the turn exists."""
        with self._mutex:
            stream = self._streams.get(stream.turn.id, stream)
        # Also if the stream exists: the thread may not.
        self._add(stream)
        self.abandon(stream)

    def wake(self) -> None:
        """Have the thread check all streams; takes no lock and does not wait."""
        with contextlib.suppress(RuntimeError):
            self._wake.release()

    def abandon(self, stream: Stream) -> None:
        """Interrupt the turn of a writer that was dropped; a finalizer may call this."""
        self._abandoned.append(stream)
        self.wake()

    def close_holder(self, holder: object) -> None:
        """Store what a manager's writers hold, and end their turns as interrupted.

        Raises:
            DatabaseBusyError: it took longer than the ``busy_timeout``; the thread keeps trying.
            DatabaseError: a turn could not be stored; the thread keeps trying.
        """
        streams = [stream for stream in self._present() if stream.holder is holder]
        ends = ends_of(streams)
        try:
            self._file.require_no_lease("close")
        except ReentrantScopeError:
            # They end when this thread releases its lease.
            return
        budget = self._file.budget(None)
        if not wait_for_all(ends, budget.left()):
            raise budget.exceeded("queue", self._file.path, "close")
        require_ended(ends)

    def close(self, deadline: float) -> None:
        """Store what all writers hold, end their turns as interrupted, and end the thread.

        Args:
            deadline: when it must be done (``time.monotonic``). Text that is not stored by then is
                lost with the file; the next opening ends its turn as interrupted.
        """
        with self._mutex:
            self._is_closed = True
            thread = self._thread
        while ends := ends_of(self._present()):
            wait_for_all(ends, max(0.0, deadline - monotonic()))
            left = deadline - monotonic()
            if left <= 0:
                break
            if any(end.error is not None for end in ends):
                # The thread tries again as long as there is time.
                time.sleep(min(left, self._file.options.flush_interval, _CLOSING_PAUSE))
        for stream in self._present():
            get_logger(__name__).error(
                "stream_not_ended", path=str(self._file.path), turn_id=stream.turn.id
            )
            self._lose(stream, PoolClosedError(path=self._file.path))
        self.wake()
        if thread is not None and thread.ident not in (None, threading.get_ident()):
            thread.join(max(0.0, deadline - monotonic()))

    def retired(self) -> None:
        """Fail the writers: the file takes no more work."""
        self._is_retired = True
        self.wake()

    def forget_after_fork(self) -> None:
        """Drop the parent's streams in a child; their writers raise there."""
        error = ForkedPoolError(path=self._file.path)
        for stream in self._streams.values():
            stream.forget_after_fork(error)
        self._mutex, self._wake = threading.Lock(), threading.Lock()
        self._streams = {}
        self._beginnings = set()
        self.texts.clear()
        self._thread = None
        self._is_closed = True

    # -- the thread -------------------------------------------------------------------------

    def _present(self) -> list[Stream]:
        with self._mutex:
            return list(self._streams.values())

    def _run(self) -> None:
        while True:
            with self._mutex:
                if self._thread is not threading.current_thread():
                    return
                streams = list(self._streams.values())
                # A stream that is begun while the file closes is lost.
                if not streams and (self._is_closed or not self._beginnings):
                    self._thread = None
                    return
            self._interrupt_abandoned()
            if self._is_retired and streams:
                self._lose_all(streams, DatabaseMovedError(path=self._file.path))
                continue
            left = self._due_at(streams) - monotonic()
            if left > 0:
                self._wake.acquire(timeout=-1 if left == inf else left)
                continue
            try:
                self._flush(streams)
            except Exception as error:  # noqa: BLE001  # the text is still held, so it is retried
                get_logger(__name__).exception("stream_flush_broken")
                self._note_failure(set(streams), error)

    def _due_at(self, streams: Sequence[Stream]) -> float:
        due_at = min((stream.due_at for stream in streams), default=inf)
        if due_at < self._retry_at and not any(stream.is_awaited for stream in streams):
            return self._retry_at
        return due_at

    def _interrupt_abandoned(self) -> None:
        while self._abandoned:
            self._abandoned.popleft().await_end()

    def _flush(self, streams: Sequence[Stream]) -> None:
        """Store the new text of every stream in one transaction, and end those that shall end."""
        ending = ending_now(streams)
        chunks = [
            (each, chunk)
            for each in streams
            if (chunk := each.next_chunk(ends_now=each in ending)) is not None
        ]
        if not chunks and not ending:
            return
        try:
            outcome = self._store(
                [chunk for _, chunk in chunks], [each.next_ending() for each in ending]
            )
        except FATAL as error:
            self._lose_all(streams, error)
            return
        except Exception as error:  # noqa: BLE001  # of any kind; the text is still held
            self._note_failure({*ending, *(each for each, _ in chunks)}, error)
            return
        self._has_failed = False
        self._retry_at = 0.0
        for stream, chunk in chunks:
            if chunk.turn_id not in outcome.failed:
                stream.note_stored()
        for stream in ending:
            turn = outcome.ended.get(stream.turn.id)
            if turn is not None:
                self._drop(stream)
                stream.note_ended(turn)
        for stream in streams:
            failure = outcome.failed.get(stream.turn.id)
            if failure is not None:
                self._note_lost(stream, failure)

    def _store(self, chunks: Sequence[Chunk], endings: Sequence[Ending]) -> Outcome:
        owner = self._file.owner
        if owner is None:
            raise PoolClosedError(path=self._file.path)
        unit = store_streams(owner, chunks, endings)
        # Text that was taken before the pool began to close is stored while it closes.
        return self._file.transact(unit, "flush", delegable=True, even_refused=True)

    def _note_failure(self, streams: set[Stream], error: Exception) -> None:
        pause = self._file.options.flush_interval
        self._retry_at = monotonic() + (
            max(pause, _FULL_DISK_PAUSE) if isinstance(error, StorageFullError) else pause
        )
        if not self._has_failed:
            self._has_failed = True
            get_logger(__name__).warning(
                "stream_flush_failed", path=str(self._file.path), error=type(error).__name__
            )
        for stream in streams:
            stream.note_failure(error)

    def _note_lost(self, stream: Stream, failure: Exception) -> None:
        """Drop one stream after its turn was ended or deleted by another caller."""
        if not isinstance(failure, TurnInterruptedError | TurnNotFoundError):
            self._note_failure({stream}, failure)
            return
        turn = None
        if isinstance(failure, TurnInterruptedError):
            turn = keep_text(self._file, stream, failure)
        self._drop(stream)
        stream.lose(failure, turn)

    def _lose_all(self, streams: Sequence[Stream], error: BaseException) -> None:
        get_logger(__name__).error(
            "streams_lost",
            path=str(self._file.path),
            error=type(error).__name__,
            turn_ids=[stream.turn.id for stream in streams],
        )
        for stream in streams:
            self._lose(stream, error)

    def _lose(self, stream: Stream, error: BaseException) -> None:
        """Lose a stream whose end cannot be stored through this open file."""
        lost_turns.add(self._file.owner, stream.turn.id)
        self._drop(stream)
        stream.lose(error)

    def _drop(self, stream: Stream) -> None:
        with self._mutex:
            self._streams.pop(stream.turn.id, None)
        self.texts.pop(stream.turn.id, None)
