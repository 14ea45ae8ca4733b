"""How streams end: how many in one transaction, and the text that comes after the turn's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseMovedError,
    ForkedPoolError,
    MandrakeSessionsError,
    NotADatabaseError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    TurnInterruptedError,
    TurnNotFoundError,
)
from mandrake_sessions.ids import now
from mandrake_sessions.live.streaming.outcome import Outcome
from mandrake_sessions.live.streaming.stream import Stream, StreamState
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import Turn
from mandrake_sessions.records.streaming import append_remainder
from mandrake_sessions.records.turns import get_turn

FATAL: Final = (
    PoolClosedError,
    DatabaseMovedError,
    CorruptDatabaseError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    ForkedPoolError,
)
"""Errors after which nothing can be stored through the open file."""

_LAST_ROUNDS: Final = 10
"""How often text that a writer has taken meanwhile is stored too, before it refuses more."""

_FOLDED_AT_ONCE: Final = 1024 * 1024
"""Characters of the turns that end in one transaction: folding 4 MB took 40 ms, and others wait."""


def ending_now(streams: Sequence[Stream]) -> list[Stream]:
    """Return the streams that end now: at least one, and no more than fit one transaction."""
    ending: list[Stream] = []
    length = 0
    for stream in streams:
        if stream.state is StreamState.ENDING and length < _FOLDED_AT_ONCE:
            ending.append(stream)
            length += stream.content.text.length + stream.raw.text.length
    return ending


def ends_of(streams: Sequence[Stream]) -> list[Outcome[Turn]]:
    """Request the end of streams, as interrupted unless a caller has requested another end."""
    outcomes = []
    for stream in streams:
        outcome = stream.await_end()
        if outcome is not None:
            outcomes.append(outcome)
    return outcomes


def require_ended(ends: Sequence[Outcome[Turn]]) -> None:
    """Raise the error that kept a turn from ending, unless another caller ended or deleted it."""
    for end in ends:
        failure = end.error
        if failure is not None and not isinstance(
            failure, TurnInterruptedError | TurnNotFoundError
        ):
            raise failure


def keep_text(file: Database, stream: Stream, error: TurnInterruptedError) -> Turn | None:
    """Store the writer's text after another caller has ended the turn, then refuse more.

    In this order: a caller that sees the turn as ended finds all its text stored.

    Args:
        file: the open file.
        stream: the stream whose turn another caller has ended.
        error: the error that the writer raises for further text.

    Returns:
        The turn as it ended, if it could be read.
    """
    for _ in range(_LAST_ROUNDS):
        if not _keep_so_far(file, stream):
            break
        turn = _as_it_ended(file, stream)
        if stream.refuse_if_kept(error, turn):
            return turn
    else:
        # The writer is faster than the disk.
        stream.refuse(error)
        _keep_so_far(file, stream)
    stream.refuse(error)
    return _as_it_ended(file, stream)


def _as_it_ended(file: Database, stream: Stream) -> Turn | None:
    try:
        return file.fetch(get_turn(stream.turn.id), "flush", even_refused=True)
    except MandrakeSessionsError:
        return None


def _keep_so_far(file: Database, stream: Stream) -> bool:
    remainders, columns = stream.unstored()
    if not remainders and not columns:
        stream.note_kept()
        return True
    unit = append_remainder(stream.turn.id, remainders, columns, now())
    try:
        is_kept = file.transact(unit, "flush", even_refused=True)
    except Exception as error:  # noqa: BLE001  # the writer gets its error all the same
        get_logger(__name__).error(
            "stream_text_not_kept",
            path=str(file.path),
            turn_id=stream.turn.id,
            error=type(error).__name__,
        )
        return False
    if is_kept:
        stream.note_kept()
    return is_kept
