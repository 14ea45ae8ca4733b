"""Monitors of busy files: a state that only looks wrong for a moment is never healed.

A checkpoint of another process writes the first page before the last ones, and the system lists
locks in pieces: a monitor that believed one look gave healthy files up, or refused writes to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mandrake_sessions import ConnectionPool, PoolOptions, SessionManager

BUSY = """
import random, threading, time
from structlog.testing import capture_logs
from mandrake_sessions import *
path, seconds = sys.argv[1], float(sys.argv[2])
database = DatabaseOptions(durability=Durability.FAST, checkpoint_frames=20)
options = PoolOptions(database=database, linger=0)
failures, looks, stored = [], 0, 0
end = time.monotonic() + seconds

def note(report):
    global looks
    looks += 1
    failures.extend(f"{check.name}: {check.detail}" for check in report.checks
                    if check.status is HealthStatus.FAILED)

def write(sessions, until):
    global stored
    try:
        while time.monotonic() < until:
            sessions.create_session("x" * 300)
            with mutex:
                stored += 1
            sessions.count_sessions()
    except MandrakeSessionsError as error:
        failures.append(repr(error))

mutex = threading.Lock()
with capture_logs() as logs:
    while time.monotonic() < end:
        until = min(end, time.monotonic() + random.uniform(0.3, 2))
        with ConnectionPool(options) as pool, SessionManager(path, pool=pool) as sessions:
            with HealthMonitor(pool, interval=0.002, thorough_interval=0.1, on_report=note):
                threads = [threading.Thread(target=write, args=(sessions, until)) for _ in range(3)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
wrong = {"database_retired", "database_corrupt", "writes_refused", "health_monitor_failed"}
failures += [log["event"] for log in logs if log["event"] in wrong]
send([failures[:5], looks, stored])
"""
PROCESSES = 3


@pytest.mark.timeout(150)
def test_a_healthy_file_is_never_retired(
    start_child: Callable[..., Any], path: Path, campaign: Any
) -> None:
    seconds = campaign.pick(1, 10, 90)
    with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool):
        pass
    children = [start_child(BUSY, path, seconds) for _ in range(PROCESSES)]
    reports = [child.receive() for child in children]
    for child in children:
        child.finish()
    assert [failures for failures, _, _ in reports] == [[]] * PROCESSES
    looks, stored = (sum(each[place] for each in reports) for place in (1, 2))
    assert looks > PROCESSES
    with ConnectionPool(PoolOptions(linger=0)) as pool, SessionManager(path, pool=pool) as sessions:
        assert sessions.count_sessions() == stored
    print(f"{PROCESSES} processes, {seconds} s: {looks} looks during {stored} writes")
