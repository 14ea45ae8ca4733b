"""Ends of streams: which end in one transaction, and the errors after which none can be stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mandrake_sessions.errors import (
    CorruptDatabaseError,
    DatabaseMovedError,
    ForkedPoolError,
    NotADatabaseError,
    PoolClosedError,
    ReadOnlyDatabaseError,
    TurnInterruptedError,
    TurnNotFoundError,
)
from mandrake_sessions.live.streaming.outcome import Outcome
from mandrake_sessions.live.streaming.stream import Stream, StreamState
from mandrake_sessions.models import Turn

FATAL: Final = (
    PoolClosedError,
    DatabaseMovedError,
    CorruptDatabaseError,
    NotADatabaseError,
    ReadOnlyDatabaseError,
    ForkedPoolError,
)
"""Errors after which nothing can be stored through the open file."""

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
