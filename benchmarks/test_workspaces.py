"""A thousand workspaces, a file each, visited in turn: opened, appended to, closed."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.contestant import PATIENCE, Contestant
from benchmarks.messages import Close, Run, Visit
from benchmarks.pace import Pace
from benchmarks.rivals import BARE, OURS_HOSTED, SQLITE3
from mandrake_sessions import Durability

FILES = 1_000
FILES_OF_A_BRIEF_RUN = 50


def test_many_workspaces(bench: Bench, pace: Pace) -> None:
    files = FILES if pace.holds_limits else FILES_OF_A_BRIEF_RUN
    comparison = bench.compare(
        "workspaces",
        f"visit {files:,} files in turn: open, append, close",
        unit="visits",
        stores=(OURS_HOSTED, BARE, SQLITE3),
        durability=Durability.DURABLE,
        conversations=1,
    )
    comparison.prepare(Close())
    folders: dict[str, list[Path]] = {}

    def visit(store: Contestant, seconds: float) -> Run:
        if store.label not in folders:
            folders[store.label] = _copies(store.folder, files)
        # From the folder at which the piece before has stopped.
        known = folders[store.label]
        run = store.ask(
            Visit(
                folders=[str(each) for each in known],
                conversation=store.conversation,
                durability=Durability.DURABLE,
                seconds=seconds,
            ),
            seconds + PATIENCE,
        )
        passed = len(run.latencies) % files
        folders[store.label] = known[passed:] + known[:passed]
        return run

    comparison.measure(visit)
    comparison.check()
    comparison.judge()


def _copies(folder: Path, count: int) -> list[Path]:
    """Copy a store's files, which no process has open, and return all folders."""
    folders = [folder.with_name(f"{folder.name}-{number}") for number in range(count)]
    for each in folders:
        shutil.copytree(folder, each)
    return folders
