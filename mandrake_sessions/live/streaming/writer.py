"""The writer of one streaming turn: takes its text token by token, and ends the turn."""

from __future__ import annotations

import concurrent.futures
import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.callers import caller_outside
from mandrake_sessions.concurrency.reentry import is_unforeseen, refuse_unforeseen
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.errors import InvalidArgumentError, TurnInterruptedError
from mandrake_sessions.json_text.plain_forms import as_str, paired
from mandrake_sessions.live.streaming.outcome import Outcome
from mandrake_sessions.live.streaming.stream import Stream, StreamState
from mandrake_sessions.live.streaming.tool_calls import PendingToolCall
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import UNSET, Turn, TurnStatus, Unset
from mandrake_sessions.records.turn_rows import FIELD_CHECKS

T = TypeVar("T")

_LONGEST_MESSAGE: Final = 10_000
"""Characters of an exception's text that are stored."""

_GRACE: Final = 1.0
"""Seconds that a caller waits longer than the file's own deadline."""


class TurnWriter(Resource):
    """Streams one turn. Made by ``stream_turn``; thread-safe.

    As a context manager it ends the turn when the block ends: ``completed``; or ``error`` with the
    exception's type and message; or ``interrupted`` for a cancellation, ``KeyboardInterrupt`` and
    ``SystemExit``. The exception goes on. If the block has ended the turn itself, its exit changes
    nothing.

    Text is stored in the background, at most ``flush_interval`` after it came or when there are
    ``flush_bytes`` of it. The turn of a writer that is dropped without an end is interrupted.
    """

    def __init__(self, stream: Stream, file: Database, abandon: Callable[[Stream], None]) -> None:
        super().__init__()
        self._stream = stream
        self._file = file
        self._abandon = abandon
        self._is_ended_by_host = False
        self._made_at = caller_outside()

    def __repr__(self) -> str:
        return f"<TurnWriter of turn {self.id}, {self._stream.state.value}>"

    @property
    def id(self) -> str:
        """The id of the turn."""
        return self._stream.turn.id

    @property
    def response_id(self) -> str:
        """The response the turn belongs to."""
        return self._stream.turn.response_id

    @property
    def turn(self) -> Turn:
        """The turn as it was begun, or as it ended."""
        return self._stream.turn

    @property
    def is_finished(self) -> bool:
        """Whether the turn has ended, by this writer or by another caller."""
        return self._stream.state in (StreamState.ENDED, StreamState.LOST)

    @property
    def unstored_text(self) -> str:
        """The end of the text that is not stored; after a failure, the text that was lost."""
        return self._stream.unstored_text

    def _seconds_to_wait(self, timeout: float | None = None) -> float:
        """Return how long ``flush`` and the ends wait; to be called before they request anything.

        Raises:
            InvalidArgumentError: ``timeout`` is not such a time.
        """
        if timeout is not None:
            return arguments.seconds("timeout", timeout)
        return min(self._file.options.busy_timeout + _GRACE, arguments.MAX_SECONDS)

    # -- text of the model ------------------------------------------------------------------

    def write(self, text: str) -> None:
        """Add text to ``content``; never waits for the file.

        A surrogate pair that is split between two calls is joined; half a pair becomes U+FFFD. A
        thread that is a thousand pieces ahead of the flusher pauses for 2 ms, so that others
        run, unless it runs an event loop.

        Args:
            text: any length. Text longer than ``max_buffered_bytes`` is taken while no other text
                waits to be stored.

        Raises:
            InvalidArgumentError: it is not a string, or the turn would be longer than a text can
                be; nothing of this call was taken.
            StreamBackpressureError: more than ``max_buffered_bytes`` wait to be stored; nothing of
                this call was taken, everything before it is kept.
            TurnFinishedError: the turn was ended here.
            TurnInterruptedError: another caller has ended the turn.
            TurnNotFoundError: the turn was deleted.
            DatabaseError: the reason why the file cannot be written any more.
        """
        self._stream.take(self._stream.content, text)

    def write_raw(self, text: str) -> None:
        """Add text to ``raw_response``; otherwise as ``write``."""
        self._stream.take(self._stream.raw, text)

    def tool_call(self, call: Any, *, strict: bool = False) -> PendingToolCall:
        """Add a tool call to the turn; ``set_result`` of the returned object gives its result.

        Args:
            call: the call as JSON data; values that JSON lacks are changed as ``storable`` does it.
            strict: whether to refuse a value that would have to be changed.

        Returns:
            The call, waiting for its result. If the turn ends first, it is marked as interrupted.

        Raises:
            InvalidArgumentError: ``strict`` is true and it is no JSON value; the error says where.
            TurnFinishedError: the turn has ended; other errors as ``write``.
        """
        return self._stream.add_call(call, strict=arguments.flag("strict", strict))

    def set_usage(
        self,
        *,
        current_tokens: int | Unset = UNSET,
        expected_tokens: int | Unset | None = UNSET,
        input_tokens: int | Unset = UNSET,
        output_tokens: int | Unset = UNSET,
        cache_read_tokens: int | Unset | None = UNSET,
        cache_write_tokens: int | Unset | None = UNSET,
        input_cost: float | Unset = UNSET,
        output_cost: float | Unset = UNSET,
        model: str | Unset | None = UNSET,
    ) -> None:
        """Set the given figures; they are stored with the next flush or with the end.

        Args:
            current_tokens: tokens received so far.
            expected_tokens: the host's guess of all; None clears it.
            input_tokens: tokens that were read.
            output_tokens: tokens that were written.
            cache_read_tokens: input tokens from the provider's cache; None clears it.
            cache_write_tokens: input tokens that were put into it; None clears it.
            input_cost: cost of the input, in the host's currency.
            output_cost: cost of the output, in the host's currency.
            model: the model that answers; None clears it.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            TurnFinishedError: the turn has ended; other errors as ``write``.
        """
        given = {
            "current_tokens": current_tokens,
            "expected_tokens": expected_tokens,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_tokens": cache_read_tokens,
            "cache_write_tokens": cache_write_tokens,
            "input_cost": input_cost,
            "output_cost": output_cost,
            "model": model,
        }
        fields = {
            name: FIELD_CHECKS[name](name, value)
            for name, value in given.items()
            if value is not UNSET
        }
        self._stream.set_fields(fields)

    # -- storing and ending -----------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that was written before is stored.

        Args:
            timeout: seconds; None for the ``busy_timeout`` and a second.

        Raises:
            DatabaseBusyError: it took longer; storing goes on in the background.
            DatabaseError: this attempt failed; the next one follows in the background.
            TurnInterruptedError: another caller has ended the turn.
        """
        refuse_unforeseen("flush")
        seconds = self._seconds_to_wait(timeout)
        self._wait(self._ask_for_flush(), seconds, "flush")

    def complete(self, timeout: float | None = None) -> Turn:
        """End the turn as ``completed``.

        If the end cannot be stored now, the error is raised and further attempts follow in the
        background: no turn of a living process stays streaming. A second call waits again, or
        returns the turn if it was stored meanwhile.

        Args:
            timeout: seconds; None for the ``busy_timeout`` and a second.

        Returns:
            The turn as it ended.

        Raises:
            DatabaseBusyError: it took longer.
            DatabaseError: this attempt to store it failed.
            TurnFinishedError: the turn has ended in another way.
            TurnInterruptedError: another caller has ended the turn.
            TurnNotFoundError: the turn was deleted.
        """
        return self._finish(TurnStatus.COMPLETED, None, timeout)

    def fail(self, error: BaseException | str, timeout: float | None = None) -> Turn:
        """End the turn as ``error``; otherwise as ``complete``.

        Args:
            error: the failure; an exception is stored with its type and message.
            timeout: seconds; None for the ``busy_timeout`` and a second.
        """
        return self._finish(TurnStatus.ERROR, message_of(error), timeout)

    def interrupt(self, timeout: float | None = None) -> Turn:
        """End the turn as ``interrupted``; otherwise as ``complete``.

        It does not wait when a finalizer calls it, or a signal's handler that has interrupted a
        call of this library: then the turn ends in the background and is returned as it is.

        Args:
            timeout: seconds; None for the ``busy_timeout`` and a second.
        """
        return self._finish(TurnStatus.INTERRUPTED, None, timeout)

    def begin_flush(self) -> Future[None]:
        """Start a ``flush`` without waiting; the future has its outcome.

        Raises:
            TurnFinishedError: the turn has ended; other errors as ``write``. The future has the
                errors of storing.
        """
        return self._ask_for_flush().future()

    def begin_end(
        self, status: TurnStatus | str, error: BaseException | str | None = None
    ) -> Future[Turn]:
        """End the turn without waiting; the future has the turn as it ended.

        Args:
            status: how it ends.
            error: the failure; an exception is stored with its type and message.

        Raises:
            InvalidArgumentError: ``status`` does not end a turn, or ``error`` is no error.
            TurnFinishedError: the turn has ended in another way.
            TurnInterruptedError: another caller has ended the turn. The future has the errors of
                storing.
        """
        return self._ask_for_end(status, error).future()

    def _ask_for_flush(self) -> Outcome[None]:
        """Request what ``begin_flush`` does; for the faces of this library."""
        return self._stream.ask_for_flush()

    def _ask_for_end(
        self, status: TurnStatus | str, error: BaseException | str | None = None
    ) -> Outcome[Turn]:
        """Request what ``begin_end`` does; for the faces of this library."""
        status = arguments.status("status", status)
        if not status.is_finished:
            raise InvalidArgumentError("status must be one that ends the turn.")
        message = None if error is None else message_of(error)
        self._is_ended_by_host = True
        return self._stream.ask_for_end(status, message)

    def _finish(self, status: TurnStatus, message: str | None, timeout: float | None) -> Turn:
        seconds = self._seconds_to_wait(timeout)
        if is_unforeseen():
            if status is not TurnStatus.INTERRUPTED:
                refuse_unforeseen("end of a stream")
            self._is_ended_by_host = True
            self._abandon(self._stream)
            return self.turn
        return self._wait(self._ask_for_end(status, message), seconds, "end of a stream")

    def _wait(self, outcome: Outcome[T], seconds: float, operation: str) -> T:
        # In its own transaction the caller would wait for itself. Its request is met afterwards.
        self._file.require_no_lease(operation)
        budget = self._file.budget(seconds)
        if not outcome.wait(budget.left()):
            raise budget.exceeded("queue", self._file.path, operation)
        return outcome.value()

    # -- the block --------------------------------------------------------------------------

    def _on_exit(self, error: BaseException | None) -> None:
        try:
            self._end_block(error)
        finally:
            self._on_left()

    def _on_left(self) -> None:
        """Interrupt the turn if it has not ended, as when Ctrl-C came before that."""
        if not self.is_finished:
            self._abandon(self._stream)

    def _end_block(self, error: BaseException | None) -> None:
        if self._is_ended_by_host:
            return
        if error is None:
            self.complete()
            return
        if self._stream.state is StreamState.LOST:
            # A call has raised the reason, or the host wrote nothing afterwards.
            return
        try:
            self._finish(*ending_of(error), None)
        except TurnInterruptedError:
            # Another caller has ended the turn first; its text is kept.
            return
        except Exception as failure:  # noqa: BLE001  # the block's own exception goes on
            note_unstored_end(self.id, error, failure)

    def __del__(self) -> None:
        # Not if __init__ has failed.
        stream = getattr(self, "_stream", None)
        if stream is None or stream.state is not StreamState.OPEN or self._is_ended_by_host:
            return
        with contextlib.suppress(AttributeError):
            self._abandon(stream)
            warnings.warn(
                f"A TurnWriter was forgotten without an end: {self._made_at}",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )


def ending_of(error: BaseException) -> tuple[TurnStatus, str | None]:
    """Return how a block that is left by an exception ends its turn."""
    if isinstance(error, Exception) and not isinstance(error, concurrent.futures.CancelledError):
        return TurnStatus.ERROR, message_of(error)
    # asyncio's cancellation, KeyboardInterrupt, SystemExit and GeneratorExit are no Exception.
    return TurnStatus.INTERRUPTED, None


def note_unstored_end(turn_id: str, error: BaseException, failure: BaseException) -> None:
    """Log that a block's turn could not be ended, and add a note to the block's own exception."""
    get_logger(__name__).warning("stream_end_failed", turn_id=turn_id, error=type(failure).__name__)
    error.add_note(f"The end of turn {turn_id} is not stored: {failure}")


def message_of(error: BaseException | str) -> str:
    """Return the stored form of an error: bounded, and without half a surrogate pair."""
    if arguments.is_one(error, BaseException):
        try:
            message = str(error)
            text = f"{type(error).__name__}: {message}" if message else type(error).__name__
        except Exception:  # noqa: BLE001  # a host's own __str__
            text = type(error).__name__
    else:
        given = as_str(error)
        if given is None:
            raise InvalidArgumentError("error must be an exception or a string.")
        text = given
    return paired(text)[:_LONGEST_MESSAGE]
