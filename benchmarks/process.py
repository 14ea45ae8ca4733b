"""The measuring process's end of a worker: starts it, sends commands, and kills one that hangs."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from benchmarks.messages import AnyCommand, AnyReply, Failed, Ready, Reply

PROJECT = Path(__file__).parent.parent
STARTING = 60.0
"""Seconds that a worker may take to import its store."""

R = TypeVar("R", bound=Reply)


class WorkerError(Exception):
    """A worker could not run its command.

    Attributes:
        is_offered: False if the store's API lacks it.
    """

    def __init__(self, message: str, *, is_offered: bool = True) -> None:
        super().__init__(message)
        self.is_offered = is_offered


class WorkerProcess:
    """A worker.

    Args:
        where: the store's class, ``module:class``.
        log: the file for its prints and warnings.
        python: the interpreter.
        path: the first places to look for modules; the process works in the first one.

    Attributes:
        python, path: as above.
    """

    def __init__(
        self,
        where: str,
        log: Path,
        *,
        python: Path | str = sys.executable,
        path: Sequence[Path] = (PROJECT,),
    ) -> None:
        self.where = where
        self.python = python
        self.path = path
        self._log = log
        self._ready: Ready | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._decoder = msgspec.json.Decoder(AnyReply)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker", where],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=path[0],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))},
            )
        assert self._process.stdout is not None
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stdout,), daemon=True
        )
        self._listener.start()

    def _listen(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._answers.put(line)
        self._answers.put(b"")

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def facts(self) -> Ready:
        """Return the facts about its store; waits for the import."""
        if self._ready is None:
            self._ready = self._receive(Ready, STARTING)
        return self._ready

    def ask(self, command: AnyCommand, kind: type[R], timeout: float) -> R:
        """Send a command and return its answer.

        Raises:
            WorkerError: it failed, hangs or is gone. One that hangs is killed.
        """
        self.send(command)
        return self.receive(kind, timeout)

    def send(self, command: AnyCommand) -> None:
        """Send a command, whose answer ``receive`` returns."""
        self.facts()
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(msgspec.json.encode(command) + b"\n")
            stdin.flush()
        except (OSError, ValueError) as error:  # gone by itself, or killed by us
            raise WorkerError(f"its process is gone: {self._last_words()}") from error

    def receive(self, kind: type[R], timeout: float) -> R:
        """Return the answer to the last command; raises the errors of ``ask``."""
        return self._receive(kind, timeout)

    def _receive(self, kind: type[R], timeout: float) -> R:
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise WorkerError(f"it did not answer within {timeout:.0f} s") from None
        if not line:
            raise WorkerError(f"its process ended: {self._last_words()}")
        reply = self._decoder.decode(line)
        if isinstance(reply, Failed):
            if reply.is_offered:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(reply.traceback)
            raise WorkerError(reply.reason, is_offered=reply.is_offered)
        assert isinstance(reply, kind), reply
        return reply

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def kill(self) -> None:
        """End it in any state."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it has not read any more
                    pipe.close()
