"""One store in a process of its own: ``python -m benchmarks.worker MODULE:CLASS``.

It reads commands from stdin and answers on stdout, a JSON line each (``benchmarks/messages.py``).
The store's imports, threads and output stay in here; the measuring process can kill it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

import mandrake_sessions
from benchmarks.messages import (
    AnyCommand,
    Append,
    Check,
    Checked,
    Close,
    CreateWorkspaces,
    Done,
    Failed,
    Fill,
    FillSessions,
    Grow,
    Open,
    ReadOften,
    Ready,
    Reopen,
    Reply,
    Run,
    Stream,
    Update,
    Visit,
)
from benchmarks.stores.store import NotOffered
from benchmarks.workload import measure_here, measure_tasks, measure_threads
from mandrake_sessions import Durability


def load(where: str) -> Any:
    """Return a store's class, named as ``module:class``."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


class Worker:
    """Runs commands with one class of stores."""

    def __init__(self, where: str) -> None:
        self._class = load(where)
        self._loop = asyncio.Runner() if self._class.is_async else None
        self._stores: list[Any] = []
        self._conversations: list[tuple[Any, str]] = []
        self._acknowledged: list[str] = []
        self._visited: set[str] = set()
        self._crew: ThreadPoolExecutor | None = None

    def ready(self) -> Ready:
        """Say what it is, with the versions of what it uses."""
        versions = {each: version(each) for each in self._class.requires}
        return Ready(
            name=self._class.name,
            library=str(Path(mandrake_sessions.__file__).parent),
            remark=self._class.remark,
            versions=versions,
        )

    def do(self, command: AnyCommand) -> Reply:
        """Run a command, and return the answer."""
        ways: dict[type, Callable[[Any], Reply]] = {
            Open: self._open,
            Fill: self._fill,
            Grow: self._grow,
            FillSessions: self._fill_sessions,
            Append: self._append,
            ReadOften: self._read,
            Update: self._update,
            Stream: self._stream,
            CreateWorkspaces: self._create_workspaces,
            Reopen: self._reopen,
            Visit: self._visit,
            Check: self._check,
            Close: self._close,
        }
        return ways[type(command)](command)

    def _open(self, command: Open) -> Done:
        self._close()
        for number in range(command.files):
            folder = Path(command.folder, str(number))
            folder.mkdir(parents=True, exist_ok=True)
            store = self._class(folder, command.durability)
            self._run(store.open())
            self._stores.append(store)
        if command.known:
            self._conversations = [(self._stores[0], command.known)]
        for number in range(0 if command.known else command.conversations):
            store = self._stores[number % len(self._stores)]
            self._conversations.append((store, self._run(store.new_conversation())))
        return Done(conversations=[key for _, key in self._conversations])

    def _fill(self, command: Fill) -> Done:
        for store, conversation in self._conversations:
            self._run(store.fill(conversation, command.exchanges))
        return Done()

    def _grow(self, command: Grow) -> Done:
        store = self._stores[0]
        for _ in range(0, command.exchanges, command.each):
            conversation = self._run(store.new_conversation())
            self._run(store.fill(conversation, command.each))
        self._conversations.append((store, self._run(store.new_conversation())))
        return Done()

    def _fill_sessions(self, command: FillSessions) -> Done:
        self._run(self._stores[0].fill_sessions(command.sessions))
        return Done()

    def _append(self, command: Append) -> Run:
        makers = [partial(store.appender, key) for store, key in self._conversations]
        run, keys = self._measure(makers, command.seconds, command.at)
        self._acknowledged += keys
        for store in self._stores:
            self._run(store.rest())
        return run

    def _read(self, command: ReadOften) -> Run:
        store = self._stores[0]
        conversation = self._conversations[0][1] if self._conversations else ""
        makers = {
            "whole": lambda: store.reader(conversation),
            "last": lambda: store.last_reader(conversation, command.last),
            "turn": lambda: store.turn_reader(conversation),
            "sessions": lambda: store.sessions_reader(command.last),
        }
        run, found = self._call(makers[command.what], command.seconds)
        wrong = {each for each in found if each != command.expected}
        if wrong:
            counts = " or ".join(map(str, sorted(wrong)))
            raise AssertionError(f"read {counts} where there are {command.expected}")
        return run

    def _update(self, command: Update) -> Run:
        store, conversation = self._conversations[0]
        return self._call(lambda: store.updater(conversation), command.seconds)[0]

    def _stream(self, command: Stream) -> Run:
        store, conversation = self._conversations[0]
        return self._call(lambda: store.streamer(conversation, command.tokens), command.seconds)[0]

    def _create_workspaces(self, command: CreateWorkspaces) -> Run:
        with self._class.workspace_maker(Path(command.folder), command.durability) as create:
            return measure_here(lambda: create, command.seconds)[0]

    def _reopen(self, command: Reopen) -> Run:
        folder = Path(command.folder, "0")

        def reopen() -> None:
            store = self._class(folder, command.durability)
            self._run(store.open())
            self._run(store.close())

        # In this thread in any case: opening is what is measured, not a loop's turns.
        return measure_here(lambda: reopen, command.seconds)[0]

    def _visit(self, command: Visit) -> Run:
        folders = itertools.cycle(command.folders)

        def visit() -> str:
            folder = next(folders)
            store = self._class(Path(folder, "0"), command.durability)
            self._run(store.open())
            append = self._run(store.appender(command.conversation))
            key = self._run(append())
            self._run(store.close())
            self._visited.add(folder)
            return str(key)

        run, keys = measure_here(lambda: visit, command.seconds)
        self._acknowledged += keys
        self._settle()
        return run

    def _settle(self) -> None:
        """Wait until closed files are closed, if the store closes them in the background."""
        if hasattr(self._class, "settle"):
            self._class.settle()

    def _check(self, _command: Check) -> Checked:
        found: set[str] = set()
        figures: dict[str, float] = {}
        for store in self._stores:
            found |= self._run(store.keys())
            figures |= getattr(store, "figures", dict)()
        for folder in self._visited:
            # The durability makes no difference to reading.
            store = self._class(Path(folder, "0"), Durability.DURABLE)
            self._run(store.open())
            found |= self._run(store.keys())
            self._run(store.close())
        wanted = set(self._acknowledged)
        return Checked(
            acknowledged=len(self._acknowledged), found_again=len(wanted & found), figures=figures
        )

    def _close(self, _command: Close | None = None) -> Done:
        if self._crew is not None:
            self._crew.shutdown()
            self._crew = None
        while self._stores:
            self._run(self._stores.pop().close())
        self._conversations = []
        self._acknowledged = []
        self._visited = set()
        return Done()

    def _call(self, make: Callable[[], Any], seconds: float) -> tuple[Run, list[Any]]:
        return self._measure([make], seconds, None)

    def _measure(
        self, makers: Sequence[Callable[[], Any]], seconds: float, at: float | None
    ) -> tuple[Run, list[Any]]:
        if self._loop is not None:
            return self._loop.run(measure_tasks(makers, seconds, at))
        if len(makers) == 1 and at is None:
            return measure_here(makers[0], seconds)
        if self._crew is None:
            self._crew = ThreadPoolExecutor(len(makers))
        return measure_threads(self._crew, makers, seconds, at)

    def _run(self, result: Any) -> Any:
        """Return what a method gave, awaited where the store is an async one."""
        if inspect.iscoroutine(result):
            assert self._loop is not None, "a coroutine of a store that is not async"
            return self._loop.run(result)
        return result


def _answer(worker: Worker, command: AnyCommand) -> Reply:
    try:
        return worker.do(command)
    except Exception as error:  # noqa: BLE001  # of any kind; the measuring process gets it
        return Failed(
            is_offered=not isinstance(error, NotOffered),
            reason=f"{type(error).__name__}: {error}".splitlines()[0][:200],
            traceback=traceback.format_exc(),
        )


def main(where: str, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer commands until stdin ends."""
    worker = Worker(where)
    encode = msgspec.json.Encoder().encode
    decoder = msgspec.json.Decoder(AnyCommand)
    stdout.write(encode(worker.ready()) + b"\n")
    stdout.flush()
    for line in stdin:
        stdout.write(encode(_answer(worker, decoder.decode(line))) + b"\n")
        stdout.flush()


if __name__ == "__main__":
    # What the store prints goes to stderr, which the measuring process keeps in a file.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        main(sys.argv[1], sys.stdin.buffer, answers)
        # A store's own threads may delay the exit without end; no answer is left to be sent.
        answers.flush()
        os._exit(0)
