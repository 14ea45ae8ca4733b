"""Sessions: create, read, list, update, delete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.engine.statement import Row
from mandrake_sessions.engine.transaction import (
    ReadTransaction,
    ReadUnit,
    WriteTransaction,
    WriteUnit,
)
from mandrake_sessions.errors import (
    ConstraintViolationError,
    InvalidArgumentError,
    SessionAlreadyExistsError,
    SessionNotFoundError,
    StaleRevisionError,
)
from mandrake_sessions.ids import now
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import UNSET, ChangeOp, Entity, Session, Unset
from mandrake_sessions.records import sql
from mandrake_sessions.records.changes import record_change

_metadata_decoder = msgspec.json.Decoder(dict[str, Any])


def session_from(row: Row) -> Session:
    """Return the session of a row."""
    id, title, description, metadata, *rest = row
    return Session(
        id, title, description, {} if metadata == "{}" else _read_metadata(metadata, id), *rest
    )


def _read_metadata(stored: str, session_id: str) -> dict[str, Any]:
    try:
        return _metadata_decoder.decode(stored)
    except (msgspec.MsgspecError, RecursionError):
        # Another program wrote it. One such row must not make every list of sessions fail.
        get_logger(__name__).warning("metadata_unreadable", session_id=session_id)
        return {}


def create_session(
    title: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,
) -> WriteUnit[Session]:
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
    """
    moment = now()
    plain, encoded = arguments.json_object("metadata", metadata)
    session = Session(
        id=arguments.fresh_id("id", id),
        title=arguments.optional_text("title", title),
        description=arguments.optional_text("description", description),
        metadata=plain,
        next_round_index=0,
        revision=0,
        created_us=moment,
        updated_us=moment,
    )

    def work(tx: WriteTransaction) -> Session:
        add_session(tx, session, encoded)
        return session

    return work


def add_session(tx: WriteTransaction, session: Session, encoded_metadata: str) -> None:
    """Insert a complete session and its change row."""
    try:
        tx.run_all((sql.INSERT_SESSION.of(session, encoded_metadata),))
    except ConstraintViolationError as violation:
        if sql.SESSION_ID in violation.columns:
            raise SessionAlreadyExistsError(session.id) from violation
        raise
    record_change(tx, Entity.SESSION, session.id, ChangeOp.CREATE, parent_id=session.id)


def get_session(id: str) -> ReadUnit[Session]:
    """Return a session.

    Args:
        id: the id of the session.

    Returns:
        The session.

    Raises:
        InvalidArgumentError: the id is not a string.
        SessionNotFoundError: there is no such session.
    """
    id = arguments.lookup_id("id", id)
    find = find_session(id)

    def work(tx: ReadTransaction) -> Session:
        session = find(tx)
        if session is None:
            raise SessionNotFoundError(id)
        return session

    return work


def find_session(id: str) -> ReadUnit[Session | None]:
    """Return a session, or None if there is none.

    Args:
        id: the id of the session.

    Returns:
        The session or None.

    Raises:
        InvalidArgumentError: the id is not a string.
    """
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: ReadTransaction) -> Session | None:
        row = tx.row(sql.SESSION_BY_ID, values)
        return None if row is None else session_from(row)

    return work


def list_sessions(
    *, limit: int = 100, offset: int = 0, after: Session | None = None
) -> ReadUnit[list[Session]]:
    """Return a page of sessions, the last changed one first, ties by id descending.

    Args:
        limit: sessions of the page, 1 to 10,000.
        offset: sessions to skip; each costs a step, ``after`` costs none.
        after: the last session of the page before, as it was returned then.

    Returns:
        The sessions of the page.

    Raises:
        InvalidArgumentError: an argument has the wrong type or is out of range.
    """
    if not (after is None or arguments.is_one(after, Session)):
        raise InvalidArgumentError("after must be a Session.")
    values = {
        "limit": arguments.limit("limit", limit),
        "offset": arguments.offset("offset", offset),
        "before_time": arguments.MAX_COUNT if after is None else after.updated_us,
        # A damaged id differs from the stored one: rows that begin with its valid part come later.
        "before_id": "" if after is None else after.id.partition("\ufffd")[0],
    }

    def work(tx: ReadTransaction) -> list[Session]:
        return [session_from(row) for row in tx.rows(sql.SESSION_PAGE, values)]

    return work


def find_session_ids(part: str, limit: int) -> ReadUnit[list[str]]:
    """Return at most ``limit`` ids that begin or end with a text, in their order."""
    values = {"part": arguments.lookup_id("part", part), "limit": arguments.limit("limit", limit)}
    return lambda tx: [str(row[0]) for row in tx.rows(sql.IDS_WITH_PART, values)]


def ids_ending_as(ids: Iterable[str], length: int) -> ReadUnit[list[str]]:
    """Return the ids of all sessions whose last ``length`` characters end one of these ids."""
    endings = sorted({id[-length:] for id in ids})
    values = {"endings": msgspec.json.encode(endings).decode(), "length": length}
    return lambda tx: [str(row[0]) for row in tx.rows(sql.IDS_ENDING_AS, values)]


def count_sessions() -> ReadUnit[int]:
    """Return how many sessions there are.

    Returns:
        The number of sessions.
    """

    def work(tx: ReadTransaction) -> int:
        row = tx.row(sql.COUNT_SESSIONS)
        assert row is not None
        return int(row[0])

    return work


def update_session(
    id: str,
    *,
    title: str | Unset | None = UNSET,
    description: str | Unset | None = UNSET,
    metadata: Mapping[str, Any] | Unset | None = UNSET,
    expected_revision: int | None = None,
) -> WriteUnit[Session]:
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
    """
    given: dict[str, Any] = {}
    if title is not UNSET:
        given["title"] = arguments.optional_text("title", title)
    if description is not UNSET:
        given["description"] = arguments.optional_text("description", description)
    if metadata is not UNSET:
        _, given["metadata"] = arguments.json_object("metadata", metadata)
    statement = sql.UPDATE_SESSION.of(given)
    id = arguments.lookup_id("id", id)
    values = given | {
        "id": id,
        "expected_revision": arguments.optional_count("expected_revision", expected_revision),
        "now": now(),
    }
    get = get_session(id)

    def work(tx: WriteTransaction) -> Session:
        row = tx.row(statement, values) if given else None
        if row is None:
            session = get(tx)
            if expected_revision is not None and session.revision != expected_revision:
                raise StaleRevisionError(expected=expected_revision, actual=session.revision)
            return session
        record_change(tx, Entity.SESSION, id, ChangeOp.UPDATE, parent_id=id)
        return session_from(row)

    return work


def delete_session(id: str, *, missing_ok: bool = False) -> WriteUnit[bool]:
    """Delete a session with its rounds, requests, responses and turns.

    Args:
        id: the id of the session.
        missing_ok: whether to return False instead of raising if there is none.

    Returns:
        Whether there was one.

    Raises:
        InvalidArgumentError: the id is not a string.
        SessionNotFoundError: there is no such session.
    """
    arguments.flag("missing_ok", missing_ok)
    id = arguments.lookup_id("id", id)
    values = {"id": id}

    def work(tx: WriteTransaction) -> bool:
        if tx.run(sql.DELETE_SESSION, values):
            record_change(tx, Entity.SESSION, id, ChangeOp.DELETE, parent_id=id)
            return True
        if missing_ok:
            return False
        raise SessionNotFoundError(id)

    return work


def require_session(tx: ReadTransaction, id: str) -> None:
    """Raise ``SessionNotFoundError`` unless there is such a session."""
    if tx.row(sql.SESSION_EXISTS, {"id": id}) is None:
        raise SessionNotFoundError(id)


def touch_session(tx: WriteTransaction, id: str, moment: int) -> None:
    """Advance ``updated_at``: a round or turn of the session has begun, ended or been deleted."""
    tx.run(sql.TOUCH_SESSION, {"id": id, "now": moment})
