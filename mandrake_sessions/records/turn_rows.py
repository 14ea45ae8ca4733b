"""A turn in its stored form: its row read, a new one checked and inserted."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.engine.statement import Bound, Row
from mandrake_sessions.engine.transaction import WriteTransaction
from mandrake_sessions.errors import ConstraintViolationError, TurnAlreadyExistsError
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import NewTurn, ToolCall, Turn, TurnStatus
from mandrake_sessions.records import sql

_STATUS: Final = {status.value: status for status in TurnStatus}
"""Each status by its stored text; TurnStatus("completed") takes ten times as long."""
_tool_calls_decoder = msgspec.json.Decoder(tuple[ToolCall, ...])
_one_tool_call_decoder = msgspec.json.Decoder(ToolCall)


class _StoredToolCall(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A tool call of the JSON text, its values not decoded."""

    call: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    raw: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    is_interrupted: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether it has no result and is not marked as interrupted."""
        return (
            self.response is msgspec.UNSET and self.raw is msgspec.UNSET and not self.is_interrupted
        )


_stored_tool_calls_decoder = msgspec.json.Decoder(_StoredToolCall | list[_StoredToolCall])

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
"""The fields that a caller may set, with their checks; ``tool_calls`` is checked separately."""

_fields: Final[Callable[[NewTurn | Turn], Row]] = attrgetter(*FIELD_CHECKS)
_CHECKS: Final = tuple(
    (name, check, default)
    for (name, check), default in zip(FIELD_CHECKS.items(), _fields(NewTurn()), strict=True)
)
TOOL_CALLS_AT: Final = Turn.__struct_fields__.index("tool_calls")
_STATUS_AT: Final = Turn.__struct_fields__.index("status")


def turn_from(row: Row) -> Turn:
    """Return the turn of a row of ``turn_columns``."""
    fields = list(row)
    calls = fields[TOOL_CALLS_AT]
    fields[TOOL_CALLS_AT] = () if calls == "[]" else read_tool_calls(calls, row[0])
    try:
        fields[_STATUS_AT] = _STATUS[fields[_STATUS_AT]]
    except KeyError:
        # The schema accepts no other text: it is damaged. Whether the turn is complete is unknown.
        get_logger(__name__).warning("status_unreadable", turn_id=row[0])
        fields[_STATUS_AT] = TurnStatus.INTERRUPTED
    return Turn(*fields)


def read_tool_calls(stored: str, turn_id: str) -> tuple[ToolCall, ...]:
    """Return the tool calls of a stored text.

    A single object is read as a list of one. Any other text is kept as ``raw`` of an empty call,
    with a warning that has the turn's id and not the text.
    """
    try:
        return _tool_calls_decoder.decode(stored)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:
        return (_one_tool_call_decoder.decode(stored),)
    except (msgspec.MsgspecError, RecursionError):
        get_logger(__name__).warning("tool_calls_unreadable", turn_id=turn_id)
        return (ToolCall(raw=stored),)


def marked_as_interrupted(stored: str) -> str | None:
    """Return the stored tool calls of a turn that has ended, those without a result marked.

    None if no call needs a mark, or if the text cannot be read: then it stays as it is.
    """
    try:
        found = _stored_tool_calls_decoder.decode(stored)
    except (msgspec.MsgspecError, RecursionError):
        return None
    calls = found if isinstance(found, list) else [found]
    pending = [call for call in calls if call.is_pending]
    for call in pending:
        call.is_interrupted = True
    return msgspec.json.encode(calls).decode() if pending else None


def checked_fields(turn: NewTurn | Turn) -> list[Any]:
    """Return the fields of ``FIELD_CHECKS`` in their stored form, in that order."""
    # Most fields are not given, and a default needs no check.
    return [
        value if value is default else check(name, value)
        for value, (name, check, default) in zip(_fields(turn), _CHECKS, strict=True)
    ]


def prepare_turn(
    new: NewTurn, response_id: str, index: int, moment: int, new_id: str | None = None
) -> tuple[Turn, str]:
    """Return the turn that a caller describes, and its tool calls as JSON text.

    Args:
        new: the caller's description.
        response_id: the response it belongs to.
        index: its index there.
        moment: the present time.
        new_id: its id if the caller gives none; a new one when None.
    """
    calls, encoded_calls = arguments.tool_calls("tool_calls", new.tool_calls)
    content, raw_response, status, error_message, *rest = checked_fields(new)
    started = moment if new.started_at is None else arguments.moment("started_at", new.started_at)
    # By position: by keyword it takes three times as long.
    fields = [
        arguments.fresh_id("id", new_id if new.id is None else new.id),
        response_id,
        index,
        content,
        raw_response,
        calls,
        status,
        error_message,
        started,
        None if status is TurnStatus.STREAMING else max(started, moment),
        *rest,
        0,
        moment,
        moment,
    ]
    return Turn(*fields), encoded_calls


def turn_insert(turn: Turn, encoded_calls: str, owner: str | None = None) -> Bound:
    """Return the INSERT of a complete turn.

    Args:
        turn: the turn.
        encoded_calls: its tool calls as JSON text.
        owner: the id of the process that streams it; None for none.
    """
    return sql.INSERT_TURN.of(turn, encoded_calls, owner)


def add_turn(tx: WriteTransaction, turn: Turn, insert_turn: Bound) -> None:
    """Insert a turn; the caller writes its change row, or that of its round."""
    try:
        tx.run_all((insert_turn,))
    except ConstraintViolationError as violation:
        if sql.TURN_ID in violation.columns:
            raise TurnAlreadyExistsError(turn.id) from violation
        raise
