"""The place in the host's code that made a call, for errors and logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mandrake_sessions.errors import ReentrantScopeError

_PACKAGE = str(Path(__file__).parent.parent) + os.sep


def caller_outside() -> str:
    """Return ``file:line`` of the nearest frame outside this package: the host's call."""
    return next(callers_outside())


def callers_outside() -> Iterator[str]:
    """Yield ``file:line`` of each place where the host called into this package, inner first."""
    frame: FrameType | None = sys._getframe(1)
    was_inside = True
    while frame is not None:
        name = frame.f_code.co_filename
        is_inside = name.startswith(_PACKAGE) or name.endswith(f"{os.sep}contextlib.py")
        if was_inside and not is_inside:
            yield f"{name}:{frame.f_lineno}"
        was_inside = is_inside
        frame = frame.f_back


def reentrant_error(inner: str, outer: str) -> ReentrantScopeError:
    """Return the error that names both places; the outer call is on this thread's own stack."""
    places = [*callers_outside(), "", ""]
    if " at " not in inner:
        inner = f"{inner} at {places[0]}"
    if " at " not in outer:
        outer = f"{outer} at {places[1]}"
    return ReentrantScopeError(
        f"{inner} needs the database, which this thread already holds for {outer}; "
        "pass the open transaction on."
    )
