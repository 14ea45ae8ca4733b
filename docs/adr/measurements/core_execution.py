"""ADR 0002: one INSERT through SQLAlchemy Core's own execution, and as compiled text on APSW."""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import sqlalchemy as sa

from mandrake_sessions import SessionManager, schema
from tools.generate.compiler import compiled

TIMES = 20_000
INSERT = sa.insert(schema.changes)


def change() -> dict[str, str]:
    """Return the values of one change row."""
    return {"session_id": "s", "entity": "turn", "id": "t", "op": "update"}


def through_core(folder: Path) -> float:
    """Return the seconds of all inserts in Core's own execution."""
    with SessionManager(folder / "core.sqlite") as sessions, sessions.handle.sqlalchemy() as lent:
        since = perf_counter()
        for _ in range(TIMES):
            lent.execute(INSERT, change())
        return perf_counter() - since


def compiled_once(folder: Path) -> float:
    """Return the seconds of all inserts as the library runs them."""
    statement = compiled(
        sa.insert(schema.changes).values({name: sa.bindparam(name) for name in change()})
    )
    with SessionManager(folder / "text.sqlite") as sessions, sessions.handle.write() as tx:
        since = perf_counter()
        for _ in range(TIMES):
            tx.run(statement, change())
        return perf_counter() - since


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        core, text = through_core(Path(name)), compiled_once(Path(name))
    sys.stdout.write(f"SQLAlchemy Core's execution: {core / TIMES * 1e6:5.1f} us a statement\n")
    sys.stdout.write(f"compiled text on APSW:       {text / TIMES * 1e6:5.1f} us a statement\n")


main()
