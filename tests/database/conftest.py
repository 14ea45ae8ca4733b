"""Databases for the tests of the layer: a pool, a handle, a lock of another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kits.locks import hold_lock
from kits.pools import quick_pool

from mandrake_sessions import ConnectionPool
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.testing import FaultVFS


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ConnectionPool]]:
    """Makes pools: ``make_pool(linger=0, database={...})``; they are closed in the end."""
    pools = []

    def make(*, database: dict[str, Any] | None = None, **options: Any) -> ConnectionPool:
        pools.append(quick_pool(database=database, **{"close_timeout": 5.0, **options}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def handle(pool: ConnectionPool, ready_path: Path) -> Iterator[FileHandle]:
    """A handle on a new database."""
    with file_handle(pool.acquire(ready_path)) as handle:
        yield handle


@pytest.fixture
def grouping(make_pool: Callable[..., ConnectionPool], ready_path: Path) -> Iterator[FileHandle]:
    """A handle on a new database whose groups are never closed by time."""
    pool = make_pool(database={"group_max_seconds": 600.0})
    with file_handle(pool.acquire(ready_path)) as handle:
        yield handle


@pytest.fixture
def vfs() -> Iterator[FaultVFS]:
    """A file system that can be made to fail; ``DatabaseOptions(vfs=vfs.name)``."""
    vfs = FaultVFS()
    yield vfs
    vfs.unregister()


@pytest.fixture
def hold_write_lock(start_child: Callable[..., Any]) -> Callable[..., Any]:
    """Has another process hold the write lock: for some seconds, or until it gets a line."""

    return partial(hold_lock, start_child)
