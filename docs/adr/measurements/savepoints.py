"""ADR 0005: what a savepoint around an append costs, its journal in a file and in memory."""

import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import apsw

from mandrake_sessions import NewTurn, SessionManager

UNITS = 8
ROUNDS = 300
STORES = {"in files": 1, "in memory": 2}


def traced(sessions: SessionManager) -> list[tuple[str, tuple[object, ...]]]:
    """Return the statements of one append, BEGIN and COMMIT left out."""
    seen: list[tuple[str, tuple[object, ...]]] = []
    raw = sessions.handle.file.writer.connection.raw

    def note(_cursor: object, sql: str, bindings: object) -> bool:
        seen.append((sql, tuple(bindings or ())))  # type: ignore[arg-type]
        return True

    raw.exec_trace = note
    sessions.record_round(sessions.create_session().id, "q" * 500, [NewTurn(content="a" * 1500)])
    raw.exec_trace = None
    return [each for each in seen if each[0].startswith("INSERT")][2:]


def group(
    connection: apsw.Connection,
    statements: list[tuple[str, tuple[object, ...]]],
    first: int,
    savepoint: bool,
) -> float:
    """Run a group of appends in one transaction; return seconds for each of them."""
    execute = connection.cursor().execute
    execute("BEGIN IMMEDIATE")
    since = perf_counter()
    for unit in range(first, first + UNITS):
        if savepoint:
            execute("SAVEPOINT unit")
        for sql, row in statements:
            # Every id anew: it ends with the number of the unit.
            execute(sql, tuple(fresh(value, unit) for value in row))
        if savepoint:
            execute("RELEASE unit")
    seconds = perf_counter() - since
    execute("COMMIT")
    return seconds / UNITS


def fresh(value: object, unit: int) -> object:
    """Return an id with another end, and any other value as it is."""
    is_id = isinstance(value, str) and len(value) == 36 and value.count("-") == 4
    return f"{value[:-12]}{unit:012x}" if is_id else value  # type: ignore[index]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        path = Path(name) / "db.sqlite"
        with SessionManager(path) as sessions:
            statements = traced(sessions)
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(10_000)  # the library closes its own a moment later
        taken: dict[tuple[str, bool], list[float]] = {}
        unit = 1
        for _ in range(ROUNDS):
            for store, number in STORES.items():
                connection.pragma("temp_store", number)
                for savepoint in (False, True):
                    seconds = group(connection, statements, unit, savepoint)
                    taken.setdefault((store, savepoint), []).append(seconds)
                    unit += UNITS
        connection.close()
    for (store, savepoint), each in taken.items():
        sys.stdout.write(
            f"temporary data {store:10}{'a savepoint each' if savepoint else 'no savepoints':18}"
            f"{statistics.median(each) * 1e6:6.1f} us an append\n"
        )


main()
