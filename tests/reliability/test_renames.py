"""A database that is renamed away again and again while processes write to what has its name.

Each row must be in the file, by its inode, in which it was acknowledged, whatever that is called by
then; and a new file must not take anything from the one before it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import apsw
import pytest

WRITERS = """
import os, threading, time
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from mandrake_sessions import *
fast = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
pool = ConnectionPool(PoolOptions(database=fast, linger=0))
stopped, warm = threading.Event(), threading.Event()
acknowledged, odd = [], []
def write(name):
    number = 0
    while not stopped.is_set():
        try:
            with SessionManager(sys.argv[1], pool=pool) as sessions:
                while not stopped.is_set():
                    number += 1
                    inode = sessions.handle.file.identity[1]
                    sessions.create_session(f"{name} {number}")
                    acknowledged.append((inode, f"{name} {number}"))
                    warm.set()
                    if number % 7 == 0:
                        sessions.list_sessions(limit=3)
                    time.sleep(0.001)
        except DatabaseMovedError:
            pass
        except BaseException as error:
            odd.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=write, args=(f"{os.getpid()} {n}",)) for n in range(3)]
for thread in threads:
    thread.start()
warm.wait()
send("warm")
receive()
stopped.set()
for thread in threads:
    thread.join()
pool.close()
send([acknowledged, odd])
"""


@pytest.mark.timeout(300)
def test_a_renamed_file_has_what_was_acknowledged(
    tmp_path: Path, campaign: Any, start_child: Callable[..., Any]
) -> None:
    chance = random.Random(7)
    path = tmp_path / "db.sqlite"
    children = [start_child(WRITERS, path) for _ in range(3)]
    for child in children:
        assert child.receive() == "warm"
    until = monotonic() + campaign.pick(1, 10, 60)
    renames = 0
    while monotonic() < until or not renames:
        sleep(0.05 + 0.3 * chance.random())
        # An empty one is being made: its maker would get an error that it is missing.
        if path.exists() and path.stat().st_size:
            renames += 1
            path.rename(tmp_path / f"away {renames}.sqlite")
    for child in children:
        child.send()
    acknowledged: defaultdict[int, set[str]] = defaultdict(set)
    for child in children:
        rows, odd = child.receive()
        assert odd == []
        for inode, title in rows:
            acknowledged[inode].add(title)
        child.finish()
    assert sum(map(len, acknowledged.values())) > 100
    for file in tmp_path.glob("*.sqlite"):
        expected = acknowledged.pop(file.stat().st_ino, set())
        connection = apsw.Connection(str(file))
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        if expected:
            stored = connection.execute("SELECT title FROM sessions").fetchall()
            assert not expected - {title for (title,) in stored}, file.name
        connection.close()
    assert not acknowledged
