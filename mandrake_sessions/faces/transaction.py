"""Methods inside an open transaction; a call that raises undoes what it has written.

Made by ``make faces``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mandrake_sessions.engine.transaction import WriteTransaction as _WriteTransaction
from mandrake_sessions.faces.calls import TransactionCalls as _TransactionCalls
from mandrake_sessions.faces.calls import positional as _positional
from mandrake_sessions.faces.calls import write_within as _write_within
from mandrake_sessions.faces.reader import ReaderFace as _ReaderFace
from mandrake_sessions.models import (
    UNSET,
    Exchange,
    NewTurn,
    Request,
    Round,
    Session,
    ToolCall,
    Turn,
    TurnStatus,
    Unset,
)
from mandrake_sessions.records import requests as _requests
from mandrake_sessions.records import rounds as _rounds
from mandrake_sessions.records import sessions as _sessions
from mandrake_sessions.records import turn_updates as _turn_updates
from mandrake_sessions.records import turns as _turns

_create_turn = _positional(_turns.create_turn)
_update_turn = _positional(_turn_updates.update_turn)


class TransactionFace(_ReaderFace[_WriteTransaction], _TransactionCalls):
    """Methods inside an open transaction; a call that raises undoes what it has written."""

    def create_session(
        self,
        title: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
    ) -> Session:
        """Create a session.

        Args:
            title: its name in lists.
            description: what it is about.
            metadata: the host's own facts, a mapping of JSON values.
            id: the id of the session, 1 to 255 characters; a new UUIDv7 when None.

        Returns:
            The new session.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionAlreadyExistsError: the id is taken.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.create_session(title, description, metadata, id=id)
        return _write_within(self, unit)

    def update_session(
        self,
        id: str,
        *,
        title: str | Unset | None = UNSET,
        description: str | Unset | None = UNSET,
        metadata: Mapping[str, Any] | Unset | None = UNSET,
        expected_revision: int | None = None,
    ) -> Session:
        """Change the given fields of a session; with none given nothing changes.

        Args:
            id: the id of the session.
            title: the new title; None clears it.
            description: the new description; None clears it.
            metadata: the new metadata, which replaces the old; None clears it.
            expected_revision: the revision that the session must still have.

        Returns:
            The session as it is now.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
            StaleRevisionError: the session is not at the expected revision.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.update_session(
            id,
            title=title,
            description=description,
            metadata=metadata,
            expected_revision=expected_revision,
        )
        return _write_within(self, unit)

    def delete_session(self, id: str, *, missing_ok: bool = False) -> bool:
        """Delete a session with its rounds, requests, responses and turns.

        Args:
            id: the id of the session.
            missing_ok: whether to return False instead of raising if there is none.

        Returns:
            Whether there was one.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.delete_session(id, missing_ok=missing_ok)
        return _write_within(self, unit)

    def create_round(
        self,
        session_id: str,
        content: str,
        *,
        id: str | None = None,
        expected_index: int | None = None,
    ) -> Round:
        """Add a round: the request with its content, and a response that has no turns yet.

        Args:
            session_id: the session it belongs to.
            content: the user's text.
            id: the id of the round, 1 to 255 characters; a new UUIDv7 when None.
            expected_index: the index that the round must get; refuses a conversation that has
                grown.

        Returns:
            The new round.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
            RoundAlreadyExistsError: the id is taken.
            StaleRevisionError: the next index is not the expected one.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.create_round(session_id, content, id=id, expected_index=expected_index)
        return _write_within(self, unit)

    def record_round(
        self,
        session_id: str,
        content: str,
        turns: Sequence[NewTurn] = (),
        *,
        id: str | None = None,
        expected_index: int | None = None,
    ) -> Exchange:
        """Store a finished exchange in one call: a round with the turns of its response.

        Args:
            session_id: the session it belongs to.
            content: the user's text.
            turns: the turns of the response in their order, all of them finished.
            id: the id of the round, 1 to 255 characters; a new UUIDv7 when None.
            expected_index: the index that the round must get; refuses a conversation that has
                grown.

        Returns:
            The new round with its turns.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
            RoundAlreadyExistsError: the id is taken.
            TurnAlreadyExistsError: the id of a turn is taken.
            StaleRevisionError: the next index is not the expected one.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.record_round(
            session_id, content, turns, id=id, expected_index=expected_index
        )
        return _write_within(self, unit)

    def delete_round(self, id: str, *, missing_ok: bool = False) -> bool:
        """Delete a round with its request, response and turns; its index is never given again.

        Args:
            id: the id of the round.
            missing_ok: whether to return False instead of raising if there is none.

        Returns:
            Whether there was one.

        Raises:
            InvalidArgumentError: the id is not a string.
            RoundNotFoundError: there is no such round.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.delete_round(id, missing_ok=missing_ok)
        return _write_within(self, unit)

    def update_request(self, id: str, *, content: str | Unset = UNSET) -> Request:
        """Change the given fields of a request; with none given nothing changes.

        Args:
            id: the id of the request.
            content: the new text of the user.

        Returns:
            The request as it is now.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            RequestNotFoundError: there is no such request.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _requests.update_request(id, content=content)
        return _write_within(self, unit)

    def create_turn(
        self,
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
    ) -> Turn:
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
            InvalidArgumentError: an argument has the wrong type or is out of range, or a deleted
                turn had the index.
            ResponseNotFoundError: there is no such response.
            TurnAlreadyExistsError: the id or the index is taken.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _create_turn(
            response_id,
            content,
            raw_response,
            tool_calls,
            status,
            error_message,
            index,
            started_at,
            current_tokens,
            expected_tokens,
            input_tokens,
            output_tokens,
            cache_read_tokens,
            cache_write_tokens,
            input_cost,
            output_cost,
            model,
            id,
        )
        return _write_within(self, unit, claims=True)

    def update_turn(
        self,
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
    ) -> Turn:
        """Change the given fields of a turn; with none given nothing changes.

        A status other than ``streaming`` ends the turn, even while a TurnWriter writes it. Tool
        calls
        without a result are then marked as interrupted, unless the turn has no TurnWriter and
        becomes
        ``completed``. The other fields of a turn that has ended may still be changed: usage often
        arrives late.

        Args:
            id: the id of the turn.
            content: the whole text.
            raw_response: the model's output before the host parsed it.
            tool_calls: ``ToolCall``, or mappings with ``call`` and ``response``; they replace the
                old.
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
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _update_turn(
            id,
            content,
            raw_response,
            tool_calls,
            status,
            error_message,
            current_tokens,
            expected_tokens,
            input_tokens,
            output_tokens,
            cache_read_tokens,
            cache_write_tokens,
            input_cost,
            output_cost,
            model,
            expected_revision,
        )
        return _write_within(self, unit)

    def delete_turn(self, id: str, *, missing_ok: bool = False) -> bool:
        """Delete a turn; its index is never given again.

        Args:
            id: the id of the turn.
            missing_ok: whether to return False instead of raising if there is none.

        Returns:
            Whether there was one.

        Raises:
            InvalidArgumentError: the id is not a string.
            TurnNotFoundError: there is no such turn.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _turns.delete_turn(id, missing_ok=missing_ok)
        return _write_within(self, unit)
