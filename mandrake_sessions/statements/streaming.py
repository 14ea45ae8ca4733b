"""Statements about a streaming turn: the chunks of its text, its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    Insert,
    Select,
    Text,
    Update,
    bindparam,
    func,
    insert,
    not_,
    null,
    select,
    update,
)

from mandrake_sessions import schema
from mandrake_sessions.statements.chunks import folded, is_streaming, texts, turn_columns
from mandrake_sessions.statements.columns import later, update_row
from mandrake_sessions.statements.portable import greater_of, insert_or
from mandrake_sessions.statements.templates import InsertMany, UpdateSome
from mandrake_sessions.statements.turns import settable

_c = schema.turns.c
_chunk = schema.turn_chunks.c
_columns = (_chunk.turn_id, _chunk.seq, _chunk.content, _chunk.raw_response)
_is_ours = (_c.owner == bindparam("owner"), is_streaming)


def _source(at: int) -> Select[Any]:
    """Return a chunk, if its turn is still streaming with the same owner."""
    given = [bindparam(f"{c.name}_{at}", type_=c.type).label(c.name) for c in _columns]
    of_turn = _c.id == bindparam(f"{_chunk.turn_id.name}_{at}")
    return select(*given).select_from(schema.turns).where(of_turn, *_is_ours)


def _insert(source: Select[Any] | CompoundSelect[Any]) -> Insert:
    return (
        insert_or(schema.turn_chunks)
        .from_select([c.name for c in _columns], source)
        .on_conflict_do_nothing()
    )


INSERT_CHUNKS = InsertMany(_source, _insert)
INSERT_FIRST_CHUNK = insert(schema.turn_chunks).values(
    {c.name: bindparam(c.name) for c in _columns}
)
STANDING = select(_c.status, _c.owner).where(_c.id == bindparam("id"))
APPEND_REMAINDER = (
    update(schema.turns)
    .where(
        _c.id == bindparam("id"),
        not_(is_streaming),
        # Not length(), which ends at the first NUL.
        func.octet_length(_c.content) == bindparam("content_bytes"),
        func.octet_length(_c.raw_response) == bindparam("raw_bytes"),
    )
    .values(
        content=_c.content + bindparam("rest", type_=Text),
        raw_response=_c.raw_response + bindparam("raw_rest", type_=Text),
        revision=_c.revision + 1,
        updated_at=later(schema.turns),
    )
    .returning(_c.response_id)
)


def _update_fields(names: Sequence[str]) -> Update:
    return update_row(schema.turns, names).where(*_is_ours)


def _finish(names: Sequence[str]) -> Update:
    return (
        update(schema.turns)
        .where(_c.id == bindparam("id"), *_is_ours)
        .values({name: bindparam(name) for name in names})
        .values(
            content=folded(_c.content.name) + bindparam("rest", type_=Text),
            raw_response=folded(_c.raw_response.name) + bindparam("raw_rest", type_=Text),
            status=bindparam("status"),
            # A clock that went back must not let a turn end before it began.
            stream_ended_at=greater_of(_c.stream_started_at, "now"),
            owner=null(),
            revision=_c.revision + 1,
            updated_at=later(schema.turns),
        )
        .returning(*turn_columns)
    )


_other_columns = [column for column in settable if column.name not in (*texts, _c.status.name)]
UPDATE_STREAMED = UpdateSome(_update_fields, _other_columns)
FINISH_STREAMED = UpdateSome(_finish, _other_columns)
