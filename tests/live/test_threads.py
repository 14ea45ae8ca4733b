"""Where no thread can be started: a typed error, nothing stored, and nothing that is waited for."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kits.waiting import SOON

PRELUDE = """
import asyncio, os, resource, threading, time
from mandrake_sessions import *
from mandrake_sessions.aio import AsyncMandrakeManager, AsyncSessionManager
from mandrake_sessions.live.hub import Hub
from kits.waiting import until

path, response_id, turn_id = sys.argv[1:4]
limit = resource.getrlimit(resource.RLIMIT_NPROC)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(54329)
    os.setuid(54329)

def running():
    return len(os.listdir("/proc/self/task"))

def ignore(update):
    pass

def allow(more):
    "Let this process start so many threads more, or any number."
    while threading.active_count() < running():
        time.sleep(0.001)  # one that has ended is not gone yet
    most = limit[0] if more is None else running() + more
    resource.setrlimit(resource.RLIMIT_NPROC, (most, limit[1]))

def raised(call):
    began = time.monotonic()
    try:
        call()
    except BaseException as error:
        return type(error).__name__, time.monotonic() - began
    return "", time.monotonic() - began

def turns():
    with sessions.transaction() as tx:
        return len(tx.list_turns(response_id))

"""

CALLS = {
    "stream_turn": "sessions.stream_turn(response_id)",
    "stream_turn with an id": "sessions.stream_turn(response_id, id='mine')",
    "watch_response": "sessions.watch_response(response_id)",
    "watch_session": "sessions.watch_session(sessions.list_sessions()[0].id)",
    "track_streaming_turns": "sessions.track_streaming_turns(response_id, ignore)",
    "add_turn_update_listener": "sessions.add_turn_update_listener(turn_id, ignore)",
    "HealthMonitor.start": "monitor.start()",
}
THREADS = {
    "watch_response": 2,
    "watch_session": 2,
    "track_streaming_turns": 3,
    "add_turn_update_listener": 3,
}
"""How many threads a call starts, where it is more than one."""


@pytest.fixture
def streamed(ready_database: Any, pool: Any) -> Iterator[tuple[Path, str, str]]:
    """A database that another user may write, with a response and a turn that has ended."""
    if not sys.platform.startswith("linux"):
        pytest.skip("threads are limited as on Linux")
    from mandrake_sessions import SessionManager

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    path = ready_database.lay(folder / "db.sqlite")
    path.chmod(0o666)
    with SessionManager(path, pool=pool) as sessions:
        response = sessions.create_round(sessions.create_session("A talk").id, "Hello?").response
        turn = sessions.create_turn(response.id, content="ended", status="completed")
    yield path, response.id, turn.id
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("call", "more"),
    [(call, more) for call in CALLS for more in range(THREADS.get(call, 1))],
)
def test_a_call_that_needs_a_thread_is_refused_and_works_later(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any], call: str, more: int
) -> None:
    child = start_child(
        PRELUDE
        + f"""
pool = ConnectionPool(PoolOptions(linger=0))
sessions = SessionManager(path, pool=pool).init()
monitor = HealthMonitor(pool)
before = threading.active_count()
allow({more})
send(raised(lambda: {CALLS[call]})[0])
allow(None)
until(lambda: threading.active_count() <= before + {more})
send([turns(), sessions.subscriptions, Hub.of(sessions.handle.file).flusher.writers])
monitor.stop()
send(monitor.is_running)
made = {CALLS[call]}
send("works")
if isinstance(made, HealthMonitor):
    made.stop()
elif isinstance(made, Subscription):
    made.close()
else:
    made.complete()
pool.close()
""",
        *streamed,
    )
    assert child.receive() == "ThreadStartError"
    assert child.receive() == [1, 0, 0]
    assert child.receive() is False
    assert child.receive() == "works"
    child.finish()


def test_without_threads_a_database_is_opened_used_and_closed_at_once(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    child = start_child(
        PRELUDE
        + """
allow(0)
pool = ConnectionPool(PoolOptions(linger=1, close_timeout=600.0))
sessions = SessionManager(path, pool=pool).init()
session = sessions.create_session("No threads")
turn = sessions.create_turn(response_id)
for _ in range(3):
    send(raised(lambda: sessions.stream_turn(response_id))[0])
    send(raised(lambda: sessions.track_streaming_turns(response_id, ignore))[0])
sessions.update_turn(turn.id, status="completed")
send(turns())
send(raised(sessions.close)[1])
sessions.init()
send(raised(pool.close)[1])
""",
        *streamed,
    )
    assert [child.receive() for _ in range(6)] == ["ThreadStartError"] * 6
    assert child.receive() == 2
    # Half of the pool's close_timeout would be five minutes.
    assert child.receive() < SOON
    assert child.receive() < SOON
    child.finish()


def test_a_later_init_starts_the_thread_that_could_not_be_started(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    child = start_child(
        PRELUDE
        + """
def is_there():
    return any(each.name == "mandrake-patrol" and each.is_alive() for each in threading.enumerate())

allow(0)
sessions = SessionManager(path).init()
send(is_there())
allow(None)
other = SessionManager(path).init()
send(is_there())
other.close()
sessions.close()
""",
        *streamed,
    )
    assert child.receive() is False
    assert child.receive() is True
    child.finish()


def test_a_stream_that_has_its_thread_goes_on_where_no_other_can_be_started(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    child = start_child(
        PRELUDE
        + """
pool = ConnectionPool(PoolOptions(close_timeout=600.0))
sessions = SessionManager(path, pool=pool).init()
first = sessions.stream_turn(response_id)
allow(0)
with first, sessions.stream_turn(response_id) as second:
    first.write("one")
    second.write("two")
send([first.turn.content, second.turn.content])
# Its thread ends with the last stream.
until(lambda: raised(lambda: sessions.stream_turn(response_id))[0] == "ThreadStartError")
send(raised(sessions.close)[1])
""",
        *streamed,
    )
    assert child.receive() == ["one", "two"]
    assert child.receive() < SOON
    child.finish()


def test_listeners_are_called_when_a_thread_can_be_started_again(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    child = start_child(
        PRELUDE
        + """
sessions = SessionManager(path).init()
heard = []
sessions.track_streaming_turns(response_id, heard.append, follow=True)
until(lambda: heard)
listener_threads = Hub.of(sessions.handle.file).follower._listener_threads
until(lambda: not listener_threads._threads)
allow(0)
sessions.update_turn(turn_id, input_tokens=7)
until(lambda: listener_threads.is_behind)
allow(None)
until(lambda: len(heard) == 2)
send(heard[-1].turn.input_tokens)
sessions.close()
""",
        *streamed,
    )
    assert child.receive() == 7
    child.finish()


def test_async_calls_are_refused_without_threads_and_managers_can_close(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    child = start_child(
        PRELUDE
        + """
async def refused(awaitable):
    try:
        await awaitable
    except ThreadStartError:
        return True
    return False

async def main():
    pool = ConnectionPool(PoolOptions(close_timeout=600.0))
    sessions = AsyncSessionManager(path, pool=pool)
    allow(0)
    refusals = [await refused(sessions.init())]
    allow(None)
    await sessions.init()
    allow(0)
    refusals += [
        await refused(sessions.get_turn(turn_id)),
        await refused(sessions.create_session("x")),
        await refused(sessions.stream_turn(response_id).begin()),
        await refused(sessions.track_streaming_turns(response_id, ignore)),
        await refused(sessions.backup(path + ".copy")),
    ]
    try:
        sessions.watch_response(response_id)
    except ThreadStartError:
        refusals.append(True)
    send(refusals)
    began = time.monotonic()
    await sessions.close()
    send([sessions.is_initialized, time.monotonic() - began < 20])
    allow(None)
    async with sessions:
        async with sessions.stream_turn(response_id) as turn:
            turn.write("later")
        send((await sessions.get_turn(turn.id)).content)
        send(len(await sessions.list_turns(response_id)))

asyncio.run(main())
""",
        *streamed,
    )
    assert child.receive() == [True] * 7
    assert child.receive() == [False, True]
    assert child.receive() == "later"
    assert child.receive() == 2
    child.finish()


def test_a_shutdown_hook_that_has_no_thread_handles_no_signal(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    child = start_child(
        PRELUDE
        + """
import signal
allow(0)
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
send(raised(install_shutdown_hook)[0])
send(before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
allow(None)
install_shutdown_hook().uninstall()
""",
        *streamed,
    )
    assert child.receive() == "ThreadStartError"
    assert child.receive() is True
    child.finish()


def test_a_claim_that_needs_a_thread_is_not_left_behind(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    """Where files cannot be locked, a thread touches the owner's."""
    child = start_child(
        PRELUDE
        + """
import errno, fcntl
sessions = SessionManager(path).init()

def no_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, "no locks")

fcntl.flock = no_locks
allow(0)
send([raised(lambda: sessions.create_turn(response_id))[0], turns()])
send([name for name in os.listdir(os.path.dirname(path)) if "-owner-" in name])
allow(None)
turn = sessions.create_turn(response_id)
sessions.update_turn(turn.id, status="completed")
send(turns())
sessions.close()
""",
        *streamed,
    )
    assert child.receive() == ["ThreadStartError", 1]
    assert child.receive() == []
    assert child.receive() == 2
    child.finish()


def test_a_block_whose_end_was_interrupted_ends_also_without_a_thread(
    streamed: tuple[Path, str, str], start_child: Callable[..., Any]
) -> None:
    """A second Ctrl-C comes while a block that was left ends: a thread would end it."""
    child = start_child(
        PRELUDE
        + """
from mandrake_sessions.concurrency.blocks import Block

class Interrupted(Block):
    ends = 0

    def _enter(self):
        return self

    def _end(self):
        self.ends += 1
        if self.ends == 1:
            raise KeyboardInterrupt

class Leased(Interrupted):
    holds_a_lease = True

class Movable(Interrupted):
    ends_in_any_thread = True

sys.unraisablehook = lambda _: None
allow(0)
for kind in (Leased, Movable):
    block = kind()
    way_out = block.__exit__
    block.__enter__()
    del way_out
    send([block.ends, block.is_entered])
""",
        *streamed,
    )
    assert child.receive() == [2, False]
    assert child.receive() == [2, False]
    child.finish()
