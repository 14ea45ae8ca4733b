"""The auxiliary connection: long reads run while the writer writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from database_kit import Held, Task, ends_in_time, file_of, queue_of
from kits.descriptors import open_connections
from kits.entries import KEYS, adding, keys
from kits.waiting import PATIENCE, until_set
from sqlalchemy import select

from mandrake_sessions import ConnectionPool, CorruptDatabaseError, schema
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.engine.budget import Budget
from tools.generate.compiler import compiled


def count(tx: Any) -> int:
    return len(tx.rows(KEYS)) - 3


def test_the_auxiliary_connection_is_opened_when_it_is_first_needed(handle: FileHandle) -> None:
    handle.transact(adding("a"))
    assert handle.fetch(count) == 1
    assert open_connections(handle.path) == 1
    assert handle.query(count) == 1
    assert open_connections(handle.path) == 2


def test_many_first_readers_open_the_auxiliary_connection_once(
    handle: FileHandle, in_threads: Any
) -> None:
    assert in_threads(8, lambda _: handle.query(count)) == [0] * 8
    assert open_connections(handle.path) == 2


def test_a_writer_commits_while_a_snapshot_is_held(handle: FileHandle) -> None:
    """And the snapshot goes on showing what it showed."""
    handle.transact(adding("before"))
    with handle.read() as tx:
        assert count(tx) == 1
        for number in range(5):
            Task(lambda number=number: handle.transact(adding(f"key {number}"))).result()
        assert handle.stats().commits == 6
        assert count(tx) == 1
    assert len(keys(handle)) == 6


def test_a_short_read_takes_the_writers_connection_when_it_is_free(handle: FileHandle) -> None:
    """So it does not wait for a long read."""
    with handle.read() as tx:
        assert count(tx) == 0
        Task(lambda: handle.transact(adding("a"))).result()
        assert Task(lambda: handle.fetch(count, timeout=1.0)).result() == 1


def test_a_short_read_does_not_wait_for_a_writer(handle: FileHandle) -> None:
    with Held(handle, adding("a")):
        assert handle.fetch(count, timeout=1.0) == 0


def test_long_reads_wait_for_each_other_in_a_queue_of_their_own(handle: FileHandle) -> None:
    with handle.read():
        errors = ends_in_time(lambda: Task(lambda: handle.query(count, "count", 0.1)).result(), 0.1)
        assert errors[-1].phase == "queue"
        assert queue_of(handle).waiting == 0


def test_a_query_is_one_snapshot(handle: FileHandle) -> None:
    """Between two statements of one query another thread commits.

    ::

        reader   first SELECT ............ second SELECT: the same
        writer                 commit ─┘
    """
    read_once, written = threading.Event(), threading.Event()

    def twice(tx: Any) -> tuple[int, int]:
        first = count(tx)
        read_once.set()
        until_set(written)
        return first, count(tx)

    reader = Task(lambda: handle.query(twice))
    until_set(read_once)
    handle.transact(adding("a"))
    written.set()
    assert reader.result() == (0, 0)
    assert handle.query(count) == 1


def test_an_invariant_over_two_rows_never_breaks_for_a_reader(handle: FileHandle) -> None:
    """Each unit stores a pair; no reader ever sees an odd number."""
    over = threading.Event()

    def pair(number: int) -> Callable[[Any], None]:
        def unit(tx: Any) -> None:
            adding(f"{number} left")(tx)
            adding(f"{number} right")(tx)

        return unit

    def read(way: Callable[..., int]) -> int:
        reads = 0
        while not over.is_set():
            assert way(count) % 2 == 0
            reads += 1
        return reads

    def snapshot(work: Callable[[Any], int]) -> int:
        with handle.read() as tx:
            return work(tx)

    readers = [
        Task(lambda way=way: read(way))
        for way in (handle.fetch, handle.query, snapshot, handle.fetch)
    ]
    writers = [
        Task(
            lambda start=start: [
                handle.transact(pair(number), delegable=True)
                for number in range(start, start + 100)
            ]
        )
        for start in (0, 1000, 2000)
    ]
    for writer in writers:
        writer.join()
    over.set()
    assert all(reader.result() > 0 for reader in readers)
    assert handle.query(count) == 600


def test_every_way_of_reading_sees_what_was_acknowledged(handle: FileHandle) -> None:
    for number in range(50):
        handle.transact(adding(f"key {number}"), delegable=True)
        assert handle.query(count) == number + 1
        assert handle.fetch(count) == number + 1


TITLES = compiled(select(schema.sessions.c.title))
SCRIBBLES = """
path, at = sys.argv[1], int(sys.argv[2])
with open(path, "r+b") as file:
    file.seek(at)
    file.write(bytes([255]) * 4096)
"""


def test_a_short_read_during_a_checkpoint_notes_the_damage_that_it_meets(
    ready_path: Path, pool: ConnectionPool, start_child: Callable[..., Any]
) -> None:
    """Both connections are in use, so the read opens its own one."""
    raw = apsw.Connection(str(ready_path))
    ((page,),) = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'")
    raw.close()
    with file_handle(pool.acquire(ready_path)) as handle:
        file = file_of(handle)
        with Held(handle), file.exclusive_auxiliary("checkpoint", Budget(PATIENCE)):
            file._no_checkpoint.clear()
            # Another process: closing the file here would drop the locks on it.
            start_child(SCRIBBLES, ready_path, 4096 * (page - 1)).finish()
            reading = Task(lambda: handle.fetch(lambda tx: tx.rows(TITLES), "list"))
            with pytest.raises(CorruptDatabaseError):
                reading.result()
            assert file.refusal.damage is not None
            file._no_checkpoint.set()
