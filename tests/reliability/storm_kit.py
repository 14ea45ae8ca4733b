"""Processes that write one file at once: through the library, and on bare APSW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import sleep
from typing import Any

PROCESSES = 4
THREADS = 4
HOLD = 0.002
"""Seconds for which each unit holds the write lock."""

COMMON = """
import os, random, threading, time
path, name, threads, hold = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
chance = random.Random(name)
stop = threading.Event()
waits, errors, counts, wrong = [], [], {}, []
longest_opening, openings = 0.0, 0

COUNT = "UPDATE meta SET value = value + 1 WHERE key = ?"

def timed(key, unit):
    since = time.monotonic()
    try:
        unit()
    except Exception as error:
        errors.append(f"{key}: {error!r}")
    else:
        counts[key] = counts.get(key, 0) + 1
    waits.append(time.monotonic() - since)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def run(write):
    crew = [threading.Thread(target=write, args=(f"{name}-{number}",)) for number in range(threads)]
    for thread in crew:
        thread.start()
    receive()
    stop.set()
    for thread in crew:
        thread.join()

def report(before=0, after=0):
    send({"name": name, "waits": waits, "errors": errors, "counts": counts, "wrong": wrong,
          "longest_opening": longest_opening, "openings": openings,
          "descriptors": [before, after], "threads": threading.active_count()})
"""

OURS = (
    COMMON
    + """
from sqlalchemy import Integer, case, cast, func, select
from mandrake_sessions import ConnectionPool, DatabaseOptions, Durability, PoolOptions, schema
from mandrake_sessions.engine.statement import Statement
from tools.generate.compiler import compiled

key, value = schema.meta.c.key, cast(schema.meta.c.value, Integer)
TOTAL = compiled(select(func.sum(case((key == "total", -value), else_=value)))
    .where((key == "total") | key.like("writer %")))

ADD_ONE = Statement("ADD_ONE", COUNT, ("key",))

def work(tx, key):
    tx.run_all([(ADD_ONE, (f"writer {key}",)), (ADD_ONE, ("total",))])
    time.sleep(hold)

def block(handle, key):
    with handle.write() as tx:
        work(tx, key)

def look(handle):
    found = handle.query(lambda tx: tx.row(TOTAL))[0]
    if found != 0:
        wrong.append(found)

options = DatabaseOptions(durability=Durability.FAST, busy_timeout=60, checkpoint_frames=300)
receive()
before = descriptors()
pool = ConnectionPool(PoolOptions(database=options, linger=0))

def opened():
    global longest_opening, openings
    since = time.monotonic()
    handle = pool.acquire(path)
    longest_opening = max(longest_opening, time.monotonic() - since)
    openings += 1
    return handle

def write(key):
    handle = opened()
    # All processes come and go about the same moments, so the last one meets the first.
    leaves = int(time.monotonic()) + 1
    while not stop.is_set():
        try:
            kind = chance.random()
            if time.monotonic() > leaves:
                leaves += 1
                handle.release()
                time.sleep(chance.random() * 0.02)
                handle = opened()
            elif kind < 0.02:
                handle.release()
                handle = opened()
            elif kind < 0.1:
                look(handle)
            elif kind < 0.2:
                timed(key, lambda: block(handle, key))
            else:
                shared = kind < 0.6
                unit = lambda tx: work(tx, key)
                timed(key, lambda: handle.transact(unit, "count", delegable=shared))
        except Exception as error:
            errors.append(f"{key}: {error!r}")
    handle.release()

send("ready")
run(write)
pool.close()
report(before, descriptors())
"""
)

BARE = (
    COMMON
    + """
import apsw

def opened():
    connection = apsw.Connection(path)
    connection.set_busy_timeout(60_000)
    connection.execute("PRAGMA synchronous=1")
    return connection

def unit(connection, key):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(COUNT, (f"writer {key}",))
    connection.execute(COUNT, ("total",))
    time.sleep(hold)
    connection.execute("COMMIT")

def write(key):
    connection = opened()
    leaves = int(time.monotonic()) + 1
    while not stop.is_set():
        if name == "foreign" and time.monotonic() > leaves:
            leaves += 1
            connection.close()
            time.sleep(chance.random() * 0.02)
            connection = opened()
        timed(key, lambda: unit(connection, key))
        if name == "foreign":
            # It does something else too; one that never does: database/test_turnstile.py.
            time.sleep(chance.random() * 0.004)
    connection.close()

receive()
send("ready")
run(write)
report()
"""
)


@dataclass(frozen=True)
class Outcome:
    """What the processes of a storm met.

    Attributes:
        waits: seconds of each write of the processes that are measured, in order.
        counts: by writer, its acknowledged writes; the foreign one's too.
        errors: what callers saw, as text.
        wrong: what readers saw that cannot be.
        reports: everything that each process sent.
    """

    waits: list[float]
    counts: dict[str, int]
    errors: list[str]
    wrong: list[int]
    reports: list[dict[str, Any]]

    @property
    def longest(self) -> float:
        """The longest wait, in seconds."""
        return self.waits[-1]

    @property
    def unfairness(self) -> float:
        """How many times more the busiest of the measured writers did than the least busy."""
        mine = [count for name, count in self.counts.items() if not name.startswith("foreign")]
        return max(mine) / min(mine)

    def show(self, name: str) -> str:
        """Return the figures as a line for people."""
        foreign = [one for one in self.reports if one["name"] == "foreign"]
        others = max(chain.from_iterable(one["waits"] for one in foreign))
        return (
            f"{name}: {len(self.waits)} writes,"
            f" median {self.waits[len(self.waits) // 2] * 1e3:.1f},"
            f" 99 % {self.waits[len(self.waits) * 99 // 100] * 1e3:.1f},"
            f" longest {self.longest * 1e3:.0f} ms; max/min {self.unfairness:.2f};"
            f" foreign: {sum(count for key, count in self.counts.items() if 'foreign' in key)}"
            f" writes, longest {others * 1e3:.0f} ms;"
            f" {sum(one['openings'] for one in self.reports)} openings,"
            f" longest {max(one['longest_opening'] for one in self.reports) * 1e3:.0f} ms"
        )


def writers() -> list[str]:
    """Return the names of all writers of a storm."""
    mine = [f"p{number}-{thread}" for number in range(PROCESSES) for thread in range(THREADS)]
    return [*mine, "foreign-0"]


def storm(start_child: Callable[..., Any], script: str, path: Path, seconds: float) -> Outcome:
    """Let processes write for some seconds, and a foreign one with them.

    Args:
        start_child: the fixture.
        script: ``OURS`` or ``BARE``.
        path: a database with a row in ``meta`` for each of ``writers``, and one for the total.
        seconds: how long.
    """
    children = [
        start_child(script, path, f"p{number}", THREADS, HOLD) for number in range(PROCESSES)
    ]
    children.append(start_child(BARE, path, "foreign", 1, HOLD))
    for child in children:
        child.send()
    for child in children:
        assert child.receive() == "ready"
    # Nothing is waited for here: this is how long the storm lasts.
    sleep(seconds)
    for child in children:
        child.send()
    reports = [child.receive() for child in children]
    for child in children:
        child.finish()
    return Outcome(
        waits=sorted(chain.from_iterable(one["waits"] for one in reports[:PROCESSES])),
        counts={key: count for one in reports for key, count in one["counts"].items()},
        errors=_all(one["errors"] for one in reports),
        wrong=_all(one["wrong"] for one in reports),
        reports=reports,
    )


def _all(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))
