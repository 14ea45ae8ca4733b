"""Turns: create, read, list, delete, and whether a response is still being streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import (
    InvalidArgumentError,
    MandrakeSessionsError,
    ResponseNotFoundError,
    TurnAlreadyExistsError,
    TurnNotFoundError,
)
from mandrake_sessions.ids import now
from mandrake_sessions.models import (
    ChangeOp,
    Entity,
    NewTurn,
    StreamingStatus,
    ToolCall,
    Turn,
    TurnStatus,
)
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import record_change
from mandrake_sessions.records.sessions import touch_session
from mandrake_sessions.records.turn_rows import (
    add_turn,
    prepare_turn,
    turn_from,
    turn_insert,
)


def create_turn(
    response_id: str,
    *,
    content: str = "",
    raw_response: str = "",
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] = (),
    status: TurnStatus | str = TurnStatus.STREAMING,
    error_message: str | None = None,
    index: int | None = None,
    started_at: datetime | None = None,
    current_tokens: int = 0,
    expected_tokens: int | None = None,
    input_tokens: int = 0,
    output_tokens: int = 0,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int | None = None,
    input_cost: float = 0.0,
    output_cost: float = 0.0,
    model: str | None = None,
    id: str | None = None,
) -> WriteUnit[Turn]:
    """Add a turn to a response; it is streaming unless another status is given.

    Args:
        response_id: the response it belongs to.
        content: the text so far.
        raw_response: the model's output before the host parsed it.
        tool_calls: ``ToolCall``, or mappings with ``call`` and ``response``.
        status: ``streaming``, or how it ended.
        error_message: the reason of an error.
        index: the index of the turn; the next one when None. A later one leaves a gap.
        started_at: when streaming began, aware; now when None.
        current_tokens: tokens received so far.
        expected_tokens: the host's estimate of the total.
        input_tokens: tokens that the model read.
        output_tokens: tokens that the model wrote.
        cache_read_tokens: input tokens from the provider's cache.
        cache_write_tokens: input tokens that were put into the cache.
        input_cost: cost of the input, in the host's currency.
        output_cost: cost of the output, in the host's currency.
        model: the model that answers.
        id: the id of the turn, 1 to 255 characters; a new UUIDv7 when None.

    Returns:
        The new turn.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range, or a deleted turn
            had the index.
        ResponseNotFoundError: there is no such response.
        TurnAlreadyExistsError: the id or the index is taken.
    """
    moment = now()
    new = NewTurn(
        content=content,
        raw_response=raw_response,
        tool_calls=tool_calls,
        status=status,
        error_message=error_message,
        started_at=started_at,
        current_tokens=current_tokens,
        expected_tokens=expected_tokens,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=cache_read_tokens,
        cache_write_tokens=cache_write_tokens,
        input_cost=input_cost,
        output_cost=output_cost,
        model=model,
        id=id,
    )
    response_id = arguments.lookup_id("response_id", response_id)
    prepared, encoded_calls = prepare_turn(new, response_id, 0, moment)
    values = {
        "response_id": response_id,
        "index": arguments.optional_index("index", index),
        "now": moment,
    }

    def work(tx: WriteTransaction) -> Turn:
        row = tx.row(sql.TAKE_TURN_INDEX, values)
        if row is None:
            raise _why_no_index(tx, response_id, values)
        turn = msgspec.structs.replace(prepared, index=row[0] - 1)
        owner = None if turn.status.is_finished else tx.owner
        add_turn(tx, turn, turn_insert(turn, encoded_calls, owner))
        session_id = record_change(tx, Entity.TURN, turn.id, ChangeOp.CREATE, parent_id=response_id)
        touch_session(tx, session_id, moment)
        return turn

    return work


def _why_no_index(
    tx: ReadTransaction, response_id: str, values: Mapping[str, Any]
) -> MandrakeSessionsError:
    if tx.row(sql.RESPONSE_EXISTS, values) is None:
        return ResponseNotFoundError(response_id)
    row = tx.row(sql.TURN_AT_INDEX, values)
    if row is None:
        return InvalidArgumentError("index was given before; an index is never given twice.")
    return TurnAlreadyExistsError(row[0], "The response has a turn of this index.")


def get_turn(id: str) -> ReadUnit[Turn]:
    """Return a turn.

    Args:
        id: the id of the turn.

    Returns:
        The turn.

    Raises:
        InvalidArgumentError: the id is not a string.
        TurnNotFoundError: there is no such turn.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: ReadTransaction) -> Turn:
        row = tx.row(sql.TURN_BY_ID, values)
        if row is None:
            raise TurnNotFoundError(id)
        return turn_from(row)

    return work


def get_latest_turn(response_id: str) -> ReadUnit[Turn]:
    """Return the newest turn of a response.

    Args:
        response_id: the id of the response.

    Returns:
        The turn with the highest index.

    Raises:
        InvalidArgumentError: the id is not a string.
        ResponseNotFoundError: there is no such response.
        TurnNotFoundError: the response has no turn.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    values = {"response_id": response_id}

    def work(tx: ReadTransaction) -> Turn:
        row = tx.row(sql.LATEST_TURN, values)
        if row is None:
            _require_response(tx, response_id)
            raise TurnNotFoundError(message="The response has no turn.")
        return turn_from(row)

    return work


def list_turns(
    response_id: str, *, limit: int | None = None, offset: int = 0, after: int | None = None
) -> ReadUnit[list[Turn]]:
    """Return turns of a response in index order.

    Args:
        response_id: the id of the response.
        limit: turns of the page, 1 to 10,000; all of them when None.
        offset: turns to skip; each costs a step, ``after`` costs none.
        after: the index of the last turn of the page before.

    Returns:
        The turns.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        ResponseNotFoundError: there is no such response.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    values: dict[str, Any] = {
        "response_id": response_id,
        "limit": arguments.optional_limit("limit", limit),
        "offset": arguments.offset("offset", offset),
        "after": arguments.after_index("after", after),
    }

    def work(tx: ReadTransaction) -> list[Turn]:
        rows = tx.rows(sql.TURN_PAGE, values)
        if not rows:
            _require_response(tx, response_id)
        return [turn_from(row) for row in rows]

    return work


def delete_turn(id: str, *, missing_ok: bool = False) -> WriteUnit[bool]:
    """Delete a turn; its index is never given again.

    Args:
        id: the id of the turn.
        missing_ok: whether to return False instead of raising if there is none.

    Returns:
        Whether there was one.

    Raises:
        InvalidArgumentError: the id is not a string.
        TurnNotFoundError: there is no such turn.
    """
    arguments.flag("missing_ok", missing_ok)
    id = arguments.lookup_id("id", id)
    values = {"id": id}
    moment = now()

    def work(tx: WriteTransaction) -> bool:
        row = tx.row(sql.RESPONSE_OF_TURN, values)
        if row is not None:
            tx.run(sql.DELETE_TURN, values)
            session_id = record_change(tx, Entity.TURN, id, ChangeOp.DELETE, parent_id=row[0])
            touch_session(tx, session_id, moment)
            return True
        if missing_ok:
            return False
        raise TurnNotFoundError(id)

    return work


def get_streaming_status(response_id: str) -> ReadUnit[StreamingStatus]:
    """Return whether a response is still being streamed.

    Args:
        response_id: the id of the response.

    Returns:
        How many turns it has and how many of them are streaming.

    Raises:
        InvalidArgumentError: the id is not a string.
        ResponseNotFoundError: there is no such response.
    """
    response_id = arguments.lookup_id("response_id", response_id)
    values = {"response_id": response_id}

    def work(tx: ReadTransaction) -> StreamingStatus:
        row = tx.row(sql.STREAMING_STATUS, values)
        if row is None:
            raise ResponseNotFoundError(response_id)
        return StreamingStatus(*row)

    return work


def _require_response(tx: ReadTransaction, id: str) -> None:
    if tx.row(sql.RESPONSE_EXISTS, {"response_id": id}) is None:
        raise ResponseNotFoundError(id)
