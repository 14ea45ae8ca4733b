"""What an engine is to the layers above: a pool, its handles, open databases, transactions.

``database`` is the engine for SQLite files. No layer above imports its modules for what stands
here, so that a second engine needs no change there. The tests compare each engine with this page.
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
    """The file was closed because others needed its place; its handles open it again.

    No caller sees it: a handle answers it by opening the file.
    """


class OtherProcesses(Protocol):
    """What an open database learns of other processes: their writes, and who of them lives."""

    def watch(self, key: Hashable, notify: Callable[[], None]) -> None:
        """Have ``notify`` called, in a thread of the engine, when one has perhaps written.

        Args:
            key: for ``unwatch``.
            notify: must be quick and must not raise.

        Raises:
            ThreadStartError: no thread can be started that hears of writes.
        """

    def unwatch(self, key: Hashable) -> None:
        """Call that ``notify`` no more."""

    def last_write(self) -> Hashable | None:
        """Return what changes with every COMMIT of any process; None where that is not known."""

    def is_elsewhere(self) -> bool:
        """Return whether another database is in its place by now."""

    def is_alive(self, name: str) -> bool:
        """Return whether the process with this claim lives, as far as can be seen."""

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
        """The id under which this process has claimed it, None before it has."""

    @property
    def others(self) -> OtherProcesses:
        """What it learns of other processes."""

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
        """Run a short read; each statement sees what is committed."""

    def peek(self, work: ReadUnit[T], operation: str, timeout: float) -> T:
        """Run a short read that is no use of the database: it is parked no later for it."""

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
        """Raise ReentrantScopeError where this thread is inside a transaction."""

    def require_writable(self) -> None:
        """Raise the typed error for which it takes no writes, as far as is known."""

    def find_damage(self) -> DatabaseError | None:
        """Return the damage that has been done to it, None for none; a quick look."""

    def attach(self, make: Callable[[Any], A]) -> A:
        """Return its attachment, made now by ``make(database)`` if it has none."""

    def unpin(self, key: object) -> None:
        """Let it be parked again, after ``Handle.pin_now(key)``."""

    def claim(self) -> str:
        """Return the id of this process's claim on it, which is made the first time."""

    def release_claim(self) -> None:
        """Let the claim end with the open database: no turn of this process streams any more."""


class Handle(Protocol):
    """One holder's access to a database, which the pool opens and keeps open for it."""

    @property
    def path(self) -> Path:
        """The real path of the file."""

    @property
    def options(self) -> DatabaseOptions:
        """How the database was opened."""

    @property
    def owner(self) -> str | None:
        """The id under which this process has claimed the open database, None before it has."""

    @property
    def attachment(self) -> Attachment | None:
        """What the layers above keep with the open database; None where it has none."""

    def budget(self, timeout: float | None) -> Budget:
        """Return the budget of a call that starts now."""

    def fetch(self, work: ReadUnit[T], operation: str, timeout: float | None = None) -> T:
        """Run a short read; each statement sees what is committed."""

    def query(self, work: ReadUnit[T], operation: str, timeout: float | None = None) -> T:
        """Run a long read in one snapshot, which no writer waits for."""

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
        """Lend a write transaction for a block, which commits alone."""

    def claim(self) -> str:
        """Return the id of this process's claim on the database, made the first time."""

    def give_up(self, thread: int) -> None:
        """Have a thread stop waiting to write, as at its deadline."""

    def pinned(
        self, operation: str = "open", timeout: float | None = None
    ) -> AbstractContextManager[Database]:
        """Keep the database open for a block, and lend it."""

    def pin_now(self, key: object) -> Database:
        """Keep the database open until its ``unpin(key)``; does not wait."""

    def require_writable(self) -> None:
        """Raise the typed error for which the database takes no writes, as far as is known."""

    def health(
        self, level: HealthLevel = HealthLevel.QUICK, timeout: float | None = None
    ) -> HealthReport:
        """Look at the database without changing it."""

    def stats(self) -> DatabaseStats:
        """Return the figures of the open database."""

    def release(self) -> None:
        """Give the access back; the database closes some time after the last one."""
