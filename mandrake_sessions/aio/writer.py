"""AsyncTurnWriter: streams one turn from a coroutine.

Writing never waits, so it is not awaited. A flush or an end is awaited: the flusher of the file
stores the text and notifies the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from mandrake_sessions.aio.cancellation import CancelledCall, note_outcome
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.errors import (
    CommitOutcomeUnknownError,
    NotInitializedError,
    TurnInterruptedError,
)
from mandrake_sessions.live.event_loops import call_in_loop, wake
from mandrake_sessions.live.streaming.outcome import Outcome
from mandrake_sessions.live.streaming.tool_calls import PendingToolCall
from mandrake_sessions.live.streaming.writer import (
    TurnWriter,
    ending_of,
    message_of,
    note_unstored_end,
)
from mandrake_sessions.models import UNSET, Turn, TurnStatus, Unset

T = TypeVar("T")

_CANCELLED_PATIENCE: Final = 1.0
"""Seconds that a cancellation waits for the end of its turn, which is stored in any case."""


class AsyncTurnWriter:
    """Streams one turn. Made by ``stream_turn``, for one ``async with`` block.

    The block begins the turn and ends it: ``completed``; or ``error`` with the exception's type and
    message; or ``interrupted`` for a cancellation, which goes on when that is stored. If the block
    has ended the turn itself, its exit changes nothing. Without a block, ``await begin()`` comes
    first, and ``await complete()``, ``fail()`` or ``interrupt()`` last.
    """

    def __init__(self, handle: Handle, begin: Callable[[], Awaitable[TurnWriter]]) -> None:
        self._handle = handle
        self._begin = begin
        self._begun: TurnWriter | None = None

    def __repr__(self) -> str:
        return "<AsyncTurnWriter, not begun>" if self._begun is None else f"<Async{self._begun!r}>"

    async def begin(self) -> Self:
        """Store the new turn; raises the errors of ``SessionManager.stream_turn``.

        If it is cancelled, the turn was not begun, or is interrupted.
        """
        if self._begun is None:
            self._begun = await self._begin()
        return self

    @property
    def sync(self) -> TurnWriter:
        """The writer behind it, for threads.

        Raises:
            NotInitializedError: the turn was not begun.
        """
        if self._begun is None:
            raise NotInitializedError("The turn is not begun; use `async with` or `await begin()`.")
        return self._begun

    @property
    def id(self) -> str:
        """The id of the turn."""
        return self.sync.id

    @property
    def response_id(self) -> str:
        """The response the turn belongs to."""
        return self.sync.response_id

    @property
    def turn(self) -> Turn:
        """The turn as it was begun, or as it ended."""
        return self.sync.turn

    @property
    def is_finished(self) -> bool:
        """Whether the turn has ended, by this writer or by another caller."""
        return self.sync.is_finished

    @property
    def unstored_text(self) -> str:
        """The end of the text that is not stored; after a failure, the text that was lost."""
        return self.sync.unstored_text

    # -- text of the model ------------------------------------------------------------------

    def write(self, text: str) -> None:
        """Add text to ``content``; never waits. Raises the errors of ``TurnWriter.write``."""
        self.sync.write(text)

    def write_raw(self, text: str) -> None:
        """Add text to ``raw_response``; otherwise as ``write``."""
        self.sync.write_raw(text)

    def tool_call(self, call: Any, *, strict: bool = False) -> PendingToolCall:
        """Add a tool call to the turn; ``set_result`` of the returned object gives its result.

        Args:
            call: the call as JSON data; values that JSON lacks are changed as ``storable`` does it.
            strict: whether to refuse a value that would have to be changed.
        """
        return self.sync.tool_call(call, strict=strict)

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
            expected_tokens: the host's estimate of the total; None clears it.
            input_tokens: tokens that the model read.
            output_tokens: tokens that the model wrote.
            cache_read_tokens: input tokens from the provider's cache; None clears it.
            cache_write_tokens: input tokens that were put into the cache; None clears it.
            input_cost: cost of the input, in the host's currency.
            output_cost: cost of the output, in the host's currency.
            model: the model that answers; None clears it.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            TurnFinishedError: the turn has ended; other errors as ``write``.
        """
        self.sync.set_usage(
            current_tokens=current_tokens,
            expected_tokens=expected_tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            input_cost=input_cost,
            output_cost=output_cost,
            model=model,
        )

    # -- storing and ending -----------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that was written before is stored.

        Args:
            timeout: seconds; None for the ``busy_timeout`` and a second.

        Raises:
            DatabaseBusyError: it took longer; storing goes on in the background.
            DatabaseError: this attempt failed; the next one follows in the background.
            TurnInterruptedError: another caller has ended the turn.
        """
        seconds = self.sync._seconds_to_wait(timeout)
        await self._result(self.sync._ask_for_flush(), seconds, "flush")

    async def complete(self, timeout: float | None = None) -> Turn:
        """End the turn as ``completed``; raises the errors of ``TurnWriter.complete``.

        Args:
            timeout: seconds; None for the ``busy_timeout`` and a second.

        Returns:
            The turn as it ended.
        """
        return await self._end(TurnStatus.COMPLETED, None, timeout)

    async def fail(self, error: BaseException | str, timeout: float | None = None) -> Turn:
        """End the turn as ``error``; otherwise as ``complete``.

        Args:
            error: the failure; an exception is stored with its type and message.
            timeout: seconds; None for the ``busy_timeout`` and a second.
        """
        return await self._end(TurnStatus.ERROR, message_of(error), timeout)

    async def interrupt(self, timeout: float | None = None) -> Turn:
        """End the turn as ``interrupted``; otherwise as ``complete``.

        Args:
            timeout: seconds; None for the ``busy_timeout`` and a second.
        """
        return await self._end(TurnStatus.INTERRUPTED, None, timeout)

    async def _end(
        self, status: TurnStatus, error: BaseException | str | None, timeout: float | None
    ) -> Turn:
        seconds = self.sync._seconds_to_wait(timeout)
        outcome = self.sync._ask_for_end(status, error)
        try:
            return await self._result(outcome, seconds, "end of a stream")
        except asyncio.CancelledError as cancelled:
            # The request cannot be taken back, and its outcome is known soon.
            await self._surely_settled(outcome, _CANCELLED_PATIENCE)
            note_outcome(cancelled, _end_of(outcome))
            raise

    async def _result(self, outcome: Outcome[T], seconds: float, operation: str) -> T:
        budget = self._handle.budget(seconds)
        await _settled(outcome, budget.left())
        if not outcome.is_known:
            raise budget.exceeded("queue", self._handle.path, operation)
        return outcome.value()

    async def _surely_settled(
        self, outcome: Outcome[Any], seconds: float
    ) -> asyncio.CancelledError | None:
        """Wait for an outcome, past cancellations; return the last one."""
        budget = self._handle.budget(seconds)
        cancelled: asyncio.CancelledError | None = None
        while not outcome.is_known and budget.left():
            try:
                await _settled(outcome, budget.left())
            except asyncio.CancelledError as error:
                if cancelled is None and budget.left() > _CANCELLED_PATIENCE:
                    # A cancelled caller waits no longer, whatever the block had to wait for.
                    budget = self._handle.budget(_CANCELLED_PATIENCE)
                cancelled = error
        return cancelled

    # -- the block --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return await self.begin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.sync._is_ended_by_host:
            return
        if error is None:
            await self.complete()
            return
        if self.is_finished:
            # Another caller has ended it. A call has raised that, or the host wrote nothing since.
            return
        cancelled = None
        is_cancelled = isinstance(error, asyncio.CancelledError)
        try:
            outcome = self.sync._ask_for_end(*ending_of(error))
            patience = _CANCELLED_PATIENCE if is_cancelled else self.sync._seconds_to_wait()
            cancelled = await self._surely_settled(outcome, patience)
            if outcome.is_known:
                outcome.value()
        except TurnInterruptedError:
            # Another caller has ended the turn first; its text is kept.
            pass
        except Exception as failure:  # noqa: BLE001  # the block's own exception goes on
            note_unstored_end(self.id, error, failure)
        if cancelled is not None and not is_cancelled:
            raise cancelled


async def _settled(outcome: Outcome[Any], seconds: float) -> None:
    """Wait for an outcome of another thread; cancelling the wait does not cancel the outcome."""
    if outcome.is_known:
        return
    loop = asyncio.get_running_loop()
    known: asyncio.Future[None] = loop.create_future()
    outcome.call_when_known(lambda: call_in_loop(loop, wake, known))
    await asyncio.wait((known,), timeout=seconds)


def _end_of(outcome: Outcome[Turn]) -> CancelledCall:
    """Return the outcome of an end whose caller was cancelled."""
    operation = "end of a stream"
    if not outcome.is_known:
        # It is still attempted: no turn of a living process stays streaming.
        return CancelledCall(operation=operation, is_committed=None)
    failure = outcome.error
    if failure is None:
        return CancelledCall(operation=operation, is_committed=True, result=outcome.value())
    is_unknown = isinstance(failure, CommitOutcomeUnknownError)
    return CancelledCall(
        operation=operation, is_committed=None if is_unknown else False, failure=failure
    )
