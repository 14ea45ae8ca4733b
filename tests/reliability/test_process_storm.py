"""Processes and threads that write one file at once, and one that knows nothing of us."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from storm_kit import BARE, OURS, Outcome, storm, writers

from mandrake_sessions import ConnectionPool
from mandrake_sessions.database.files.turnstile import turnstile_path


@pytest.fixture
def make_database(pool: ConnectionPool, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a database with a counter at 0 for each writer, and one for all."""

    def make(name: str) -> Path:
        path = tmp_path / name
        pool.acquire(path).release()
        connection = apsw.Connection(str(path))
        rows = [("total",), *((f"writer {key}",) for key in writers())]
        connection.executemany("INSERT INTO meta (key, value) VALUES (?, 0)", rows)
        connection.close()
        return path

    return make


def counted(path: Path) -> tuple[dict[str, int], int]:
    """Return what is stored: the count of each writer that wrote, and the total."""
    connection = apsw.Connection(str(path))
    found = {
        key: int(value)
        for key, value in connection.execute("SELECT key, value FROM meta")
        if key == "total" or key.startswith("writer ")
    }
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
    total = found.pop("total")
    return {key.removeprefix("writer "): each for key, each in found.items() if each}, total


def require_whole(outcome: Outcome, path: Path) -> None:
    """Make sure that each acknowledged write is stored, and that no caller met an error."""
    assert outcome.errors == []
    assert outcome.wrong == []
    stored, total = counted(path)
    assert stored == outcome.counts
    assert total == sum(outcome.counts.values())


@pytest.mark.timeout(300)
def test_a_storm_of_processes_is_fair_and_loses_nothing(
    campaign: Any, make_database: Callable[[str], Path], start_child: Callable[..., Any]
) -> None:
    ours_path = make_database("ours.sqlite")
    ours = storm(start_child, OURS, ours_path, campaign.pick(1, 20, 60))
    sys.stdout.write(f"\n{ours.show('ours')}\n")
    require_whole(ours, ours_path)
    for one in ours.reports:
        before, after = one["descriptors"]
        assert after == before, f"{one['name']} has left {after - before} files open"
        assert one["threads"] == 1
    assert not turnstile_path(ours_path).exists()

    if campaign.name == "brief":
        return
    bare_path = make_database("bare.sqlite")
    bare = storm(start_child, BARE, bare_path, campaign.pick(0, 15, 60))
    sys.stdout.write(f"{bare.show('SQLite')}\n")
    require_whole(bare, bare_path)
    assert ours.unfairness <= 2
    assert ours.longest <= bare.longest / 10
    if campaign.name == "full":
        assert ours.longest <= 0.15
