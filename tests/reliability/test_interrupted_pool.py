"""Ctrl-C at any call that opens, parks or closes files leaves no thread waiting."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import pytest
from interleaving_kit import Thread, interrupted_at
from kits.descriptors import open_connections
from kits.entries import KEYS, adding
from kits.pools import quick_pool
from kits.waiting import PATIENCE, SOON, until

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.database.open_file.lifecycle import FileLifecycle, FileState
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.open_files import OpenFiles
from mandrake_sessions.database.pool.slots import Slots, SlotState

pytestmark = pytest.mark.usefixtures("no_finalizers")


class Stand:
    """A pool in which one file may be open, and handles on two: ``first`` is parked."""

    def __init__(self, folder: Path, ready_database: Any) -> None:
        self.folder = folder
        self.ready_database = ready_database
        self.pool = quick_pool(max_open=1, close_timeout=0.5)
        self.first, self.second = self.acquire("first"), self.acquire("second")

    def new(self, name: str) -> Path:
        path: Path = self.ready_database.lay(self.folder / f"{name}.sqlite")
        return path

    def acquire(self, name: str) -> FileHandle:
        return file_handle(self.pool.acquire(self.new(name)))

    def is_settled(self) -> bool:
        """Whether nothing is being opened or closed."""
        moving = {SlotState.OPENING, SlotState.CLOSING}
        slots = tuple(self.pool._slots.values())
        return not self.pool._forgotten and not any(slot.state in moving for slot in slots)


def use(handle: FileHandle) -> None:
    handle.fetch(lambda tx: tx.rows(KEYS))


DOING: dict[str, Callable[[Stand], Any]] = {
    "a call that opens a parked file": lambda stand: use(stand.first),
    "an acquire that has one parked": lambda stand: stand.acquire("third").release(),
    "an acquire of a parked file": lambda stand: stand.pool.acquire(stand.first.path).release(),
    "an acquire of an open file": lambda stand: stand.pool.acquire(stand.second.path).release(),
    "a removal": lambda stand: stand.pool.remove(stand.new("third")),
    "the last release": lambda stand: stand.second.release(),
    "the closing of the pool": lambda stand: stand.pool.close(),
}


@pytest.mark.parametrize("doing", DOING)
@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_leaves_no_file_stuck(
    doing: str, tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """
    ::

        interrupted   marks a file ─ opens, parks or closes it ─ notes that it has
                      Ctrl-C at each call of it
        others                                                     wait? ─ look ─ go on
    """
    step = campaign.pick(11, 2, 1)
    for number in itertools.count(0, step):
        folder = tmp_path / str(number)
        stand = Stand(folder, ready_database)
        pool, handles = stand.pool, (stand.first, stand.second)
        work = partial(DOING[doing], stand)
        error = Thread(partial(interrupted_at, number, work)).result()
        until(stand.is_settled, error)
        if not pool.is_closed:
            living = [handle for handle in handles if not handle._is_released]
            for handle in living:
                use(handle)
            # One whose release was interrupted is counted until it is collected.
            assert len(living) <= pool.stats().handles <= len(handles), error
            assert sum(open_connections(handle.path) for handle in handles) <= 2, error
        pool.close()
        assert not pool._slots, error
        assert [open_connections(handle.path) for handle in handles] == [0, 0], error
        if error is None:
            break
        assert isinstance(error, KeyboardInterrupt)
    print(f"\n{doing}: every {step} of {number} places")  # a result
    assert number >= 20


def test_ctrl_c_after_a_statement_has_run_does_not_retire_the_file(
    tmp_path: Path, ready_database: Any
) -> None:
    """A short read has no transaction to roll back: its statement must not stay unfinished."""
    stand = Stand(tmp_path, ready_database)
    with stand.pool:
        use(stand.second)
        for number in itertools.count():
            error = Thread(partial(interrupted_at, number, partial(use, stand.second))).result()
            use(stand.second)
            if error is None:
                break
        stand.first.release()
        stand.second.release()


def interrupted_in(
    work: Callable[[], Any], event: str, code: CodeType, caller: CodeType
) -> KeyboardInterrupt:
    """Call ``work`` with one KeyboardInterrupt where a function begins or has returned."""

    def look(frame: FrameType, seen: str, _what: object) -> None:
        back = frame.f_back
        if seen == event and frame.f_code is code and back is not None and back.f_code is caller:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        work()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.setprofile(None)
    pytest.fail("it did not come there")


MOMENTS = {
    "the slot was forgotten": ("return", Slots.forget.__code__),
    "others are woken": ("call", Gate.set.__code__),
}


@pytest.mark.parametrize(
    ("doing", "moment"),
    [
        ("closes", "the slot was forgotten"),
        ("fails to open", "the slot was forgotten"),
        ("closes", "others are woken"),
        ("fails to open", "others are woken"),
        ("parks", "others are woken"),
        ("opens", "others are woken"),
    ],
)
def test_ctrl_c_while_a_file_is_closed_or_opened_leaves_no_thread_waiting(
    doing: str, moment: str, tmp_path: Path, ready_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    ::

        interrupted   marks the file ─ closes it ─ forgets the slot, Ctrl-C
        another                 └─ wants it, waits ...................... ─ has it
    """
    stand = Stand(tmp_path, ready_database)
    path = stand.new("third") if "open" in doing else stand.second.path
    event, code = MOMENTS[moment]
    ending: Callable[..., None]
    work: Callable[[], object]
    if doing == "parks":
        ending, work = OpenFiles._park, partial(stand.acquire, "third")
    elif doing == "closes":
        ending, work = OpenFiles.close, stand.second.release
    elif doing == "opens":
        ending, work = OpenFiles._note_open, partial(stand.pool.acquire, path)
    else:
        ending, work = OpenFiles._note_failure, partial(stand.pool.acquire, path)
    waiting: list[Thread] = []

    def wait_for_it() -> None:
        slot = stand.pool._slots[path]
        waiting.append(Thread(lambda: stand.pool.acquire(path).release()))
        until(lambda: bool(slot.changed._sleepers), doing)

    def stopping(real: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any, **options: Any) -> Any:
            if not waiting:
                wait_for_it()
                if doing == "fails to open":
                    # No error of a database's, as a fault of the library would be.
                    raise RuntimeError
            return real(*args, **options)

        return method

    with stand.pool:
        if "open" in doing:
            monkeypatch.setattr(OpenFiles, "_open_new", stopping(OpenFiles._open_new))
        else:
            monkeypatch.setattr(FileLifecycle, "close", stopping(FileLifecycle.close))
        # Kept: a handle that no variable got lives on in its traceback.
        error = interrupted_in(work, event, code, ending.__code__)
        began = monotonic()
        waiting[0].result()
        assert monotonic() - began < SOON
        for handle in (stand.first, stand.second):
            if not handle._is_released:
                handle.release()
        del error
        gc.collect()


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_a_checkpoint_retires_nothing(
    tmp_path: Path, ready_database: Any, campaign: Any
) -> None:
    """A monitor's look makes one in its caller's thread."""
    path = ready_database.lay(tmp_path / "first.sqlite")
    may_go = threading.Event()

    def wait() -> None:
        may_go.wait(PATIENCE)

    pool = quick_pool(linger=1.0, database={"checkpoint_frames": 1})
    with pool, file_handle(pool.acquire(path)) as handle:
        file = handle._file
        # The commits' own checkpoints wait until it is over.
        pool._files.maintenance.call_later("busy", 0.0, wait)
        # The auxiliary connection is open from here on.
        file.checkpoint()
        step = campaign.pick(5, 2, 1)
        for number in itertools.count(0, step):
            # So many that it is finished, however long copying takes.
            for part in range(4):
                handle.transact(adding(f"{number} {part}"))
            error = Thread(partial(interrupted_at, number, file.checkpoint)).result()
            gc.collect()
            assert file.state is FileState.OPEN, error
            assert not any(leased.queue.holder for leased in file.leased_connections()), error
            if error is None:
                break
        handle.transact(lambda tx: tx.rows(KEYS))
        may_go.set()
    print(f"\na checkpoint: every {step} of {number} places")  # a result
    assert number >= 90
