"""Additional read-only connections on an open file, for checks that take long.

No reader has to wait for them, as for the auxiliary connection. They see the content on disk, not
the cache of another connection.
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
    """The connections that check one open file.

    Args:
        path: its real path.
        identity: the identity that the file must still have.
        options: the options of the file.

    Attributes:
        most: how many were open at once. SQLite keeps their descriptors for the next ones.
    """

    def __init__(self, path: Path, identity: Identity, options: DatabaseOptions) -> None:
        self.most: int = 0
        self._path = path
        self._identity = identity
        self._options = options
        self._open: set[Connection] = set()
        self._mutex = threading.Lock()
        # Set while no connection is open.
        self._idle = Gate()
        self._is_over = False

    @property
    def is_used(self) -> bool:
        """Whether a connection is open or being opened."""
        return bool(self._open) or self._mutex.locked()

    @block
    def connection(
        self,
        budget: Budget,
        closed_error: Callable[[], MandrakeSessionsError],
        *,
        with_wal: bool = True,
        operation: str = "health",
    ) -> Iterator[Connection]:
        """Lend a new connection, which is interrupted at the deadline, or when the file closes.

        Args:
            budget: the time that the block may take.
            closed_error: makes the error for a file that is being closed.
            with_wal: whether it reads through the WAL. Otherwise it takes no lock, and a WAL
                checkpoint may change pages while it reads.
            operation: for errors.
        """
        connection: Connection | None = None
        try:
            with self._mutex:
                if self._is_over:
                    raise closed_error()
                connection = self._connect(budget, operation, with_wal=with_wal)
                self._idle.clear()
                self._open.add(connection)
                self.most = max(self.most, len(self._open))
            if connection.has_moved() or identify(self._path) != self._identity:
                raise DatabaseMovedError(path=self._path, operation=operation)
            yield connection
            if connection.is_cancelled:
                raise closed_error()
        except apsw.InterruptError as error:
            if connection is not None and connection.is_cancelled:
                raise closed_error() from error
            raise budget.exceeded("body", self._path, operation) from error
        except apsw.CorruptError as error:
            if connection is not None and disk_refused(connection.raw):
                raise translate(error, self._path, operation, raw=connection.raw) from error
            raise
        finally:
            try:
                self._release(connection)
            finally:
                # signal-safe release: closing the file would wait for the connection.
                self._release(connection)

    def _release(self, connection: Connection | None) -> None:
        with self._mutex:
            if connection in self._open:
                with contextlib.suppress(apsw.ConnectionClosedError):
                    connection.close(abandon=True)
                self._open.discard(connection)
            if not self._open:
                self._idle.set()

    def end(self, seconds: float) -> None:
        """Refuse new connections, interrupt the open ones, and wait until they are closed."""
        deadline = monotonic() + seconds
        with self._mutex:
            self._is_over = True
            for connection in self._open:
                connection.is_cancelled = True
            is_idle = not self._open
        if not is_idle:
            self._idle.wait(max(0.0, deadline - monotonic()))

    def _connect(self, budget: Budget, operation: str, *, with_wal: bool) -> Connection:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOFOLLOW
        name = str(self._path)
        if not with_wal:
            flags |= apsw.SQLITE_OPEN_URI
            name = f"file:{quote(name)}?immutable=1"
        try:
            raw = apsw.Connection(name, flags=flags, vfs=self._options.vfs)
        except apsw.Error as error:
            raise translate(error, self._path, operation) from error
        connection = Connection(raw, self._path, self._identity)
        connection.deadline = budget.deadline
        raw.set_busy_handler(connection.on_busy)
        raw.set_progress_handler(connection.on_progress, _STEPS)
        # The file may be damaged in any way.
        raw.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        return connection


def observe(connection: Connection, stop: Gate) -> None:
    """Interrupt the statements of a connection also when ``stop`` is set."""
    connection.raw.set_progress_handler(lambda: stop.is_set() or connection.on_progress(), _STEPS)
