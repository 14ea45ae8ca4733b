"""A lock with a deadline: one block at a time, and free again wherever Ctrl-C comes."""

from __future__ import annotations

import threading

from kits.waiting import PATIENCE, until_set

from mandrake_sessions.concurrency.mutex import Mutex


def test_a_second_thread_waits_until_its_deadline() -> None:
    mutex = Mutex()
    got: list[bool] = []

    def take(seconds: float) -> None:
        with mutex.held(seconds) as is_held:
            got.append(is_held)

    with mutex.held(0.0) as is_held:
        assert is_held
        assert not mutex.is_free
        late = threading.Thread(target=take, args=(0.01,))
        late.start()
        late.join()
        patient = threading.Thread(target=take, args=(PATIENCE,))
        patient.start()
    patient.join()
    assert got == [False, True]
    assert mutex.is_free


def test_a_block_inside_another_one_neither_waits_nor_gets_it() -> None:
    mutex = Mutex()
    with mutex.held(PATIENCE) as outer:
        with mutex.held(PATIENCE) as inner:
            assert (outer, inner) == (True, False)
        assert not mutex.is_free
    assert mutex.is_free


def test_another_thread_sees_that_it_is_held() -> None:
    mutex = Mutex()
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with mutex.held(0.0):
            is_held.set()
            until_set(may_end)

    thread = threading.Thread(target=hold)
    thread.start()
    until_set(is_held)
    assert not mutex.is_free
    may_end.set()
    thread.join()
    assert mutex.is_free
