"""Pools for tests."""

from __future__ import annotations

from typing import Any

from kits.waiting import PATIENCE
from mandrake_sessions import ConnectionPool, DatabaseOptions, Durability, PoolOptions


def quick_pool(*, database: dict[str, Any] | None = None, **options: Any) -> ConnectionPool:
    """Return a pool that keeps nothing open, does not wait for the disk, and waits for locks.

    Args:
        database: other ``DatabaseOptions``.
        options: other ``PoolOptions``.
    """
    asked = {"durability": Durability.FAST, "busy_timeout": PATIENCE, **(database or {})}
    return ConnectionPool(
        PoolOptions(database=DatabaseOptions(**asked), **{"linger": 0, **options})
    )
