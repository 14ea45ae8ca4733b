"""Finds the process that keeps others from writing, its state, and advice.

Used after a call has given up, by health checks and by doctor, never while a call may still
succeed. For doctor it also finds the processes that have the file open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from mandrake_sessions.database.kernel_locks import lock_holders
from mandrake_sessions.database.sidecars import shm_of
from mandrake_sessions.visible import visible

_STOPPED: Final = "T"
_TRACED: Final = "t"
_NAME_CHARACTERS: Final = 15


class Holder(msgspec.Struct, frozen=True):
    """A process that has a lock on a database.

    Attributes:
        pid: its id, as this process sees it.
        name: the name of its command; empty if the system does not show it.
        state: the system's letter, ``T`` for stopped; empty if the system does not show it.
        tracer: the debugger that has stopped it, 0 without one.
        is_writing: whether it holds the write lock; otherwise it has the database open.
    """

    pid: int
    name: str
    state: str
    tracer: int
    is_writing: bool

    @property
    def is_stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self.state in (_STOPPED, _TRACED)

    @property
    def deed(self) -> str:
        """A sentence for people: the process and its lock."""
        if self.pid == os.getpid():
            subject = f"another connection of this process ({self.pid})"
        else:
            subject = f"process {self.pid} ({self.name})" if self.name else f"process {self.pid}"
        lock = "holds the write lock" if self.is_writing else "has the database open"
        if self.state == _STOPPED:
            return f"{subject} {lock}, and is stopped"
        if self.state == _TRACED:
            return f"{subject} {lock}, and is stopped in a debugger ({self.tracer})"
        return f"{subject} {lock}"

    @property
    def advice(self) -> str:
        """A sentence for people: how to get the lock released."""
        if self.state == _STOPPED:
            return f"Continue it: kill -CONT {self.pid}"
        if self.state == _TRACED:
            return "Continue it in the debugger, or detach the debugger."
        if self.pid == os.getpid():
            return "End the transaction of that connection; use one pool for each file."
        return "Wait; if it stays so, check that process."


def write_lock_holder(path: Path) -> Holder | None:
    """Return the process that holds the write lock of a database, None if the system shows none.

    Args:
        path: the real path of the database.
    """
    index = lock_holders(shm_of(path)) or []
    pids = [held.pid for held in index if held.is_wal_writer]
    pids += [held.pid for held in lock_holders(path) or [] if held.is_writer]
    return next((_holder(pid, is_writing=True) for pid in pids if pid > 0), None)


def opener(path: Path) -> Holder | None:
    """Return a process other than this one that has a database open, None if none is shown.

    Args:
        path: the real path of the database.
    """
    pids = {held.pid for held in lock_holders(path) or []} - {os.getpid()}
    found = [_holder(pid, is_writing=False) for pid in sorted(pids) if pid > 0]
    return next((each for each in found if each.is_stopped), next(iter(found), None))


def _holder(pid: int, *, is_writing: bool) -> Holder:
    name = state = ""
    tracer = 0
    try:
        name = visible(_read(pid, "comm").strip()[:_NAME_CHARACTERS])
        # The state follows the name, which is in brackets and may hold any character.
        state = _read(pid, "stat").rpartition(")")[2].split()[0]
        if state == _TRACED:
            lines = _read(pid, "status").splitlines()
            tracer = next(int(each.split()[1]) for each in lines if each.startswith("TracerPid:"))
    except (OSError, LookupError, StopIteration):
        # The process has ended since, or the system hides the processes of other users.
        pass
    return Holder(pid, name, state, tracer, is_writing)


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")


class Users(msgspec.Struct, frozen=True):
    """The processes that have a database open, as far as the system shows them.

    Attributes:
        pids: processes with a lock on it.
        writer: the process that holds the write lock.
        is_known: whether the system shows locks.
    """

    pids: frozenset[int]
    writer: Holder | None
    is_known: bool


def find_users(path: Path) -> Users:
    """Return the processes that have a database open, as far as the system shows them."""
    database = lock_holders(path)
    if database is None:
        return Users(frozenset(), None, False)
    index = lock_holders(shm_of(path)) or []
    pids = frozenset(held.pid for held in (*database, *index))
    return Users(pids, write_lock_holder(path), True)
