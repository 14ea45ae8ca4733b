"""CrashRunner: runs a workload in another process, kills it, and knows its acknowledgements.

The workload runs in a new interpreter and reports finished calls and phases through a pipe. The
pipe is read to its end after the kill, so a written acknowledgement counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from time import monotonic
from typing import IO, Any, Final, Protocol, Self

import msgspec

from mandrake_sessions import arguments as checked

_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mandrake_sessions.testing.workload import _main; _main()"
)
# Windows has one way to end a process; the exit status is the given number.
_SIGKILL: Final = signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM
_KILLED: Final = -_SIGKILL if sys.platform != "win32" else _SIGKILL
_FAULTS: Final = (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
_PATIENCE: Final = 5.0
_MOST_UNREAD: Final = 10_000
_POLL: Final = 0.1


class WorkloadError(Exception):
    """A workload failed by itself: it raised, or ended with another status than 0."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """When a workload is killed: after the given events, and then some time later.

    Args:
        phase: the phase it must be in; None for any.
        acknowledged: how many acknowledgements must have come.
        after: seconds to wait then. Without a phase and acknowledgements, from the start of the
            workload.
        within: seconds of a further wait, of random length up to this.
    """

    phase: str | None = None
    acknowledged: int = 0
    after: float = 0.0
    within: float = 0.0

    def __post_init__(self) -> None:
        checked.count("acknowledged", self.acknowledged)
        checked.seconds("after", self.after)
        checked.seconds("within", self.within)


class CrashReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a workload ended.

    Attributes:
        acknowledged: its acknowledgements, in the order of writing.
        phase: the last phase it announced, None for none.
        phases: every phase it announced, with the second of its life at which that began.
        seconds: how long it lived, from the start of the workload.
        exit_status: the exit status of its process; negative for a signal.
    """

    acknowledged: tuple[Any, ...]
    phase: str | None
    phases: tuple[tuple[str, float], ...]
    seconds: float
    exit_status: int

    @property
    def was_killed(self) -> bool:
        """Whether it was killed, by the runner or by itself, before it had ended."""
        return self.exit_status == _KILLED


class Process(Protocol):
    """The process of a ``Life``, which leads a process group; Popen fits."""

    pid: int
    stdout: IO[bytes] | None
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status."""


class Life:
    """A running workload; made by ``CrashRunner.start``.

    It belongs to one thread. Leaving the ``with`` block kills the processes that still run.

    Attributes:
        acknowledged: the acknowledgements read so far.
        phase: the last phase it announced so far, None for none.
    """

    def __init__(self, process: Process, timeout: float, chance: random.Random) -> None:
        self.acknowledged: list[Any] = []
        self.phase: str | None = None
        self._process = process
        self._timeout = timeout
        self._deadline = monotonic() + timeout
        self._chance = chance
        self._begun_at: float | None = None
        self._phases: list[tuple[str, float]] = []
        self._failure: str | None = None
        self._is_silent = False
        self._received_at = monotonic()
        # The events with the times of their reading. Bounded: a workload that reports without end
        # must wait for the reader, and not fill the memory.
        self._events: queue.Queue[tuple[float, tuple[str, Any]]] = queue.Queue(_MOST_UNREAD)
        self._is_over = False
        self._reader = threading.Thread(target=self._read, name="crash-runner", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def wait_for(self, moment: Moment) -> bool:
        """Read its reports until a moment has come; False if it ended before.

        Args:
            moment: when to return.

        Raises:
            TimeoutError: its time is over; it was killed.
        """
        since = monotonic()
        while not self._is_at(moment):
            if self._is_silent:
                return False
            if not self._receive(self._deadline):
                raise self._timed_out()
            since = self._received_at
        goal = since + moment.after + self._chance.uniform(0.0, moment.within)
        while monotonic() < goal and not self._is_silent:
            if not self._receive(min(goal, self._deadline)) and goal > self._deadline:
                raise self._timed_out()
        return not self._is_silent

    def kill(self) -> None:
        """Kill its process and all others of its group with SIGKILL, if it still runs."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if sys.platform != "win32":
                # The process was not waited for yet, so no other one can have its id.
                os.killpg(self._process.pid, _SIGKILL)
            else:
                os.kill(self._process.pid, _SIGKILL)

    def finish(self) -> CrashReport:
        """Wait for its end, read its last reports, and return how it ended.

        Raises:
            WorkloadError: it failed by itself.
            TimeoutError: it did not end in its time; it was killed.
        """
        while not self._is_silent:
            if not self._receive(self._deadline):
                raise self._timed_out()
        # The processes it has started are killed too. It ends itself, and its status is fixed.
        self.kill()
        status = self._wait()
        if self._failure is not None:
            raise WorkloadError(f"The workload raised:\n{self._failure}")
        if status != _KILLED and (status > 0 or -status in _FAULTS):
            raise WorkloadError(f"The workload ended with status {status}, in {self._where()}.")
        begun = self._received_at if self._begun_at is None else self._begun_at
        return CrashReport(
            acknowledged=tuple(self.acknowledged),
            phase=self.phase,
            phases=tuple((name, at - begun) for name, at in self._phases),
            seconds=self._received_at - begun,
            exit_status=status,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        self._is_over = True
        self._reader.join(_PATIENCE)
        if not self._reader.is_alive() and self._process.stdout is not None:
            self._process.stdout.close()

    # -- reports ----------------------------------------------------------------------------

    def _read(self) -> None:
        """Read, in another thread, until no process has the pipe open for writing."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A write of one line is never cut, so an incomplete line is another writer's.
            if line.endswith(b"\n"):
                self._put(json.loads(line))
            if self._is_over:
                return
        self._put(("silent", None))

    def _put(self, event: tuple[str, Any]) -> None:
        while not self._is_over:
            with contextlib.suppress(queue.Full):
                self._events.put((monotonic(), event), timeout=_POLL)
                return

    def _receive(self, until: float) -> bool:
        """Process its next report; False if none came in time."""
        if self._is_silent:
            return False
        try:
            self._received_at, event = self._events.get(timeout=max(0.0, until - monotonic()))
        except queue.Empty:
            return False
        kind, value = event
        if kind == "begun":
            self._begun_at = self._received_at
        elif kind == "phase":
            self.phase = value
            self._phases.append((value, self._received_at))
        elif kind == "acknowledged":
            self.acknowledged.append(value)
        elif kind == "failed":
            self._failure = value
        else:
            self._is_silent = True
        return True

    def _is_at(self, moment: Moment) -> bool:
        return (
            self._begun_at is not None
            and len(self.acknowledged) >= moment.acknowledged
            and moment.phase in (None, self.phase)
        )

    def _where(self) -> str:
        return f"phase {self.phase}, after {len(self.acknowledged)} acknowledgements"

    def _wait(self) -> int:
        try:
            return self._process.wait(max(_PATIENCE, self._deadline - monotonic()))
        except subprocess.TimeoutExpired:
            raise self._timed_out() from None

    def _timed_out(self) -> TimeoutError:
        """Kill it, after it has printed the stack of each of its threads to stderr."""
        if sys.platform != "win32" and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGABRT)
            # Not waiting for the process: its group is killed by its id.
            self._reader.join(1.0)
        self.kill()
        return TimeoutError(
            f"The workload still lived after {self._timeout} s, in {self._where()}."
        )


class CrashRunner:
    """Runs a workload in other processes, and kills them.

    A workload is a function of a module, or a script. It calls ``acknowledge(value)`` after a call
    has returned, and ``phase(name)`` when a phase begins. Its output goes to stderr.

    Args:
        workload: ``module:function``, or the path of a script, which ends in ``.py``. The module
            is found through this process's ``sys.path``.
        timeout: seconds after which a life is ended and counts as stuck.
        environment: environment variables to add.
        seed: for the random part of moments; None for another one in every run.
    """

    def __init__(
        self,
        workload: str | os.PathLike[str],
        *,
        timeout: float = 60.0,
        environment: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> None:
        self._workload = os.fspath(workload)
        self._timeout = checked.seconds("timeout", timeout)
        self._environment = dict(environment or {})
        self._chance = random.Random(seed)

    def run(self, *arguments: Any, kill: Moment | None = None) -> CrashReport:
        """Run the workload, kill it at a moment, and return how it ended.

        If it ends before that moment comes, it is not killed, and the report says so.

        Args:
            arguments: of the workload, as JSON values. A script gets them in ``sys.argv``, strings
                unchanged and other values as JSON.
            kill: when to kill it; None to let it run to its end.

        Returns:
            Its acknowledgements, and how it ended. None of its processes runs any more.

        Raises:
            WorkloadError: it failed by itself.
            TimeoutError: it did not reach the moment, or its end, in time.
        """
        with self.start(*arguments) as life:
            if kill is not None and life.wait_for(kill):
                life.kill()
            return life.finish()

    def start(self, *arguments: Any) -> Life:
        """Start the workload and return it while it runs; use it in a ``with`` block.

        Args:
            arguments: of the workload, as for ``run``.
        """
        order = {"workload": self._workload, "arguments": arguments}
        return Life(self._start_process(order), self._timeout, self._chance)

    def _start_process(self, order: dict[str, Any]) -> Process:
        paths = [os.path.abspath(each) for each in sys.path]
        process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | self._environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(order).encode() + b"\n")
        return process
