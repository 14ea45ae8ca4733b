"""System calls of every public call fail, one by one, once and from then on.

A library that is loaded before the C library fails them, so that SQLite's own are among them. A
caller gets a typed error that is true. All that was acknowledged is there when the file is opened
without the library, nothing else is but rows of unknown outcome, and the file is healthy.
"""

from __future__ import annotations

import errno

import pytest
from shim_kit import build

PROGRAM = r"""
import ctypes, faulthandler, os, shutil, traceback, warnings
from pathlib import Path
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(open(os.devnull, "w")))
from mandrake_sessions import *

shim = ctypes.PyDLL(sys.argv[1])
shim.shim_disarm.restype = ctypes.c_char_p
root = Path(sys.argv[2])
BOUND = float(sys.argv[3])
PATIENCE = 0.2
# What a failed call leaves to the collector is closed there, late.
warnings.simplefilter("ignore", ResourceWarning)

def new_pool(patience=PATIENCE):
    quick = DatabaseOptions(busy_timeout=patience)
    return ConnectionPool(PoolOptions(database=quick, linger=0, close_timeout=1.0))

class Stage:
    def __init__(self, number, is_open):
        self.folder = root / str(number)
        shutil.copytree(ready, self.folder)
        self.path = self.folder / "db.sqlite"
        self.backup = self.folder / "backup.sqlite"
        self.copy = self.folder / "copy.sqlite"
        self.pool = new_pool()
        self.sessions = SessionManager(self.path, pool=self.pool)
        self.mandrake = MandrakeManager(self.folder / "host", pool=self.pool)
        # What is stored for certain, and what a caller has asked to be stored.
        self.acknowledged, self.tried = {"first", "turn q"}, {"first", "turn q"}
        self.named, self.tried_names = {"known"}, {"known"}
        if is_open:
            self.sessions.init()
            self.first = first

    def add(self, what, work, named=False):
        (self.tried_names if named else self.tried).update(what)
        work()
        (self.named if named else self.acknowledged).update(what)

def history(stage): stage.sessions.render_session_history(stage.first)
def create_session(stage): stage.add({"second"}, lambda: stage.sessions.create_session("second"))
def record_round(stage):
    turns = [NewTurn(content="answer")]
    stage.add({"turn two"}, lambda: stage.sessions.record_round(stage.first, "two", turns))
def transact(stage):
    def work(tx):
        tx.create_session("both")
        tx.create_session("of them")
    stage.add({"both", "of them"}, lambda: stage.sessions.transact(work))
def block(stage):
    def work():
        with stage.sessions.transaction() as tx:
            tx.create_session("block")
    stage.add({"block"}, work)
def stream(stage):
    def work():
        made = stage.sessions.create_round(stage.first, "streamed")
        with stage.sessions.stream_turn(made.response.id) as turn:
            turn.write("text")
            turn.flush()
            turn.write(" and more")
    stage.add({"turn streamed"}, work)
def watch(stage):
    with stage.sessions.watch_session(stage.first) as events:
        stage.sessions.update_session(stage.first, description="other")
        next(iter(events))
def health(stage): stage.sessions.health(HealthLevel.FULL)
def backup(stage):
    stage.sessions.backup(stage.copy)
    with SessionManager(stage.copy, pool=stage.pool) as copy:
        assert [each.title for each in copy.list_sessions()] == ["first"]
def restore(stage): stage.sessions.restore(stage.backup, overwrite=True)
def recover(stage): stage.sessions.recover_interrupted()
def close_pool(stage): stage.pool.close()
def host(stage):
    def work():
        stage.mandrake.create_workspace("new", stage.folder / "new")
    stage.mandrake.init()
    stage.add({"new"}, work, named=True)
    stage.mandrake.close()
def doctor(stage): diagnose(stage.path)
def rescue(stage): salvage(stage.path, stage.copy)

# Whether the manager is open before.
CALLS = {
    "init": (False, lambda stage: stage.sessions.init()),
    "close": (True, lambda stage: stage.sessions.close()),
    "create_session": (True, create_session),
    "record_round": (True, record_round),
    "transact": (True, transact),
    "transaction": (True, block),
    "stream_turn": (True, stream),
    "render_session_history": (True, history),
    "watch_session": (True, watch),
    "health": (True, health),
    "backup": (True, backup),
    "restore": (False, restore),
    "recover_interrupted": (True, recover),
    "pool": (True, close_pool),
    "host": (False, host),
    "diagnose": (False, doctor),
    "salvage": (False, rescue),
}

def leaves(error):
    if isinstance(error, ExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]

def is_typed(error):
    return all(isinstance(each, MandrakeSessionsError) for each in leaves(error))

FALSE = (DatabaseMovedError, DatabaseMissingError, LostLogError, StaleLogError, SchemaTooNewError,
    NotADatabaseError, UnrecognizedDatabaseError, CorruptDatabaseError)

# Typed, and not saying what is false of a file that is where and what it was.
def is_right(error):
    return is_typed(error) and not any(isinstance(each, FALSE) for each in leaves(error))

def stored(path):
    with new_pool(60.0) as pool, SessionManager(path, pool=pool) as sessions:
        report = sessions.health(HealthLevel.THOROUGH)
        bad = [check for check in report.checks if check.status is HealthStatus.FAILED]
        assert not bad, bad
        found = set()
        for session in sessions.list_sessions():
            found.add(session.title)
            for each in sessions.render_session_history(session.id).rounds:
                text = each.request.content
                turns = [(turn.status, turn.content) for turn in each.turns]
                if text != "streamed" or turns == [(TurnStatus.COMPLETED, "text and more")]:
                    found.add(f"turn {text}")
        return found

def names(folder):
    with new_pool(60.0) as pool, MandrakeManager(folder, pool=pool) as mandrake:
        return {each.name for each in mandrake.list_workspaces()}

def attempt(name, number, after, code, for_good):
    # What lasts longer is a hang: the child ends, and says where each thread is.
    faulthandler.dump_traceback_later(BOUND, exit=True)
    is_open, call = CALLS[name]
    stage = Stage(number, is_open)
    is_sure = True
    shim.shim_arm(after, code, for_good)
    try:
        call(stage)
    except BaseException as error:
        is_sure = not any(isinstance(e, CommitOutcomeUnknownError) for e in leaves(error))
        trouble = None if is_right(error) else traceback.format_exc()
    else:
        trouble = None
    failed = shim.shim_disarm()
    for close in (stage.mandrake.close, stage.sessions.close, stage.pool.close):
        try:
            close()
        except BaseException as error:
            if not is_right(error):
                trouble = trouble or traceback.format_exc()
    for look, sure, tried, where in (
        (stored, stage.acknowledged, stage.tried, stage.path),
        (names, stage.named, stage.tried_names, stage.folder / "host"),
    ):
        if look is names and name != "host":
            continue
        try:
            found = look(where)
        except BaseException:
            trouble = trouble or "Without it: " + traceback.format_exc()
            continue
        if sure - found:
            trouble = trouble or f"lost {sure - found}"
        if is_sure and found - sure and name != "stream_turn":
            trouble = trouble or f"refused, and stored: {found - sure}"
    aside = [each.name for each in stage.folder.rglob("*.of-moved-file-*")]
    if aside:
        trouble = trouble or f"set aside: {aside}"
    shutil.rmtree(stage.folder, ignore_errors=True)
    faulthandler.cancel_dump_traceback_later()
    return failed and failed.decode(), trouble

shim.shim_disarm()
ready = root / "ready"
ready.mkdir()
with new_pool(60.0) as pool:
    with SessionManager(ready / "db.sqlite", pool=pool) as sessions:
        first = sessions.create_session("first").id
        sessions.record_round(first, "q", [NewTurn(content="a")])
        sessions.backup(ready / "backup.sqlite")
    with MandrakeManager(ready / "host", pool=pool) as mandrake:
        mandrake.create_workspace("known")
number = 0
send("ready")
while asked := receive():
    name, plan, most = asked
    # All that is imported late is imported now.
    attempt(name, number := number + 1, 10**9, 5, 0)
    made, problems, totals = 0, [], {}
    for code, for_good in plan:
        if code not in totals:
            attempt(name, number := number + 1, 10**9, code, 0)
            totals[code] = shim.shim_counted()
        total = totals[code]
        some = min(total, most)
        # Elsewhere for each error, so that a few of each reach many calls.
        for each in range(some):
            after = (each * total + code % 7 * total // 7) // some % total
            failed, trouble = attempt(name, number := number + 1, after, code, for_good)
            made += failed is not None
            if trouble:
                problems.append([os.strerror(code), bool(for_good), after, failed, trouble])
    send([made, problems])
"""

CALLS = [
    *("init", "close", "create_session", "record_round", "transact", "transaction", "stream_turn"),
    *("render_session_history", "watch_session", "health", "backup", "restore"),
    *("recover_interrupted", "pool", "host", "diagnose", "salvage"),
]
# A lock that is not given is waited for, ten seconds by SQLite itself: one at a time.
PLAN = [
    (errno.EIO, 0),
    (errno.EIO, 1),
    (errno.ENOSPC, 0),
    (errno.ENOSPC, 1),
    (errno.EMFILE, 0),
    (errno.EMFILE, 1),
    (errno.ENOMEM, 0),
    (errno.ENOMEM, 1),
    (errno.EACCES, 0),
    (errno.EACCES, 1),
    (errno.ENOLCK, 0),
]
BOUND = 25.0
"""Seconds after which an attempt hangs; some take a second."""


@pytest.fixture(scope="module")
def child(tmp_path_factory, start_child_of_module):
    folder = tmp_path_factory.mktemp("shim")
    shim, root = build(folder), folder / "root"
    root.mkdir()
    child = start_child_of_module(
        PROGRAM, shim, root, BOUND, LD_PRELOAD=str(shim), SHIM_ROOT=f"{root}/"
    )
    assert child.receive() == "ready"
    return child


@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_system_call_is_a_typed_error_and_loses_nothing(child, campaign, call):
    # In the brief one each call meets some of them, and each of them meets some calls.
    every = campaign.pick(3, 1, 1)
    child.send([call, PLAN[CALLS.index(call) % every :: every], campaign.pick(1, 4, 10_000)])

    made, problems = child.receive()

    named = [
        f"{error}{' from then on' if lasts else ''} at call {after}, {failed}:\n{said}"
        for error, lasts, after, failed, said in problems
    ]
    assert not named, f"{len(named)} of {made} attempts:\n" + "\n".join(named[:4])
    assert made or campaign.name == "brief"


REREADING = r"""
import ctypes, os, shutil
from pathlib import Path
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(open(os.devnull, "w")))
from mandrake_sessions import *

shim = ctypes.PyDLL(sys.argv[1])
shim.shim_disarm.restype = ctypes.c_char_p
root = Path(sys.argv[2])
EIO = 5
shim.shim_disarm()
with ConnectionPool() as pool, SessionManager(root / "ready.sqlite", pool=pool) as sessions:
    ids = [sessions.create_session("title" * 50, "description" * 100).id for _ in range(100)]

def named(call):
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "done"

def attempt(number, after, log, damage):
    path = root / f"{number}.sqlite"
    shutil.copy(root / "ready.sqlite", path)
    if damage:
        with open(path, "r+b") as file:
            # The last pages are those of sessions and of nothing that opening reads.
            file.seek(-5 * 4096, 2)
            file.write(b"x" * 5 * 4096)
    with ConnectionPool() as pool, SessionManager(path, pool=pool) as sessions:
        if log:
            for _ in range(20):
                sessions.create_session("title" * 50, "description" * 100)
        # What the connection reads that writes as well.
        short = lambda: [sessions.get_session(id) for id in ids]
        call = short if damage else sessions.list_sessions
        shim.shim_arm(after, EIO, 0)
        first = named(call)
        failed = (shim.shim_disarm() or b"").decode()
        said = [first, failed, named(call), named(sessions.create_session)]
        return [*said, named(sessions.create_session)]

for number, (log, damage) in enumerate([(0, 0), (1, 0), (0, 1)]):
    send([attempt(100 * number + after, after, log, damage) for after in range(60)])
"""


def test_the_next_call_reads_a_page_that_the_disk_did_not_give(tmp_path, start_child):
    """Real EIO: SQLite calls it corruption, and only its open file knows the cause."""
    shim, root = build(tmp_path), tmp_path / "root"
    root.mkdir()
    child = start_child(REREADING, shim, root, LD_PRELOAD=str(shim), SHIM_ROOT=f"{root}/")
    for _ in ("in the file", "in its log"):
        outcomes = child.receive()
        assert {first for first, *_ in outcomes} <= {"done", "DatabaseIOError", "TooManyFilesError"}
        refused = [it for it in outcomes if it[0] == "DatabaseIOError" and "pread" in it[1]]
        assert refused
        assert {tuple(rest) for _, _, *rest in outcomes} == {("done", "done", "done")}
    # And yet damage is found: not by that connection, by a look at all pages.
    outcomes = [it for it in child.receive() if it[0] == "DatabaseIOError" and "pread" in it[1]]
    assert outcomes
    for _first, _failed, _again, *writes in outcomes:
        assert writes == ["CorruptDatabaseError", "CorruptDatabaseError"]
