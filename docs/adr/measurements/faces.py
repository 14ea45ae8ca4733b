"""ADR 0035: what a call of each face and an import take, here and in another checkout, in turns.

python docs/adr/measurements/faces.py OTHER
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import IO

HERE = Path(__file__).parents[3]
BATCHES = 60
IMPORTS = 40

WORKER = """
import asyncio, sys, tempfile, time
from pathlib import Path
from mandrake_sessions import DatabaseOptions, Durability, SessionManager
from mandrake_sessions.aio import AsyncSessionManager

def batch(call, times):
    begun = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begun) / times * 1e6

async def awaited_batch(call, times):
    begun = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - begun) / times * 1e6

options = DatabaseOptions(durability=Durability.FAST)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "db.sqlite"
    manager = AsyncSessionManager(path, options=options)
    with SessionManager(path, options=options) as sessions, asyncio.Runner() as runner:
        runner.run(manager.init())
        session = sessions.create_session()
        round_ = sessions.create_round(session.id, "Hello?")
        response = round_.response.id
        turn = sessions.create_turn(response)
        cases = {
            "get_round": (lambda: sessions.get_round(round_.id), 200),
            "list_sessions": (lambda: sessions.list_sessions(limit=1), 200),
            "update_turn": (lambda: sessions.update_turn(turn.id, content="text"), 100),
            "create_round": (lambda: sessions.create_round(session.id, "Hello?"), 50),
            "create_turn": (lambda: sessions.create_turn(response, status="completed"), 50),
        }
        for line in sys.stdin:
            name = line.strip()
            if name == "tx.update_turn":
                with sessions.transaction() as tx:
                    took = batch(lambda: tx.update_turn(turn.id, content="text"), 100)
            elif name == "await get_round":
                took = runner.run(awaited_batch(lambda: manager.get_round(round_.id), 100))
            else:
                took = batch(*cases[name])
            print(took, flush=True)
        runner.run(manager.close())
"""
CASES = (
    "get_round",
    "list_sessions",
    "update_turn",
    "create_round",
    "create_turn",
    "tx.update_turn",
    "await get_round",
)
IMPORT = """
import time
begun = time.process_time()
import {module}
print((time.process_time() - begun) * 1e6)
"""


def started(checkout: Path, program: str) -> subprocess.Popen[str]:
    """Start a program with the library of a checkout."""
    # With compiled modules, as an installed package has them.
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def asked(worker: subprocess.Popen[str], case: str) -> float:
    """Have a worker run a batch, and return the microseconds of processor time of a call."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    lines: IO[str] = worker.stdin
    lines.write(f"{case}\n")
    lines.flush()
    return float(worker.stdout.readline())


def imported(checkout: Path, module: str) -> float:
    """Return the microseconds of processor time of an import."""
    printed, _ = started(checkout, IMPORT.format(module=module)).communicate()
    return float(printed)


def write(name: str, taken: list[tuple[float, float]]) -> None:
    """Write the medians of both, and of their ratio batch by batch."""
    before, now = (statistics.median(column) for column in zip(*taken, strict=True))
    ratio = statistics.median(second / first for first, second in taken)
    sys.stdout.write(f"{name:24}{before:10.1f}{now:10.1f} us {ratio:7.3f}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure in turn and write."""
    other = Path(sys.argv[1])
    workers = started(other, WORKER), started(HERE, WORKER)
    for case in CASES:
        taken: list[tuple[float, float]] = []
        for turn in range(BATCHES):
            # Each begins every second time.
            pair = [asked(worker, case) for worker in workers[:: 1 if turn % 2 else -1]]
            taken.append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
        write(case, taken)
    for worker in workers:
        worker.communicate()
    for module in ("mandrake_sessions", "mandrake_sessions.aio"):
        taken = []
        for turn in range(IMPORTS):
            checkouts = (other, HERE)[:: 1 if turn % 2 else -1]
            pair = [imported(checkout, module) for checkout in checkouts]
            taken.append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
        write(f"import {module}", taken)


main()
