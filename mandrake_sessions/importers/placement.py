"""Stores rounds of a source in a session, each at most once, and overwrites nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from mandrake_sessions.engine.transaction import WriteTransaction, WriteUnit
from mandrake_sessions.errors import (
    RequestAlreadyExistsError,
    ResponseAlreadyExistsError,
    TurnAlreadyExistsError,
)
from mandrake_sessions.importers.values import derived_id
from mandrake_sessions.models import Exchange, Session
from mandrake_sessions.records.sessions import find_session
from mandrake_sessions.records.transfer import (
    find_exchange_index,
    insert_exchange,
    insert_session,
    is_index_free,
)


class Placement(NamedTuple):
    """The result for a session and some of its rounds.

    Attributes:
        is_new_session: whether the session was stored, too.
        stored: the positions of the rounds that were stored.
        appended: how many of these did not get their own index.
        ids_replaced: how many ids of their parts were taken.
        is_displaced: whether the following rounds must be appended to stay after these.
    """

    is_new_session: bool
    stored: tuple[int, ...]
    appended: int
    ids_replaced: int
    is_displaced: bool


def place_rounds(
    session: Session,
    exchanges: Sequence[Exchange],
    *,
    is_displaced: bool = False,
    by_parts: bool = False,
) -> WriteUnit[Placement]:
    """Store the missing rounds, and the session if it is missing.

    A round gets its own index if that is free. From the first taken index on, all rounds are
    appended after the session's last one, so that they stay in their order.

    Args:
        session: the session; an existing one keeps its fields.
        exchanges: rounds of the session in their order.
        is_displaced: whether earlier rounds of this session were appended already.
        by_parts: whether a round exists if its request or its response does; a session is then
            stored only for missing rounds.

    Returns:
        The result.
    """

    def work(tx: WriteTransaction) -> Placement:
        is_missing = find_session(session.id)(tx) is None
        is_new = False
        displaced = is_displaced
        stored: list[int] = []
        appended = ids_replaced = 0
        found = [find_exchange_index(exchange, by_parts=by_parts)(tx) for exchange in exchanges]
        # Orphans that all exist already need no session.
        if is_missing and not (by_parts and None not in found):
            insert_session(session)(tx)
            is_new = True
        for position, (index, exchange) in enumerate(zip(found, exchanges, strict=True)):
            if index is not None:
                displaced = displaced or index != exchange.index
                continue
            displaced = displaced or not is_index_free(session.id, exchange.index)(tx)
            placed = exchange
            if displaced:
                placed = msgspec.structs.replace(exchange, index=_next_index(tx, session.id))
                appended += placed.index != exchange.index
            ids_replaced += _insert(tx, placed)
            stored.append(position)
        return Placement(is_new, tuple(stored), appended, ids_replaced, displaced)

    return work


def _next_index(tx: WriteTransaction, session_id: str) -> int:
    session = find_session(session_id)(tx)
    assert session is not None
    return session.next_round_index


def _insert(tx: WriteTransaction, exchange: Exchange) -> int:
    """Insert a round; return how many of its parts got another id because theirs is taken."""
    replaced = 0
    while True:
        try:
            with tx.savepoint():
                insert_exchange(exchange)(tx)
        except (
            RequestAlreadyExistsError,
            ResponseAlreadyExistsError,
            TurnAlreadyExistsError,
        ) as error:
            # Two rounds of the source share a part, or the target uses its id elsewhere.
            exchange = _with_other_id(exchange, error)
            replaced += 1
        else:
            return replaced


def _with_other_id(
    exchange: Exchange,
    error: RequestAlreadyExistsError | ResponseAlreadyExistsError | TurnAlreadyExistsError,
) -> Exchange:
    assert error.id is not None
    new = derived_id("taken", exchange.id, error.id)
    if isinstance(error, RequestAlreadyExistsError):
        request = msgspec.structs.replace(exchange.request, id=new)
        return msgspec.structs.replace(exchange, request=request)
    if isinstance(error, ResponseAlreadyExistsError):
        return msgspec.structs.replace(
            exchange,
            response=msgspec.structs.replace(exchange.response, id=new),
            turns=tuple(msgspec.structs.replace(turn, response_id=new) for turn in exchange.turns),
        )
    return msgspec.structs.replace(
        exchange,
        turns=tuple(
            msgspec.structs.replace(turn, id=new) if turn.id == error.id else turn
            for turn in exchange.turns
        ),
    )
