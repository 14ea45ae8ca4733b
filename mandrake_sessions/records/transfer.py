"""Inserts complete records unchanged, with their ids, indexes and times: for importers."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import InvalidArgumentError, SessionNotFoundError
from mandrake_sessions.models import Exchange, Request, Response, Session, Turn
from mandrake_sessions.records import sql
from mandrake_sessions.records.rounds import add_round, round_inserts
from mandrake_sessions.records.sessions import add_session
from mandrake_sessions.records.turn_rows import FIELD_CHECKS, checked_fields, turn_insert


def find_exchange_index(exchange: Exchange, *, by_parts: bool = False) -> ReadUnit[int | None]:
    """Return the index of an existing round, or None if there is none.

    Args:
        exchange: the round.
        by_parts: whether a round with its request or its response counts as the same one.

    Returns:
        The index in its session, or None.
    """
    values = {
        "id": exchange.id,
        "request_id": exchange.request.id,
        "response_id": exchange.response.id,
    }
    statements = [sql.INDEX_BY_ROUND]
    if by_parts:
        statements += [sql.INDEX_BY_REQUEST, sql.INDEX_BY_RESPONSE]

    def work(tx: ReadTransaction) -> int | None:
        for statement in statements:
            row = tx.row(statement, values)
            if row is not None:
                return int(row[0])
        return None

    return work


def is_index_free(session_id: str, index: int) -> ReadUnit[bool]:
    """Return whether a session has no round of an index.

    Args:
        session_id: the session.
        index: the index.

    Returns:
        Whether a round could be stored there.
    """
    values = {"session_id": session_id, "index": index}

    def work(tx: ReadTransaction) -> bool:
        return tx.row(sql.ROUND_AT_INDEX, values) is None

    return work


def insert_session(session: Session) -> WriteUnit[Session]:
    """Insert a session unchanged, without its rounds.

    Args:
        session: the session; its rounds raise ``next_round_index`` if that is too low.

    Returns:
        The session that was stored.

    Raises:
        InvalidArgumentError: a field has the wrong type or is out of range.
        SessionAlreadyExistsError: the id is taken.
    """
    plain, encoded = arguments.json_object("metadata", session.metadata)
    stored = Session(
        id=arguments.fresh_id("id", session.id),
        title=arguments.optional_text("title", session.title),
        description=arguments.optional_text("description", session.description),
        metadata=plain,
        next_round_index=arguments.index("next_round_index", session.next_round_index),
        revision=arguments.index("revision", session.revision),
        created_us=arguments.stored_moment("created_us", session.created_us),
        updated_us=arguments.stored_moment("updated_us", session.updated_us),
    )

    def work(tx: WriteTransaction) -> Session:
        add_session(tx, stored, encoded)
        return stored

    return work


def insert_exchange(exchange: Exchange) -> WriteUnit[Exchange]:
    """Insert a round unchanged, with its request, response and turns.

    The counters of the session and the response are raised above the inserted indexes.

    Args:
        exchange: the round with its turns in index order.

    Returns:
        The round that was stored.

    Raises:
        InvalidArgumentError: a field has the wrong type or is out of range, or the parts do not
            belong together.
        SessionNotFoundError: there is no such session.
        RoundAlreadyExistsError: the id of the round, or its index in the session, is taken.
        RequestAlreadyExistsError: the id of the request is taken.
        ResponseAlreadyExistsError: the id of the response is taken.
        TurnAlreadyExistsError: the id of a turn is taken.
    """
    turns = [_checked_turn(turn, exchange.response.id) for turn in exchange.turns]
    if any(second.index <= first.index for (first, _), (second, _) in pairwise(turns)):
        raise InvalidArgumentError("turns must be in index order, each index once.")
    stored = Exchange(
        id=arguments.fresh_id("id", exchange.id),
        session_id=arguments.lookup_id("session_id", exchange.session_id),
        index=arguments.index("index", exchange.index),
        request=_checked_request(exchange.request, exchange.id),
        response=_checked_response(exchange.response, exchange.id),
        created_us=arguments.stored_moment("created_us", exchange.created_us),
        updated_us=arguments.stored_moment("updated_us", exchange.updated_us),
        turns=tuple(turn for turn, _ in turns),
    )
    counters = {"session_id": stored.session_id, "next_round_index": stored.index + 1}
    inserts = round_inserts(
        stored,
        [turn_insert(turn, encoded_calls) for turn, encoded_calls in turns],
        next_turn_index=stored.turns[-1].index + 1 if stored.turns else 0,
    )

    def work(tx: WriteTransaction) -> Exchange:
        if not tx.run(sql.RAISE_ROUND_INDEX, counters):
            raise SessionNotFoundError(stored.session_id)
        add_round(tx, stored, inserts, stored.turns)
        return stored

    return work


def _checked_request(request: Request, round_id: str) -> Request:
    _require_parent("request.round_id", request.round_id, round_id)
    return Request(
        id=arguments.fresh_id("request.id", request.id),
        round_id=request.round_id,
        content=arguments.text("request.content", request.content),
        created_us=arguments.stored_moment("request.created_us", request.created_us),
        updated_us=arguments.stored_moment("request.updated_us", request.updated_us),
    )


def _checked_response(response: Response, round_id: str) -> Response:
    _require_parent("response.round_id", response.round_id, round_id)
    return Response(
        id=arguments.fresh_id("response.id", response.id),
        round_id=response.round_id,
        created_us=arguments.stored_moment("response.created_us", response.created_us),
        updated_us=arguments.stored_moment("response.updated_us", response.updated_us),
    )


def _checked_turn(turn: Turn, response_id: str) -> tuple[Turn, str]:
    _require_parent("turn.response_id", turn.response_id, response_id)
    calls, encoded_calls = arguments.tool_calls("tool_calls", turn.tool_calls)
    fields = dict(zip(FIELD_CHECKS, checked_fields(turn), strict=True))
    if fields["status"].is_finished is (turn.stream_ended_us is None):
        raise InvalidArgumentError("stream_ended_us must be None while streaming, and only then.")
    arguments.fresh_id("turn.id", turn.id)
    arguments.index("turn.index", turn.index)
    arguments.index("revision", turn.revision)
    for name in ("stream_started_us", "created_us", "updated_us"):
        arguments.stored_moment(name, getattr(turn, name))
    if turn.stream_ended_us is not None:
        arguments.stored_moment("stream_ended_us", turn.stream_ended_us)
    return msgspec.structs.replace(turn, tool_calls=calls, **fields), encoded_calls


def _require_parent(name: str, given: str, expected: str) -> None:
    if given != expected:
        raise InvalidArgumentError(f"{name} must be the id of what it belongs to.")
