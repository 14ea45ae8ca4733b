"""ADR 0010: totals over turns of 100 KB with the counters behind the long texts, and before."""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import apsw

TURNS = 1_000
TEXT = "x" * 100_000
LONG = "content TEXT NOT NULL, raw_response TEXT NOT NULL"
COUNTS = "input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, input_cost REAL NOT NULL"


def best_total(path: Path, columns: str) -> float:
    """Return the seconds of the fastest of ten totals."""
    raw = apsw.Connection(str(path))
    raw.execute(f"CREATE TABLE turns (id TEXT PRIMARY KEY, {columns}) STRICT")
    insert = (
        "INSERT INTO turns (id, content, raw_response, input_tokens, output_tokens, input_cost) "
        "VALUES (?, ?, '', 1, 1, 0.1)"
    )
    with raw:
        raw.executemany(insert, [(str(number), TEXT) for number in range(TURNS)])
    found = []
    for _ in range(10):
        since = perf_counter()
        raw.execute("SELECT sum(input_tokens), sum(output_tokens), sum(input_cost) FROM turns")
        found.append(perf_counter() - since)
    raw.close()
    return min(found)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        for title, columns in (
            ("texts first", f"{LONG}, {COUNTS}"),
            ("texts last", f"{COUNTS}, {LONG}"),
        ):
            seconds = best_total(Path(name) / f"{title}.sqlite", columns)
            sys.stdout.write(f"{title:12}{seconds * 1e3:6.2f} ms\n")


main()
