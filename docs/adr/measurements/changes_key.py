"""ADR 0008: one change row under AUTOINCREMENT, and under a plain key that is trimmed by count."""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import apsw

ROWS = 20_000
COLUMNS = "session_id TEXT NOT NULL, entity TEXT NOT NULL, id TEXT NOT NULL, op TEXT NOT NULL"


def run(path: Path, key: str) -> tuple[float, int]:
    """Return the seconds of an insert with its COMMIT, and the WAL frames it wrote."""
    raw = apsw.Connection(str(path))
    frames = 0

    def count(_raw: apsw.Connection, _name: str, now: int) -> int:
        nonlocal frames
        frames = now
        return apsw.SQLITE_OK

    raw.execute("PRAGMA journal_mode=wal").fetchall()
    raw.execute("PRAGMA synchronous=NORMAL")
    raw.execute(f"CREATE TABLE changes (seq INTEGER PRIMARY KEY {key}, {COLUMNS}) STRICT")
    raw.set_wal_hook(count)
    since = perf_counter()
    for _ in range(ROWS):
        raw.execute("INSERT INTO changes (session_id, entity, id, op) VALUES ('s','turn','t','u')")
    seconds = perf_counter() - since
    raw.close()
    return seconds / ROWS, frames


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        for title, key in (("AUTOINCREMENT", "AUTOINCREMENT"), ("plain key", "")):
            seconds, frames = run(Path(name) / f"{title}.sqlite", key)
            sys.stdout.write(
                f"{title:14}{seconds * 1e6:6.1f} us and {frames / ROWS:.2f} WAL frames a change\n"
            )


main()
