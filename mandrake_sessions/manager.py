"""SessionManager: the conversations of one database; each of its methods is a unit of work."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from msgspec.structs import replace

from mandrake_sessions import arguments
from mandrake_sessions.concurrency.blocks import block
from mandrake_sessions.concurrency.reentry import do_elsewhere, is_unforeseen, refuse_unforeseen
from mandrake_sessions.concurrency.resources import Resource
from mandrake_sessions.database.files.paths import absolute_path, real_path
from mandrake_sessions.database.pool.file_handle import FileHandle, file_handle
from mandrake_sessions.database.pool.handle import DatabaseHandle
from mandrake_sessions.database.pool.pool import ConnectionPool, default_pool
from mandrake_sessions.engine.health import HealthLevel, HealthReport
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.stats import DatabaseStats
from mandrake_sessions.errors import (
    HandleReleasedError,
    NotInitializedError,
    ReadOnlyDatabaseError,
)
from mandrake_sessions.faces.calls import not_initialized_once_released
from mandrake_sessions.faces.manager import ManagerFace
from mandrake_sessions.live.hub import Hub
from mandrake_sessions.live.streaming.writer import TurnWriter
from mandrake_sessions.live.watching.follower import Follower
from mandrake_sessions.live.watching.subscription import (
    Subscription,
    Watch,
    add_turn_update_listener,
    track_streaming_turns,
    watch_response,
    watch_session,
)
from mandrake_sessions.live.watching.updates import SessionEvent, TurnUpdate
from mandrake_sessions.log import HostLogger, log_for_host, usable_logger
from mandrake_sessions.models import Exchange, Turn
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records import history
from mandrake_sessions.session_transaction import SessionTransaction, TransactionBlock

T = TypeVar("T")


def _present_hub(handle: Handle) -> Hub | None:
    """Return the hub of the database, None if no file is open."""
    hub = handle.attachment
    return hub if isinstance(hub, Hub) else None


def seconds_to_wait(
    timeout: float | None, options: DatabaseOptions | None, pool: ConnectionPool
) -> float:
    """Return how long a call may wait for a database that is not open, in seconds.

    Args:
        timeout: seconds from the caller; None for the ``busy_timeout``.
        options: how the database is opened; None for the pool's.
        pool: the pool that opens it.
    """
    if timeout is None:
        return (options or pool.options.database).busy_timeout
    return arguments.seconds("timeout", timeout)


HISTORY_PAGE = 100
"""Rounds that ``iter_session_history`` reads under one lease."""


class SessionManager(Resource, ManagerFace):
    """The conversations in one database file.

    Making one opens nothing; ``init()``, or a ``with`` block, opens the database. It may be used
    from any number of threads.

    Args:
        path: the path of the database file; ``init()`` makes missing folders. A relative path is
            resolved when the manager is made.
        pool: where the connection comes from; None for the process's ``default_pool()``.
        options: how the database is opened; None for the pool's.
        create: whether ``init()`` makes a missing file.
        read_only: whether the file is only read, as ``DatabaseOptions.read_only`` says.
        logger: a structlog logger of the host for the events of this manager: opened, closed,
            deleted, restored; None for no events.

    Attributes:
        create: as given; the next ``init()`` uses it.
        follow_links: whether symbolic links at ``path``, or on its way, are followed. The manager
            of a registered workspace follows none: the registered file is used, or refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pool: ConnectionPool | None = None,
        options: DatabaseOptions | None = None,
        create: bool = True,
        read_only: bool = False,
        logger: HostLogger | None = None,
    ) -> None:
        super().__init__()
        self._path = absolute_path(arguments.path("path", path))
        arguments.optional_instance("pool", pool, ConnectionPool)
        arguments.optional_instance("options", options, DatabaseOptions)
        arguments.flag("create", create)
        self._pool = pool
        self._options = options
        self._is_read_only = arguments.flag("read_only", read_only)
        self.create = create
        self.follow_links = True
        self._logger = usable_logger(logger)
        self._mutex = threading.Lock()
        self._handle: FileHandle | None = None

    # -- life -------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The real path of the database file; while it is open, that of the open file."""
        handle = self._handle
        if handle is not None:
            return handle.path
        return real_path(self._path) if self.follow_links else Path(self._path)

    @property
    def handle(self) -> DatabaseHandle:
        """The handle on the open database, for a host's own statements.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
        """
        return self._opened

    @property
    def _opened(self) -> FileHandle:
        handle = self._handle
        if handle is None:
            raise NotInitializedError
        return handle

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._handle is not None

    def init(self) -> Self:
        """Open the database; make it and migrate its schema if needed.

        Does nothing if it is open. It can be called again after ``close()``.

        Raises:
            DatabaseFolderError: the folder cannot be made or written.
            DatabaseOpenError: the file cannot be opened; each reason has its own subclass.
            MigrationError: the schema cannot be brought to this version's.
            DatabaseBusyError: other processes held it until the deadline.
        """
        refuse_unforeseen("init")
        with self._mutex:
            if self._handle is None:
                pool = self._pool or default_pool()
                options = self._options
                if self._is_read_only:
                    options = replace(options or pool.options.database, read_only=True)
                acquired = pool.acquire(
                    self._path,
                    options=options,
                    create=self.create,
                    follow_links=self.follow_links,
                )
                try:
                    handle = file_handle(acquired)
                    with handle.pinned("init") as file:
                        Hub.of(file).recover_at_opening()
                except BaseException:
                    acquired.release()
                    raise
                self._handle = handle
                self._log("sessions_opened")
        return self

    def close(self) -> None:
        """Release the database; does nothing if it is closed.

        Subscriptions end. Open streams end as ``interrupted``, after their text is stored. If a
        finalizer calls this, or a signal's handler during a call of this library, a thread closes
        it and this returns at once.
        """
        if is_unforeseen():
            if self._handle is not None:
                do_elsewhere(self.close)
            return
        handle: FileHandle | None = None
        try:
            with self._mutex:
                handle, self._handle = self._handle, None
            if handle is not None:
                self._give_back(handle)
        except Exception:
            raise
        except BaseException:
            # A signal came during it: only this call can finish what it has begun.
            if handle is not None:
                do_elsewhere(partial(self._give_back, handle))
            raise

    def _give_back(self, handle: FileHandle) -> None:
        try:
            hub = _present_hub(handle)
            if hub is not None:
                hub.leave(self)
        finally:
            with contextlib.suppress(HandleReleasedError):
                handle.release()
            self._log("sessions_closed")

    def delete(self, *, timeout: float | None = None) -> None:
        """Close it, then remove the database file with its ``-wal`` and ``-shm``.

        A link in the place of one of these two is removed itself.

        Args:
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.

        Raises:
            DatabaseBusyError: another holder had it open until the deadline; nothing was removed.
            DatabasePathError: there is a folder in the place of one; nothing was removed.
        """
        pool = self._pool or default_pool()
        patience = seconds_to_wait(timeout, self._options, pool)
        self._require_writable("delete")
        # Read before it is closed: a link could lead to another file afterwards.
        path = self.path
        self.close()
        pool.remove(path, timeout=patience, follow_links=self.follow_links)
        self._log("sessions_deleted")

    def restore(
        self,
        backup: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> Path:
        """Replace the database by a backup; the manager must be closed.

        The backup is copied and the copy checked first. The next ``init()`` migrates a backup of an
        older version, and ends turns that were streaming when the backup was made.

        Args:
            backup: the file to restore; it stays as it is.
            overwrite: whether an existing file is replaced; a damaged one is kept as
                ``<name>.damaged-…``.
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.

        Returns:
            The real path of the database.

        Raises:
            DatabaseMissingError: there is no backup.
            RestoreError: a file exists already, or the backup is damaged or in use.
            DatabaseOpenError: the backup is no database of this library.
            SchemaTooNewError: it was written by a newer version.
            DatabaseBusyError: this manager or another holder has the database open.
        """
        pool = self._pool or default_pool()
        patience = seconds_to_wait(timeout, self._options, pool)
        self._require_writable("restore")
        if self.is_initialized:
            # It would wait for itself.
            patience = 0.0
        path = pool.restore(
            backup,
            self._path,
            overwrite=overwrite,
            timeout=patience,
            follow_links=self.follow_links,
        )
        self._log("sessions_restored")
        return path

    @property
    def is_read_only(self) -> bool:
        """Whether the file is only read."""
        pool = self._pool or default_pool()
        return self._is_read_only or (self._options or pool.options.database).read_only

    def _require_writable(self, operation: str) -> None:
        if self.is_read_only:
            raise ReadOnlyDatabaseError(
                "The manager was made with read_only: nothing is written.",
                path=self.path,
                operation=operation,
            )

    def _log(self, event: str) -> None:
        """Log an event of the manager itself, if the host gave a logger for that."""
        if self._logger is not None:
            log_for_host(self._logger, event, path=str(self._path))

    def _on_enter(self) -> Self:
        return self.init()

    def _on_left(self) -> None:
        self.close()

    # -- histories --------------------------------------------------------------------------

    def iter_session_history(
        self, session_id: str, *, page_size: int = HISTORY_PAGE
    ) -> Iterator[Exchange]:
        """Yield the rounds of a session with their turns, in index order, page by page.

        No lease is held between two pages, so the pages are no snapshot: rounds that are added
        meanwhile are included.

        Args:
            session_id: the session.
            page_size: rounds read under one lease, 1 to 10,000.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
        """
        session_id = arguments.lookup_id("session_id", session_id)
        return self._history_pages(session_id, arguments.limit("page_size", page_size))

    def _history_pages(self, session_id: str, size: int) -> Iterator[Exchange]:
        after: int | None = None
        while True:
            unit = history.history_page(session_id, after, size)
            with not_initialized_once_released():
                page = self._opened.query(unit, "iter_session_history")
            yield from page
            if len(page) < size:
                return
            after = page[-1].index

    # -- live -------------------------------------------------------------------------------

    @property
    def subscriptions(self) -> int:
        """How many watches and listeners of this manager have not ended."""
        handle = self._handle
        hub = None if handle is None else _present_hub(handle)
        return 0 if hub is None else hub.subscriptions_of(self)

    @block
    def _live(self, operation: str, timeout: float | None = None) -> Iterator[Hub]:
        """Keep the file open for a block and lend its hub; after the block, the hub keeps it."""
        refuse_unforeseen(operation)
        with not_initialized_once_released(), self._opened.pinned(operation, timeout) as file:
            yield Hub.of(file)

    def _listened(self, operation: str, begin: Callable[[Follower], Subscription]) -> Subscription:
        """Begin a subscription; if a signal interrupts the caller, its listener is not called."""
        begun: list[Subscription] = []
        try:
            with self._live(operation) as hub:
                begun.append(begin(hub.follower))
            return begun[0]
        except BaseException:
            for subscription in begun:
                subscription.close()
            raise

    def stream_turn(
        self,
        response_id: str,
        *,
        index: int | None = None,
        started_at: datetime | None = None,
        expected_tokens: int | None = None,
        input_tokens: int = 0,
        model: str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> TurnWriter:
        """Begin a turn and return its writer: ``with sessions.stream_turn(…) as turn:``.

        ``turn.write(text)`` never waits for the file; written text is stored every
        ``flush_interval``. Leaving the block completes the turn, leaving it by an exception stores
        ``error``, by a cancellation ``interrupted``.

        Args:
            response_id: the response it belongs to.
            index: the index of the turn; the next one when None. A later one leaves a gap.
            started_at: when streaming began, aware; now when None.
            expected_tokens: the host's estimate of the total.
            input_tokens: tokens that the model read.
            model: the model that answers.
            id: the id of the turn, 1 to 255 characters; a new UUIDv7 when None.
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The writer of the new turn, which is stored already.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            ResponseNotFoundError: there is no such response.
            TurnAlreadyExistsError: the id or the index is taken.
        """
        with self._live("stream_turn", timeout) as hub:
            return hub.flusher.begin(
                response_id,
                self,
                id=id,
                timeout=timeout,
                index=index,
                started_at=started_at,
                expected_tokens=expected_tokens,
                input_tokens=input_tokens,
                model=model,
            )

    def recover_interrupted(self, *, timeout: float | None = None) -> list[Turn]:
        """End the turns that are streaming although their process is gone.

        Opening does this too. Turns of living processes, this one included, are not changed.

        Args:
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The turns that are ``interrupted`` now, with their stored text.

        Raises:
            DatabaseBusyError: the budget was used up; call it again.
        """
        with self._live("recover_interrupted", timeout) as hub:
            return hub.recover(timeout)

    def add_turn_update_listener(
        self, turn_id: str, listener: Callable[[TurnUpdate], object]
    ) -> Subscription:
        """Call ``listener`` with every new state of a turn, from now on.

        It is called in a thread of the library, one state after the other; a slow listener gets
        the newest state. Its exceptions are logged.

        Args:
            turn_id: the turn.
            listener: called with a ``TurnUpdate``.

        Returns:
            The subscription; it ends by ``close()``, with the manager, or when the turn is deleted.

        Raises:
            InvalidArgumentError: an argument has the wrong type.
            TurnNotFoundError: there is no such turn.
        """
        return self._listened(
            "add_turn_update_listener",
            lambda follower: add_turn_update_listener(follower, self, turn_id, listener),
        )

    def track_streaming_turns(
        self,
        response_id: str,
        listener: Callable[[TurnUpdate], object],
        *,
        follow: bool = False,
    ) -> Subscription:
        """Call ``listener`` with the present state of each turn of a response, and every new one.

        Like ``watch_response``, with calls instead of an iteration.

        Args:
            response_id: the response.
            listener: called with a ``TurnUpdate``, in a thread of the library.
            follow: whether to go on after the response is complete.

        Returns:
            The subscription; it ends as ``watch_response`` does.

        Raises:
            InvalidArgumentError: an argument has the wrong type.
            ResponseNotFoundError: there is no such response.
        """
        return self._listened(
            "track_streaming_turns",
            lambda follower: track_streaming_turns(
                follower, self, response_id, listener, follow=follow
            ),
        )

    def watch_response(self, response_id: str, *, follow: bool = False) -> Watch[TurnUpdate]:
        """Follow a response: ``for update in sessions.watch_response(response_id)``.

        First comes the present state of each turn, then every change by any caller in any process,
        including turns that begin later. A slow reader gets the newest state of each turn.

        It ends when the response is complete: no turn streams, and the newest one has ended
        without tool calls, or in ``error`` or ``interrupted``. After a turn with tool calls it
        waits for the next turn, however long the tools run.

        Args:
            response_id: the response.
            follow: whether to go on after the response is complete, until ``close()``; for hosts
                that do not store tool calls.

        Returns:
            An iterator, also an async one, of ``TurnUpdate``.

        Raises:
            InvalidArgumentError: an argument has the wrong type.
            ResponseNotFoundError: there is no such response.
        """
        with self._live("watch_response") as hub:
            return watch_response(hub.follower, self, response_id, follow=follow)

    def watch_session(self, session_id: str, *, last: int = 1) -> Watch[SessionEvent]:
        """Follow a session: its rounds, its turns, its own fields.

        First comes the present state of its last rounds, then every change by any process, until
        ``close()`` or until the session is deleted.

        Args:
            session_id: the session.
            last: of how many rounds the present state comes first, 0 to 10,000.

        Returns:
            An iterator, also an async one, of ``TurnUpdate``, ``RoundUpdate``, ``SessionUpdate``.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
        """
        with self._live("watch_session") as hub:
            return watch_session(hub.follower, self, session_id, last=last)

    # -- working ----------------------------------------------------------------------------

    def transaction(
        self, *, timeout: float | None = None
    ) -> AbstractContextManager[SessionTransaction]:
        """Commit several calls together: ``with sessions.transaction() as tx: tx.create_round(…)``.

        Inside the block use ``tx``; calling the manager itself, or beginning a second block in the
        same thread, raises ``ReentrantScopeError``. An exception undoes all calls of the block.

        Args:
            timeout: seconds for the queue, BEGIN and the block; None for the ``busy_timeout``.

        Raises:
            DatabaseBusyError: the budget was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        return TransactionBlock(self._opened, timeout)

    def transact(
        self, work: Callable[[SessionTransaction], T], *, timeout: float | None = None
    ) -> T:
        """Call ``work`` with a transaction and return its result, once that is committed.

        Unlike a ``transaction()`` block it may share its COMMIT with calls of other threads; it is
        called again if that transaction is lost. So it does database work only.

        Args:
            work: called in this thread.
            timeout: seconds for the queue, BEGIN and the work; None for the ``busy_timeout``.

        Raises:
            DatabaseBusyError: the budget was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        arguments.function("work", work)
        handle = self._opened
        try:
            return handle.transact(
                lambda database: work(SessionTransaction(database, handle.claim)),
                "transact",
                timeout,
            )
        except HandleReleasedError:
            if self._handle is handle:
                raise
        raise NotInitializedError

    def health(
        self, level: HealthLevel = HealthLevel.QUICK, timeout: float | None = None
    ) -> HealthReport:
        """Check the database without changing it.

        Args:
            level: how thorough the check is; ``QUICK`` takes about a millisecond.
            timeout: seconds that the checks of ``THOROUGH`` and ``FULL`` may take; None for ten
                minutes.
        """
        return self._opened.health(level, timeout)

    def stats(self) -> DatabaseStats:
        """Return the figures of the database since it was opened."""
        return self._opened.stats()

    def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> Path:
        """Copy the database to a new file during other work, and verify the copy.

        Args:
            target: the file to make; its folder must exist.
            overwrite: whether an existing file is replaced.
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The path of the copy.

        Raises:
            BackupError: the target exists, or the copy did not pass its check; nothing is left.
        """
        return self._opened.backup(target, overwrite=overwrite, timeout=timeout)
