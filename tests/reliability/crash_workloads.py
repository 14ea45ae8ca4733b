"""Workloads for the tests of the CrashRunner; they know nothing of databases."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from typing import NoReturn

from mandrake_sessions.testing import acknowledge, phase


def wait() -> NoReturn:
    while True:
        threading.Event().wait(60)


def count(numbers: int) -> None:
    phase("counting")
    for number in range(numbers):
        acknowledge(number)
    phase("waiting")
    wait()


def end(numbers: int) -> None:
    for number in range(numbers):
        acknowledge(number)


def many() -> None:
    """Three threads in each of two processes; none goes on before each has written."""
    all_have_written = multiprocessing.get_context("fork").Barrier(6)
    os.fork()

    def write(number: int) -> None:
        text = [f"{os.getpid()}.{number}", "x" * 2000]
        acknowledge(text)
        all_have_written.wait()
        while True:
            acknowledge(text)

    for number in range(2):
        threading.Thread(target=write, args=(number,)).start()
    write(2)


def with_children() -> None:
    for _ in range(2):
        pid = os.fork()
        if not pid:
            wait()
        acknowledge(pid)
    wait()


def leave_a_program() -> None:
    acknowledge(subprocess.Popen(["sleep", "60"]).pid)
    # No warning of what still runs: that is the point.
    os._exit(0)


def fail() -> None:
    raise RuntimeError("as it should")


def end_badly() -> None:
    sys.exit(3)


def too_long() -> None:
    acknowledge("x" * 4096)
