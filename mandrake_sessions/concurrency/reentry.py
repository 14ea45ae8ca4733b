"""Unforeseen calls: by a finalizer, or by a signal's handler during another call.

The garbage collector calls finalizers wherever an object is made, and Python calls the handlers of
signals between any two of its steps. At that moment this thread may hold a lock of this library, or
be the thread for which the caller would wait. So work that can be done later is done by another
thread, and other calls are refused at once.
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
    """Return whether the call comes from a finalizer, or from a signal's handler inside a call."""
    frame: FrameType | None = sys._getframe(1)
    # Foreign code below some code of this library, and code that may turn out to be such.
    strangers: list[CodeType] = []
    seen: list[CodeType] = []
    # One pass: every opening and closing runs this, and a host's stack may be deep.
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
        # The handler may be a partial, a method or an object with __call__.
        handler = getattr(handler, "func", handler)
        code = getattr(handler, "__code__", None)
        if code is None:
            code = getattr(vars(type(handler)).get("__call__"), "__code__", None)
        if isinstance(code, CodeType):
            yield code


def is_of_a_handler(error: BaseException) -> bool:
    """Return whether a signal's handler has raised an error, wherever it came."""
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
        ReentrantScopeError: a finalizer calls, or a signal's handler during another call.
    """
    if is_unforeseen():
        raise ReentrantScopeError(
            f"{operation} was called by a finalizer, or by a signal's handler during another "
            "call: it could wait for its own thread. Call it from outside."
        )


def do_elsewhere(work: Callable[[], object]) -> None:
    """Start work in its own thread; takes no lock and does not wait."""
    # At the interpreter's end no thread can start; open files are closed then all the same.
    with contextlib.suppress(RuntimeError):
        start_new_thread(_do, (work,))


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001  # no caller waits for it
        get_logger(__name__).exception("work_of_a_finalizer_failed")
