"""One streaming turn: the text that its writer has given, and how much of it is stored.

Writer and flusher share it under a mutex that is held for microseconds. Text goes one way::

    write() ─ fresh ─ frozen in a chunk ─ stored
                          └── retried, unchanged, until it is known to be stored
"""

from __future__ import annotations

import copy
import enum
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final

from mandrake_sessions.concurrency.reentry import refuse_unforeseen
from mandrake_sessions.errors import (
    StreamBackpressureError,
    TurnFinishedError,
    TurnInterruptedError,
)
from mandrake_sessions.ids import now
from mandrake_sessions.json_text.writer import MAX_TEXT_BYTES, ValueChange
from mandrake_sessions.live.event_loops import runs_event_loop
from mandrake_sessions.live.streaming.buffers import (
    PendingChunk,
    TextBuffer,
    remainders_of,
    size_of,
)
from mandrake_sessions.live.streaming.outcome import Outcome, fail, settle
from mandrake_sessions.live.streaming.pending_fields import PendingFields
from mandrake_sessions.live.streaming.tool_calls import PendingToolCall, value_of
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.models import Turn, TurnStatus
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records.streaming import FIRST_SEQ, Chunk, Ending, Remainder

_GIVE_WAY: Final = 0.002
"""Seconds for which a thread that is far ahead of the flusher lets other threads run."""

_FAR_AHEAD: Final = 1_000
"""Pieces between two such pauses: 99.9 % of the calls must be quick."""


class StreamState(enum.Enum):
    """The state of a stream; it only moves down this list."""

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"
    LOST = "lost"


class Stream:
    """The text that a TurnWriter holds, shared with the flusher.

    Args:
        turn: the turn as stored at the beginning.
        holder: the manager; closing it ends the stream.
        options: the options of the database.
        wake: wakes the flusher; takes no lock.
        text: the content, empty so far.

    Attributes:
        turn: the turn as begun; once its end is stored, as ended.
        state: changed under the mutex only.
        due_at: when the flusher must handle it (``time.monotonic``); infinite for never.
        is_awaited: whether a caller waits for the flusher's next step.
    """

    def __init__(
        self,
        turn: Turn,
        holder: object,
        options: DatabaseOptions,
        wake: Callable[[], None],
        text: GrowingText,
    ) -> None:
        self.turn: Turn = turn
        self.holder = holder
        self.state: StreamState = StreamState.OPEN
        self.content: TextBuffer = TextBuffer("text", text)
        self.raw: TextBuffer = TextBuffer("raw text", GrowingText())
        self.due_at: float = inf
        self.is_awaited: bool = False
        self._options = options
        self._wake = wake
        self._mutex = threading.RLock()
        # Bound once: it is called for every piece.
        self._is_owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]
        self._refusal: BaseException | None = None
        self._next_seq = FIRST_SEQ
        self._fresh_size = 0
        # The hot path needs no check below this size; 0 checks every piece.
        self._notice_at: float = 1
        self._pending: PendingChunk | None = None
        self._fields = PendingFields()
        self._flush_waiters: list[Outcome[None]] = []
        self._end: tuple[TurnStatus, str | None] | None = None
        self._ending: Ending | None = None
        self._end_waiters: list[Outcome[Turn]] = []

    # -- called by the writer ---------------------------------------------------------------

    def take(self, buffer: TextBuffer, piece: str) -> None:
        """Add a piece of text; never waits for the file."""
        is_far_ahead = False
        if self._is_owned():
            refuse_unforeseen("write")
        # Not acquire() and release(): Ctrl-C between acquire() and `try` would leave it locked.
        with self._mutex:
            if type(piece) is str and piece.isascii() and not buffer.held:
                held = ""
                size = len(piece)
            else:
                piece, held = buffer.joined(piece)
                size = size_of(piece)
            fresh_size = self._fresh_size + size
            if fresh_size >= self._notice_at:
                is_far_ahead = self._notice(buffer, size, fresh_size)
            buffer.held = held
            buffer.size += size
            self._fresh_size = fresh_size
            buffer.text.append(piece)
        if is_far_ahead and not runs_event_loop():
            # After each call of SQLite the flusher must get the interpreter again. Threads that
            # never wait release it every 5 ms only, each to any of the others.
            time.sleep(_GIVE_WAY)

    def _notice(self, buffer: TextBuffer, size: int, fresh_size: int) -> bool:
        """Refuse a piece, or wake the flusher; return whether the writer is far ahead."""
        self._require_open()
        frozen_size = 0 if self._pending is None else self._pending.size
        held_size = self._fresh_size + frozen_size
        # A piece larger than the limit can only be taken while nothing else is held.
        if held_size and held_size + size > self._options.max_buffered_bytes:
            raise StreamBackpressureError
        buffer.require_room(size)
        is_much = fresh_size >= self._options.flush_bytes
        is_far_ahead = is_much and self.due_at <= 0
        if is_much:
            self.due_at = 0.0
            # Each time: Ctrl-C may have come before the last wake-up.
            self._wake()
        elif self.due_at == inf:
            self._make_due(monotonic() + self._options.flush_interval)
        longest = max(self.content.size, self.raw.size) - self._fresh_size
        self._notice_at = min(
            fresh_size + max(size, 16) * _FAR_AHEAD if is_much else self._options.flush_bytes,
            self._options.max_buffered_bytes - frozen_size + 1,
            MAX_TEXT_BYTES - longest + 1,
        )
        return is_far_ahead

    def add_call(self, call: Any, *, strict: bool) -> PendingToolCall:
        """Add a tool call without a result."""
        value = value_of("call", call, strict=strict)
        with self._mutex:
            self._require_open()
            if not strict:
                value = self._fields.calls.fitting(value)
            place = self._fields.calls.add(value.text)
            self._note_calls()
        value.log_changes("call", self.turn.id)
        return PendingToolCall(value.plain, value.changes, partial(self._answer_call, place))

    def _answer_call(self, place: int, result: Any, strict: bool) -> tuple[ValueChange, ...]:
        value = value_of("result", result, strict=strict)
        with self._mutex:
            self._require_open()
            if not strict:
                value = self._fields.calls.fitting(value)
            self._fields.calls.answer(place, value.text)
            self._note_calls()
        value.log_changes("result", self.turn.id)
        return value.changes

    def _note_calls(self) -> None:
        self._fields.note_calls()
        self._make_due(monotonic() + self._options.flush_interval)

    def set_fields(self, fields: Mapping[str, Any]) -> None:
        """Set columns to values in their stored form."""
        with self._mutex:
            self._require_open()
            if fields:
                self._fields.set_figures(fields)
                self._make_due(monotonic() + self._options.flush_interval)

    def ask_for_flush(self) -> Outcome[None]:
        """Request that everything taken so far is stored."""
        outcome: Outcome[None] = Outcome()
        with self._mutex:
            self._require_open()
            if self._is_all_stored():
                outcome.settle(None)
            else:
                self._flush_waiters.append(outcome)
                self._make_due(0.0, is_awaited=True)
        return outcome

    def ask_for_end(self, status: TurnStatus, error_message: str | None = None) -> Outcome[Turn]:
        """Request the end of the turn; the same request again waits, or returns the ended turn."""
        outcome: Outcome[Turn] = Outcome()
        with self._mutex:
            is_same = self._end == (status, error_message) and self._refusal is None
            if self.state is StreamState.ENDED and is_same:
                # A caller that repeats this after an error cannot know that it was stored since.
                outcome.settle(self.turn)
                return outcome
            if self.state is not StreamState.ENDING or not is_same:
                self._require_open()
                self._begin_end(status, error_message)
            self._await_end(outcome)
        return outcome

    def await_end(self) -> Outcome[Turn] | None:
        """Request the end as interrupted, if no end is requested; None if the stream is over."""
        outcome: Outcome[Turn] = Outcome()
        with self._mutex:
            if self.state in (StreamState.ENDED, StreamState.LOST):
                return None
            if self.state is StreamState.OPEN:
                self._begin_end(TurnStatus.INTERRUPTED, None)
                # The writer has not requested this, so its next call raises the reason.
                self._refusal = TurnInterruptedError(
                    "The stream was closed with its manager, its pool or its writer; "
                    "its turn is interrupted and its text is kept."
                )
            self._await_end(outcome)
        return outcome

    def _begin_end(self, status: TurnStatus, error_message: str | None) -> None:
        self._end = (status, error_message)
        self._notice_at = 0
        self.due_at = 0.0
        self.state = StreamState.ENDING

    def _await_end(self, outcome: Outcome[Turn]) -> None:
        self._end_waiters.append(outcome)
        self._make_due(0.0, is_awaited=True)

    @property
    def unstored_text(self) -> str:
        """The part of ``content`` that is not known to be stored."""
        return self.content.text.since(self.content.text.stored)

    def _require_open(self) -> None:
        if self._refusal is not None:
            raise copy.copy(self._refusal)
        if self.state is not StreamState.OPEN:
            raise TurnFinishedError

    def _make_due(self, moment: float, *, is_awaited: bool = False) -> None:
        self.is_awaited |= is_awaited
        if moment < self.due_at or is_awaited:
            self.due_at = min(moment, self.due_at)
            self._wake()

    def _is_all_stored(self) -> bool:
        return (
            self._pending is None
            and self.content.frozen == self.content.text.length
            and self.raw.frozen == self.raw.text.length
            and not self._fields.has_new
        )

    # -- called by the flusher --------------------------------------------------------------

    def next_chunk(self, *, ends_now: bool) -> Chunk | None:
        """Return the chunk to store: the one without an acknowledgement, or a new one.

        Args:
            ends_now: whether ``next_ending`` takes the new text.
        """
        with self._mutex:
            self.is_awaited = False
            if self._pending is not None:
                return self._pending.chunk
            if ends_now or self._ending is not None or self.state is StreamState.LOST:
                return None
            waiters, self._flush_waiters = self._flush_waiters, []
            if self.state is StreamState.OPEN:
                self.due_at = inf
                self._notice_at = 1
            chunk = None if self._is_all_stored() else self._freeze(waiters)
        if chunk is None:
            settle(waiters, None)
        return chunk

    def _freeze(self, waiters: list[Outcome[None]]) -> Chunk:
        content, raw = self.content, self.raw
        ends = content.text.length, raw.text.length
        chunk = Chunk(
            self.turn.id,
            self.turn.response_id,
            self._next_seq,
            content.text.since(content.frozen, ends[0]),
            raw.text.since(raw.frozen, ends[1]),
            self._fields.take(),
            now(),
        )
        self._next_seq += 1
        self._pending = PendingChunk(chunk, ends, self._fresh_size, waiters)
        content.frozen, raw.frozen = ends
        self._fresh_size = 0
        return chunk

    def next_ending(self) -> Ending:
        """Return how the turn is to end, behind the chunk; the same in each attempt."""
        with self._mutex:
            if self._ending is None:
                self._ending = self._final()
            return self._ending

    def _final(self) -> Ending:
        assert self._end is not None
        for buffer in (self.content, self.raw):
            if buffer.held:
                # The other half has not come.
                buffer.held = ""
                buffer.text.append("\ufffd")
        status, error_message = self._end
        fields = self._fields.take_last()
        if error_message is not None:
            fields["error_message"] = error_message
        return Ending(
            self.turn.id,
            self.turn.response_id,
            status,
            self.content.text.since(self.content.frozen),
            self.raw.text.since(self.raw.frozen),
            fields,
            now(),
        )

    def note_stored(self) -> None:
        """Record that the pending chunk is committed, and release the threads that wait for it."""
        with self._mutex:
            frozen, self._pending = self._pending, None
            assert frozen is not None
            self.content.text.mark_stored(frozen.content_end)
            self.raw.text.mark_stored(frozen.raw_end)
            self.content.stored_size += frozen.content_size
            self.raw.stored_size += frozen.raw_size
        settle(frozen.waiters, None)

    def note_ended(self, turn: Turn) -> None:
        """Note that the end is committed."""
        with self._mutex:
            self.turn = turn
            self.state = StreamState.ENDED
            self._mark_all_stored()
            flush_waiters, end_waiters = self._take_waiters()
        settle(flush_waiters, None)
        settle(end_waiters, turn)

    def note_failure(self, error: BaseException) -> None:
        """Give the waiting callers the error of this attempt; the flusher tries again."""
        with self._mutex:
            self.due_at = 0.0
            flush_waiters, end_waiters = self._take_waiters()
        fail([*flush_waiters, *end_waiters], error)

    def refuse(self, error: BaseException) -> None:
        """Take no more text: the turn cannot be written any more."""
        with self._mutex:
            self._refuse(error)

    def _refuse(self, error: BaseException) -> None:
        self.state = StreamState.LOST
        self._refusal = error
        self._notice_at = 0
        self.due_at = inf

    def unstored(self) -> tuple[list[Remainder], dict[str, Any]]:
        """Return what a turn lacks after another caller has ended it.

        Returns:
            The rests of its texts, one for each state its row may be in, and other columns.
        """
        with self._mutex:
            for buffer in (self.content, self.raw):
                buffer.note_kept_so_far()
            unsure = {} if self._pending is None else self._pending.chunk.fields
            last = {} if self._ending is None else {**self._ending.fields}
            # The caller that has ended the turn gives its error message.
            last.pop("error_message", None)
            columns = self._fields.take_unstored(unsure, last)
            return remainders_of(self.content, self.raw, self._pending), columns

    def note_kept(self) -> None:
        """Note that the last remainders are stored."""
        with self._mutex:
            if self._pending is not None:
                self._flush_waiters += self._pending.waiters
                self._pending = None
            for buffer in (self.content, self.raw):
                buffer.note_kept()

    def refuse_if_kept(self, error: BaseException, turn: Turn | None) -> bool:
        """Take no more text if all that was taken is stored; return whether it is.

        Args:
            error: the error that the writer raises for further text.
            turn: the turn as stored, if it could be read.
        """
        with self._mutex:
            is_kept = all(each.text.stored == each.text.length for each in (self.content, self.raw))
            if not is_kept or self._fields.has_new:
                return False
            # In this order: a caller that is refused, or reads `is_finished`, finds the turn there.
            self.turn = turn or self.turn
            self._refuse(error)
            return True

    def lose(self, error: BaseException, turn: Turn | None = None) -> None:
        """Lose the stream; callers that wait get the error, and so do later calls.

        Args:
            error: the reason.
            turn: the turn as another caller has ended it.
        """
        self.refuse(error)
        with self._mutex:
            self.turn = turn or self.turn
            flush_waiters, end_waiters = self._take_waiters()
        fail([*flush_waiters, *end_waiters], error)

    def forget_after_fork(self, error: BaseException) -> None:
        """Refuse everything in a forked child; the mutex may be held by a thread of the parent."""
        self._mutex = threading.RLock()
        self._is_owned = self._mutex._is_owned  # type: ignore[attr-defined]
        self._flush_waiters, self._end_waiters = [], []
        self.refuse(error)

    def _mark_all_stored(self) -> None:
        for buffer in (self.content, self.raw):
            buffer.text.mark_stored(buffer.text.length)

    def _take_waiters(self) -> tuple[list[Outcome[None]], list[Outcome[Turn]]]:
        flush_waiters, self._flush_waiters = self._flush_waiters, []
        if self._pending is not None:
            flush_waiters += self._pending.waiters
            self._pending.waiters = []
        end_waiters, self._end_waiters = self._end_waiters, []
        return flush_waiters, end_waiters
