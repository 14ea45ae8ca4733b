"""A signal closes everything once, wherever the main thread is, and then has its effect."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from kits.waiting import PATIENCE, SOON

from mandrake_sessions import (
    ConnectionPool,
    InvalidArgumentError,
    SessionManager,
    ShutdownHookError,
    install_shutdown_hook,
)

# Time enough for closing: work under way gets half of it to end by itself.
PRELUDE = """
import asyncio, os, signal, threading, time
from pathlib import Path
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from mandrake_sessions import *
path = Path(sys.argv[1])
said = threading.Lock()
def say(value):
    # One line at a time, and no second time when a signal's handler speaks inside it.
    with said:
        send(value)
def wal():
    return path.with_name(path.name + "-wal").exists()
def wait_for_signals():
    # Not signal.pause(): a signal just before it would wait for another one.
    while True:
        time.sleep(0.01)
class Closing:
    todo = []
    def close(self):
        for do in self.todo:
            do()
def when_closing(do):
    Closing.todo.append(do)
pool = ConnectionPool(PoolOptions(database=DatabaseOptions(busy_timeout=60.0)))
sessions = SessionManager(path, pool=pool).init()
sessions.create_session(id="before")
"""
INSTALL = "hook = install_shutdown_hook(Closing(), sessions, pool=pool, timeout=600.0)\n"
# For work that does not end by itself, whose half of the time is waited for in full.
BRIEFLY = INSTALL.replace("600.0", "2.0")
FOREIGN = """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
send("held")
receive()
connection.close()
"""

Run = Callable[..., Any]


@pytest.fixture
def path(ready_path: Path) -> Path:
    return ready_path


@pytest.fixture
def run(start_child: Callable[..., Any], path: Path) -> Run:
    """Starts a script with an open database and, if asked, the hook."""

    def start(script: str, *arguments: object, hook: str = INSTALL) -> Any:
        return start_child(PRELUDE + hook + script, path, *arguments)

    return start


def ends_by(child: Any, number: int, *, within: float = PATIENCE) -> float:
    """Assert that the child dies of the signal; return how long it took."""
    began = monotonic()
    assert child.process.wait(within) == -number
    return monotonic() - began


def left(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def stored(path: Path) -> set[str]:
    """Return the ids of the sessions that a fresh opening finds; the files were closed cleanly."""
    assert left(path) == ["db.sqlite"]
    with ConnectionPool() as pool, SessionManager(path, pool=pool) as sessions:
        assert sessions.health().is_usable
        return {session.id for session in sessions.list_sessions(limit=10_000)}


# -- where the main thread is ---------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["wait_for_signals()", "time.sleep(600)", "threading.Event().wait()"]
)
def test_an_idle_script_dies_of_the_signal_after_closing(run: Run, path: Path, how: str) -> None:
    child = run(f"send('ready'); {how}")
    assert child.receive() == "ready"
    assert left(path) == ["db.sqlite", "db.sqlite-shm", "db.sqlite-wal"]
    child.process.terminate()
    assert ends_by(child, signal.SIGTERM) < SOON
    assert stored(path) == {"before"}


def test_ctrl_c_is_a_keyboard_interrupt_after_closing(run: Run, path: Path) -> None:
    child = run(
        """
try:
    send("ready")
    wait_for_signals()
except KeyboardInterrupt:
    send(wal())
    send(str(hook.report.signal == signal.SIGINT))
"""
    )
    assert child.receive() == "ready"
    child.process.send_signal(signal.SIGINT)
    assert child.receive() is False
    assert child.receive() == "True"
    assert child.process.wait(PATIENCE) == 0
    assert stored(path) == {"before"}


def test_a_keyboard_interrupt_that_is_not_caught_ends_the_script(run: Run, path: Path) -> None:
    child = run("send('ready'); wait_for_signals()")
    assert child.receive() == "ready"
    child.process.send_signal(signal.SIGINT)
    ends_by(child, signal.SIGINT)
    assert stored(path) == {"before"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_former_handler_is_called_once_after_closing(
    run: Run, path: Path, number: signal.Signals
) -> None:
    child = run(
        f"""
calls = []
def former(number, frame):
    calls.append(number)
    send([number, wal(), hook.report is not None, len(hook.report.failures)])
number = signal.Signals({int(number)})
signal.signal(number, former)
hook = install_shutdown_hook(sessions, pool=pool, signals=[number], timeout=600.0)
send("ready")
while not calls:
    time.sleep(0.01)
hook.wait()
# Back in place: a second signal is the host's alone.
os.kill(os.getpid(), number)
send(calls)
send(signal.getsignal(number) is former)
""",
        hook="",
    )
    assert child.receive() == "ready"
    child.process.send_signal(number)
    assert child.receive() == [number, False, True, 0]
    assert child.receive() == [number, False, True, 0]
    assert child.receive() == [number, number]
    assert child.receive() is True
    assert child.process.wait(PATIENCE) == 0
    assert stored(path) == {"before"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_block_that_ends_by_itself_is_committed(
    run: Run, path: Path, number: signal.Signals
) -> None:
    child = run(
        """
when_closing(lambda: say("closing"))
with sessions.transaction() as tx:
    say("in the block")
    receive()
    tx.create_session(id="in the block")
say("committed")
try:
    sessions.create_session(id="after")
except (PoolClosedError, NotInitializedError) as error:
    say("refused")
wait_for_signals()
"""
    )
    assert child.receive() == "in the block"
    child.process.send_signal(number)
    assert child.receive() == "closing"
    child.send()
    assert child.receive() == "committed"
    assert child.receive() == "refused"
    ends_by(child, number)
    assert stored(path) == {"before", "in the block"}


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(600)",
        pytest.param("threading.Event().wait()", marks=pytest.mark.long),
        pytest.param("spin()", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_block_that_hangs_is_unwound_and_rolled_back(
    run: Run, path: Path, number: signal.Signals, hang: str
) -> None:
    child = run(
        f"""
def spin():
    while True:
        pass
try:
    with sessions.transaction() as tx:
        tx.create_session(id="in the block")
        send("in the block")
        {hang}
except BaseException as error:
    send(type(error).__name__)
    raise
""",
        hook=BRIEFLY,
    )
    assert child.receive() == "in the block"
    child.process.send_signal(number)
    assert child.receive() == ("KeyboardInterrupt" if number == signal.SIGINT else "SystemExit")
    assert ends_by(child, number) < SOON
    assert stored(path) == {"before"}


def test_a_block_that_runs_without_end_is_stopped_at_its_next_call(run: Run, path: Path) -> None:
    child = run(
        """
try:
    with sessions.transaction() as tx:
        send("in the block")
        count = 0
        while True:
            tx.create_session(id=f"session {count}")
            count += 1
except BaseException as error:
    send(type(error).__name__)
wait_for_signals()
""",
        hook=BRIEFLY,
    )
    assert child.receive() == "in the block"
    child.process.terminate()
    assert child.receive() in ("PoolClosedError", "SystemExit")
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before"}


def test_a_block_is_unwound_also_when_the_pool_keeps_nothing_open(run: Run, path: Path) -> None:
    """With ``linger=0`` the manager's own close already closes the file."""
    child = run(
        """
sessions.close()
pool.close()
pool = ConnectionPool(PoolOptions(linger=0))
sessions = SessionManager(path, pool=pool).init()
hook = install_shutdown_hook(sessions, pool=pool, timeout=2.0)
try:
    with sessions.transaction() as tx:
        tx.create_session(id="in the block")
        send("in the block")
        time.sleep(600)
except BaseException as error:
    send(type(error).__name__)
    raise
""",
        hook="",
    )
    assert child.receive() == "in the block"
    child.process.terminate()
    assert child.receive() == "SystemExit"
    assert ends_by(child, signal.SIGTERM) < SOON
    assert stored(path) == {"before"}


WAITING = """
has_it, may_go = threading.Event(), threading.Event()
def hold():
    with sessions.transaction() as tx:
        tx.create_session(id="the worker's")
        has_it.set()
        may_go.wait()
threading.Thread(target=hold, daemon=True).start()
has_it.wait()
def look():
    while not sessions.stats().waiting:
        pass
    say("waiting")
threading.Thread(target=look, daemon=True).start()
"""


def test_the_main_thread_waits_in_the_queue_and_gets_its_turn(run: Run, path: Path) -> None:
    child = run(
        WAITING
        + """
when_closing(may_go.set)
sessions.create_session(id="the main thread's")
say("stored")
wait_for_signals()
"""
    )
    assert child.receive() == "waiting"
    child.process.terminate()
    assert child.receive() == "stored"
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before", "the worker's", "the main thread's"}


def test_the_main_thread_waits_in_the_queue_behind_a_thread_that_hangs(
    run: Run, path: Path
) -> None:
    """The wait is bounded, and the file that could not be closed is named."""
    child = run(
        WAITING
        + """
try:
    sessions.create_session(id="the main thread's")
except PoolClosedError:
    say("refused")
def former(number, frame):
    say([type(failure).__name__ for failure in hook.report.failures])
    os._exit(7)
signal.signal(signal.SIGTERM, former)
hook._former[signal.SIGTERM] = former
signal.signal(signal.SIGTERM, hook._handle)
wait_for_signals()
""",
        hook=BRIEFLY,
    )
    assert child.receive() == "waiting"
    child.process.terminate()
    assert child.receive() == "refused"
    assert child.receive() == ["DatabaseBusyError"]
    assert child.process.wait(PATIENCE) == 7


def test_the_main_thread_waits_for_another_process(
    run: Run, path: Path, start_child: Callable[..., Any]
) -> None:
    child = run(
        """
def look():
    while not sessions.stats().retries:
        pass
    say("waiting")
say("ready")
receive()
threading.Thread(target=look, daemon=True).start()
try:
    sessions.create_session(id="never")
except (PoolClosedError, SystemExit) as error:
    say(type(error).__name__)
    raise
""",
        hook=BRIEFLY,
    )
    assert child.receive() == "ready"
    foreign = start_child(FOREIGN, path)
    assert foreign.receive() == "held"
    child.send()
    assert child.receive() == "waiting"
    child.process.terminate()
    assert child.receive() in ("PoolClosedError", "SystemExit")
    assert ends_by(child, signal.SIGTERM) < SOON
    foreign.send()
    foreign.finish()
    assert stored(path) == {"before"}


def test_the_main_thread_waits_for_a_lock_of_its_own(run: Run, path: Path) -> None:
    """Without a lease it is left alone; the process dies of the signal all the same."""
    child = run(
        """
lock = threading.Lock()
lock.acquire()
send("ready")
lock.acquire()
"""
    )
    assert child.receive() == "ready"
    child.process.terminate()
    assert ends_by(child, signal.SIGTERM) < SOON
    assert stored(path) == {"before"}


def test_the_handler_takes_no_lock_that_its_own_thread_may_hold(run: Run, path: Path) -> None:
    child = run(
        """
from mandrake_sessions.database.pool import pool as pool_module
from mandrake_sessions.database.open_file.file import DatabaseFile
install_shutdown_hook()
(file,) = [slot.file for slot in pool._slots.values()]
locks = [pool._mutex, pool_module._default_mutex, file._auxiliary_mutex._lock]
locks += [leased.queue._mutex for leased in file.leased_connections()]
for lock in locks:
    lock.acquire()
signal.raise_signal(signal.SIGTERM)
send("handled")
for lock in locks:
    lock.release()
wait_for_signals()
"""
    )
    assert child.receive() == "handled"
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before"}


# -- threads and loops ----------------------------------------------------------------------


def acknowledged(child: Any) -> set[str]:
    """Return every id that the child sent until its end."""
    sent = set()
    assert child.process.stdout is not None
    for line in child.process.stdout:
        if line.endswith("\n"):
            sent.add(json.loads(line))
    return sent


def test_every_acknowledged_row_of_worker_threads_is_stored(run: Run, path: Path) -> None:
    child = run(
        """
def work(number):
    count = 0
    try:
        while True:
            session = sessions.create_session(id=f"{number} {count}")
            say(session.id)
            count += 1
    except (PoolClosedError, NotInitializedError):
        pass
for number in range(6):
    threading.Thread(target=work, args=(number,), daemon=True).start()
wait_for_signals()
"""
    )
    first = {child.receive() for _ in range(60)}
    child.process.terminate()
    sent = first | acknowledged(child)
    ends_by(child, signal.SIGTERM)
    found = stored(path)
    assert sent <= found
    # A thread may die between its COMMIT and its line.
    assert len(found - sent - {"before"}) <= 6


def test_threads_that_are_no_daemons_may_end_their_work(run: Run, path: Path) -> None:
    """The main thread has ended; the interpreter waits for the others."""
    child = run(
        """
def work():
    count = 0
    try:
        while True:
            say(sessions.create_session(id=f"{count}").id)
            count += 1
    except (PoolClosedError, NotInitializedError):
        pass
threading.Thread(target=work).start()
"""
    )
    first = {child.receive() for _ in range(20)}
    child.process.terminate()
    sent = first | acknowledged(child)
    ends_by(child, signal.SIGTERM)
    assert sent <= stored(path)


@pytest.mark.parametrize("place", ["before the loop", "in the loop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_asyncio_program_is_closed_after_the_signal(
    run: Run, path: Path, number: signal.Signals, place: str
) -> None:
    child = run(
        f"""
async def work(number):
    count = 0
    try:
        while True:
            session = await asyncio.to_thread(sessions.create_session, id=f"{{number}} {{count}}")
            say(session.id)
            count += 1
    except (PoolClosedError, NotInitializedError):
        pass
async def main():
    if {place == "in the loop"}:
        install_shutdown_hook(sessions, pool=pool, timeout=600.0)
    await asyncio.gather(*[work(number) for number in range(4)])
    await asyncio.Event().wait()
if {place == "before the loop"}:
    install_shutdown_hook(sessions, pool=pool, timeout=600.0)
asyncio.run(main())
""",
        hook="",
    )
    first = {child.receive() for _ in range(40)}
    child.process.send_signal(number)
    sent = first | acknowledged(child)
    ends_by(child, number)
    assert sent <= stored(path)


# -- what is closed -------------------------------------------------------------------------

BAD = """
class Bad:
    def close(self):
        {close}
class Good:
    def close(self):
        say("good closed")
def former(number, frame):
    say([type(failure).__name__ for failure in hook.report.failures])
    say(wal())
    say(hook.report.seconds < 20)
    os._exit(7)
signal.signal(signal.SIGTERM, former)
hook = install_shutdown_hook(Bad(), Good(), sessions, pool=pool, timeout=2.0)
say("ready")
wait_for_signals()
"""


def test_a_part_that_raises_keeps_nothing_else_open(run: Run, path: Path) -> None:
    child = run(BAD.format(close="raise ValueError('injected')"), hook="")
    assert child.receive() == "ready"
    child.process.terminate()
    assert child.receive() == "good closed"
    assert child.receive() == ["ValueError"]
    assert child.receive() is False
    assert child.receive() is True
    assert child.process.wait(PATIENCE) == 7
    assert stored(path) == {"before"}


def test_a_log_that_cannot_be_written_keeps_no_process_alive(run: Run, path: Path) -> None:
    child = run(
        """
def broken(*_):
    raise RuntimeError("injected")
structlog.configure(processors=[broken])
def fail():
    raise ValueError("injected")
when_closing(fail)
threading.excepthook = lambda _arguments: None
say("ready")
wait_for_signals()
"""
    )
    assert child.receive() == "ready"
    child.process.terminate()
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before"}


def test_a_process_that_cannot_start_a_thread_ends_all_the_same(run: Run) -> None:
    child = run(
        """
def refuse(_thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
threading.excepthook = lambda _arguments: None
say("ready")
wait_for_signals()
"""
    )
    assert child.receive() == "ready"
    child.process.terminate()
    ends_by(child, signal.SIGTERM)


HANGS = """
class Hangs:
    def close(self):
        threading.Event().wait()
class Good:
    def close(self):
        say("good closed")
def former(number, frame):
    say([type(failure).__name__ for failure in hook.report.failures])
    say(wal())
    os._exit(7)
signal.signal(signal.SIGTERM, former)
hook = install_shutdown_hook({parts}, sessions, pool=pool, timeout=2.0)
"""


def test_where_no_thread_can_be_started_a_part_that_hangs_keeps_no_file_open(
    run: Run, path: Path
) -> None:
    child = run(
        HANGS.format(parts="Good(), Hangs(), Good()")
        + """
def refuse(_thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
say("ready")
wait_for_signals()
""",
        hook="",
    )
    assert child.receive() == "ready"
    child.process.terminate()
    assert child.receive() == "good closed"
    # The hung one, then the other good one and the manager, which are not closed.
    assert child.receive() == ["TimeoutError", "ThreadStartError", "ThreadStartError"]
    assert child.receive() is False
    assert child.process.wait(PATIENCE) == 7
    assert stored(path) == {"before"}


def test_a_part_that_hangs_after_the_end_of_the_main_thread_keeps_no_file_open(
    run: Run, path: Path
) -> None:
    """Python 3.12 starts no thread then."""
    child = run(
        HANGS.format(parts="Good(), Hangs()")
        + """
main = threading.main_thread()
def work():
    main.join()
    say("ready")
    receive()
threading.Thread(target=work).start()
""",
        hook="",
    )
    assert child.receive() == "ready"
    child.process.terminate()
    assert child.receive() == "good closed"
    assert child.receive()[0] == "TimeoutError"
    assert child.receive() is False
    assert child.process.wait(PATIENCE) == 7
    assert stored(path) == {"before"}


def test_after_the_end_of_the_main_thread_calls_work_and_a_refused_stream_leaves_nothing(
    run: Run, path: Path
) -> None:
    child = run(
        """
main = threading.main_thread()
def work():
    main.join()
    session = sessions.create_session(id="after")
    response = sessions.create_round(session.id, "Hello?").response
    try:
        with sessions.stream_turn(response.id) as writer:
            writer.write("text")
    except ThreadStartError:
        pass
    say([turn.content for turn in sessions.list_turns(response.id)])
threading.Thread(target=work).start()
"""
    )
    # Python 3.12 starts no thread then; 3.11 and 3.13 do.
    assert child.receive() in ([], ["text"])
    assert child.process.wait(PATIENCE) == 0
    assert stored(path) == {"before", "after"}


def test_a_part_that_hangs_keeps_nothing_else_open(run: Run, path: Path) -> None:
    child = run(BAD.format(close="threading.Event().wait()"), hook="")
    assert child.receive() == "ready"
    began = monotonic()
    child.process.terminate()
    assert child.receive() == "good closed"
    assert child.receive() == ["TimeoutError"]
    assert child.receive() is False
    assert child.receive() is True
    assert monotonic() - began < SOON
    assert child.process.wait(PATIENCE) == 7
    assert stored(path) == {"before"}


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "BaseException"])
def test_a_part_that_raises_a_base_exception_keeps_nothing_else_open(
    run: Run, path: Path, error: str
) -> None:
    child = run(BAD.format(close=f"raise {error}"), hook="")
    assert child.receive() == "ready"
    child.process.terminate()
    assert child.receive() == "good closed"
    assert len(child.receive()) == 1
    assert child.receive() is False


def test_several_pools_and_files_are_closed(run: Run, path: Path) -> None:
    child = run(
        """
second = ConnectionPool()
managers = [SessionManager(path.with_name(f"{n}.sqlite"), pool=second).init() for n in range(3)]
third = SessionManager(path.with_name("default.sqlite")).init()
install_shutdown_hook(*managers, pool=second)
assert install_shutdown_hook(third) is hook
send("ready")
wait_for_signals()
"""
    )
    assert child.receive() == "ready"
    child.process.terminate()
    ends_by(child, signal.SIGTERM)
    names = ["0.sqlite", "1.sqlite", "2.sqlite", "db.sqlite", "default.sqlite"]
    assert left(path) == names


def test_installing_again_adds_and_closes_each_once(run: Run, path: Path) -> None:
    child = run(
        """
class Part:
    def close(self):
        say("closed")
part = Part()
handler = signal.getsignal(signal.SIGTERM)
for _ in range(3):
    assert install_shutdown_hook(part, sessions, pool=pool) is hook
assert signal.getsignal(signal.SIGTERM) == handler
assert hook.is_installed
say([thread.name for thread in threading.enumerate()].count("mandrake-shutdown"))
wait_for_signals()
"""
    )
    assert child.receive() == 1
    child.process.terminate()
    assert child.receive() == "closed"
    assert acknowledged(child) == set()
    ends_by(child, signal.SIGTERM)


def test_installing_again_adds_signals(run: Run, path: Path) -> None:
    child = run(
        """
assert install_shutdown_hook(signals=[signal.SIGTERM, signal.SIGUSR1], timeout=9.0) is hook
worker = threading.Thread(target=install_shutdown_hook)
worker.start()
worker.join()
say("ready")
wait_for_signals()
"""
    )
    assert child.receive() == "ready"
    child.process.send_signal(signal.SIGUSR1)
    ends_by(child, signal.SIGUSR1)
    assert stored(path) == {"before"}


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_closing_changes_nothing(
    run: Run, path: Path, second: signal.Signals
) -> None:
    child = run(
        """
class Slow:
    def close(self):
        say("closing")
        receive()
        say("closed")
hook = install_shutdown_hook(Slow(), sessions, pool=pool, timeout=600.0)
say("ready")
wait_for_signals()
""",
        hook="",
    )
    assert child.receive() == "ready"
    child.process.terminate()
    assert child.receive() == "closing"
    for _ in range(3):
        child.process.send_signal(second)
    child.send()
    assert child.receive() == "closed"
    ends_by(child, signal.SIGTERM)
    assert acknowledged(child) == set()
    assert stored(path) == {"before"}


def test_a_second_signal_that_is_handled_late_changes_nothing(run: Run, path: Path) -> None:
    """Of those that came while the main thread was in C the interpreter takes the lowest first."""
    child = run(
        """
import apsw
when_closing(lambda: os.kill(os.getpid(), signal.SIGINT))
raw = apsw.Connection(":memory:")
long = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000000)"
say("ready")
os.kill(os.getpid(), signal.SIGTERM)
try:
    raw.execute(f"{long} SELECT count(*) FROM n").fetchall()
    wait_for_signals()
except KeyboardInterrupt:
    say("interrupted")
"""
    )
    assert child.receive() == "ready"
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before"}


def test_a_script_that_ends_while_closing_is_closed_first(run: Run, path: Path) -> None:
    child = run(
        """
closes = threading.Event()
class Slow:
    def close(self):
        closes.set()
        say("closing")
        receive()
hook = install_shutdown_hook(Slow(), sessions, pool=pool, timeout=600.0)
say("ready")
closes.wait()
say("the end")
""",
        hook="",
    )
    assert child.receive() == "ready"
    child.process.terminate()
    assert {child.receive(), child.receive()} == {"closing", "the end"}
    child.send()
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before"}


def test_without_a_signal_the_hook_changes_no_exit_code(run: Run, path: Path) -> None:
    child = run("sys.exit(3)")
    assert child.process.wait(PATIENCE) == 3
    assert stored(path) == {"before"}


# -- taking it back, and where it cannot be -------------------------------------------------


def test_uninstall_restores_the_former_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = set(threading.enumerate())
    with ConnectionPool() as pool:
        hook = install_shutdown_hook(pool=pool)
        assert hook.is_installed
        assert signal.getsignal(signal.SIGTERM) != before[1]
        hook.uninstall()
        assert not hook.is_installed
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        # Those of former tests may end meanwhile.
        assert set(threading.enumerate()) <= threads
        # And again.
        again = install_shutdown_hook(pool=pool)
        assert again is not hook
        again.uninstall()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert hook.report is None


def test_uninstall_keeps_a_handler_that_was_installed_later() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def theirs(*_: object) -> None:
        pass

    with ConnectionPool() as pool:
        hook = install_shutdown_hook(pool=pool)
        try:
            signal.signal(signal.SIGTERM, theirs)
            assert not hook.is_installed
            hook.uninstall()
            assert signal.getsignal(signal.SIGTERM) is theirs
        finally:
            signal.signal(signal.SIGTERM, before)


def test_the_hook_cannot_be_installed_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    errors: list[BaseException] = []

    def install() -> None:
        try:
            install_shutdown_hook()
        except ShutdownHookError as error:
            errors.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("closeables", "wrong"),
    [
        ((), {"timeout": "5"}),
        ((), {"timeout": None}),
        ((), {"timeout": -1}),
        ((), {"pool": "x"}),
        ((), {"signals": signal.SIGTERM}),
        ((), {"signals": ["SIGTERM"]}),
        (("no close",), {}),
    ],
)
def test_arguments_that_would_fail_at_the_signal_are_refused_at_once(
    closeables: tuple[Any, ...], wrong: dict[str, Any]
) -> None:
    """No thread would be left to close anything then, and the signal would do nothing."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InvalidArgumentError):
        install_shutdown_hook(*closeables, **wrong)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("bad", [signal.SIGKILL, 9999])
def test_a_signal_that_cannot_be_handled_changes_no_other_handler(bad: int) -> None:
    """Half a hook would swallow SIGTERM: its handler has no thread to wake."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ShutdownHookError):
            install_shutdown_hook(signals=[signal.SIGTERM, bad])
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with ConnectionPool() as pool:
            hook = install_shutdown_hook(pool=pool, signals=[signal.SIGUSR1])
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            hook.uninstall()
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- forked children ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_forked_child_dies_of_the_signal_and_the_parent_goes_on(
    run: Run, path: Path, number: signal.Signals
) -> None:
    child = run(
        f"""
import multiprocessing
def idle():
    send(os.getpid())
    wait_for_signals()
one = os.fork()
if one == 0:
    idle()
os.kill(one, 0)
def finish_one():
    _, status = os.waitpid(one, 0)
    return os.waitstatus_to_exitcode(status)
receive()
os.kill(one, {int(number)})
send(finish_one())
two = multiprocessing.get_context("fork").Process(target=idle)
two.start()
receive()
os.kill(two.pid, {int(number)})
two.join()
send(two.exitcode)
sessions.create_session(id="the parent's")
send(hook.is_installed)
wait_for_signals()
"""
    )
    for _ in range(2):
        assert child.receive() > 0
        child.send()
        # A KeyboardInterrupt that is not caught: -2 for os.fork, 1 for multiprocessing.
        assert child.receive() in ((-number,) if number == signal.SIGTERM else (-number, 1))
    assert child.receive() is True
    child.process.terminate()
    ends_by(child, signal.SIGTERM)
    assert stored(path) == {"before", "the parent's"}


def test_a_forked_child_may_install_its_own_hook(run: Run, path: Path) -> None:
    child = run(
        """
pid = os.fork()
if pid == 0:
    mine = ConnectionPool()
    theirs = SessionManager(path.with_name("child.sqlite"), pool=mine).init()
    own = install_shutdown_hook(theirs, pool=mine)
    assert own is not hook and own.is_installed
    send("ready")
    wait_for_signals()
receive()
os.kill(pid, signal.SIGTERM)
send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
send(sorted(each.name for each in path.parent.glob("child*")))
"""
    )
    assert child.receive() == "ready"
    child.send()
    # Its former handler is its parent's, whose former is the system's.
    assert child.receive() == -signal.SIGTERM
    assert child.receive() == ["child.sqlite"]
    assert child.process.wait(PATIENCE) == 0
