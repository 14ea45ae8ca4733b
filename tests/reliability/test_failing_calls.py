"""Every system call of every public call fails, once and for good: typed errors, no lost write."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from shim_kit import build

from mandrake_sessions import ConnectionPool, SessionManager

PROGRAM = r"""
import ctypes, os, shutil, traceback
from pathlib import Path
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(open(os.devnull, "w")))
from mandrake_sessions import *

shim = ctypes.PyDLL(sys.argv[1])
root, ready = Path(sys.argv[2]), Path(sys.argv[3])

def new_pool():
    quick = DatabaseOptions(busy_timeout=0.2)
    return ConnectionPool(PoolOptions(database=quick, linger=0, close_timeout=0.5))

class Stage:
    def __init__(self, number):
        self.folder = root / str(number)
        self.folder.mkdir()
        self.path = self.folder / "db.sqlite"
        shutil.copyfile(ready, self.path)
        self.pool = new_pool()
        self.sessions = SessionManager(self.path, pool=self.pool)
        self.acknowledged = {"first"}

    def add(self, title):
        self.sessions.create_session(title)
        self.acknowledged.add(title)

def first(stage): return stage.sessions.list_sessions()[0].id
def block(stage):
    with stage.sessions.transaction() as tx:
        tx.create_session("block")
    stage.acknowledged.add("block")

# Whether the manager is open before, and what is called.
CALLS = {
    "init": (False, lambda stage: stage.sessions.init()),
    "create_session": (True, lambda stage: stage.add("second")),
    "update_session": (True, lambda s: s.sessions.update_session(first(s), title="first")),
    "list_sessions": (True, lambda stage: stage.sessions.list_sessions()),
    "history": (True, lambda stage: stage.sessions.render_session_history(first(stage))),
    "iter": (True, lambda stage: list(stage.sessions.iter_session_history(first(stage)))),
    "usage": (True, lambda stage: stage.sessions.get_session_usage(first(stage))),
    "block": (True, block),
    "stats": (True, lambda stage: stage.sessions.stats()),
    "close": (True, lambda stage: stage.sessions.close()),
}
NAME = sys.argv[4]
is_open, call = CALLS[NAME]

def typed(error):
    if isinstance(error, ExceptionGroup):
        return all(map(typed, error.exceptions))
    return isinstance(error, MandrakeSessionsError)

def attempt(number, after, code, for_good):
    stage = Stage(number)
    if is_open:
        stage.sessions.init()
    problem = None
    shim.shim_arm(after, code, for_good)
    try:
        call(stage)
    except BaseException as error:
        if not typed(error):
            problem = traceback.format_exc()
    fired = shim.shim_disarm()
    for close in (stage.sessions.close, stage.pool.close):
        try:
            close()
        except BaseException as error:
            if not typed(error):
                problem = problem or traceback.format_exc()
    try:
        with new_pool() as pool, SessionManager(stage.path, pool=pool) as sessions:
            lost = stage.acknowledged - {each.title for each in sessions.list_sessions()}
        if lost:
            problem = problem or f"lost {lost}"
    except BaseException:
        problem = problem or traceback.format_exc()
    shutil.rmtree(stage.folder)
    return fired, problem

# All that is imported late is imported now.
attempt(0, 10**9, 5, 0)
tell("ready")
number = 1
while asked := hear():
    code, for_good, step = asked
    problems, after = [], 0
    while True:
        fired, problem = attempt(number, after, code, for_good)
        number += 1
        if problem:
            problems.append([after, problem])
        if not fired:
            break
        after += step
    tell([after, problems])
"""

CALLS = [
    *("create_session", "update_session", "list_sessions", "history", "iter", "usage", "block"),
    *("stats", "init", "close"),
]
SLOW = ("init", "close")
"""Calls whose attempts wait for seconds while a failure lasts."""

CODES = [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.EACCES]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def ready(ready_path: Path, pool: ConnectionPool) -> Path:
    """A closed database with a conversation, which each attempt begins with a copy of."""
    with SessionManager(ready_path, pool=pool) as sessions:
        sessions.create_round(sessions.create_session("first").id, "q")
    return ready_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_system_call_is_a_typed_error_and_loses_nothing(
    shim, ready, start_child, campaign, call
):
    if call in SLOW and campaign.name == "brief":
        pytest.skip("only in longer campaigns")
    root = ready.with_name("root")
    root.mkdir()
    child = start_child(PROGRAM, shim, root, ready, call, LD_PRELOAD=str(shim), SHIM_ROOT=str(root))
    assert child.hear() == "ready"
    failures = []
    counted = 0
    for code in CODES[: campaign.pick(1, 5, 5)]:
        for for_good in (0, 1):
            child.tell([code, for_good, campaign.pick(23, 11, 1)])
            calls, problems = child.hear()
            counted += calls
            name = f"{errno.errorcode[code]} {for_good}"
            failures += [f"{name} {at}:\n{said}" for at, said in problems]
    child.tell(None)
    assert not failures, f"{len(failures)} problems\n" + "\n".join(failures[:3])
    assert counted or call == "stats"
