"""A turn as it is stored: its columns, its row read, a new one checked and inserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from mandrake_sessions import arguments, schema
from mandrake_sessions.database.statement import Bound, Row
from mandrake_sessions.database.transaction import WriteTransaction
from mandrake_sessions.errors import (
    ConstraintViolationError,
    CorruptDatabaseError,
    TurnAlreadyExistsError,
)
from mandrake_sessions.models import NewTurn, ToolCall, Turn, TurnStatus
from mandrake_sessions.records.chunks import TEXTS, whole
from mandrake_sessions.records.columns import RecordInsert, columns_of

_C = schema.turns.c
TURN_COLUMNS: Final = tuple(
    whole(column.name) if column.name in TEXTS else column
    for column in columns_of(Turn, schema.turns)
)

_INSERT = RecordInsert(Turn, schema.turns, extra=(_C.tool_calls, _C.owner))


class _Statuses(dict[str, TurnStatus]):
    """Each status by what is stored; TurnStatus("completed") takes ten times as long."""

    def __missing__(self, stored: str) -> TurnStatus:
        # The schema lets nothing else in: the file is damaged.
        raise CorruptDatabaseError("The status of a turn is damaged.")


_STATUS: Final = _Statuses({status.value: status for status in TurnStatus})
_tool_calls_decoder = msgspec.json.Decoder(tuple[ToolCall, ...])
_one_tool_call_decoder = msgspec.json.Decoder(ToolCall)

FIELD_CHECKS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "content": arguments.text,
    "raw_response": arguments.text,
    "status": arguments.status,
    "error_message": arguments.optional_text,
    "current_tokens": arguments.count,
    "expected_tokens": arguments.optional_count,
    "input_tokens": arguments.count,
    "output_tokens": arguments.count,
    "cache_read_tokens": arguments.optional_count,
    "cache_write_tokens": arguments.optional_count,
    "input_cost": arguments.cost,
    "output_cost": arguments.cost,
    "model": arguments.optional_text,
}
"""The fields a caller may set and what may stand in them; ``tool_calls`` is the one besides."""

_DEFAULTS: Final[dict[str, Any]] = {name: getattr(NewTurn(), name) for name in FIELD_CHECKS}


def turn_from(row: Row) -> Turn:
    """Return the turn of a row of ``TURN_COLUMNS``."""
    id, response_id, index, content, raw_response, calls, status, *rest = row
    return Turn(
        id,
        response_id,
        index,
        content,
        raw_response,
        () if calls == "[]" else read_tool_calls(calls, id),
        _STATUS[status],
        *rest,
    )


def read_tool_calls(stored: str, turn_id: str) -> tuple[ToolCall, ...]:
    """Return the tool calls of a stored text.

    A single object is read as a list of one. Text that is something else is kept as ``raw`` of an
    empty call, with a warning that names the turn and not the text.
    """
    try:
        return _tool_calls_decoder.decode(stored)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:
        return (_one_tool_call_decoder.decode(stored),)
    except (msgspec.MsgspecError, RecursionError):
        structlog.get_logger(__name__).warning("tool_calls_unreadable", turn_id=turn_id)
        return (ToolCall(raw=stored),)


def unanswered_marked(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Return the tool calls of a turn that has ended: those without a result are marked so."""
    return tuple(
        msgspec.structs.replace(call, is_interrupted=True)
        if call.response is None and call.raw is None
        else call
        for call in calls
    )


def encoded_tool_calls(calls: Sequence[ToolCall]) -> str:
    """Return tool calls that were checked before as they are stored."""
    return msgspec.json.encode([arguments.stored_tool_call(call) for call in calls]).decode()


def checked_fields(turn: NewTurn | Turn) -> dict[str, Any]:
    """Return the fields of ``FIELD_CHECKS`` as they are stored."""
    fields = dict(_DEFAULTS)
    for name, default in _DEFAULTS.items():
        value = getattr(turn, name)
        # Most fields are left as they are, and a default needs no check.
        if value is not default:
            fields[name] = FIELD_CHECKS[name](name, value)
    return fields


def prepare_turn(new: NewTurn, response_id: str, index: int, moment: int) -> tuple[Turn, str]:
    """Return the turn a caller describes, and its tool calls as JSON text."""
    calls, encoded_calls = arguments.tool_calls("tool_calls", new.tool_calls)
    fields = checked_fields(new)
    started = moment if new.started_at is None else arguments.moment("started_at", new.started_at)
    turn = Turn(
        id=arguments.fresh_id("id", new.id),
        response_id=response_id,
        index=index,
        tool_calls=calls,
        stream_started_us=started,
        stream_ended_us=max(started, moment) if fields["status"].is_finished else None,
        revision=0,
        created_us=moment,
        updated_us=moment,
        **fields,
    )
    return turn, encoded_calls


def turn_insert(turn: Turn, encoded_calls: str, owner: str | None = None) -> Bound:
    """Return what stores a complete turn.

    Args:
        turn: the turn.
        encoded_calls: its tool calls as JSON text.
        owner: the id of the process that streams it; None for nobody.
    """
    return _INSERT.of(turn, encoded_calls, owner)


def add_turn(tx: WriteTransaction, turn: Turn, insert_turn: Bound) -> None:
    """Insert a turn; its change row, or its round's, is the caller's."""
    try:
        tx.run_all((insert_turn,))
    except ConstraintViolationError as violation:
        if str(_C.id) in violation.columns:
            raise TurnAlreadyExistsError(turn.id) from violation
        raise
