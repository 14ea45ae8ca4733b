"""The messages between the measuring process and a store's worker: one JSON line each."""

from __future__ import annotations

from typing import Literal

import msgspec

from mandrake_sessions import Durability

Reading = Literal["whole", "last", "turn", "sessions"]


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request to a worker, which answers each with one ``Reply``."""


class Open(Command, frozen=True):
    """Open the store, and first close the one that is open.

    Attributes:
        folder: where its files are; they are made if they are not there.
        files: how many stores, each in a folder of its own below.
        conversations: how many are begun, spread over the files; ``Append`` uses them all at once.
        known: a conversation that is there already, in the place of new ones.
    """

    folder: str
    durability: Durability
    files: int = 1
    conversations: int = 0
    known: str = ""


class Fill(Command, frozen=True):
    """Store so many exchanges in each conversation."""

    exchanges: int


class Grow(Command, frozen=True):
    """Store so many exchanges in all, in conversations of so many, and begin one to append to."""

    exchanges: int
    each: int


class FillSessions(Command, frozen=True):
    """Begin so many sessions without an exchange."""

    sessions: int


class Append(Command, frozen=True):
    """Append to all conversations at once, a thread or a task each, until the time is up.

    Attributes:
        at: when to begin, by ``time.monotonic()``, for several processes; None for at once.
    """

    seconds: float
    at: float | None = None


class ReadOften(Command, frozen=True):
    """Read again and again until the time is up; each time must give ``expected`` objects.

    Attributes:
        last: how many exchanges of the end, or how many sessions of page one.
    """

    what: Reading
    expected: int
    seconds: float
    last: int = 0


class Update(Command, frozen=True):
    """Lengthen a streaming turn by a token for each call, until the time is up."""

    seconds: float


class Stream(Command, frozen=True):
    """Stream whole turns of so many tokens, one after the other, until the time is up."""

    tokens: int
    seconds: float


class CreateWorkspaces(Command, frozen=True):
    """Make workspaces of a system in the folder, one after the other, until the time is up."""

    folder: str
    durability: Durability
    seconds: float


class Reopen(Command, frozen=True):
    """Open and close the file in the folder again and again, until the time is up."""

    folder: str
    durability: Durability
    seconds: float


class Visit(Command, frozen=True):
    """Open each folder's file, append one exchange to its conversation and close it, in turn."""

    folders: list[str]
    conversation: str
    durability: Durability
    seconds: float


class Check(Command, frozen=True):
    """Check for every exchange acknowledged since ``Open``, and return the store's own figures."""


class Close(Command, frozen=True):
    """Close the store."""


AnyCommand = (
    Open
    | Fill
    | Grow
    | FillSessions
    | Append
    | ReadOften
    | Update
    | Stream
    | CreateWorkspaces
    | Reopen
    | Visit
    | Check
    | Close
)


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An answer of a worker."""


class Ready(Reply, frozen=True):
    """The worker has its store's class.

    Attributes:
        library: the folder of the package mandrake_sessions that it has imported.
    """

    name: str
    library: str
    remark: str
    versions: dict[str, str]


class Done(Reply, frozen=True):
    """It is done.

    Attributes:
        conversations: the keys of those that ``Open`` began.
    """

    conversations: list[str] = []


class Run(Reply, frozen=True):
    """The result of one timed piece of a store.

    Attributes:
        began: by ``time.monotonic()``, when its threads began together.
        ended: when the last of them had ended.
        processor: seconds that its process has had the processor meanwhile, in all its threads.
        latencies: seconds of each call that succeeded.
        failed: seconds of each call that raised.
        errors: how often which exception came.
    """

    began: float
    ended: float
    latencies: list[float]
    processor: float = 0.0
    failed: list[float] = []
    errors: dict[str, int] = {}

    @property
    def per_second(self) -> float:
        """Calls that succeeded, by the second."""
        return len(self.latencies) / max(self.ended - self.began, 1e-9)

    @property
    def longest(self) -> float:
        """Seconds of the longest call, also of one that raised in the end."""
        return max((*self.latencies, *self.failed), default=0.0)


class Checked(Reply, frozen=True):
    """How many exchanges were acknowledged, and how many of them are in the file.

    Attributes:
        figures: the store's own figures, such as how many units share a COMMIT.
    """

    acknowledged: int
    found_again: int
    figures: dict[str, float] = {}


class Failed(Reply, frozen=True):
    """The command failed.

    Attributes:
        is_offered: False if the store's API lacks it.
        reason: one line.
        traceback: all of it.
    """

    is_offered: bool
    reason: str
    traceback: str


AnyReply = Ready | Done | Run | Checked | Failed
