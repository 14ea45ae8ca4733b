"""Event loops for code that never imports asyncio: whether one runs here, and calls into it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def runs_event_loop() -> bool:
    """Return whether this thread runs an event loop; a pause here would delay all its tasks."""
    # Not imported for this: where no module has imported asyncio, no loop runs.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    """Schedule a function in an event loop; does nothing if the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def wake(future: asyncio.Future[None]) -> None:
    """Wake the task that awaits a future, in its event loop, unless the future is done."""
    if not future.done():
        future.set_result(None)
