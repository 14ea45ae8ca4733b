"""What a start costs: opening and closing a file at head, and importing the package."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.bench import Bench
from benchmarks.contestant import PATIENCE
from benchmarks.importing import import_often
from benchmarks.limits import Limit
from benchmarks.messages import Close, Reopen
from benchmarks.process import PROJECT
from benchmarks.rivals import BARE, OURS, SQLITE3
from mandrake_sessions import Durability

IMPORTED = {
    "import mandrake_sessions": "import mandrake_sessions",
    "import sqlalchemy": "import sqlalchemy",
    "import apsw": "import apsw",
    "import sqlite3": "import sqlite3",
    "an interpreter": "pass",
}
IMPORTS_OF_A_ROUND = 2
UNWANTED = ("alembic", "asyncio", "click", "rich", "sqlalchemy", "structlog", "typer")


def test_opening_and_closing(bench: Bench) -> None:
    comparison = bench.compare(
        "open-close",
        "open an existing file at head, and close it",
        unit="openings",
        stores=(OURS, BARE, SQLITE3),
        metric="median",
        is_stored=False,
        conversations=1,
    )
    comparison.prepare(Close())
    comparison.measure(
        lambda store, seconds: store.ask(
            Reopen(folder=str(store.folder), durability=Durability.DURABLE, seconds=seconds),
            seconds + PATIENCE,
        )
    )
    comparison.judge(Limit(metric="median", bound="at most", value=3.0, against=(BARE,)))


def test_importing(bench: Bench) -> None:
    comparison = bench.compare_runs(
        "import",
        "import the package in a fresh interpreter",
        unit="interpreters",
        names=list(IMPORTED),
        metric="median",
    )
    comparison.measure(lambda store, _: import_often(IMPORTED[store.label], IMPORTS_OF_A_ROUND))
    comparison.hold_at_most(f"of {', '.join(UNWANTED)} are loaded", len(_loaded_of_unwanted()), 0)
    comparison.judge(
        Limit(metric="median", bound="at most", value=1.35, against=("import sqlalchemy",))
    )


def _loaded_of_unwanted() -> list[str]:
    program = f"import sys, mandrake_sessions; print(*sorted(set(sys.modules) & {set(UNWANTED)}))"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    return found.stdout.split()
