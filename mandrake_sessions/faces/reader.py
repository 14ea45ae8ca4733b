"""Methods that read inside an open transaction.

Made by ``make faces``.
"""

from __future__ import annotations

from mandrake_sessions.faces.calls import R as _R
from mandrake_sessions.faces.calls import ReaderCalls as _ReaderCalls
from mandrake_sessions.models import (
    Request,
    Response,
    Round,
    Session,
    SessionHistory,
    SessionUsage,
    StreamingStatus,
    Turn,
)
from mandrake_sessions.records import history as _history
from mandrake_sessions.records import requests as _requests
from mandrake_sessions.records import rounds as _rounds
from mandrake_sessions.records import sessions as _sessions
from mandrake_sessions.records import turns as _turns
from mandrake_sessions.records import usage as _usage


class ReaderFace(_ReaderCalls[_R]):
    """Methods that read inside an open transaction."""

    def get_session(self, id: str) -> Session:
        """Return a session.

        Args:
            id: the id of the session.

        Returns:
            The session.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.get_session(id)
        return unit(self._database)

    def find_session(self, id: str) -> Session | None:
        """Return a session, or None if there is none.

        Args:
            id: the id of the session.

        Returns:
            The session or None.

        Raises:
            InvalidArgumentError: the id is not a string.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.find_session(id)
        return unit(self._database)

    def list_sessions(
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
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.list_sessions(limit=limit, offset=offset, after=after)
        return unit(self._database)

    def count_sessions(self) -> int:
        """Return how many sessions there are.

        Returns:
            The number of sessions.

        Raises:
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _sessions.count_sessions()
        return unit(self._database)

    def get_round(self, id: str) -> Round:
        """Return a round with its request and response.

        Args:
            id: the id of the round.

        Returns:
            The round.

        Raises:
            InvalidArgumentError: the id is not a string.
            RoundNotFoundError: there is no such round.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.get_round(id)
        return unit(self._database)

    def get_round_by_response(self, response_id: str) -> Round:
        """Return the round of a response.

        Args:
            response_id: the id of the response.

        Returns:
            The round.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.get_round_by_response(response_id)
        return unit(self._database)

    def get_current_round(self, session_id: str) -> Round:
        """Return the last round of a session.

        Args:
            session_id: the id of the session.

        Returns:
            The round with the highest index.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            RoundNotFoundError: the session has no round.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.get_current_round(session_id)
        return unit(self._database)

    def list_rounds(
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
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _rounds.list_rounds(session_id, limit=limit, offset=offset, after=after)
        return unit(self._database)

    def get_request(self, id: str) -> Request:
        """Return a request.

        Args:
            id: the id of the request.

        Returns:
            The request.

        Raises:
            InvalidArgumentError: the id is not a string.
            RequestNotFoundError: there is no such request.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _requests.get_request(id)
        return unit(self._database)

    def get_response(self, id: str) -> Response:
        """Return a response; ``list_turns`` returns its turns.

        Args:
            id: the id of the response.

        Returns:
            The response.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _requests.get_response(id)
        return unit(self._database)

    def get_turn(self, id: str) -> Turn:
        """Return a turn.

        Args:
            id: the id of the turn.

        Returns:
            The turn.

        Raises:
            InvalidArgumentError: the id is not a string.
            TurnNotFoundError: there is no such turn.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _turns.get_turn(id)
        return unit(self._database)

    def get_latest_turn(self, response_id: str) -> Turn:
        """Return the newest turn of a response.

        Args:
            response_id: the id of the response.

        Returns:
            The turn with the highest index.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            TurnNotFoundError: the response has no turn.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _turns.get_latest_turn(response_id)
        return unit(self._database)

    def list_turns(
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
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _turns.list_turns(response_id, limit=limit, offset=offset, after=after)
        return unit(self._database)

    def get_streaming_status(self, response_id: str) -> StreamingStatus:
        """Return whether a response is still being streamed.

        Args:
            response_id: the id of the response.

        Returns:
            How many turns it has and how many of them are streaming.

        Raises:
            InvalidArgumentError: the id is not a string.
            ResponseNotFoundError: there is no such response.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _turns.get_streaming_status(response_id)
        return unit(self._database)

    def render_session_history(self, session_id: str, *, last: int | None = None) -> SessionHistory:
        """Return a session with its rounds and their turns, all in index order.

        Args:
            session_id: the id of the session.
            last: how many of the last rounds, 1 to 10,000; all of them when None.

        Returns:
            The session, its rounds and their turns, all of one snapshot.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _history.render_session_history(session_id, last=last)
        return unit(self._database)

    def get_session_usage(self, session_id: str) -> SessionUsage:
        """Return the tokens and costs of a session over all its turns.

        Args:
            session_id: the id of the session.

        Returns:
            The totals, without deleted turns.

        Raises:
            InvalidArgumentError: the id is not a string.
            SessionNotFoundError: there is no such session.
            DatabaseBusyError: the transaction's time was used up.
        """
        unit = _usage.get_session_usage(session_id)
        return unit(self._database)
