"""The SQL of ours, traced, as a script that anything else can run.

"The same statements on bare APSW" is taken at its word: whatever ours sends to SQLite for a call,
BEGIN and COMMIT too, is what the bare one runs. Two calls are traced; a parameter that differs
between them is one the bare one must make itself, all others are constants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
import msgspec

from benchmarks.stores.mandrake import MandrakeStore
from benchmarks.stores.store import ANSWERED, ASKED
from mandrake_sessions import Exchange, NewTurn
from mandrake_sessions.options import Durability

Bindings = tuple[Any, ...]
Traced = list[tuple[str, Bindings]]


class Step(msgspec.Struct, frozen=True):
    """One statement of an append.

    Attributes:
        sql: its text.
        bind: picks its parameters from ``(constants…, *variables)``; None if it has none.
        returns: whether it gives back a row.
    """

    sql: str
    bind: Callable[[Bindings], Bindings] | None
    returns: bool


class AppendScript(msgspec.Struct, frozen=True):
    """The statements of one append between BEGIN and COMMIT, and those two.

    The variables are, in this order: the ids of session, round, request, response and turn, the
    time, and the round's index.
    """

    begin: str
    take_index: Step
    inserts: tuple[Step, ...]
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


def trace_append(folder: Path) -> AppendScript:
    """Return what one ``record_round`` with one finished turn sends to SQLite."""
    with TemporaryDirectory(dir=folder) as place:
        store = MandrakeStore(Path(place), Durability.FAST)
        try:
            # In different conversations, so that no value is the same by accident.
            calls = [_trace_one(store, rounds_before) for rounds_before in (3, 5)]
        finally:
            store.close()
    return _script(*calls)


def _trace_one(store: MandrakeStore, rounds_before: int) -> tuple[Traced, Bindings]:
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


def _script(first: tuple[Traced, Bindings], second: tuple[Traced, Bindings]) -> AppendScript:
    (one, one_values), (other, other_values) = first, second
    assert [sql for sql, _ in one] == [sql for sql, _ in other], "two appends, two sets of SQL"
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
    assert steps[1].returns, "the first statement takes the round's index"
    return AppendScript(steps[0].sql, steps[1], tuple(steps[2:-1]), steps[-1].sql, tuple(constants))


def _step(sql: str, order: list[int]) -> Step:
    bind: Callable[[Bindings], Bindings] | None = None
    if len(order) == 1:
        (place,) = order
        bind = lambda values: (values[place],)  # noqa: E731
    elif order:
        bind = itemgetter(*order)
    return Step(sql, bind, "RETURNING" in sql)


def trace_history(store: MandrakeStore, conversation: str) -> Traced:
    """Return what ``render_session_history`` sends to SQLite."""
    store.reader(conversation)()  # opens the connection it reads with
    with traced(store.connections()) as seen:
        store.reader(conversation)()
    return seen
