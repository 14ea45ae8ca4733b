"""An owner's file shows whether its process lives: it is locked until the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from database_kit import Task, file_of
from kits.descriptors import descriptors
from kits.waiting import until

from mandrake_sessions import ConnectionPool, PoolClosedError
from mandrake_sessions.database.files import owner, owner_signs
from mandrake_sessions.database.pool.file_handle import FileHandle

PRELUDE = """
import errno, fcntl, os
from pathlib import Path
from mandrake_sessions.database.files import owner, owner_signs
path = Path(sys.argv[1])
"""
CLAIM = """
send(owner.claim(path).id)
receive()
"""
STRANGERS = [
    "",
    "a-stranger",
    "../../etc/passwd",
    "x" * 5000,
    "00000000-0000-0000-0000-00000000000G",
    "{00000000-0000-0000-0000-000000000000}",
    "00000000-0000-0000-0000-000000000000\n",
    "\0",
]


@pytest.fixture(autouse=True)
def no_claim_is_left() -> Iterator[None]:
    """Ends what a test has claimed, as the end of the process does."""
    yield
    owner._at_exit()


def files(path: Path) -> list[str]:
    """Return the names of the owners' files of a database."""
    return sorted(each.name for each in path.parent.glob(f"{path.name}-owner-*"))


def name_of(path: Path, id: str) -> str:
    return f"{path.name}-owner-{id}"


def test_an_owner_lives_until_it_lets_go(path: Path) -> None:
    mine = owner.claim(path)
    assert owner.is_alive(path, mine.id)
    assert files(path) == [name_of(path, mine.id)]
    assert stat.S_IMODE(mine.path.stat().st_mode) == 0o600
    mine.release()
    assert not owner.is_alive(path, mine.id)
    assert files(path) == []
    assert descriptors(path) == []


def test_a_process_has_one_claim_on_a_database(path: Path, tmp_path: Path) -> None:
    first, second = owner.claim(path), owner.claim(path)
    other = owner.claim(tmp_path / "other.sqlite")
    assert first.id == second.id != other.id
    first.release()
    assert owner.is_alive(path, second.id)
    second.release()
    assert not owner.is_alive(path, second.id)
    assert owner.is_alive(tmp_path / "other.sqlite", other.id)


def test_a_kept_claim_outlives_its_last_use_and_is_taken_up_again(path: Path) -> None:
    first = owner.claim(path)
    first.release(keep=True)
    assert owner.is_alive(path, first.id)
    again = owner.claim(path)
    assert again.id == first.id
    again.release()
    assert files(path) == []


def test_another_process_sees_an_owner_live_and_die(
    path: Path, start_child: Callable[..., Any]
) -> None:
    mine = owner.claim(path)
    ask = "while True:\n    send(owner.is_alive(path, receive()))\n"
    child = start_child(PRELUDE + CLAIM + ask, path)
    theirs = child.receive()
    child.send()
    child.send(mine.id)
    assert child.receive() is True
    assert owner.is_alive(path, theirs)
    mine.release()
    child.send(mine.id)
    assert child.receive() is False
    child.process.send_signal(signal.SIGKILL)
    child.process.wait()
    assert files(path) == [name_of(path, theirs)]
    assert not owner.is_alive(path, theirs)


def test_the_end_of_a_process_removes_its_file(path: Path, start_child: Callable[..., Any]) -> None:
    child = start_child(PRELUDE + CLAIM, path)
    theirs = child.receive()
    assert files(path) == [name_of(path, theirs)]
    child.send()
    child.finish()
    assert files(path) == []


def test_processes_that_look_do_not_take_each_other_for_the_owner(
    path: Path, start_child: Callable[..., Any], in_threads: Callable[..., list[bool]]
) -> None:
    child = start_child(PRELUDE + CLAIM, path)
    theirs = child.receive()
    child.process.kill()
    child.process.wait()

    def look(_number: int) -> bool:
        return any(owner.is_alive(path, theirs) for _ in range(300))

    assert in_threads(8, look) == [False] * 8


SWEEP = """
import threading
stop = threading.Event()
def sweep():
    while not stop.is_set():
        owner.forget_dead(path)
thread = threading.Thread(target=sweep)
thread.start()
send("sweeping")
receive()
stop.set()
thread.join()
"""


def test_a_removal_of_dead_owners_files_leaves_a_claim_that_is_being_made(
    path: Path, start_child: Callable[..., Any], campaign: Any
) -> None:
    """A process that has claimed is alive for others afterwards, whatever was swept meanwhile.

    ::

        claimer   make the file ......... lock it ... still there? else once more
        sweeper        ...... find it unlocked: remove it
    """
    sweepers = [start_child(PRELUDE + SWEEP, path) for _ in range(2)]
    assert [each.receive() for each in sweepers] == ["sweeping"] * 2
    for _ in range(campaign.pick(1500, 3000, 30_000)):
        mine = owner.claim(path)
        assert mine.is_in_place
        mine.release()
    for sweeper in sweepers:
        sweeper.send()
        sweeper.finish()
    assert descriptors(path.parent) == []


FORKED = """
mine = owner.claim(path)
pid = os.fork()
if not pid:
    found = [each for each in os.listdir("/proc/self/fd")
             if "-owner-" in (os.path.realpath(f"/proc/self/fd/{each}"))]
    # A release by the child is none: the claim is its parent's.
    mine.release()
    send([os.getpid(), mine.id, found, owner.is_alive(path, mine.id), owner.claim(path).id])
    os.read(0, 1)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_forked_child_does_not_keep_its_parent_alive(
    path: Path, start_child: Callable[..., Any]
) -> None:
    """::

    parent  claim ─ fork ............ kill -9 (dead, though the child goes on)
    child           └ closes the file ─ claims for itself ............ alive
    """
    parent = start_child(PRELUDE + FORKED, path)
    pid, theirs, inherited, was_alive, of_child = parent.receive()
    assert inherited == []
    assert was_alive
    assert of_child != theirs
    assert owner.is_alive(path, theirs)
    parent.process.kill()
    parent.process.wait()
    assert not owner.is_alive(path, theirs)
    assert owner.is_alive(path, of_child)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not owner.is_alive(path, of_child))


FORK_AMIDST = """
import threading
stop = threading.Event()
def claim():
    while not stop.is_set():
        owner.claim(path).release()
thread = threading.Thread(target=claim)
thread.start()
found = set()
for _ in range(100):
    pid = os.fork()
    if not pid:
        names = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        os._exit(any("-owner-" in name for name in names))
    found.add(os.waitpid(pid, 0)[1])
stop.set()
thread.join()
send(sorted(found))
"""


def test_a_fork_during_a_claim_leaves_no_file_open_in_the_child(
    path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(PRELUDE + FORK_AMIDST, path)
    assert child.receive() == [0]
    child.finish()


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_text_that_is_no_owners_id_names_no_file(path: Path, stranger: str) -> None:
    with owner_signs.examined(path) as is_living:
        assert not is_living
    assert not owner.is_alive(path, stranger)
    owner.forget(path, stranger)


def test_a_file_that_only_looks_like_an_owners_belongs_to_no_owner(
    path: Path, tmp_path: Path
) -> None:
    id = "0198c5b2-1111-7222-8333-444455556666"
    target = path.with_name(name_of(path, id))
    somebodys = tmp_path / "precious"
    somebodys.write_text("kept")
    target.symlink_to(somebodys)
    assert not owner.is_alive(path, id)
    owner.forget_dead(path)
    assert somebodys.read_text() == "kept"
    assert not target.is_symlink()
    os.mkfifo(target)
    assert not owner.is_alive(path, id)
    owner.forget_dead(path)
    target.mkdir()
    assert not owner.is_alive(path, id)
    owner.forget_dead(path)
    assert target.is_dir()


def test_a_claim_whose_file_is_gone_is_made_anew(path: Path) -> None:
    """A folder may be deleted and made again while the process lives."""
    first = owner.claim(path)
    first.release(keep=True)
    first.path.unlink()
    second = owner.claim(path)
    assert second.id != first.id
    assert owner.is_alive(path, second.id)
    assert not owner.is_alive(path, first.id)
    assert len(descriptors(path.parent)) == 1


# -- of other users ----------------------------------------------------------------------------

AS_ANOTHER_USER = """
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
while id := receive():
    send(owner.is_alive(path, id))
"""
WITHOUT_TABLE = """
from mandrake_sessions.database import kernel_locks
owner_signs.HEARTBEAT_INTERVAL = 0.1
kernel_locks._read = lambda kind, inode: None  # as on another system than Linux
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o640, 0o644), (0o666, 0o644)])
def test_every_user_who_may_open_the_database_may_look_at_its_owners(
    path: Path, mode: int, expected: int
) -> None:
    path.touch()
    path.chmod(mode)
    before = os.umask(0o077)
    try:
        mine = owner.claim(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(mine.path.stat().st_mode) == expected


def test_the_owner_of_a_private_database_may_look_at_a_claim_of_root(open_folder: Path) -> None:
    path = open_folder / "db.sqlite"
    path.touch(mode=0o600)
    os.chown(path, 54321, 54321)
    assert stat.S_IMODE(owner.claim(path).path.stat().st_mode) == 0o644


@pytest.mark.parametrize("prelude", [PRELUDE, PRELUDE + WITHOUT_TABLE])
def test_an_owner_whose_file_cannot_be_opened_is_seen_live_and_die(
    open_folder: Path, start_child: Callable[..., Any], prelude: str
) -> None:
    path = open_folder / "db.sqlite"
    looker = start_child(prelude + AS_ANOTHER_USER, path)
    claimer = start_child(PRELUDE + CLAIM, path)
    theirs = claimer.receive()
    assert stat.S_IMODE(path.with_name(name_of(path, theirs)).stat().st_mode) == 0o600
    looker.send(theirs)
    assert looker.receive() is True
    claimer.process.kill()
    claimer.process.wait()

    def is_dead() -> bool:
        looker.send(theirs)
        return looker.receive() is False

    until(is_dead)
    looker.send("")
    looker.finish()


def test_a_lack_of_descriptors_calls_no_owner_dead(
    path: Path, start_child: Callable[..., Any]
) -> None:
    theirs = start_child(PRELUDE + CLAIM, path).receive()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        found = owner.is_alive(path, theirs)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert found


# -- where files cannot be locked --------------------------------------------------------------


def no_locks(_descriptor: int, _operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


NO_LOCKS = """
def no_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = no_locks
owner_signs.HEARTBEAT_INTERVAL = 0.02
"""


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses every lock, and less patience than usual."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(owner_signs, "HEARTBEAT_INTERVAL", 0.02)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_an_owner_lives_as_long_as_its_heart_beats(
    path: Path, start_child: Callable[..., Any]
) -> None:
    child = start_child(PRELUDE + NO_LOCKS + CLAIM, path)
    theirs = child.receive()
    beats: set[int] = set()

    def has_beaten() -> bool:
        beats.add(path.with_name(name_of(path, theirs)).stat().st_mtime_ns)
        assert owner.is_alive(path, theirs)
        return len(beats) > 5

    until(has_beaten)
    child.process.kill()
    child.process.wait()
    # An owner that is not known yet is alive.
    assert owner.is_alive(path, theirs)
    until(lambda: not owner.is_alive(path, theirs))
    owner.forget_dead(path)
    assert files(path) == []


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_clock_that_jumps_changes_nothing(path: Path) -> None:
    mine = owner.claim(path)
    # As another process sees it, whatever the time of change is: the past, or the future.
    for moment in (0, 2**40, 1):
        os.utime(mine.path, ns=(moment, moment))
        with owner_signs.examined(mine.path) as is_living:
            assert is_living


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_beating_ends_with_the_claim(path: Path) -> None:
    mine = owner.claim(path)
    stop = owner._claims.stop_beating
    assert stop is not None
    mine.release()
    assert stop.is_set()
    assert owner._claims.stop_beating is None
    assert files(path) == []


def test_a_process_without_locks_does_not_call_a_locked_owner_dead(
    path: Path, start_child: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = start_child(PRELUDE + CLAIM, path).receive()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(owner_signs, "HEARTBEAT_INTERVAL", 0.0)
    assert all(owner.is_alive(path, theirs) for _ in range(3))


# -- the claim of an open file -----------------------------------------------------------------


def test_a_transaction_knows_the_owner_once_there_is_a_claim(handle: FileHandle) -> None:
    file = file_of(handle)
    assert file.owner is None
    assert handle.transact(lambda tx: tx.owner) is None
    assert handle.query(lambda tx: tx.owner) is None
    id = file.claim()
    assert file.claim() == id == file.owner
    assert handle.transact(lambda tx: tx.owner) == id
    assert handle.query(lambda tx: tx.owner) == id
    with handle.write() as tx:
        assert tx.owner == id


def test_a_connection_that_is_opened_after_the_claim_knows_it(handle: FileHandle) -> None:
    id = file_of(handle).claim()
    assert handle.query(lambda tx: tx.owner) == id


def test_a_claim_ends_with_the_file_when_nothing_streams_any_more(
    pool: ConnectionPool, path: Path
) -> None:
    handle = pool.acquire(path)
    id = file_of(handle).claim()
    file_of(handle).release_claim()
    handle.release()
    assert not owner.is_alive(path, id)
    assert files(path) == []


def test_a_claim_stays_when_something_may_still_stream(pool: ConnectionPool, path: Path) -> None:
    handle = pool.acquire(path)
    id = file_of(handle).claim()
    handle.release()
    assert owner.is_alive(path, id)
    # The next one that opens it takes it up, and can let go of it.
    with pool.acquire(path) as handle:
        assert file_of(handle).claim() == id
        file_of(handle).release_claim()
    assert files(path) == []


def test_a_claim_after_the_release_counts(pool: ConnectionPool, path: Path) -> None:
    handle = pool.acquire(path)
    file_of(handle).claim()
    file_of(handle).release_claim()
    id = file_of(handle).claim()
    handle.release()
    assert owner.is_alive(path, id)


def test_a_closed_file_is_not_claimed(pool: ConnectionPool, path: Path) -> None:
    handle = pool.acquire(path)
    file = file_of(handle)
    handle.release()
    with pytest.raises(PoolClosedError):
        file.claim()
    assert files(path) == []


def test_a_file_that_was_moved_lets_go_of_its_claim(pool: ConnectionPool, path: Path) -> None:
    with pool.acquire(path) as handle:
        id = file_of(handle).claim()
        file_of(handle).retire_moved()
        until(lambda: not owner.is_alive(path, id))
    assert files(path) == []


KEEPS = """
from mandrake_sessions import *
pool = ConnectionPool(PoolOptions(linger=0))
def claim():
    with pool.acquire(path) as handle:
        return handle.file.claim()
send(claim())
receive()
send(claim())
receive()
"""


def test_removing_a_database_removes_what_owners_left(
    pool: ConnectionPool, path: Path, start_child: Callable[..., Any]
) -> None:
    living = start_child(PRELUDE + KEEPS, path)
    first = living.receive()
    with pool.acquire(path) as handle:
        file_of(handle).claim()
    # After the others have opened it: an opening removes it too.
    dead = start_child(PRELUDE + CLAIM, path)
    dead.receive()
    dead.process.kill()
    dead.process.wait()
    beside = path.with_name(f"{path.name}-owner-manual.txt")
    beside.touch()
    assert len(files(path)) == 4
    pool.remove(path)
    assert list(path.parent.iterdir()) == [beside]
    # The claim of the living one was removed too: it makes another one at its next use.
    living.send()
    second = living.receive()
    assert second != first
    assert owner.is_alive(path, second)


def test_threads_claim_a_file_once(
    handle: FileHandle, path: Path, in_threads: Callable[..., list[str]]
) -> None:
    assert len(set(in_threads(8, lambda _number: file_of(handle).claim()))) == 1
    assert len(files(path)) == 1


def test_claiming_does_not_wait_for_a_lease(handle: FileHandle) -> None:
    with handle.write() as tx:
        claimed = Task(file_of(handle).claim).result()
        assert tx.owner == claimed
