"""The rows of the origin as records of this library, read session by session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.database.connection.foreign import Cell, ForeignDatabase
from mandrake_sessions.errors import ImportSourceError
from mandrake_sessions.importers import tables
from mandrake_sessions.importers.tables import RoundRow
from mandrake_sessions.importers.values import Values, derived_id
from mandrake_sessions.models import Exchange, Request, Response, Session, Turn, TurnStatus

_PAIRED_WITHIN_US: Final = 1_000_000


class Draft(NamedTuple):
    """An exchange ready to be stored, with the counts for the report."""

    exchange: Exchange
    counts: Counter[str]
    size: int


class Origin:
    """An open copy of a database of the origin.

    Args:
        database: the copy.
        name: the name of the source in errors.
        moment: the time for rows without one, in microseconds.

    Raises:
        ImportSourceError: it is a database of another kind.
        CorruptDatabaseError: it is damaged.
    """

    def __init__(self, database: ForeignDatabase, name: str, moment: int) -> None:
        self._database = database
        self._moment = moment
        found = database.columns()
        for table, columns in tables.COLUMNS.items():
            missing = sorted(columns - found.get(table, frozenset()))
            if missing:
                raise ImportSourceError(
                    f"{name} is not a database of Mandrake's SessionManager: "
                    f"{table} has no {', '.join(missing)}."
                )
        database.verify()
        for index in tables.INDEXES:
            database.run(index)

    def count_sessions(self) -> int:
        """Return how many sessions there are."""
        return self._database.count("SELECT count(*) FROM sessions")

    def count_orphans(self) -> Counter[str]:
        """Return how many rows of each kind belong to no session."""
        return Counter({kind: self._database.count(sql) for kind, sql in tables.ORPHANS.items()})

    def recovery_session_id(self) -> str:
        """Return the id of the session for this source's orphans, the same each time."""
        ((first,),) = self._database.rows(tables.FIRST_ID)
        return derived_id("recovery", first)

    def sessions(self) -> Iterator[tuple[Cell, Session, Counter[str]]]:
        """Yield the sessions in the order of insertion: rowid, record, repairs."""
        for rowid, id, title, description, metadata, created, updated in self._database.rows(
            tables.SESSIONS
        ):
            values = Values(self._database.codec)
            made, changed = values.times(created, updated, self._moment)
            yield (
                rowid,
                Session(
                    id=values.id("session", id, rowid),
                    title=values.optional_text(title),
                    description=values.optional_text(description),
                    metadata=values.metadata(metadata),
                    next_round_index=0,
                    revision=0,
                    created_us=made,
                    updated_us=changed,
                ),
                values.repairs,
            )

    def rounds(self, rowid: Cell, session: Session) -> Iterator[Draft]:
        """Yield the rounds of a session in the order of insertion, numbered from 0."""
        for index, row in enumerate(self._database.rows(tables.ROUNDS_OF_SESSION, (rowid,))):
            yield self._draft(RoundRow(*row), session, index, session.created_us)

    def orphans(self, session: Session) -> Iterator[Draft]:
        """Yield the rows without a session as rounds of the given one, numbered from 0."""
        for index, row in enumerate(self._orphan_rows()):
            yield self._draft(row, session, index, self._moment)

    def _orphan_rows(self) -> Iterator[RoundRow]:
        for row in self._database.rows(tables.LOST_ROUNDS):
            yield RoundRow(*row)
        is_even = not self._database.count(tables.HAS_UNEVEN_ROUND)
        for row in self._database.rows(tables.LOST_PAIRS):
            pair = RoundRow(*row)
            if pair.request is None or pair.response is None or self._is_pair(pair, is_even):
                yield pair
            else:
                yield pair._replace(
                    response=None, response_id=None, response_created=None, response_updated=None
                )
                yield pair._replace(
                    request=None,
                    request_id=None,
                    content=None,
                    request_created=None,
                    request_updated=None,
                )
        for row in self._database.rows(tables.LOST_TURNS):
            yield RoundRow(*row)

    def _is_pair(self, row: RoundRow, is_even: bool) -> bool:
        """Return whether a request and a response of one rowid belong together.

        The origin inserts one right after the other and deletes neither, so that their rowids stay
        equal. This relies on that only if no round of the file contradicts it and both were made
        at the same time.
        """
        values = Values(self._database.codec)
        asked = values.time(row.request_created)
        answered = values.time(row.response_created)
        return (
            is_even
            and asked is not None
            and answered is not None
            and 0 <= answered - asked <= _PAIRED_WITHIN_US
        )

    # -- records ----------------------------------------------------------------------------

    def _draft(self, row: RoundRow, session: Session, index: int, parent: int) -> Draft:
        """Return a round ready to be stored; ``parent`` is the time for parts without one."""
        values = Values(self._database.codec)
        round_id, request_id, response_id = _ids(row, values)
        times = _times(row, values, parent)
        first = next(iter(times.values()), None)
        since = times.get("response", first or (parent, parent))[0]
        turns = self._turns(row, response_id, since, values)
        if first is None:
            first = min(turn.created_us for turn in turns), max(turn.updated_us for turn in turns)
        asked, answered = times.get("request", first), times.get("response", first)
        made, changed = times.get("round", (min(asked[0], answered[0]), max(asked[1], answered[1])))
        content = "" if row.request is None else values.text(row.content)
        counts = values.repairs
        counts["rounds"] += row.round is not None
        counts["requests"] += row.request is not None
        counts["responses"] += row.response is not None
        counts["turns"] += len(turns)
        if row.round is not None:
            counts["parts_missing"] += (row.request is None) + (row.response is None)
        return Draft(
            Exchange(
                id=round_id,
                session_id=session.id,
                index=index,
                request=Request(request_id, round_id, content, *asked),
                response=Response(response_id, round_id, *answered),
                created_us=made,
                updated_us=changed,
                turns=turns,
            ),
            counts,
            len(content) + sum(len(turn.content) + len(turn.raw_response) for turn in turns),
        )

    def _turns(
        self, row: RoundRow, response_id: str, parent: int, values: Values
    ) -> tuple[Turn, ...]:
        if row.round is not None:
            rows = self._database.rows(tables.TURNS_OF_ROUND, (row.round,))
        elif row.response is not None:
            rows = self._database.rows(tables.TURNS_OF_RESPONSE, (row.response,))
        elif row.turn is not None:
            rows = self._database.rows(tables.TURNS_OF_TURN, (row.turn,))
        else:
            return ()
        return _in_order(
            [_turn(cells, place, response_id, parent, values) for place, cells in enumerate(rows)],
            values,
        )


def _ids(row: RoundRow, values: Values) -> tuple[str, str, str]:
    """Return the ids of the round, the request and the response.

    A missing part that no round names gets an id derived from the others.
    """
    known = (row.request_id, row.response_id, row.turn if row.response_id is None else None)
    ids = []
    for kind, cell, rowid in (
        ("round", row.id, row.round),
        ("request", row.request_id, row.request if row.round is None else row.round),
        ("response", row.response_id, row.round if row.turn is None else row.turn),
    ):
        is_named = cell is not None or rowid is not None
        ids.append(values.id(kind, cell, rowid) if is_named else derived_id(kind, *known))
    return ids[0], ids[1], ids[2]


def _times(row: RoundRow, values: Values, parent: int) -> dict[str, tuple[int, int]]:
    """Return when the existing parts were made and last changed, the round first."""
    times = {}
    if row.round is not None:
        times["round"] = values.times(row.created, row.updated, parent)
        parent = times["round"][0]
    if row.request is not None:
        times["request"] = values.times(row.request_created, row.request_updated, parent)
        parent = parent if row.round is not None else times["request"][0]
    if row.response is not None:
        times["response"] = values.times(row.response_created, row.response_updated, parent)
    return times


def _turn(
    cells: tuple[Cell, ...], place: int, response_id: str, parent: int, values: Values
) -> tuple[int | None, Turn]:
    """Return a turn with its index in the source, None for an unusable one."""
    column = dict(zip(tables.TURN_COLUMNS, cells, strict=True))
    index = column["index"]
    made, changed = values.times(column["createdAt"], column["updatedAt"], parent)
    status, error_message = values.status(column["status"])
    was_streaming = status is TurnStatus.STREAMING
    if was_streaming:
        status = TurnStatus.INTERRUPTED
        values.repairs["turns_interrupted"] += 1
    started, ended = values.stream_times(
        column["streamStartTime"],
        column["streamEndTime"],
        made=made,
        changed=changed,
        was_streaming=was_streaming,
    )
    turn = Turn(
        id=values.id("turn", column["id"], f"{response_id} {place}"),
        response_id=response_id,
        index=place,
        content=values.text(column["content"]),
        raw_response=values.text(column["rawResponse"]),
        tool_calls=values.tool_calls(column["toolCalls"]),
        status=status,
        error_message=error_message,
        stream_started_us=started,
        stream_ended_us=ended,
        current_tokens=values.count(column["currentTokens"]),
        expected_tokens=values.optional_count(column["expectedTokens"]),
        input_tokens=values.count(column["inputTokens"]),
        output_tokens=values.count(column["outputTokens"]),
        cache_read_tokens=values.optional_count(column["cacheReadTokens"]),
        cache_write_tokens=values.optional_count(column["cacheWriteTokens"]),
        input_cost=values.cost(column["inputCost"]),
        output_cost=values.cost(column["outputCost"]),
        model=None,
        revision=0,
        created_us=made,
        updated_us=changed,
    )
    if isinstance(index, int) and 0 <= index <= arguments.MAX_INDEX:
        return index, turn
    return None, turn


def _in_order(found: list[tuple[int | None, Turn]], values: Values) -> tuple[Turn, ...]:
    """Return the turns of a response by their indexes, renumbered if two have the same.

    Eight turns made at the same time all have the index 0 in the origin.
    """
    # sort() keeps the order of insertion of turns with equal indexes.
    found.sort(key=lambda item: arguments.MAX_INDEX + 1 if item[0] is None else item[0])
    old = [index for index, _ in found]
    if None in old or len(set(old)) < len(old):
        found = [(new, turn) for new, (_, turn) in enumerate(found)]
        values.repairs["turns_renumbered"] += sum(new != was for new, was in enumerate(old))
    return tuple(
        msgspec.structs.replace(turn, index=index) for index, turn in found if index is not None
    )
