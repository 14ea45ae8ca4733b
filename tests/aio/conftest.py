"""What the tests of the asyncio face share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mandrake_sessions import ConnectionPool
from mandrake_sessions.aio import AsyncSessionManager


@pytest.fixture
def manager(ready_path: Path, pool: ConnectionPool) -> AsyncSessionManager:
    """An AsyncSessionManager that is not open yet."""
    return AsyncSessionManager(ready_path, pool=pool)


@pytest.fixture
def managers(tmp_path: Path, pool: ConnectionPool) -> Callable[[int], list[AsyncSessionManager]]:
    """Makes so many managers, each of a file of its own."""
    return lambda count: [
        AsyncSessionManager(tmp_path / f"{number}" / "db.sqlite", pool=pool)
        for number in range(count)
    ]
