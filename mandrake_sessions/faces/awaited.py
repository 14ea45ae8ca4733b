"""Methods of an open manager for coroutines; each call is a unit of its own.

Made by ``make faces``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mandrake_sessions.faces.calls import AwaitedCalls as _AwaitedCalls
from mandrake_sessions.faces.calls import positional as _positional
from mandrake_sessions.models import (
    UNSET,
    Exchange,
    NewTurn,
    Request,
    Response,
    Round,
    Session,
    SessionHistory,
    SessionUsage,
    StreamingStatus,
    ToolCall,
    Turn,
    TurnStatus,
    Unset,
)
from mandrake_sessions.records import history as _history
from mandrake_sessions.records import requests as _requests
from mandrake_sessions.records import rounds as _rounds
from mandrake_sessions.records import sessions as _sessions
from mandrake_sessions.records import turn_updates as _turn_updates
from mandrake_sessions.records import turns as _turns
from mandrake_sessions.records import usage as _usage

_create_turn = _positional(_turns.create_turn)
_update_turn = _positional(_turn_updates.update_turn)


class AwaitedFace(_AwaitedCalls):
    """Methods of an open manager for coroutines; each call is a unit of its own."""

    async def create_session(
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _sessions.create_session(title, description, metadata, id=id)
        return await self._run_unit(handle, unit, "create_session", "write")

    async def get_session(self, id: str) -> Session:
        """Return a session.

        Args:
            id: the id of the session.

        Returns:
            The session.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _sessions.get_session(id)
        return await self._run_unit(handle, unit, "get_session", "fetch")

    async def find_session(self, id: str) -> Session | None:
        """Return a session, or None if there is none.

        Args:
            id: the id of the session.

        Returns:
            The session or None.

        Raises:
            InvalidArgumentError: the id is not a string.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _sessions.find_session(id)
        return await self._run_unit(handle, unit, "find_session", "fetch")

    async def list_sessions(
        self, *, limit: int = 100, offset: int = 0, after: Session | None = None
    ) -> list[Session]:
        """Return a page of sessions, the last changed one first, ties by id descending.

        Args:
            limit: sessions of the page, 1 to 10,000.
            offset: sessions to skip; each costs a step, ``after`` costs none.
            after: the last session of the page before, as it was returned then.

        Returns:
            The sessions of the page.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _sessions.list_sessions(limit=limit, offset=offset, after=after)
        return await self._run_unit(handle, unit, "list_sessions", "query")

    async def count_sessions(self) -> int:
        """Return how many sessions there are.

        Returns:
            The number of sessions.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _sessions.count_sessions()
        return await self._run_unit(handle, unit, "count_sessions", "query")

    async def update_session(
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _sessions.update_session(
            id,
            title=title,
            description=description,
            metadata=metadata,
            expected_revision=expected_revision,
        )
        return await self._run_unit(handle, unit, "update_session", "write")

    async def delete_session(self, id: str, *, missing_ok: bool = False) -> bool:
        """Delete a session with its rounds, requests, responses and turns.

        Args:
            id: the id of the session.
            missing_ok: whether to return False instead of raising if there is none.

        Returns:
            Whether there was one.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _sessions.delete_session(id, missing_ok=missing_ok)
        return await self._run_unit(handle, unit, "delete_session", "write")

    async def create_round(
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _rounds.create_round(session_id, content, id=id, expected_index=expected_index)
        return await self._run_unit(handle, unit, "create_round", "write")

    async def record_round(
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _rounds.record_round(
            session_id, content, turns, id=id, expected_index=expected_index
        )
        return await self._run_unit(handle, unit, "record_round", "write")

    async def get_round(self, id: str) -> Round:
        """Return a round with its request and response.

        Args:
            id: the id of the round.

        Returns:
            The round.

        Raises:
            InvalidArgumentError: the id is not a string.
            RoundNotFoundError: there is no such round.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _rounds.get_round(id)
        return await self._run_unit(handle, unit, "get_round", "fetch")

    async def get_round_by_response(self, response_id: str) -> Round:
        """Return the round of a response.

        Args:
            response_id: the id of the response.

        Returns:
            The round.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _rounds.get_round_by_response(response_id)
        return await self._run_unit(handle, unit, "get_round_by_response", "fetch")

    async def get_current_round(self, session_id: str) -> Round:
        """Return the last round of a session.

        Args:
            session_id: the id of the session.

        Returns:
            The round with the highest index.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            RoundNotFoundError: the session has no round.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _rounds.get_current_round(session_id)
        return await self._run_unit(handle, unit, "get_current_round", "fetch")

    async def list_rounds(
        self,
        session_id: str,
        *,
        limit: int | None = None,
        offset: int = 0,
        after: int | None = None,
    ) -> list[Round]:
        """Return rounds of a session in index order.

        Args:
            session_id: the id of the session.
            limit: rounds of the page, 1 to 10,000; all of them when None.
            offset: rounds to skip; each costs a step, ``after`` costs none.
            after: the index of the last round of the page before.

        Returns:
            The rounds.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _rounds.list_rounds(session_id, limit=limit, offset=offset, after=after)
        return await self._run_unit(handle, unit, "list_rounds", "query")

    async def delete_round(self, id: str, *, missing_ok: bool = False) -> bool:
        """Delete a round with its request, response and turns; its index is never given again.

        Args:
            id: the id of the round.
            missing_ok: whether to return False instead of raising if there is none.

        Returns:
            Whether there was one.

        Raises:
            InvalidArgumentError: the id is not a string.
            RoundNotFoundError: there is no such round.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _rounds.delete_round(id, missing_ok=missing_ok)
        return await self._run_unit(handle, unit, "delete_round", "write")

    async def get_request(self, id: str) -> Request:
        """Return a request.

        Args:
            id: the id of the request.

        Returns:
            The request.

        Raises:
            InvalidArgumentError: the id is not a string.
            RequestNotFoundError: there is no such request.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _requests.get_request(id)
        return await self._run_unit(handle, unit, "get_request", "fetch")

    async def update_request(self, id: str, *, content: str | Unset = UNSET) -> Request:
        """Change the given fields of a request; with none given nothing changes.

        Args:
            id: the id of the request.
            content: the new text of the user.

        Returns:
            The request as it is now.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            RequestNotFoundError: there is no such request.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _requests.update_request(id, content=content)
        return await self._run_unit(handle, unit, "update_request", "write")

    async def get_response(self, id: str) -> Response:
        """Return a response; ``list_turns`` returns its turns.

        Args:
            id: the id of the response.

        Returns:
            The response.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _requests.get_response(id)
        return await self._run_unit(handle, unit, "get_response", "fetch")

    async def create_turn(
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
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
        return await self._run_unit(handle, unit, "create_turn", "write", claims=True)

    async def get_turn(self, id: str) -> Turn:
        """Return a turn.

        Args:
            id: the id of the turn.

        Returns:
            The turn.

        Raises:
            InvalidArgumentError: the id is not a string.
            TurnNotFoundError: there is no such turn.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _turns.get_turn(id)
        return await self._run_unit(handle, unit, "get_turn", "fetch")

    async def get_latest_turn(self, response_id: str) -> Turn:
        """Return the newest turn of a response.

        Args:
            response_id: the id of the response.

        Returns:
            The turn with the highest index.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            TurnNotFoundError: the response has no turn.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _turns.get_latest_turn(response_id)
        return await self._run_unit(handle, unit, "get_latest_turn", "fetch")

    async def list_turns(
        self,
        response_id: str,
        *,
        limit: int | None = None,
        offset: int = 0,
        after: int | None = None,
    ) -> list[Turn]:
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _turns.list_turns(response_id, limit=limit, offset=offset, after=after)
        return await self._run_unit(handle, unit, "list_turns", "query")

    async def update_turn(
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
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
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
        return await self._run_unit(handle, unit, "update_turn", "write")

    async def delete_turn(self, id: str, *, missing_ok: bool = False) -> bool:
        """Delete a turn; its index is never given again.

        Args:
            id: the id of the turn.
            missing_ok: whether to return False instead of raising if there is none.

        Returns:
            Whether there was one.

        Raises:
            InvalidArgumentError: the id is not a string.
            TurnNotFoundError: there is no such turn.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        handle = self._open_handle()
        unit = _turns.delete_turn(id, missing_ok=missing_ok)
        return await self._run_unit(handle, unit, "delete_turn", "write")

    async def get_streaming_status(self, response_id: str) -> StreamingStatus:
        """Return whether a response is still being streamed.

        Args:
            response_id: the id of the response.

        Returns:
            How many turns it has and how many of them are streaming.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _turns.get_streaming_status(response_id)
        return await self._run_unit(handle, unit, "get_streaming_status", "fetch")

    async def render_session_history(
        self, session_id: str, *, last: int | None = None
    ) -> SessionHistory:
        """Return a session with its rounds and their turns, all in index order.

        Args:
            session_id: the id of the session.
            last: how many of the last rounds, 1 to 10,000; all of them when None.

        Returns:
            The session, its rounds and their turns, all of one snapshot.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _history.render_session_history(session_id, last=last)
        return await self._run_unit(handle, unit, "render_session_history", "query")

    async def get_session_usage(self, session_id: str) -> SessionUsage:
        """Return the tokens and costs of a session over all its turns.

        Args:
            session_id: the id of the session.

        Returns:
            The totals, without deleted turns.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            NotInitializedError: before ``init()`` and after ``close()``.
            DatabaseBusyError: the ``busy_timeout`` was used up.
        """
        handle = self._open_handle()
        unit = _usage.get_session_usage(session_id)
        return await self._run_unit(handle, unit, "get_session_usage", "query")
