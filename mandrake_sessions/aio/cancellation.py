"""The outcome of a call whose await was cancelled.

It is attached to the ``CancelledError`` and is no subclass of it: ``asyncio.timeout()`` and
``TaskGroup`` of Python 3.11 and 3.12 compare the exception's type with ``is``, and would let a
subclass through instead of raising ``TimeoutError``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

_ATTRIBUTE = "__cancelled_call__"


class CancelledCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call whose await was cancelled, and whether it took effect.

    Attributes:
        operation: the method that was awaited.
        is_committed: True if its effect is stored, False if nothing of it is; None if the COMMIT
            failed in a way that may have stored it.
        result: what the call would have returned; None unless it may be committed.
        failure: the exception that the call would have raised, or None.
    """

    operation: str
    is_committed: bool | None
    result: Any = None
    failure: BaseException | None = None


def cancelled_call(error: BaseException) -> CancelledCall | None:
    """Return the outcome of the call that ``error`` ended, or None for an error from elsewhere.

    Args:
        error: a ``CancelledError``, or the ``TimeoutError`` that ``asyncio.timeout()`` and
            ``asyncio.wait_for()`` make of it.
    """
    seen: BaseException | None = error
    while seen is not None:
        found: CancelledCall | None = getattr(seen, _ATTRIBUTE, None)
        if found is not None:
            return found
        seen = seen.__cause__
    return None


def note_outcome(error: asyncio.CancelledError, call: CancelledCall) -> None:
    """Attach the outcome of a call to an error."""
    setattr(error, _ATTRIBUTE, call)
