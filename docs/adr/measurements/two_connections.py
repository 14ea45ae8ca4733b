"""ADR 0003: how long appends take during a long read, on one connection and on two."""

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from mandrake_sessions import DatabaseOptions, Durability, NewTurn, SessionManager

ROUNDS = 20_000
APPENDS = 300


def longest_append(sessions: SessionManager, session_id: str, read: Callable[[], object]) -> float:
    """Return the longest append while another thread reads again and again."""
    stop = threading.Event()

    def reader() -> None:
        while not stop.is_set():
            read()

    thread = threading.Thread(target=reader)
    thread.start()
    longest = 0.0
    for _ in range(APPENDS):
        since = perf_counter()
        sessions.record_round(session_id, "append")
        longest = max(longest, perf_counter() - since)
    stop.set()
    thread.join()
    return longest


def main() -> None:
    """Measure and print."""
    options = DatabaseOptions(durability=Durability.FAST)
    with (
        tempfile.TemporaryDirectory() as name,
        SessionManager(Path(name) / "db.sqlite", options=options) as sessions,
    ):
        long = sessions.create_session("read").id
        with sessions.transaction() as tx:
            for _ in range(ROUNDS):
                tx.record_round(long, "question", [NewTurn(content="answer")])
        target = sessions.create_session("written").id

        def on_the_writer() -> None:
            with sessions.transaction() as tx:
                tx.list_rounds(long)

        one = longest_append(sessions, target, on_the_writer)
        two = longest_append(sessions, target, lambda: sessions.list_rounds(long))
    sys.stdout.write(f"{ROUNDS} rounds read meanwhile; the longest of {APPENDS} appends took\n")
    sys.stdout.write(f"on one connection:   {one * 1e3:6.1f} ms\n")
    sys.stdout.write(f"with the auxiliary:  {two * 1e3:6.1f} ms\n")


main()
