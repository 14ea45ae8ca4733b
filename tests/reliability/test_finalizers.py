"""What a finalizer or a signal's handler calls never waits for its own thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kits.waiting import SOON

COLLECTED = """
import faulthandler, gc, threading, time, warnings
from mandrake_sessions import (
    ConnectionPool, DatabaseOptions, Durability, MandrakeSessionsError, PoolOptions, SessionManager)
warnings.simplefilter("ignore")
path, seconds = sys.argv[1], float(sys.argv[2])
database = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
pool = ConnectionPool(PoolOptions(database=database, linger=0.01))
sessions = SessionManager(path, pool=pool).init()
session = sessions.create_session()
counts = {"close": 0, "release": 0, "interrupt": 0, "unwatch": 0, "slowest": 0.0}
class Owner:
    def __init__(self, name, end):
        self.name, self.end, self.me = name, end, self
    def __del__(self):
        began = time.monotonic()
        try:
            self.end()
        except MandrakeSessionsError:
            pass
        counts[self.name] += 1
        counts["slowest"] = max(counts["slowest"], time.monotonic() - began)
until = time.monotonic() + seconds
written = [0] * 4
def work(number):
    while time.monotonic() < until:
        created = sessions.create_round(session.id, "text")
        written[number] += 1
        Owner("close", SessionManager(path, pool=pool).init().close)
        Owner("release", pool.acquire(path).release)
        turn = sessions.stream_turn(created.response.id)
        turn.write("text")
        Owner("interrupt", turn.interrupt)
        Owner("unwatch", sessions.watch_response(created.response.id).close)
        del turn
        sessions.list_rounds(session.id, limit=3)
faulthandler.dump_traceback_later(seconds + 120, exit=True)
gc.set_threshold(3, 2, 2)
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
gc.set_threshold(700, 10, 10)
gc.collect()
def is_quiet():
    handles, streaming = pool.stats().handles, sessions._handle.attachment.streams
    return handles == 1 and not streaming
late = time.monotonic() + 60
while not is_quiet():
    assert time.monotonic() < late, (pool.stats(), counts)
    time.sleep(0.01)
rounds = sum(1 for _ in sessions.iter_session_history(session.id))
send([rounds, sum(written), counts])
sessions.close()
pool.close()
"""


@pytest.mark.timeout(300)
def test_finalizers_at_any_moment_close_release_and_interrupt_without_a_deadlock(
    tmp_path: Path, ready_database: Any, start_child: Callable[..., Any], campaign: Any
) -> None:
    path = ready_database.lay(tmp_path / "db.sqlite")
    child = start_child(COLLECTED, path, campaign.pick(1, 20, 60))
    rounds, written, counts = child.receive()
    child.finish()
    print(f"\n{written} rounds, {counts}")  # a result
    assert rounds == written
    assert min(counts[name] for name in ("close", "release", "interrupt", "unwatch")) > 0
    assert counts["slowest"] < SOON


HANDLED = """
import faulthandler, random, signal, time
from mandrake_sessions import (
    ConnectionPool, DatabaseOptions, Durability, MandrakeSessionsError, PoolOptions, SessionManager)
path, seconds = sys.argv[1], float(sys.argv[2])
database = DatabaseOptions(durability=Durability.FAST, busy_timeout=60.0)
pool = ConnectionPool(PoolOptions(database=database, linger=0.01))
sessions = SessionManager(path, pool=pool).init()
session = sessions.create_session()
response = sessions.create_round(session.id, "text").response
turn = None
signals, refused, slowest, counter = 0, 0, 0.0, 0
def calls():
    yield lambda: SessionManager.close(other)
    yield handle.release
    yield lambda: sessions.create_round(session.id, "by a signal")
    yield lambda: sessions.get_session(session.id)
    yield lambda: turn.write("more")
    yield lambda: turn.interrupt()
def handle_signal(*_):
    global signals, refused, slowest
    signals += 1
    began = time.monotonic()
    try:
        random.choice(list(calls()))()
    except MandrakeSessionsError:
        refused += 1
    slowest = max(slowest, time.monotonic() - began)
other = SessionManager(path, pool=pool).init()
handle = pool.acquire(path)
turn = sessions.stream_turn(response.id)
faulthandler.dump_traceback_later(seconds + 120, exit=True)
signal.signal(signal.SIGALRM, handle_signal)
until = time.monotonic() + seconds
while time.monotonic() < until:
    other.init()
    if handle._is_released:
        handle = pool.acquire(path)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(.00002, .002))
    try:
        sessions.create_round(session.id, "text")
        if turn._is_ended_by_host:
            turn = sessions.stream_turn(response.id)
        turn.write("text")
        turn.flush()
        with sessions.transaction() as tx:
            tx.create_round(session.id, "text")
        other.close()
    except MandrakeSessionsError as error:
        counter += 1
signal.setitimer(signal.ITIMER_REAL, 0)
sessions.create_round(session.id, "text")
send([signals, refused, slowest])
receive()
"""


@pytest.mark.timeout(300)
def test_a_signals_handler_that_calls_the_library_never_waits_for_its_own_thread(
    tmp_path: Path, ready_database: Any, start_child: Callable[..., Any], campaign: Any
) -> None:
    path = ready_database.lay(tmp_path / "db.sqlite")
    child = start_child(HANDLED, path, campaign.pick(1, 20, 60))
    signals, refused, slowest = child.receive()
    child.stop()
    print(f"\n{signals} signals, {refused} refused, the slowest {slowest:.3f} s")  # a result
    assert signals > 20
    assert slowest < SOON
