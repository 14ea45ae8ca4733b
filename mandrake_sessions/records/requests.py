"""Requests and responses, by their own ids."""

from __future__ import annotations

from mandrake_sessions import arguments
from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import RequestNotFoundError, ResponseNotFoundError
from mandrake_sessions.ids import now
from mandrake_sessions.models import UNSET, ChangeOp, Entity, Request, Response, Unset
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import record_change


def get_request(id: str) -> ReadUnit[Request]:
    """Return a request.

    Args:
        id: the id of the request.

    Returns:
        The request.

    Raises:
        InvalidArgumentError: the id is not a string.
        RequestNotFoundError: there is no such request.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: ReadTransaction) -> Request:
        row = tx.row(sql.REQUEST_BY_ID, values)
        if row is None:
            raise RequestNotFoundError(id)
        return Request(*row)

    return work


def update_request(id: str, *, content: str | Unset = UNSET) -> WriteUnit[Request]:
    """Change the given fields of a request; with none given nothing changes.

    Args:
        id: the id of the request.
        content: the new text of the user.

    Returns:
        The request as it is now.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
        RequestNotFoundError: there is no such request.
    """
    id = arguments.lookup_id("id", id)
    get = get_request(id)
    given = {} if content is UNSET else {"content": arguments.text("content", content)}
    values = given | {"id": id, "now": now()}

    def work(tx: WriteTransaction) -> Request:
        row = tx.row(sql.UPDATE_REQUEST, values) if given else None
        if row is None:
            return get(tx)
        request = Request(*row)
        record_change(tx, Entity.REQUEST, id, ChangeOp.UPDATE, parent_id=request.round_id)
        return request

    return work


def get_response(id: str) -> ReadUnit[Response]:
    """Return a response; ``list_turns`` returns its turns.

    Args:
        id: the id of the response.

    Returns:
        The response.

    Raises:
        InvalidArgumentError: the id is not a string.
        ResponseNotFoundError: there is no such response.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: ReadTransaction) -> Response:
        row = tx.row(sql.RESPONSE_BY_ID, values)
        if row is None:
            raise ResponseNotFoundError(id)
        return Response(*row)

    return work
