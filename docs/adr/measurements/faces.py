"""What a call of each face and an import cost here and in another checkout, in turns (ADR 0034).

python docs/adr/measurements/faces.py OTHER [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[3]

CALLS = """
import asyncio, sys, tempfile, time
from pathlib import Path
from mandrake_sessions import DatabaseOptions, Durability, SessionManager
from mandrake_sessions.aio import AsyncSessionManager

def measured(name, call, times):
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        for _ in range(times):
            call()
        best = min(best, time.process_time() - begun)
    print(name, best / times * 1e6)

async def awaited(path, options, round_id):
    async with AsyncSessionManager(path, options=options) as sessions:
        best = float("inf")
        for _ in range(5):
            begun = time.process_time()
            for _ in range(300):
                await sessions.get_round(round_id)
            best = min(best, time.process_time() - begun)
        print("await_get_round", best / 300 * 1e6)

options = DatabaseOptions(durability=Durability.FAST)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "db.sqlite"
    with SessionManager(path, options=options) as sessions:
        session = sessions.create_session()
        round_ = sessions.create_round(session.id, "Hello?")
        response = round_.response.id
        turn = sessions.create_turn(response)
        measured("get_round", lambda: sessions.get_round(round_.id), 2000)
        measured("list_sessions", lambda: sessions.list_sessions(limit=1), 1000)
        measured("update_turn", lambda: sessions.update_turn(turn.id, content="text"), 500)
        measured("create_round", lambda: sessions.create_round(session.id, "Hello?"), 400)
        measured(
            "create_turn",
            lambda: sessions.create_turn(response, content="text", status="completed"), 400
        )
        with sessions.transaction(timeout=60) as tx:
            measured("tx_get_round", lambda: tx.get_round(round_.id), 2000)
            measured("tx_update_turn", lambda: tx.update_turn(turn.id, content="text"), 500)
    asyncio.run(awaited(path, options, round_.id))
"""
IMPORT = """
import time
begun = time.process_time()
import mandrake_sessions
print("import", (time.process_time() - begun) * 1e6)
import mandrake_sessions.aio
print("import_with_aio", (time.process_time() - begun) * 1e6)
"""


def figures(checkout: Path, program: str) -> dict[str, float]:
    """Return the microseconds of processor time that a program prints."""
    # With compiled modules, as an installed package has them.
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": ""}
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    return {name: float(text) for name, text in map(str.split, done.stdout.splitlines())}


def main() -> None:
    """Print the medians of both checkouts."""
    other, rounds = Path(sys.argv[1]), int((sys.argv[2:] or ["11"])[0])
    taken: dict[str, tuple[list[float], list[float]]] = {}
    for program, times in ((CALLS, rounds), (IMPORT, rounds * 3)):
        for _ in range(times):
            for column, checkout in enumerate((other, HERE)):
                for name, value in figures(checkout, program).items():
                    taken.setdefault(name, ([], []))[column].append(value)
    for name, (before, now) in taken.items():
        first, second = statistics.median(before), statistics.median(now)
        sys.stdout.write(f"{name:16} {first:9.1f} {second:9.1f} us  {second / first:.3f}\n")


if __name__ == "__main__":
    main()
