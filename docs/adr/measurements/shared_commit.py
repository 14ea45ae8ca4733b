"""ADR 0005: appends of 8 threads at ``durable``, each with its own COMMIT, and shared."""

import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter

from mandrake_sessions import DatabaseOptions, NewTurn, SessionManager

THREADS = 8
APPENDS = 250


def run(path: Path, most: int) -> tuple[float, float, float]:
    """Return appends a second, the longest one and units a COMMIT."""
    longest = []
    with SessionManager(path, options=DatabaseOptions(group_max_units=most)) as sessions:
        targets = [sessions.create_session().id for _ in range(THREADS)]
        before = sessions.stats()

        def agent(session_id: str) -> None:
            worst = 0.0
            for _ in range(APPENDS):
                since = perf_counter()
                sessions.record_round(session_id, "question", [NewTurn(content="answer")])
                worst = max(worst, perf_counter() - since)
            longest.append(worst)

        threads = [threading.Thread(target=agent, args=(id,)) for id in targets]
        since = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = perf_counter() - since
        after = sessions.stats()
    units, commits = after.units - before.units, after.commits - before.commits
    return THREADS * APPENDS / seconds, max(longest), units / commits


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        for title, most in (("one by one", 1), ("shared", 64)):
            rate, longest, units = run(Path(name) / f"{most}.sqlite", most)
            sys.stdout.write(
                f"{title:11}{rate:6.0f} appends/s, the longest {longest * 1e3:5.1f} ms, "
                f"{units:.1f} units a COMMIT\n"
            )


main()
