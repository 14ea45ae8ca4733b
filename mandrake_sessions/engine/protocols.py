"""The interface of an engine: a pool, its handles, open databases, transactions.

``database`` is the engine for SQLite files. The layers above import this page instead of its
modules, so that a second engine needs no change there. The tests compare each engine with this
page.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mandrake_sessions.concurrency.blocks import Block
from mandrake_sessions.engine.attachment import Attachment
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.engine.health import HealthLevel, HealthReport
from mandrake_sessions.engine.stats import DatabaseStats
from mandrake_sessions.engine.transaction import ReadUnit, WriteTransaction, WriteUnit
from mandrake_sessions.engine.waiters import BatchSource
from mandrake_sessions.errors import DatabaseError, PoolClosedError
from mandrake_sessions.options import DatabaseOptions

T = TypeVar("T")
A = TypeVar("A", bound=Attachment)


class FileParkedError(PoolClosedError):
    """The file was closed because other files needed its slot; its handles open it again.

    No caller gets it: a handle answers it by opening the file.
    """


class OtherProcesses(Protocol):
    """The other processes that use an open database: their writes, and which of them live."""

    def watch(self, key: Hashable, notify: Callable[[], None]) -> None:
        """Have ``notify`` called, in a thread of the engine, when a process may have written.

        Args:
            key: for ``unwatch``.
            notify: must be quick and must not raise.

        Raises:
            ThreadStartError: no thread can be started to observe writes.
        """

    def unwatch(self, key: Hashable) -> None:
        """Call the ``notify`` of this key no more."""

    def last_write(self) -> Hashable | None:
        """Return a value that changes with every COMMIT of any process; None if it is unknown."""

    def is_elsewhere(self) -> bool:
        """Return whether another database has replaced it."""

    def is_alive(self, name: str) -> bool:
        """Return whether the process with this claim lives, as far as this process can see."""

    def forget_dead(self) -> None:
        """Remove the claims of processes that have ended."""


class Database(Protocol):
    """One open database."""

    @property
    def path(self) -> Path:
        """The real path of the file."""

    @property
    def options(self) -> DatabaseOptions:
        """How it was opened."""

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed it; None before it has."""

    @property
    def others(self) -> OtherProcesses:
        """The other processes that use it."""

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now; None for the ``busy_timeout``."""

    def fetch(
        self,
        work: ReadUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        even_refused: bool = False,
    ) -> T:
        """Run a short read; each statement reads the committed state."""

    def peek(self, work: ReadUnit[T], operation: str, timeout: float) -> T:
        """Run a short read that does not count as a use: it does not delay parking."""

    def transact(
        self,
        work: WriteUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        delegable: bool = True,
        even_refused: bool = False,
        batch: BatchSource | None = None,
    ) -> T:
        """Run a unit of writing work, which may share its COMMIT with others."""

    def require_no_lease(self, operation: str) -> None:
        """Raise ReentrantScopeError if this thread is inside a transaction."""

    def require_writable(self) -> None:
        """Raise the error for which it refuses writes, as far as is known."""

    def find_damage(self) -> DatabaseError | None:
        """Check quickly whether it is damaged; return the error, or None."""

    def attach(self, make: Callable[[Any], A]) -> A:
        """Return its attachment, made now by ``make(database)`` if it has none."""

    def unpin(self, key: object) -> None:
        """Let it be parked again, after ``Handle.pin_now(key)``."""

    def claim(self) -> str:
        """Return the id of this process's claim on it; the first call makes the claim."""

    def release_claim(self) -> None:
        """End the claim with the open database: no turn of this process streams any more."""


class Handle(Protocol):
    """One holder's access to a database; the pool opens the file and keeps it open for it."""

    @property
    def path(self) -> Path:
        """The real path of the file."""

    @property
    def options(self) -> DatabaseOptions:
        """How the database was opened."""

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the open database; None before it has."""

    @property
    def attachment(self) -> Attachment | None:
        """The object that the layers above attach to the open database; None if there is none."""

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now."""

    def fetch(self, work: ReadUnit[T], operation: str, timeout: float | None = None) -> T:
        """Run a short read; each statement reads the committed state."""

    def query(self, work: ReadUnit[T], operation: str, timeout: float | None = None) -> T:
        """Run a long read in one snapshot; no writing thread waits for it."""

    def transact(
        self,
        work: WriteUnit[T],
        operation: str,
        timeout: float | None = None,
        *,
        delegable: bool = False,
        claims: bool = False,
        batch: BatchSource | None = None,
    ) -> T:
        """Run a unit of writing work and return its result once it is committed."""

    def write(self, timeout: float | None = None) -> Block[WriteTransaction]:
        """Lend a write transaction for a block; it does not share its COMMIT."""

    def claim(self) -> str:
        """Return the id of this process's claim on the database; the first call makes the claim."""

    def give_up(self, thread: int) -> None:
        """End a thread's wait for the write lease, as at its deadline."""

    def pinned(
        self, operation: str = "open", timeout: float | None = None
    ) -> AbstractContextManager[Database]:
        """Keep the database open for a block, and lend it."""

    def pin_now(self, key: object) -> Database:
        """Keep the database open until its ``unpin(key)``; does not wait."""

    def require_writable(self) -> None:
        """Raise the error for which the database refuses writes, as far as is known."""

    def health(
        self, level: HealthLevel = HealthLevel.QUICK, timeout: float | None = None
    ) -> HealthReport:
        """Check the database without changing it."""

    def stats(self) -> DatabaseStats:
        """Return the figures of the open database."""

    def release(self) -> None:
        """Release the access; the database closes some time after its last handle."""
