"""Calls made again and again until a time is up, by one thread, several threads or tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, process_time
from typing import Any

import msgspec

from benchmarks.messages import Run

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]


class Calls(msgspec.Struct, kw_only=True):
    """The calls of one thread or task; the times are seconds.

    Attributes:
        values: the results of the calls.
    """

    began: float = 0.0
    ended: float = 0.0
    latencies: list[float] = []
    failed: list[float] = []
    values: list[Any] = []
    errors: Counter[str] = msgspec.field(default_factory=Counter)


def measure_here(make: Callable[[], Call], seconds: float) -> tuple[Run, list[Any]]:
    """Call from this thread; return also what came back."""
    call = make()
    gc.collect()
    since = process_time()
    calls = _call_often(call, seconds, None)
    return _together([calls], process_time() - since)


def measure_threads(
    crew: ThreadPoolExecutor,
    makers: Sequence[Callable[[], Call]],
    seconds: float,
    at: float | None = None,
) -> tuple[Run, list[Any]]:
    """Call from a thread for each maker, all beginning together; return also what came back.

    Args:
        crew: as many threads, the same in each piece: a host's threads, and their connections,
            live long.
        makers: each is called in its thread, and gives what is to be called there.
        seconds: for how long. The time of a piece is bounded and not its count, so that a slow
            store takes as long as a fast one; each thread makes one call at least.
        at: when to begin, by ``monotonic()``.
    """
    start = threading.Barrier(len(makers) + 1)

    def work(make: Callable[[], Call]) -> Calls:
        try:
            call = make()
        except BaseException:
            start.abort()
            raise
        start.wait()
        return _call_often(call, seconds, at)

    # Each waits for all others at the barrier, so each is in a thread of its own.
    working = [crew.submit(work, make) for make in makers]
    gc.collect()
    since = process_time()
    with contextlib.suppress(threading.BrokenBarrierError):
        start.wait()
    failures = [each.exception() for each in working]
    for failure in failures:
        # Broken: another thread could not begin, and raises why.
        if failure is not None and not isinstance(failure, threading.BrokenBarrierError):
            raise failure
    return _together([each.result() for each in working], process_time() - since)


async def measure_tasks(
    makers: Sequence[Callable[[], Awaitable[AsyncCall]]], seconds: float, at: float | None = None
) -> tuple[Run, list[Any]]:
    """Call from a task for each maker, all beginning together, in one event loop."""
    calls = [await make() for make in makers]
    gc.collect()
    began = monotonic() if at is None else at
    since = process_time()
    done = await asyncio.gather(*[_await_often(call, seconds, began) for call in calls])
    return _together(done, process_time() - since)


def _call_often(call: Call, seconds: float, at: float | None) -> Calls:
    done = Calls()
    if at is not None:
        time.sleep(max(0.0, at - monotonic()))
    done.began = before = monotonic()
    until = before + seconds
    while True:
        try:
            value = call()
        except Exception as error:  # noqa: BLE001  # a rival may raise anything; it is counted
            after = monotonic()
            done.errors[type(error).__name__] += 1
            done.failed.append(after - before)
        else:
            after = monotonic()
            done.latencies.append(after - before)
            done.values.append(value)
        if after >= until:
            break
        before = after
    done.ended = after
    return done


async def _await_often(call: AsyncCall, seconds: float, at: float) -> Calls:
    done = Calls()
    await asyncio.sleep(max(0.0, at - monotonic()))
    done.began = before = monotonic()
    until = before + seconds
    while True:
        try:
            value = await call()
        except Exception as error:  # noqa: BLE001  # as above
            after = monotonic()
            done.errors[type(error).__name__] += 1
            done.failed.append(after - before)
        else:
            after = monotonic()
            done.latencies.append(after - before)
            done.values.append(value)
        if after >= until:
            break
        before = after
    done.ended = after
    return done


def _together(results: Sequence[Calls], processor: float) -> tuple[Run, list[Any]]:
    run = Run(
        began=min(each.began for each in results),
        ended=max(each.ended for each in results),
        latencies=[second for each in results for second in each.latencies],
        processor=processor,
        failed=[second for each in results for second in each.failed],
        errors=sum((each.errors for each in results), Counter()),
    )
    return run, [value for each in results for value in each.values]
