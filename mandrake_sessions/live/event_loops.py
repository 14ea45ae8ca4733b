"""Telling coroutines in their event loops, from any thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    """Have a function called soon in an event loop; a closed one has nobody left to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def wake(future: asyncio.Future[None]) -> None:
    """Wake who awaits a future, in its event loop, unless that has happened."""
    if not future.done():
        future.set_result(None)
