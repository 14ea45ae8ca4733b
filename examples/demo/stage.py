"""The process in which the agents work until a signal ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import FrameType

import msgspec

from examples.demo.agents import Agent, Place, Reader, Stage, Watcher
from examples.demo.figures import Figures
from examples.demo.ledger import Header, Ledger, entries_of
from mandrake_sessions import (
    ConnectionPool,
    DatabaseOptions,
    Durability,
    MandrakeManager,
    PoolOptions,
    SessionManager,
    ShutdownHook,
    install_shutdown_hook,
)

WORKSPACES = ("web-shop", "data-pipeline")
SYSTEM = "system"
SESSIONS = ("First look", "Follow-up", "Night shift")
READERS = 2

_TICK = 0.1
_PATIENCE = 8.0
"""Seconds in which agents must notice that they are refused."""


class _Step:
    """A part of the shutdown in the form for the hook: an object with ``close()``."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


class Performance:
    """The databases, agents, readers and watchers, from the first call to the closing line."""

    def __init__(self, directory: Path, agents: int, durability: Durability) -> None:
        self._pool = ConnectionPool(PoolOptions(database=DatabaseOptions(durability=durability)))
        self._mandrake = MandrakeManager(directory, pool=self._pool).init()
        managers = {SYSTEM: self._mandrake.sessions} | {
            name: self._mandrake.create_workspace(name).sessions for name in WORKSPACES
        }
        base = directory.resolve()
        self._ledger = Ledger(
            directory,
            Header({name: str(each.path.relative_to(base)) for name, each in managers.items()}),
        )
        places = tuple(self._furnish(name, manager) for name, manager in managers.items())
        self._stage = Stage(places, self._ledger, lambda: self._pool.is_closed)
        self._agents = [Agent(number, self._stage) for number in range(agents)]
        self._readers = [Reader(number, self._stage) for number in range(READERS)]
        self._watchers = [Watcher(self._stage, place) for place in places]
        self._figures = Figures()
        self._began = monotonic()
        self._mutex = threading.Lock()

    def _furnish(self, name: str, manager: SessionManager) -> Place:
        ids = []
        for title in SESSIONS:
            session = manager.create_session(title, metadata={"demo": True})
            self._ledger.note(entries_of(name, "create_session", session))
            ids.append(session.id)
        return Place(name, manager, tuple(ids))

    def install_hook(self) -> ShutdownHook:
        """Have a signal end it: the managers are closed while the agents are still writing."""
        return install_shutdown_hook(
            _Step(self._take_figures), self._mandrake, _Step(self._see_agents_out), pool=self._pool
        )

    def begin(self) -> None:
        """Send the watchers, agents and readers to work."""
        self._began = monotonic()
        for thread in (*self._watchers, *self._agents, *self._readers):
            thread.start()

    def figures(self) -> Figures:
        """Return the progress."""
        with self._mutex:
            figures = self._figures
            figures.seconds = monotonic() - self._began
            figures.rounds = sum(agent.rounds for agent in self._agents)
            figures.turns = sum(agent.turns for agent in self._agents)
            figures.updates = sum(agent.updates for agent in self._agents)
            figures.tokens = sum(agent.tokens for agent in self._agents)
            figures.watched = sum(watcher.updates for watcher in self._watchers)
            figures.longest_call = max(agent.longest_call for agent in self._agents)
            figures.histories = sum(reader.histories for reader in self._readers)
            figures.acknowledged = self._ledger.acknowledged
            figures.refused = self._ledger.refused
            figures.errors = self._stage.errors
            return msgspec.structs.replace(figures)

    def take_pool_figures(self) -> None:
        """Ask the pool for its figures; those of a closed file are gone."""
        databases = self._pool.stats().databases
        with self._mutex:
            figures = self._figures
            for each in databases:
                figures.longest_wait = max(figures.longest_wait, each.longest_wait)
            # Never less than before: a pool that is closed meanwhile has no databases to ask.
            figures.retries = max(
                figures.retries, sum(each.retries + each.replays for each in databases)
            )
            figures.commits = max(figures.commits, sum(each.commits for each in databases))

    # -- in the shutdown's own thread --------------------------------------------------------

    def _take_figures(self) -> None:
        self.take_pool_figures()

    def _see_agents_out(self) -> None:
        deadline = monotonic() + _PATIENCE
        for thread in (*self._watchers, *self._agents, *self._readers):
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                self._stage.fail(thread.name, "did not come back from its last call")
        self._ledger.close()
        if self._ledger.failure is not None:
            self._stage.fail("the log", self._ledger.failure)


def run(directory: Path, agents: int, durability: Durability) -> None:
    """Let the agents work until a signal comes, and print their progress to stdout.

    Ends in the same way when stdin does: then the process that started it is gone.
    """
    is_over = threading.Event()

    def former(_number: int, _frame: FrameType | None) -> None:
        is_over.set()

    # The hook calls this after everything is closed; a host's own handler would stand here.
    signal.signal(signal.SIGTERM, former)
    signal.signal(signal.SIGINT, former)
    performance = Performance(directory, agents, durability)
    hook = performance.install_hook()
    threading.Thread(target=_end_with_stdin, name="demo-stdin", daemon=True).start()
    performance.begin()
    while not is_over.wait(_TICK):
        if hook.is_installed:
            performance.take_pool_figures()
        _print(performance.figures())
    report = hook.wait()
    closing = performance.figures()
    if report is not None:
        closing.shutdown, closing.signal = report.seconds, report.signal
        closing.errors = closing.errors + [
            f"shutdown: {type(failure).__name__}: {failure}" for failure in report.failures
        ]
    closing.is_last = True
    _print(closing)


def _print(figures: Figures) -> None:
    # Unbuffered: with the reader gone, nothing may be left to be flushed at exit.
    with contextlib.suppress(BrokenPipeError):
        line = msgspec.json.encode(figures) + b"\n"
        while line:  # a signal may come in the middle of one
            line = line[os.write(sys.stdout.fileno(), line) :]


def _end_with_stdin() -> None:
    # Unbuffered: a thread that holds the buffer's lock at exit is a fatal error.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    signal.raise_signal(signal.SIGTERM)
