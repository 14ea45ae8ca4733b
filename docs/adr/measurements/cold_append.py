"""ADR 0022: what the parts of an append take, warm and after other data went through the caches."""

import gc
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from mandrake_sessions import DatabaseOptions, Durability, NewTurn, SessionManager
from mandrake_sessions.records.rounds import record_round

ROUNDS = 1000
OTHER = bytearray(4 * 1024 * 1024)


def main() -> None:
    """Measure and print."""
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    options = DatabaseOptions(durability=Durability.FAST)
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        SessionManager(Path(name) / "db.sqlite", options=options) as sessions,
    ):
        conversation = sessions.create_session().id
        question, turns = "q" * 500, [NewTurn(content="a" * 1500)]
        execute = sessions.handle.file.writer.connection.execute

        def nothing_bare() -> None:
            execute("BEGIN IMMEDIATE")
            execute("COMMIT")

        parts = {
            "append": lambda: sessions.record_round(conversation, question, turns),
            "its preparing": lambda: record_round(conversation, question, turns),
            "a unit that does nothing": lambda: sessions.handle.transact(lambda _: None),
            "BEGIN and COMMIT, bare": nothing_bare,
        }
        gc.disable()
        for title, other in (("warm", b""), ("cold", OTHER)):
            taken: dict[str, list[float]] = {part: [] for part in parts}
            for part, run in parts.items():
                for _ in range(ROUNDS):
                    other.count(7)
                    since = perf_counter()
                    run()
                    taken[part].append(perf_counter() - since)
            for part, each in taken.items():
                sys.stdout.write(f"{title}  {part:26}{statistics.median(each) * 1e6:7.1f} us\n")


main()
