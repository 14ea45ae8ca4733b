"""The library's SQL, traced, as a script that any other program can run.

"The same statements on bare APSW" is meant literally: the bare store runs everything that the
library sends to SQLite for a call, BEGIN and COMMIT too. Two calls are traced; a parameter that
differs between them is one that the bare store must make itself, all others are constants.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
import msgspec

from benchmarks.stores.mandrake import MandrakeStore
from benchmarks.stores.store import ANSWERED, ASKED, Read
from mandrake_sessions import Durability, Exchange, NewTurn

Bindings = tuple[Any, ...]
Traced = list[tuple[str, Bindings]]


class Step(msgspec.Struct, frozen=True):
    """One statement of a script.

    Attributes:
        sql: its text.
        bind: picks its parameters from ``(constants…, *variables)``; None if it has none.
        returns: whether it gives back a row.
    """

    sql: str
    bind: Callable[[Bindings], Bindings] | None
    returns: bool


class Script(msgspec.Struct, frozen=True):
    """The statements of one call, from BEGIN to COMMIT."""

    begin: str
    steps: tuple[Step, ...]
    commit: str
    constants: Bindings


@contextlib.contextmanager
def traced(connections: list[apsw.Connection]) -> Iterator[Traced]:
    """Collect what is executed on the connections during the block."""
    seen: Traced = []

    def note(_cursor: object, sql: str, bindings: Any) -> bool:
        seen.append((sql, tuple(bindings or ())))
        return True

    for connection in connections:
        connection.exec_trace = note
    try:
        yield seen
    finally:
        for connection in connections:
            connection.exec_trace = None


@contextlib.contextmanager
def _store() -> Iterator[MandrakeStore]:
    with TemporaryDirectory() as place:
        store = MandrakeStore(Path(place), Durability.FAST)
        store.open()
        try:
            yield store
        finally:
            store.close()


@functools.cache
def trace_append() -> Script:
    """Return the statements of one ``record_round`` with one finished turn.

    The variables are, in this order: the ids of session, round, request, response and turn, the
    time, and the round's index, which the first statement gives back, the next one's.
    """
    with _store() as store:
        # In different conversations, so that no value is the same by accident.
        script = _script(*(_trace_append(store, rounds_before) for rounds_before in (3, 5)))
    assert script.steps[0].returns, "the first statement takes the round's index"
    return script


def _trace_append(store: MandrakeStore, rounds_before: int) -> tuple[Traced, Bindings]:
    conversation = store.new_conversation()
    append = store.appender(conversation)
    for _ in range(rounds_before):
        append()
    with traced(store.connections()) as seen:
        made = store.sessions.record_round(conversation, ASKED, [NewTurn(content=ANSWERED)])
    return seen, _variables(made)


def _variables(made: Exchange) -> Bindings:
    ids = (made.session_id, made.id, made.request.id, made.response.id, made.turns[0].id)
    return (*ids, made.created_us, made.index)


@functools.cache
def trace_update() -> Script:
    """Return the statements of one ``update_turn`` of the content.

    The variables are, in this order: the ids of response and turn, the text, and the time.
    """
    with _store() as store:
        return _script(*(_trace_update(store, text) for text in ("One", "Another")))


def _trace_update(store: MandrakeStore, text: str) -> tuple[Traced, Bindings]:
    made = store.sessions.create_round(store.new_conversation(), ASKED)
    turn = store.sessions.create_turn(made.response.id).id
    with traced(store.connections()) as seen:
        changed = store.sessions.update_turn(turn, content=text)
    return seen, (made.response.id, turn, text, changed.updated_us)


def _script(first: tuple[Traced, Bindings], second: tuple[Traced, Bindings]) -> Script:
    (one, one_values), (other, other_values) = first, second
    assert [sql for sql, _ in one] == [sql for sql, _ in other], "two calls, two sets of SQL"
    constants: list[Any] = []
    places: list[list[int]] = []
    for (_, bindings), (_, other_bindings) in zip(one, other, strict=True):
        places.append([])
        for pair in zip(bindings, other_bindings, strict=True):
            if pair[0] == pair[1]:
                places[-1].append(len(constants))
                constants.append(pair[0])
            else:
                # Counted from the end, where the variables stand.
                variable = list(zip(one_values, other_values, strict=True)).index(pair)
                places[-1].append(variable - len(one_values))
    steps = [_step(sql, order) for (sql, _), order in zip(one, places, strict=True)]
    assert steps[0].sql == "BEGIN IMMEDIATE"
    assert steps[-1].sql == "COMMIT"
    return Script(steps[0].sql, tuple(steps[1:-1]), steps[-1].sql, tuple(constants))


def _step(sql: str, order: list[int]) -> Step:
    bind: Callable[[Bindings], Bindings] | None = None
    if len(order) == 1:
        (place,) = order
        bind = lambda values: (values[place],)  # noqa: E731
    elif order:
        bind = itemgetter(*order)
    return Step(sql, bind, "RETURNING" in sql)


def trace_reading(store: MandrakeStore, read: Read) -> Traced:
    """Return the statements of a read, with their parameters."""
    read()  # opens the connection it reads with
    with traced(store.connections()) as seen:
        read()
    return seen
