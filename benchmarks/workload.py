"""Threads that append to one store at once, and what came of it."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

import msgspec

from benchmarks.stores.store import Append, Store


class Run(msgspec.Struct, kw_only=True):
    """What one store did in one round.

    Attributes:
        seconds: from the start of all threads together to the end of the last one.
        latencies: seconds of each call, those that failed left out.
        acknowledged: the keys that came back.
        errors: how often which exception came instead.
    """

    seconds: float
    latencies: list[float]
    acknowledged: list[str] = msgspec.field(default_factory=list)
    errors: Counter[str] = msgspec.field(default_factory=Counter)


def append_from_threads(store: Store, conversations: Sequence[str], appends: int) -> Run:
    """Append from one thread for each conversation, beginning together.

    Args:
        store: the store.
        conversations: one for each thread.
        appends: how many by each thread.
    """
    results: list[Run] = []
    begin = threading.Barrier(len(conversations) + 1)
    ends: list[float] = []

    def work(conversation: str) -> None:
        append = store.appender(conversation)
        begin.wait()
        results.append(_append_often(append, appends))
        ends.append(perf_counter())

    threads = [threading.Thread(target=work, args=(each,)) for each in conversations]
    for thread in threads:
        thread.start()
    gc.collect()
    begin.wait()
    since = perf_counter()
    for thread in threads:
        thread.join()
    store.rest()
    return Run(
        seconds=max(ends) - since,
        latencies=[each for run in results for each in run.latencies],
        acknowledged=[each for run in results for each in run.acknowledged],
        errors=sum((run.errors for run in results), Counter()),
    )


def append_here(store: Store, conversation: str, appends: int) -> Run:
    """Append from this thread alone."""
    append = store.appender(conversation)
    gc.collect()
    run = _append_often(append, appends)
    store.rest()
    return run


def _append_often(append: Append, appends: int) -> Run:
    run = Run(seconds=0.0, latencies=[])
    since = before = perf_counter()
    for _ in range(appends):
        try:
            key = append()
        except Exception as error:  # noqa: BLE001  # a rival may raise anything; it is counted
            run.errors[type(error).__name__] += 1
            before = perf_counter()
            continue
        after = perf_counter()
        run.latencies.append(after - before)
        run.acknowledged.append(key)
        before = after
    run.seconds = perf_counter() - since
    return run


def read_often(store: Store, conversation: str, reads: int, expected: int) -> Run:
    """Read a conversation again and again; each read must give ``expected`` exchanges."""
    read = store.reader(conversation)
    gc.collect()
    run = Run(seconds=0.0, latencies=[])
    since = before = perf_counter()
    for _ in range(reads):
        found = read()
        after = perf_counter()
        assert found == expected, f"{store.name} read {found} of {expected}"
        run.latencies.append(after - before)
        before = after
    run.seconds = perf_counter() - since
    return run
