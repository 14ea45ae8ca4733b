"""A source, a target, and another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import ConnectionPool, SessionManager

# Reads statements from its standard input, runs them, then does as asked: "crash", or holds the
# file open until its standard input ends.
_ELSEWHERE = """
import apsw, json, os, sys
path, then = sys.argv[1:]
connection = apsw.Connection(path)
for sql, values in json.loads(sys.stdin.readline()):
    connection.execute(sql, values).fetchall()
print("ready", flush=True)
if then == "crash":
    os._exit(0)
sys.stdin.read()
connection.close()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The path of a source in a folder of its own; nothing is there yet."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder / "origin.sqlite"


@pytest.fixture
def target(tmp_path: Path, pool: ConnectionPool, ready_database: Any) -> Iterator[SessionManager]:
    """An open, empty database of this library."""
    path = ready_database.lay(tmp_path / "target" / "db.sqlite")
    with SessionManager(path, pool=pool) as sessions:
        yield sessions


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run statements in another process, which then crashes or holds the file open."""
    processes = []

    def run(path: Path, statements: list[tuple[str, Any]], then: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _ELSEWHERE, str(path), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(statements) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        if then == "crash":
            process.wait()
        return process

    yield run
    for process in processes:
        process.communicate()
