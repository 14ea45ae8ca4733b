"""Streams of tokens: written flat out or at a pace, and sampled by another process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic, monotonic_ns, perf_counter, perf_counter_ns

import apsw
import msgspec

from benchmarks.messages import Run
from mandrake_sessions import DatabaseOptions, Durability, SessionManager, Turn
from mandrake_sessions.database.connection.settings import pragmas

TOKEN = "%020d"
"""A token is the time of its writing, so that a reader knows its age."""

_SAMPLER = """
import apsw, json, select, sys, time
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY)
connection.set_busy_timeout(5000)
print("ready", flush=True)
found = []
while not select.select([sys.stdin], [], [], 0)[0]:
    rows = connection.execute(
        "SELECT id, (SELECT substr(content, -20) FROM turn_chunks WHERE turn_id = turns.id"
        " AND content <> '' ORDER BY seq DESC LIMIT 1) FROM turns WHERE status = 'streaming'"
    ).fetchall()
    present = time.monotonic_ns()
    found += [(id, present, int(last)) for id, last in rows if last]
    time.sleep(0.001)
print(json.dumps(found))
"""

_LOCKER = """
import apsw, sys, time
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(5000)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


class Streamed(msgspec.Struct):
    """The result of one stream.

    Attributes:
        turn: as it ended.
        calls: nanoseconds of each ``write()``.
        written: when each token was written, monotonic nanoseconds.
        delays: seconds from when a token was due to when the thread wrote it; empty without a
            pace.
    """

    turn: Turn
    calls: list[int]
    written: list[int]
    delays: list[float]


def stream_from_threads(
    sessions: SessionManager, responses: Sequence[str], tokens: int, pace: float = 0.0
) -> tuple[float, list[Streamed]]:
    """Write one turn from a thread for each response; return the seconds, and each stream.

    Args:
        sessions: the manager.
        responses: where the turns are added.
        tokens: of each turn.
        pace: seconds between two tokens; 0 is flat out.
    """
    done: list[Streamed] = []
    start = threading.Barrier(len(responses) + 1)

    def work(response: str) -> None:
        start.wait()
        with sessions.stream_turn(response) as writer:
            calls, written, delays = _write_often(writer.write, tokens, pace)
        done.append(Streamed(writer.turn, calls, written, delays))

    threads = [threading.Thread(target=work, args=(each,)) for each in responses]
    for thread in threads:
        thread.start()
    start.wait()
    since = perf_counter()
    for thread in threads:
        thread.join()
    return perf_counter() - since, done


def _write_often(
    write: Callable[[str], None], tokens: int, pace: float
) -> tuple[list[int], list[int], list[float]]:
    calls: list[int] = []
    written: list[int] = []
    delays: list[float] = []
    begun = perf_counter()
    for number in range(tokens):
        if pace:
            due = begun + number * pace
            time.sleep(max(0.0, due - perf_counter()))
            delays.append(perf_counter() - due)
        moment = monotonic_ns()
        token = TOKEN % moment
        since = perf_counter_ns()
        write(token)
        calls.append(perf_counter_ns() - since)
        written.append(moment)
    return calls, written, delays


def update_each_token(path: Path, turns: Sequence[str], tokens: int) -> Run:
    """Return the run of one UPDATE per token on bare APSW, turn after turn in one thread.

    Its best case: no other thread needs the lock, and the texts are short.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    # A checkpoint of the library that is about to end holds the lock for a moment.
    connection.set_busy_timeout(10_000)
    try:
        options = DatabaseOptions(durability=Durability.DURABLE)
        for name, wanted in pragmas(options, auxiliary=False).items():
            connection.pragma(name, wanted)
        execute = connection.cursor().execute
        sql = "UPDATE turns SET content = content || ? WHERE id = ?"
        latencies = []
        began = before = monotonic()
        for _ in range(tokens):
            for turn in turns:
                execute(sql, (TOKEN % monotonic_ns(), turn))
                after = monotonic()
                latencies.append(after - before)
                before = after
        return Run(began=began, ended=before, latencies=latencies)
    finally:
        connection.close()


@contextlib.contextmanager
def sampled(path: Path) -> Iterator[list[tuple[str, int, int]]]:
    """Have another process sample the file while a block runs.

    Yields:
        Filled at the end of the block: the turn, the time of the sample, its last token's time.
    """
    found: list[tuple[str, int, int]] = []
    command = [sys.executable, "-c", _SAMPLER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield found
        finally:
            process.stdin.write("\n")
            process.stdin.flush()
            found += json.loads(process.stdout.read())


@contextlib.contextmanager
def foreign_lock(path: Path, seconds: float) -> Iterator[None]:
    """Have another process hold the write lock for so long, from the beginning of a block."""
    command = [sys.executable, "-c", _LOCKER, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield


def ages(samples: Sequence[tuple[str, int, int]], streams: Sequence[Streamed]) -> list[float]:
    """Return the age of the oldest text that each sample lacked, milliseconds, in order.

    Until the first stream ends, so that all of them still write.
    """
    written = {each.turn.id: each.written for each in streams}
    first_end = min(each.written[-1] for each in streams)
    found = []
    for turn, moment, last in samples:
        if moment < first_end:
            missing = bisect_right(written[turn], last)
            oldest = written[turn][missing] if missing < len(written[turn]) else moment
            found.append(max(0.0, (moment - oldest) / 1e6))
    return sorted(found)


def require_whole(streams: Sequence[Streamed], sessions: SessionManager) -> None:
    """Require that the turns have all that was written."""
    for each in streams:
        expected = "".join(TOKEN % moment for moment in each.written)
        assert sessions.get_turn(each.turn.id).content == expected


def render_while(
    sessions: SessionManager, session_id: str, count: int, is_over: Callable[[], bool]
) -> list[float]:
    """Render a history from ``count`` threads until it is over; return milliseconds, in order."""
    times: list[float] = []

    def read() -> None:
        while not is_over():
            since = perf_counter()
            sessions.render_session_history(session_id)
            times.append((perf_counter() - since) * 1000)

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(times)


def calls_in_order(streams: Sequence[Streamed]) -> list[float]:
    """Return the milliseconds of all ``write()`` calls, in order."""
    return sorted(call / 1e6 for each in streams for call in each.calls)


def delays_in_order(streams: Sequence[Streamed]) -> list[float]:
    """Return by how many milliseconds the tokens of a pace came late, in order."""
    return sorted(delay * 1000 for each in streams for delay in each.delays)
