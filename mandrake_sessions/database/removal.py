"""Removes a database's files when nobody has it open, in this process or another."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mandrake_sessions.database import owner
from mandrake_sessions.database.exclusive import alone
from mandrake_sessions.database.faults import translate_os
from mandrake_sessions.database.paths import Identity, companions
from mandrake_sessions.database.turnstile import turnstile_path
from mandrake_sessions.database.waiting import Budget


def remove(path: Path, identity: Identity, budget: Budget) -> None:
    """Remove a database with the files beside it; nobody in this process has it open.

    Raises:
        DatabaseBusyError: another process has it open; nothing was removed.
        DatabaseError: the files cannot be removed.
    """
    try:
        # Leaving WAL needs the exclusive lock, and in this locking mode it is kept. Not for DELETE:
        # a process killed here would leave an empty -journal, which nobody would remove. What is
        # written are a few bytes of the first sector.
        with alone(path, identity, budget, "delete", journal="MEMORY"):
            _remove_files(path)
    except OSError as error:
        raise translate_os(error, path) from error


def _remove_files(path: Path) -> None:
    # Before the file: afterwards another process could make it anew, and claim it.
    owner.forget_all(path)
    with contextlib.suppress(OSError):
        turnstile_path(path).unlink()
    for name in (*companions(path), path):
        name.unlink(missing_ok=True)
