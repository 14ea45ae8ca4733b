"""The measures by which two versions of the library are compared: one for each kind of call.

Only public names of a version are used, so that the other one may be laid out differently.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.contestant import PATIENCE, Contestant
from benchmarks.importing import import_often
from benchmarks.messages import (
    AnyCommand,
    Close,
    CreateWorkspaces,
    Fill,
    ReadOften,
    Reopen,
    Run,
    Stream,
    Update,
)
from benchmarks.results import Metric
from mandrake_sessions import Durability

ROUNDS = 1_000
TOKENS = 20_000
IMPORTS = 2

Piece = Callable[[Contestant, float], Run]


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of an open store.

    Attributes:
        title: what it is.
        metric: the wall-clock figure that counts.
        durability: of the store.
        processes: of each version.
        conversations: begun in each process, each with a thread of its own.
        prepare: what the store is asked before, untimed.
        piece: the timed piece.
    """

    title: str
    piece: Piece
    metric: Metric = "per_second"
    durability: Durability = Durability.DURABLE
    processes: int = 1
    conversations: int = 1
    prepare: tuple[AnyCommand, ...] = ()


def _append(store: Contestant, seconds: float) -> Run:
    return store.append(seconds)


def _import(store: Contestant, _seconds: float) -> Run:
    worker = store.processes[0]
    return import_often("import mandrake_sessions", IMPORTS, python=worker.python, path=worker.path)


def _asked(command: Callable[[Path, float], AnyCommand]) -> Piece:
    """Return a piece that is one command to one process, made of the folder and the seconds."""
    return lambda store, seconds: store.ask(command(store.folder, seconds), seconds + PATIENCE)


MEASURES = {
    "append": Measure(title="append, durable", piece=_append),
    "append-fast": Measure(title="append, fast", piece=_append, durability=Durability.FAST),
    "threads": Measure(title="append, 8 threads, durable", piece=_append, conversations=8),
    "processes": Measure(
        title="append, 4 processes of 2 threads, durable",
        piece=_append,
        processes=4,
        conversations=2,
    ),
    "get-turn": Measure(
        title="get_turn",
        metric="median",
        prepare=(Fill(exchanges=1),),
        piece=_asked(lambda _, seconds: ReadOften(what="turn", expected=1, seconds=seconds)),
    ),
    "history": Measure(
        title=f"a history of {ROUNDS:,} rounds",
        metric="median",
        prepare=(Fill(exchanges=ROUNDS),),
        piece=_asked(lambda _, seconds: ReadOften(what="whole", expected=ROUNDS, seconds=seconds)),
    ),
    "update-turn": Measure(
        title="update_turn for each token, durable",
        piece=_asked(lambda _, seconds: Update(seconds=seconds)),
    ),
    "stream": Measure(
        title=f"a streamed turn of {TOKENS:,} tokens",
        piece=_asked(lambda _, seconds: Stream(tokens=TOKENS, seconds=seconds)),
    ),
    "opening": Measure(
        title="open and close a file",
        metric="median",
        prepare=(Close(),),
        piece=_asked(
            lambda folder, seconds: Reopen(
                folder=str(folder), durability=Durability.DURABLE, seconds=seconds
            )
        ),
    ),
    "import": Measure(title="import the package", metric="median", piece=_import),
    "create-workspace": Measure(
        title="create_workspace, durable",
        metric="median",
        piece=_asked(
            lambda folder, seconds: CreateWorkspaces(
                folder=str(folder / "system"), durability=Durability.DURABLE, seconds=seconds
            )
        ),
    ),
}
