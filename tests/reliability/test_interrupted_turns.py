"""Ctrl-C at any call of a transaction that waits for others leaves the turnstile in order."""

from __future__ import annotations

import fcntl
import itertools
import os
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from interleaving_kit import Thread, interrupted_at
from kernel_locks import lock_lines
from kits.entries import KEYS, adding
from kits.pools import quick_pool
from kits.waiting import until

from mandrake_sessions.database.files import turnstile
from mandrake_sessions.database.files.turnstile import turnstile_path


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
            with pool.acquire(path) as handle:
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
            with pool.acquire(path) as handle:
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
