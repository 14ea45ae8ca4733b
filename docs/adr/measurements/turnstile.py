"""ADR 0018: how long processes wait for the write lock, with us and with SQLite's busy timeout.

Four processes of four threads, each unit holding the lock 2 ms, and a process on bare APSW that
knows nothing of us. ``turnstile.py [SECONDS [MILLISECONDS [THREADS]]]``.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apsw

from mandrake_sessions import ConnectionPool, DatabaseOptions, Durability, PoolOptions
from mandrake_sessions.database.connection.transaction import WriteTransaction
from mandrake_sessions.engine.statement import Statement

PROCESSES = 4
COUNT = (
    "INSERT INTO meta (key, value) VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1"
)
COUNT_IT = Statement("COUNT_IT", COUNT, ("key",))


def report(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def bare(path: str, hold: float) -> Callable[[str], None]:
    """Return a unit on a connection of its own, with SQLite's busy timeout."""
    connection = apsw.Connection(path)
    connection.set_busy_timeout(60_000)
    connection.execute("PRAGMA synchronous=1; PRAGMA wal_autocheckpoint=0")

    def unit(key: str) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(COUNT, (key,))
        time.sleep(hold)
        connection.execute("COMMIT")

    return unit


def ours(pool: ConnectionPool, path: str, hold: float) -> Callable[[str], None]:
    """Return a unit of the library."""
    handle = pool.acquire(path)

    def work(tx: WriteTransaction, key: str) -> None:
        tx.run(COUNT_IT, {"key": key})
        if hold:
            time.sleep(hold)

    return lambda key: handle.transact(lambda tx: work(tx, key), "count")


def run(kind: str, path: str, name: str, threads: int, hold: float) -> None:
    """Be one of the processes: write until the parent asks to stop, then report each wait."""
    stop = threading.Event()
    options = DatabaseOptions(durability=Durability.FAST, busy_timeout=60)
    pool = ConnectionPool(PoolOptions(database=options))
    waits: list[list[float]] = [[] for _ in range(threads)]
    errors: list[str] = []

    def write(number: int) -> None:
        unit = bare(path, hold) if kind == "bare" else ours(pool, path, hold)
        report("ready")
        go.wait()
        while not stop.is_set():
            since = time.monotonic()
            try:
                unit(f"{name}-{number}")
            except Exception as error:  # noqa: BLE001  # counted
                errors.append(repr(error))
            waits[number].append(time.monotonic() - since)

    go = threading.Event()
    crew = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for thread in crew:
        thread.start()
    sys.stdin.readline()
    go.set()
    sys.stdin.readline()
    stop.set()
    for thread in crew:
        thread.join()
    pool.close()
    report(json.dumps({"waits": waits, "errors": errors}))


def measure(kind: str, seconds: float, hold: float, threads: int, foreign: bool) -> None:
    """Start the processes, let them write, and print what they met."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "db.sqlite")
        with ConnectionPool() as pool:
            pool.acquire(path).release()
        crew = [(kind, f"p{n}", threads, hold) for n in range(PROCESSES)]
        if foreign:
            crew.append(("bare", "foreign", 1, hold))
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "child", each, path, name, str(size), str(held)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for each, name, size, held in crew
        ]
        for child, (_, _, size, _) in zip(children, crew, strict=True):
            for _ in range(size):
                assert child.stdout is not None
                child.stdout.readline()
        for word, pause in (("go\n", seconds), ("stop\n", 0)):
            for child in children:
                assert child.stdin is not None
                child.stdin.write(word)
                child.stdin.flush()
            time.sleep(pause)
        found = [json.loads(child.communicate()[0]) for child in children]
        reader = apsw.Connection(path)
        stored = sum(
            int(n) for (n,) in reader.execute("SELECT value FROM meta WHERE key GLOB '*-[0-9]'")
        )
        reader.close()
    counts = [sum(map(len, each["waits"])) for each in found]
    waits = sorted(each for one in found[:PROCESSES] for thread in one["waits"] for each in thread)
    lines = [len(thread) for one in found[:PROCESSES] for thread in one["waits"]]
    others = sorted(each for one in found[PROCESSES:] for thread in one["waits"] for each in thread)
    report(
        f"{kind:5} {sum(counts) / seconds:7.0f}/s  median {waits[len(waits) // 2] * 1e3:6.1f}"
        f"  99% {waits[len(waits) * 99 // 100] * 1e3:6.1f}  longest {waits[-1] * 1e3:7.1f} ms"
        f"  counts {counts}  threads max/min {max(lines) / max(1, min(lines)):.2f}"
        f"  processes max/min {max(counts[:PROCESSES]) / max(1, min(counts[:PROCESSES])):.2f}"
        f"  foreign longest {others[-1] * 1e3 if others else 0:.1f} ms"
        f"  stored - counted {stored - sum(counts)}  errors {sum(len(e['errors']) for e in found)}",
    )


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["child"]:
        kind, path, name, threads, hold = sys.argv[2:]
        run(kind, path, name, int(threads), float(hold))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    hold = float(sys.argv[2]) / 1e3 if len(sys.argv) > 2 else 0.002
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    kinds = sys.argv[4:] or ["bare", "ours"]
    for kind in kinds:
        measure(kind, seconds, hold, threads, foreign=True)


main()
