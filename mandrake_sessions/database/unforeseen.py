"""Calls that were not foreseen: by a finalizer, by a signal's handler in the midst of a call.

The garbage collector calls finalizers wherever an object is made, and Python calls the handlers of
signals between any two of its steps: perhaps while this thread holds a lock of this library, or is
the thread that the caller would wait for. So what can be done later is done by another thread, and
what cannot is refused at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import get_ident
from types import CodeType, FrameType
from typing import Final

from mandrake_sessions.errors import ReentrantScopeError
from mandrake_sessions.log import get_logger

_PACKAGE: Final = str(Path(__file__).parent.parent) + os.sep
_FINALIZE: Final = weakref.finalize.__call__.__code__


def is_unforeseen() -> bool:
    """Return whether a finalizer calls, or a signal's handler that came in the midst of a call."""
    frame: FrameType | None = sys._getframe(1)
    # Another's code that stands below some of this library, and what may yet turn out to be such.
    strangers: list[CodeType] = []
    seen: list[CodeType] = []
    # One pass, for every opening and closing goes through it, and a host's stack may be deep.
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code is _FINALIZE:
            return True
        if not code.co_filename.startswith(_PACKAGE):
            seen.append(code)
        elif seen:
            strangers += seen
            seen = []
        frame = frame.f_back
    # Handlers run in the main thread only.
    if not strangers or get_ident() != threading.main_thread().ident:
        return False
    return any(code in strangers for code in _handlers())


def _handlers() -> Iterator[CodeType]:
    for number in signal.valid_signals():
        handler: object = signal.getsignal(number)
        # A partial, a method or an object with __call__, perhaps.
        handler = getattr(handler, "func", handler)
        code = getattr(handler, "__code__", None)
        if code is None:
            code = getattr(vars(type(handler)).get("__call__"), "__code__", None)
        if isinstance(code, CodeType):
            yield code


def is_of_a_handler(error: BaseException) -> bool:
    """Return whether a signal's handler has raised an error, whatever it came in the midst of."""
    if get_ident() != threading.main_thread().ident:
        return False
    handlers = list(_handlers())
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in handlers:
            return True
        step = step.tb_next
    return False


def refuse_unforeseen(operation: str) -> None:
    """Refuse a call that could wait for its own thread.

    Raises:
        ReentrantScopeError: a finalizer calls, or a signal's handler in the midst of another call.
    """
    if is_unforeseen():
        raise ReentrantScopeError(
            f"{operation} was called by a finalizer, or by a signal's handler in the midst of "
            "another call: it could wait for its own thread. Call it from outside."
        )


def do_elsewhere(work: Callable[[], object]) -> None:
    """Have something done by a thread of its own, at once; takes no lock and does not wait."""
    # None is to be had when the interpreter ends; what is open is closed then all the same.
    with contextlib.suppress(RuntimeError):
        start_new_thread(_do, (work,))


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001  # nobody waits for it
        get_logger(__name__).exception("work_of_a_finalizer_failed")
