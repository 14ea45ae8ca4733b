"""Text that a writer still holds after another caller has ended its turn."""

from __future__ import annotations

from typing import Final

from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.errors import MandrakeSessionsError, TurnInterruptedError
from mandrake_sessions.ids import now
from mandrake_sessions.live.streaming.stream import Stream
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import Turn
from mandrake_sessions.records.streaming import append_remainder
from mandrake_sessions.records.turns import get_turn

_LAST_ROUNDS: Final = 10
"""How often text that a writer has taken meanwhile is stored too, before it refuses more."""


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
