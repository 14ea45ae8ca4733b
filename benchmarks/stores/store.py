"""The protocol of a store in a benchmark, and the payload for every store.

A rival is a module of this folder with a class that has these methods, and its line in
``benchmarks/rivals.py``. The class is used in a worker process of its own and nowhere else
(``benchmarks/worker.py``), so nothing that it imports, starts or leaves behind weighs on another
store.
Its module can be imported where the peer is not installed: the peer is imported inside ``open``, so
that the class can be asked for its name and for what it requires.

The worker, for every store:

1. makes it with ``cls(folder, durability)``, which does no more than note both;
2. calls ``open()``, in its main thread; the files are made there. For several processes the first
   worker has opened before the second one does, so no two of them make a file together;
3. calls ``new_conversation``, ``fill``, ``fill_sessions``: untimed;
4. calls ``appender`` or a ``…reader`` in the thread that will use what it returns (for an async
   store: in the task), calls that until the time is up, and then ``rest()``: all untimed but the
   calls themselves;
5. calls ``keys()`` at the end, with the store still open;
6. calls ``close()``.

A store may be made more than once in a worker, each in another folder ("8 files"). Some have more
than the protocol, which the worker then uses: ``updater`` (a token at a time), ``figures`` (its own
figures) and ``settle`` (wait until closed files are closed).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from mandrake_sessions import Durability

ASKED = ("Why does the nightly job time out? " * 15)[:500]
ANSWERED = ("It waits for a lock that the backup holds. " * 35)[:1500]

_numbers = itertools.count()


def new_key() -> str:
    """Return a key of its own for an exchange, for a store that gives back none.

    Unique over the processes of a run, and made in about 0.3 µs.
    """
    return f"{os.getpid()}-{next(_numbers)}"


def asked(key: str) -> str:
    """Return a question of 500 characters that begins with a key and a space.

    For a store that gives back no id of what it stored: its ``keys()`` finds the exchange again by
    the question's first word, ``question.partition(" ")[0]``.
    """
    return f"{key} {ASKED}"[: len(ASKED)]


Append = Callable[[], str]
"""Stores one exchange and returns, when it is acknowledged, the key it can be found by.

A question of 500 characters (``ASKED`` or ``asked(key)``) and an answer of 1,500 (``ANSWERED``).
An error is raised as it comes; the worker counts it by its class and goes on.
"""

Read = Callable[[], int]
"""Reads, and returns how many exchanges (or sessions) it has given to its caller as objects."""

AsyncAppend = Callable[[], Awaitable[str]]
AsyncRead = Callable[[], Awaitable[int]]


class NotOffered(NotImplementedError):  # noqa: N818  # it is an answer, not an error
    """The store's API lacks it; the tables show a dash."""


class Store(Protocol):
    """A store for threads, used as its documentation advises.

    Attributes:
        name: in tables and plots: the distribution and the class, as in ``agno SqliteDb``.
        requires: the distributions without which it is skipped, by name.
        is_async: False; see ``AsyncStore``.
        remark: a footnote of the tables, "" if there is nothing to say: the synchronous mode and
            the journal it runs at where its API cannot set them, what one append stores, what was
            chosen for it and why that is fair. Whole sentences.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    is_async: ClassVar[Literal[False]]
    remark: ClassVar[str]

    def __init__(self, folder: Path, durability: Durability) -> None: ...

    def open(self) -> None:
        """Open the file or files in the folder, which exists, making them if they are not there."""

    def new_conversation(self) -> str:
        """Begin a conversation and return its key."""

    def appender(self, conversation: str) -> Append:
        """Return what one thread appends with; called in that thread, which ends afterwards."""

    def reader(self, conversation: str) -> Read:
        """Return what one thread reads a whole conversation with."""

    def last_reader(self, conversation: str, last: int) -> Read:
        """Return what reads the last exchanges of a conversation, or raise ``NotOffered``."""

    def turn_reader(self, conversation: str) -> Read:
        """Return what reads one answer by its id, the conversation's last, or ``NotOffered``.

        The id is looked up here; the reading returns 1.
        """

    def sessions_reader(self, limit: int) -> Read:
        """Return what reads page one of all sessions, newest first, or raise ``NotOffered``."""

    def fill(self, conversation: str, exchanges: int) -> None:
        """Store so many exchanges, as fast as the store can; untimed."""

    def fill_sessions(self, sessions: int) -> None:
        """Begin so many sessions without an exchange, or raise ``NotOffered``; untimed."""

    def rest(self) -> None:
        """Finish what goes on in the background, so that the next store is measured alone."""

    def keys(self) -> set[str]:
        """Return the key of every exchange that is whole in the file.

        Question and answer both, read with a connection of its own, of the store's own SQLite
        library.
        """

    def close(self) -> None:
        """Close it."""


class AsyncStore(Protocol):
    """A store for asyncio: the same, and what does something is a coroutine function.

    The worker has one event loop for as long as it lives and awaits everything there, so ``open``
    may make what belongs to the loop. Where the sync stores are measured with 8 threads, this one
    is measured with 8 tasks. ``__init__`` is the only plain method.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    is_async: ClassVar[Literal[True]]
    remark: ClassVar[str]

    def __init__(self, folder: Path, durability: Durability) -> None: ...

    async def open(self) -> None: ...

    async def new_conversation(self) -> str: ...

    async def appender(self, conversation: str) -> AsyncAppend: ...

    async def reader(self, conversation: str) -> AsyncRead: ...

    async def last_reader(self, conversation: str, last: int) -> AsyncRead: ...

    async def turn_reader(self, conversation: str) -> AsyncRead: ...

    async def sessions_reader(self, limit: int) -> AsyncRead: ...

    async def fill(self, conversation: str, exchanges: int) -> None: ...

    async def fill_sessions(self, sessions: int) -> None: ...

    async def rest(self) -> None: ...

    async def keys(self) -> set[str]: ...

    async def close(self) -> None: ...


def made_in(folder: Path, name: str) -> Path:
    """Return a new folder of that name, for one store's files."""
    made = folder / name
    made.mkdir()
    return made
