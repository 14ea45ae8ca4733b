"""What the campaign of kills needs: quick lives, kills at one file operation, and whole texts."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from typing import IO, Any, Self

import apsw
from kits.waiting import PATIENCE

from mandrake_sessions.testing import CrashRunner
from mandrake_sessions.testing.crash import Process
from mandrake_sessions.testing.workload import begin

# -- lives that start in milliseconds -----------------------------------------------------------


class ForkingRunner(CrashRunner):
    """A CrashRunner whose lives are forked from one process that has imported everything.

    That process opens nothing, so nothing is open at a fork; a new interpreter for each life
    would take most of the campaign's time.
    """

    def __init__(self, workload: str, *, seed: int) -> None:
        super().__init__(workload, timeout=PATIENCE, seed=seed)
        self._socket, other = socket.socketpair()
        self._socket.settimeout(PATIENCE)
        paths = [os.path.abspath(each) for each in sys.path]
        script = (
            f"import sys; sys.path[:] = {paths!r}; from kill_kit import serve; "
            f"serve({other.fileno()}, {workload!r})"
        )
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script], pass_fds=[other.fileno()]
        )
        other.close()

    def use(self, workload: str, timeout: float = PATIENCE) -> Self:
        """Run another workload from now on."""
        self._workload = workload
        self._timeout = timeout
        return self

    def ask(self, question: dict[str, Any], *descriptors: int) -> int:
        """Have the server do something; return its answer."""
        socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
        answer = self._socket.recv(64)
        assert answer, "the server of lives is gone"
        return int(answer)

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._server.wait(PATIENCE)

    def _start_process(self, order: dict[str, Any]) -> Process:
        ours, theirs = os.pipe()
        pid = self.ask({"start": order}, theirs)
        os.close(theirs)
        return ForkedProcess(self, pid, os.fdopen(ours, "rb"))


class ForkedProcess:
    """A life that another process has forked, and waits for."""

    def __init__(self, runner: ForkingRunner, pid: int, stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None
        self._runner = runner

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._runner.ask({"wait": self.pid})
        return self.returncode


def serve(number: int, module: str) -> None:
    """Fork lives, and wait for them, as the runner asks."""
    __import__(module.partition(":")[0])
    asked = socket.socket(fileno=number)
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 65536, 1)
        if not message:
            asked.close()
            return
        question = json.loads(message)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            asked.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            # Before it forks: its children must be of its group too.
            os.setpgid(0, 0)
            asked.close()
            # Then the end of the interpreter, which does what is to be done at exit.
            begin(question["start"], descriptors[0])
            return
        # Before anybody can want to kill the group; one of the two comes first.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        os.close(descriptors[0])
        asked.send(str(pid).encode())


# -- kills at one operation ---------------------------------------------------------------------

_EVENTS = {"open", "os.remove", "os.rename", "os.link", "os.mkdir", "os.scandir", "os.utime"}


class Killer:
    """Kills its own process at one of its operations on files: SQLite's, or Python's.

    Args:
        folder: whose files count.
        at: the number of the operation, from 1; 0 for none.
        manner: whether a write is fatal ``before``, ``after``, or when it is half done (``torn``).
        only_changes_of: ends the names of the files of which only changes count, and nothing
            else; empty to count every operation on every file.
    """

    def __init__(self, folder: Path, at: int, manner: str, only_changes_of: str = "") -> None:
        self.manner = manner
        self._only_changes_of = only_changes_of
        self._folder = str(folder)
        self._at = at
        self._numbers = itertools.count(1)
        self.is_armed = False
        self._vfs = _KillingVFS(self)
        sys.addaudithook(self._on_event)

    def arm(self) -> None:
        """Count from here."""
        self._numbers = itertools.count(1)
        self.is_armed = True

    def disarm(self) -> int:
        """Return how many operations there were."""
        self.is_armed = False
        return next(self._numbers) - 1

    def is_fatal(self, name: str, *, is_change: bool = True) -> bool:
        """Count an operation and return whether it is the one."""
        if not self.is_armed:
            return False
        if self._only_changes_of and not (is_change and name.endswith(self._only_changes_of)):
            return False
        return next(self._numbers) == self._at

    def meet(self, name: str, *, is_change: bool = True) -> None:
        """Count an operation and die before it if it is the one."""
        if self.is_fatal(name, is_change=is_change):
            die()

    def _on_event(self, event: str, values: tuple[Any, ...]) -> None:
        if event in _EVENTS and self.is_armed and isinstance(values[0], str | os.PathLike):
            name = os.fspath(values[0])
            if name.startswith(self._folder):
                self.meet(name, is_change=False)


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


class _KillingVFS(apsw.VFS):
    def __init__(self, killer: Killer) -> None:
        self.killer = killer
        super().__init__("killing", "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _KillingFile(self.killer, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.killer.meet(filename)
        super().xDelete(filename, syncdir)


class _KillingFile(apsw.VFSFile):
    def __init__(
        self, killer: Killer, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__("", name, flags)
        self._killer = killer
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or ""

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._killer.is_fatal(self._name):
            part = {"before": 0, "after": len(data), "torn": len(data) // 1024 * 512}
            if written := data[: part[self._killer.manner]]:
                super().xWrite(written, offset)
            die()
        super().xWrite(data, offset)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._killer.meet(self._name, is_change=False)
        return super().xRead(amount, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._killer.meet(self._name)
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._killer.meet(self._name)
        super().xTruncate(size)

    def xLock(self, level: int) -> None:  # noqa: N802
        self._killer.meet(self._name, is_change=False)
        super().xLock(level)


# -- texts that show whether they are whole -----------------------------------------------------


def text_of(key: str) -> str:
    """Return the text of a key, some bytes or some pages long."""
    number = zlib.crc32(key.encode())
    return f"{key} " + f"{number:08x}" * (number % 600)


def key_of(text: str) -> str:
    """Return the key of a text, which must be whole."""
    key = text.partition(" ")[0]
    assert text == text_of(key), f"the text of {key} is not whole"
    return key
