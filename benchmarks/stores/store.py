"""What a benchmark asks of a store, and the payload that every store is given.

A rival is a module of this folder with a class that has these methods; nothing else needs to know
of it but the list in the test that measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mandrake_sessions.options import Durability

ASKED = ("Why does the nightly job time out? " * 15)[:500]
ANSWERED = ("It waits for a lock that the backup holds. " * 35)[:1500]

Append = Callable[[], str]
"""Stores one exchange and returns, when it is acknowledged, the key it can be found by."""

Read = Callable[[], int]
"""Reads a whole conversation and returns how many exchanges came."""


class Store(Protocol):
    """An open store, used as its users would; each method may be called from any thread."""

    @property
    def name(self) -> str:
        """What it is called in the tables."""

    def new_conversation(self) -> str:
        """Begin a conversation and return its key."""

    def appender(self, conversation: str) -> Append:
        """Return what one thread appends with; called in that thread."""

    def reader(self, conversation: str) -> Read:
        """Return what one thread reads with; called in that thread."""

    def rest(self) -> None:
        """Finish what goes on in the background, so that the next store is measured alone."""

    def keys(self) -> set[str]:
        """Return the key of every exchange in the file, read with a connection of its own."""

    def close(self) -> None:
        """Close it."""


Opener = Callable[[Path, Durability], Store]
"""Opens a store in an empty folder."""


def made_in(folder: Path, name: str) -> Path:
    """Return a new folder of that name, for one store's files."""
    made = folder / name
    made.mkdir()
    return made
