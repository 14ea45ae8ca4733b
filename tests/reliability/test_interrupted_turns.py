"""Ctrl-C at any call of a transaction that waits for others leaves the turnstile in order."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import pytest
from interleaving_kit import Thread, interrupted_at
from kernel_locks import lock_lines
from kits.entries import KEYS, adding
from kits.pools import quick_pool
from kits.waiting import PATIENCE, until

from mandrake_sessions.database.files import turnstile
from mandrake_sessions.database.files.turnstile import turnstile_path
from mandrake_sessions.database.pool.file_handle import file_handle


def in_line(path: Path) -> tuple[int, int]:
    """Return how many hold the turnstile, and how many the kernel lets wait for it."""
    mine = [line for line in lock_lines([turnstile_path(path)]) if "FLOCK" in line]
    waiting = sum(line.startswith("->") for line in mine)
    return len(mine) - waiting, waiting


def until_in_line(path: Path, expected: tuple[int, int], why: object) -> None:
    until(lambda: in_line(path) == expected, why)


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_a_transaction_that_waits_leaves_the_turnstile_in_use(
    tmp_path: Path, ready_database: Any, monkeypatch: pytest.MonkeyPatch, campaign: Any
) -> None:
    """
    ::

        another       holds the turnstile ......................... lets go
        interrupted   asks for it: a thread starts ─ Ctrl-C, at each call of it
        the same      holds nothing; then asks for it again: the thread is there
    """
    pool = quick_pool(linger=1.0)
    with pool:
        for number in itertools.count(0, campaign.pick(5, 2, 1)):
            path = ready_database.lay(tmp_path / f"{number}.sqlite")
            with file_handle(pool.acquire(path)) as handle:
                mine = handle.file.writer.turnstile
                monkeypatch.setattr(turnstile, "PATIENCE", 0.01)
                other = os.open(turnstile_path(path), os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(other, fcntl.LOCK_EX)
                mine.checks_at = 0.0
                error = interrupted_at(number, partial(handle.transact, adding("first")))
                fcntl.flock(other, fcntl.LOCK_UN)
                until_in_line(path, (0, 0), error)
                fcntl.flock(other, fcntl.LOCK_EX)
                monkeypatch.setattr(turnstile, "PATIENCE", 60.0)
                mine.checks_at = 0.0
                waiting = Thread(partial(handle.transact, adding("second")))
                until_in_line(path, (1, 1), error)
                os.close(other)
                waiting.result()
                until_in_line(path, (0, 0), error)
                assert ("second",) in handle.fetch(lambda tx: tx.rows(KEYS))
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
    print(f"\na transaction that waits: {number} places")  # a result
    assert number > 20


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_that_ends_a_hold_lets_the_next_process_in(
    tmp_path: Path, ready_database: Any, monkeypatch: pytest.MonkeyPatch, campaign: Any
) -> None:
    """
    ::

        interrupted   holds the turnstile ─ COMMIT ─ keeps its turn, or ends it: Ctrl-C
        another                          waits ............................... has it
    """
    monkeypatch.setattr(turnstile, "PATIENCE", 60.0)
    pool = quick_pool(linger=1.0)
    with pool:
        for number in itertools.count(0, campaign.pick(5, 2, 1)):
            path = ready_database.lay(tmp_path / f"{number}.sqlite")
            with file_handle(pool.acquire(path)) as handle:
                mine = handle.file.writer.turnstile
                other = os.open(turnstile_path(path), os.O_RDWR | os.O_CREAT, 0o600)
                handle.transact(adding("before"))
                # It is free: taken at once, and kept for a transaction that follows at once.
                mine.checks_at = 0.0
                mine._left_at = monotonic() + 1
                error = interrupted_at(number, partial(handle.transact, adding("first")))
                until_in_line(path, (0, 0), error)
                assert not mine.is_entered, error
                assert not mine.is_held, error
                os.close(other)
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
    print(f"\na turn: {number} places")  # a result
    assert number > 20


HOLD = """
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
send("held")
receive()
connection.execute("ROLLBACK")
send("gone")
"""


def is_free(path: Path) -> bool:
    """Return whether another program would have the write lock at once."""
    with contextlib.closing(apsw.Connection(str(path))) as other:
        try:
            other.execute("BEGIN IMMEDIATE; ROLLBACK")
        except apsw.BusyError:
            return False
    return True


def let_go(other: Any, path: Path, is_over: threading.Event) -> None:
    """End another program's transaction once a thread waits for it, or the call has ended."""
    index = [Path(f"{path}-shm")]
    until(lambda: is_over.is_set() or any(each.startswith("-> OFD") for each in lock_lines(index)))
    other.send()
    assert other.receive() == "gone"


@pytest.mark.timeout(600)
def test_ctrl_c_at_any_call_of_a_wait_for_the_write_lock_holds_nothing(
    tmp_path: Path, ready_database: Any, start_child: Callable[..., Any], campaign: Any
) -> None:
    """
    ::

        another       holds the write lock ............................ lets go
        interrupted   waits: threads start ─ Ctrl-C, at each call of it
        the same      is let in at its next call
    """
    pool = quick_pool(linger=1.0)
    with pool:
        for number in itertools.count(0, campaign.pick(9, 3, 1)):
            path = ready_database.lay(tmp_path / f"{number}.sqlite")
            with file_handle(pool.acquire(path)) as handle:
                other = start_child(HOLD, path)
                assert other.receive() == "held"
                # As after a wait for a program that does not rest: no looks before it.
                handle.file.writer.turnstile._gap_from = monotonic() + PATIENCE
                is_over = threading.Event()
                releasing = Thread(partial(let_go, other, path, is_over))
                error = interrupted_at(number, partial(handle.transact, adding("first")))
                is_over.set()
                releasing.result()
                other.finish()
                until(lambda path=path: is_free(path), error)
                handle.transact(adding("second"))
                assert ("second",) in handle.fetch(lambda tx: tx.rows(KEYS))
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt)
    print(f"\na wait for the write lock: {number} places")  # a result
    assert number > 20
