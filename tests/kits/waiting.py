"""Waiting for what must happen: with a deadline that a machine under load does not reach."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

PATIENCE = 60.0
"""Seconds after which a test gives up on what must happen; nothing waits for so long."""

SOON = 20.0
"""Seconds within which a call ends that must not wait, on a machine under load too.

What it must not wait for lasts longer in the tests that measure it.
"""


def until(condition: Callable[..., Any], why: object = "it did not happen") -> None:
    """Wait for what nothing announces: look until it is so."""
    deadline = monotonic() + PATIENCE
    never = threading.Event()
    while not condition():
        assert monotonic() < deadline, why
        never.wait(0.001)


def until_set(event: threading.Event) -> None:
    """Wait for an event that must come."""
    assert event.wait(PATIENCE), "it did not happen"
