"""Further connections on an open file that only look, for checks that take long.

No reader waits for them as for the auxiliary connection, and they see what is on disk, not what
another connection has in its cache.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import apsw

from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.database.connection.connection import Connection
from mandrake_sessions.database.error_codes import translate
from mandrake_sessions.database.files.paths import Identity, identify
from mandrake_sessions.database.unread import disk_refused
from mandrake_sessions.engine.budget import Budget
from mandrake_sessions.errors import DatabaseMovedError, MandrakeSessionsError
from mandrake_sessions.options import DatabaseOptions

_STEPS = 5_000


class Inspections:
    """The read-only connections that look at one open file.

    Args:
        path: its real path.
        identity: what it must still be.
        options: how it is used.

    Attributes:
        most: how many there were at once. SQLite keeps their descriptors for the next ones.
    """

    def __init__(self, path: Path, identity: Identity, options: DatabaseOptions) -> None:
        self.most: int = 0
        self._path = path
        self._identity = identity
        self._options = options
        self._open: set[Connection] = set()
        self._mutex = threading.Lock()
        # Open when no connection is.
        self._idle = Gate()
        self._is_over = False

    @property
    def is_used(self) -> bool:
        """Whether there is one this moment, or is about to be."""
        return bool(self._open) or self._mutex.locked()

    @block
    def connection(
        self,
        budget: Budget,
        closed_error: Callable[[], MandrakeSessionsError],
        *,
        with_log: bool = True,
    ) -> Iterator[Connection]:
        """Lend a connection of its own; it is interrupted at the deadline, or when the file closes.

        Args:
            budget: the time it may take.
            closed_error: what is raised when the file is being closed.
            with_log: whether it sees what is in the log; without, it takes no lock, and a
                checkpoint may change what it reads.
        """
        connection: Connection | None = None
        try:
            with self._mutex:
                if self._is_over:
                    raise closed_error()
                connection = self._connect(budget, with_log=with_log)
                self._idle.clear()
                self._open.add(connection)
                self.most = max(self.most, len(self._open))
            if connection.has_moved() or identify(self._path) != self._identity:
                raise DatabaseMovedError(path=self._path, operation="health")
            yield connection
            if connection.is_cancelled:
                raise closed_error()
        except apsw.InterruptError as error:
            if connection is not None and connection.is_cancelled:
                raise closed_error() from error
            raise budget.exceeded("body", self._path, "health") from error
        except apsw.CorruptError as error:
            if connection is not None and disk_refused(connection.raw):
                raise translate(error, self._path, "health", raw=connection.raw) from error
            raise
        finally:
            try:
                self._let_go(connection)
            finally:
                # A signal in the midst of it: closing would wait for it.
                self._let_go(connection)

    def _let_go(self, connection: Connection | None) -> None:
        with self._mutex:
            if connection in self._open:
                with contextlib.suppress(apsw.ConnectionClosedError):
                    connection.close(abandon=True)
                self._open.discard(connection)
            if not self._open:
                self._idle.set()

    def end(self, seconds: float) -> None:
        """Refuse new ones, interrupt those that are open, and wait until they are closed."""
        deadline = monotonic() + seconds
        with self._mutex:
            self._is_over = True
            for connection in self._open:
                connection.is_cancelled = True
            is_idle = not self._open
        if not is_idle:
            self._idle.wait(max(0.0, deadline - monotonic()))

    def _connect(self, budget: Budget, *, with_log: bool) -> Connection:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOFOLLOW
        name = str(self._path)
        if not with_log:
            flags |= apsw.SQLITE_OPEN_URI
            name = f"file:{quote(name)}?immutable=1"
        try:
            raw = apsw.Connection(name, flags=flags, vfs=self._options.vfs)
        except apsw.Error as error:
            raise translate(error, self._path, "health") from error
        connection = Connection(raw, self._path, self._identity)
        connection.deadline = budget.deadline
        raw.set_busy_handler(connection.on_busy)
        raw.set_progress_handler(connection.on_progress, _STEPS)
        # The file may be damaged in any way.
        raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        return connection


def observe(connection: Connection, stop: Gate) -> None:
    """Interrupt the statements of a connection also when an event is set."""
    connection.raw.set_progress_handler(lambda: stop.is_set() or connection.on_progress(), _STEPS)
