"""ADR 0013: a row acknowledged in a forked child, with the parent's connection kept or closed."""

import os
import sys
import tempfile
from pathlib import Path

import apsw


def run(path: Path, *, close: bool) -> tuple[str, str]:
    """Return what the child saw, and the rows that are in the file afterwards."""
    parent = apsw.Connection(str(path))
    parent.pragma("journal_mode", "wal")
    parent.execute("CREATE TABLE rows (name TEXT)")
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:
        if close:
            parent.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            parent.close()
        mine = apsw.Connection(str(path))
        mine.execute("INSERT INTO rows VALUES ('child, before')")
        os.write(to_parent, f"{_locks_on(path)} locks".encode())
        os.read(from_parent, 1)
        mine.execute("INSERT INTO rows VALUES ('child, after')")
        os._exit(0)
    seen = os.read(from_child, 100).decode()
    # It believes to be the last one: it empties the -wal into the file and removes it.
    parent.close()
    os.write(to_child, b"x")
    os.waitpid(child, 0)
    found = apsw.Connection(str(path))
    rows = [str(name) for (name,) in found.execute("SELECT name FROM rows")]
    found.close()
    return seen, ", ".join(repr(row) for row in rows)


def _locks_on(path: Path) -> int:
    """Return how many locks this process holds on the file and its attachments (Linux)."""
    inodes = {str(each.stat().st_ino) for each in path.parent.glob(f"{path.name}*")}
    held = (line.split() for line in Path("/proc/locks").read_text("utf-8").splitlines())
    return sum(int(lock[4]) == os.getpid() and lock[5].split(":")[-1] in inodes for lock in held)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        for title, close in (("kept", False), ("closed", True)):
            seen, rows = run(Path(name) / f"{title}.sqlite", close=close)
            sys.stdout.write(f"{title:7} the child has {seen}; found: {rows}\n")


main()
