"""Changes of a turn, and the allowed transitions of its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mandrake_sessions import arguments
from mandrake_sessions.engine.statement import Row
from mandrake_sessions.engine.transaction import WriteTransaction, WriteUnit
from mandrake_sessions.errors import StaleRevisionError, TurnBeingWrittenError, TurnFinishedError
from mandrake_sessions.ids import now
from mandrake_sessions.models import (
    UNSET,
    ChangeOp,
    Entity,
    ToolCall,
    Turn,
    TurnStatus,
    Unset,
)
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import record_change
from mandrake_sessions.records.sessions import touch_session
from mandrake_sessions.records.turn_rows import (
    FIELD_CHECKS,
    TOOL_CALLS_AT,
    marked_as_interrupted,
    turn_from,
)
from mandrake_sessions.records.turns import get_turn

MOVES: Final[dict[TurnStatus, frozenset[TurnStatus]]] = {
    TurnStatus.STREAMING: frozenset(TurnStatus),
    TurnStatus.COMPLETED: frozenset({TurnStatus.COMPLETED}),
    TurnStatus.ERROR: frozenset({TurnStatus.ERROR}),
    TurnStatus.INTERRUPTED: frozenset({TurnStatus.INTERRUPTED}),
}
"""The allowed transitions: a turn that has ended keeps its status."""


def update_turn(
    id: str,
    *,
    content: str | Unset = UNSET,
    raw_response: str | Unset = UNSET,
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] | Unset = UNSET,
    status: TurnStatus | str | Unset = UNSET,
    error_message: str | Unset | None = UNSET,
    current_tokens: int | Unset = UNSET,
    expected_tokens: int | Unset | None = UNSET,
    input_tokens: int | Unset = UNSET,
    output_tokens: int | Unset = UNSET,
    cache_read_tokens: int | Unset | None = UNSET,
    cache_write_tokens: int | Unset | None = UNSET,
    input_cost: float | Unset = UNSET,
    output_cost: float | Unset = UNSET,
    model: str | Unset | None = UNSET,
    expected_revision: int | None = None,
) -> WriteUnit[Turn]:
    """Change the given fields of a turn; with none given nothing changes.

    A status other than ``streaming`` ends the turn, even while a TurnWriter writes it. Tool calls
    without a result are then marked as interrupted, unless the turn has no TurnWriter and becomes
    ``completed``. The other fields of a turn that has ended may still be changed: usage often
    arrives late.

    Args:
        id: the id of the turn.
        content: the whole text.
        raw_response: the model's output before the host parsed it.
        tool_calls: ``ToolCall``, or mappings with ``call`` and ``response``; they replace the old.
        status: ``streaming``, or how it ended.
        error_message: the reason of an error; None clears it.
        current_tokens: tokens received so far.
        expected_tokens: the host's estimate of the total; None clears it.
        input_tokens: tokens that the model read.
        output_tokens: tokens that the model wrote.
        cache_read_tokens: input tokens from the provider's cache; None clears it.
        cache_write_tokens: input tokens that were put into the cache; None clears it.
        input_cost: cost of the input, in the host's currency.
        output_cost: cost of the output, in the host's currency.
        model: the model that answers; None clears it.
        expected_revision: the revision that the turn must still have.

    Returns:
        The turn as it is now.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        TurnNotFoundError: there is no such turn.
        TurnFinishedError: the turn has ended, and its status would change.
        TurnBeingWrittenError: ``content`` or ``raw_response`` is given, and a TurnWriter writes
            them.
        StaleRevisionError: the turn is not at the expected revision.
    """
    fields = {
        "content": content,
        "raw_response": raw_response,
        "status": status,
        "error_message": error_message,
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
    given = {
        name: FIELD_CHECKS[name](name, value)
        for name, value in fields.items()
        if value is not UNSET
    }
    if tool_calls is not UNSET:
        _, given["tool_calls"] = arguments.tool_calls("tool_calls", tool_calls)
    expected_revision = arguments.optional_count("expected_revision", expected_revision)
    return _prepare_update(id, given, expected_revision)


def _prepare_update(
    id: str, given: dict[str, Any], expected_revision: int | None
) -> WriteUnit[Turn]:
    id = arguments.lookup_id("id", id)
    moment = now()
    status: TurnStatus | None = given.get("status")
    is_end = status is not None and status.is_finished
    statement = (sql.END_TURN if is_end else sql.UPDATE_TURN).of(given)
    values = given | {"id": id, "expected_revision": expected_revision, "now": moment}
    get = get_turn(id)

    def work(tx: WriteTransaction) -> Turn:
        row: Row | None = tx.row(statement, values) if given else None
        if row is None:
            turn = get(tx)
            _require_changeable(turn, status, expected_revision)
            if not given.keys().isdisjoint(sql.TEXTS):
                raise TurnBeingWrittenError
            return turn
        if is_end and (row[-1] or status is not TurnStatus.COMPLETED):
            row = _with_marked_calls(tx, id, row)
        turn = turn_from(row[:-1])
        if row[-1] and turn.status.is_finished:
            tx.run(sql.DELETE_CHUNKS, values)
        session_id = record_change(tx, Entity.TURN, id, ChangeOp.UPDATE, parent_id=turn.response_id)
        if status is not None and turn.stream_ended_us == max(turn.stream_started_us, moment):
            touch_session(tx, session_id, moment)
        return turn

    return work


def _with_marked_calls(tx: WriteTransaction, id: str, row: Row) -> Row:
    """Mark the tool calls of a turn that ends before their results came.

    A host without a TurnWriter that completes a turn may give the results with a later update.
    """
    marked = marked_as_interrupted(row[TOOL_CALLS_AT])
    if marked is None:
        return row
    tx.run(sql.MARK_TOOL_CALLS, {"id": id, "tool_calls": marked})
    return (*row[:TOOL_CALLS_AT], marked, *row[TOOL_CALLS_AT + 1 :])


def _require_changeable(
    turn: Turn, status: TurnStatus | None, expected_revision: int | None
) -> None:
    """Raise the reason why the UPDATE found no row."""
    if expected_revision is not None and turn.revision != expected_revision:
        raise StaleRevisionError(expected=expected_revision, actual=turn.revision)
    if status is not None and status not in MOVES[turn.status]:
        raise TurnFinishedError
