"""The functions that a workload of a CrashRunner calls, and its start in its process.

Each event is a line of JSON, written by one ``write``: whole or not at all, at any moment of the
kill, and with any number of threads and forked children that write.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import runpy
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

LONGEST_LINE: Final[int] = getattr(select, "PIPE_BUF", 512)
"""Bytes that the system writes into a pipe at once; 4,096 on Linux."""

_LONGEST_TRACEBACK: Final = LONGEST_LINE * 3 // 8

_pipe: int | None = None


def acknowledge(value: Any = None) -> None:
    """Report a finished call to the ``CrashRunner``; call this after the call has returned.

    Args:
        value: the fact, such as an id; any JSON value, about 4,000 bytes at most.

    Raises:
        RuntimeError: this process is not the workload of a runner.
        ValueError: the value is too long to be sent in one piece.
    """
    _send("acknowledged", value)


def phase(name: str) -> None:
    """Report the beginning of a phase to the ``CrashRunner``, so that it can kill during it.

    Args:
        name: the name of the phase.

    Raises:
        RuntimeError: this process is not the workload of a runner.
    """
    _send("phase", name)


def _send(kind: str, value: Any) -> None:
    if _pipe is None:
        raise RuntimeError("This process is not the workload of a CrashRunner.")
    line = json.dumps([kind, value]).encode() + b"\n"
    if len(line) > LONGEST_LINE:
        raise ValueError(f"A report must be shorter than {LONGEST_LINE} bytes of JSON.")
    try:
        os.write(_pipe, line)
    except BrokenPipeError:
        # The test is gone, and no other process would end a workload without an end.
        os._exit(1)


def begin(order: dict[str, Any], pipe: int) -> None:
    """Run a workload in this process; an exception is reported, and raised.

    Args:
        order: its ``workload`` and the ``arguments``.
        pipe: the descriptor that leads to the runner.
    """
    global _pipe  # noqa: PLW0603  # a process is one workload
    _pipe = pipe
    faulthandler.enable()
    try:
        run = _find(order["workload"], order["arguments"])
        _send("begun", None)
        run()
    except Exception:
        failure = traceback.format_exc().encode("ascii", "replace").decode()
        _send("failed", failure[-_LONGEST_TRACEBACK:])
        raise


def _find(workload: str, arguments: list[Any]) -> Callable[[], object]:
    module, separator, name = workload.rpartition(":")
    if separator and not workload.endswith(".py"):
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return lambda: found(*arguments)
    texts = [each if isinstance(each, str) else json.dumps(each) for each in arguments]
    sys.argv = [workload, *texts]
    return lambda: runpy.run_path(workload, run_name="__main__")


def _main() -> None:
    order = json.loads(sys.stdin.readline())
    # The workload's output, also from C, must not come between the lines. Not inherited: a program
    # that the workload starts must not keep the pipe open.
    pipe = os.dup(1)
    os.dup2(2, 1)
    begin(order, pipe)
