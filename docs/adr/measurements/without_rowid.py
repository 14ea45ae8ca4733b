"""ADR 0022: what appends on bare APSW gain if tables are keyed by their id, without a rowid."""

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import apsw

from benchmarks.stores.bare import BareAutocheckpoint
from benchmarks.stores.mandrake import MandrakeStore
from mandrake_sessions import Durability

ROUNDS = 15
APPENDS = 300
SCHEMAS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "rounds, responses": ("rounds", "responses"),
    "and requests": ("rounds", "responses", "requests"),
    "and turns": ("rounds", "responses", "requests", "turns"),
}


def make_store(folder: Path, durability: Durability, tables: tuple[str, ...]) -> BareAutocheckpoint:
    """Return a store on a file in which some tables, still empty, have no rowid."""
    maker = MandrakeStore(folder, durability)
    maker.open()
    maker.close()
    connection = apsw.Connection(str(folder / "db.sqlite"))
    for table in tables:
        query = "SELECT sql FROM sqlite_schema WHERE name = ?"
        created = connection.execute(query, (table,)).get
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"{created.rstrip()}, WITHOUT ROWID")
    connection.close()
    store = BareAutocheckpoint(folder, durability)
    store.open()
    return store


def measure(durability: Durability) -> None:
    """Append to a file of each schema in turns, and print."""
    with contextlib.ExitStack() as stack:
        appends, sizes = {}, {}
        for title, tables in SCHEMAS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = make_store(folder, durability, tables)
            stack.callback(store.close)
            appends[title] = store.appender(store.new_conversation())
            sizes[title] = folder / "db.sqlite"
        taken: dict[str, list[float]] = {title: [] for title in SCHEMAS}
        for _ in range(ROUNDS):
            for title, append in appends.items():
                since = perf_counter()
                for _ in range(APPENDS):
                    append()
                taken[title].append((perf_counter() - since) / APPENDS)
        before = taken["as it is"]
        for title, each in taken.items():
            gain = statistics.median(a / b for a, b in zip(before, each, strict=True))
            sys.stdout.write(
                f"{durability.value:8} {title:20}{statistics.median(each) * 1e6:6.0f} us"
                f"{gain:6.2f} times as fast {sizes[title].stat().st_size / 1e6:6.1f} MB\n"
            )


for each in Durability:
    measure(each)
