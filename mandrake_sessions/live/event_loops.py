"""Event loops, of a library that need not import asyncio: is there one, and telling what waits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def runs_event_loop() -> bool:
    """Return whether this thread runs an event loop, all of whose tasks a pause would hold up."""
    # Not imported to ask: without it there is none.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    """Have a function called soon in an event loop; a closed one has nobody left to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def wake(future: asyncio.Future[None]) -> None:
    """Wake who awaits a future, in its event loop, unless that has happened."""
    if not future.done():
        future.set_result(None)
