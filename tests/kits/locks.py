"""Another process that holds SQLite's write lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HOLD = """
import apsw, select
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READWRITE)
connection.set_busy_timeout(20000)
connection.execute("BEGIN IMMEDIATE")
send("held")
# For so many seconds, or until it receives a line.
select.select([sys.stdin], [], [], float(sys.argv[2]) or None)
connection.execute("ROLLBACK")
connection.close()
send("gone")
"""


def hold_lock(start_child: Callable[..., Any], path: Path, seconds: float = 0) -> Any:
    """Return a process that holds the write lock: for some seconds, or until it gets a line."""
    child = start_child(_HOLD, path, seconds)
    assert child.receive() == "held"
    return child


@contextlib.contextmanager
def lock_held(start_child: Callable[..., Any], path: Path) -> Iterator[None]:
    """Have another process hold the write lock for a block."""
    child = hold_lock(start_child, path)
    try:
        yield
    finally:
        child.send()
        assert child.receive() == "gone"
