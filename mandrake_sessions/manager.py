"""SessionManager: opens the scope, calls the records, and gives back what they made.

The functions in ``records`` prepare a unit of work: arguments are checked and ids made before any
lease is taken. What stands here is how such a unit is run: by the manager, each as a unit of its
own, or inside a transaction, together with others. So a method has one signature and one
docstring, whoever offers it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import structlog

from mandrake_sessions import arguments
from mandrake_sessions.database.handle import DatabaseHandle
from mandrake_sessions.database.health import HealthReport
from mandrake_sessions.database.paths import real_path
from mandrake_sessions.database.pool import ConnectionPool, default_pool
from mandrake_sessions.database.stats import DatabaseStats
from mandrake_sessions.database.transaction import ReadUnit, WriteTransaction, WriteUnit
from mandrake_sessions.errors import InvalidArgumentError, NotInitializedError
from mandrake_sessions.models import Exchange
from mandrake_sessions.options import DatabaseOptions
from mandrake_sessions.records import (
    history,
    requests,
    rounds,
    sessions,
    turn_updates,
    turns,
    usage,
)

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])

HISTORY_PAGE = 100
"""Rounds that ``iter_session_history`` reads under one lease."""


def _with_signature(method: M, prepare: Callable[..., object]) -> M:
    """Have a method tell its own signature, and not that of the function that prepares its work."""
    told = inspect.signature(prepare)
    # "WriteUnit[Session]" is what the function returns, "Session" the method.
    returns = str(told.return_annotation).partition("[")[2].removesuffix("]")
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = told.replace(  # type: ignore[attr-defined]
        parameters=[myself, *told.parameters.values()], return_annotation=returns
    )
    method.__annotations__ = {**method.__annotations__, "return": returns}
    return method


def _writes(
    prepare: Callable[P, WriteUnit[T]],
) -> Callable[Concatenate[SessionManager, P], T]:
    """Offer a writing unit as a method: it may share its COMMIT with other threads' units."""

    @wraps(prepare)
    def method(self: SessionManager, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.handle
        return handle.transact(prepare(*args, **kwargs), prepare.__name__, delegable=True)

    return _with_signature(method, prepare)


def _fetches(
    prepare: Callable[P, ReadUnit[T]],
) -> Callable[Concatenate[SessionManager, P], T]:
    """Offer a short reading unit as a method."""

    @wraps(prepare)
    def method(self: SessionManager, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.handle
        return handle.fetch(prepare(*args, **kwargs), prepare.__name__)

    return _with_signature(method, prepare)


def _queries(
    prepare: Callable[P, ReadUnit[T]],
) -> Callable[Concatenate[SessionManager, P], T]:
    """Offer a reading unit that may be long as a method: one snapshot, no writer waits for it."""

    @wraps(prepare)
    def method(self: SessionManager, /, *args: P.args, **kwargs: P.kwargs) -> T:
        handle = self.handle
        return handle.query(prepare(*args, **kwargs), prepare.__name__)

    return _with_signature(method, prepare)


def _within(
    prepare: Callable[P, WriteUnit[T]],
) -> Callable[Concatenate[SessionTransaction, P], T]:
    """Offer a writing unit as a method of an open transaction.

    Behind a savepoint: a call that raises leaves nothing, also when the block goes on.
    """

    @wraps(prepare)
    def method(self: SessionTransaction, /, *args: P.args, **kwargs: P.kwargs) -> T:
        unit = prepare(*args, **kwargs)
        with self.database.savepoint():
            return unit(self.database)

    return _with_signature(method, prepare)


def _seen_within(
    prepare: Callable[P, ReadUnit[T]],
) -> Callable[Concatenate[SessionTransaction, P], T]:
    """Offer a reading unit as a method of an open transaction."""

    @wraps(prepare)
    def method(self: SessionTransaction, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return prepare(*args, **kwargs)(self.database)

    return _with_signature(method, prepare)


class SessionTransaction:
    """Several calls in one transaction: all of them are stored, or none.

    Attributes:
        database: the transaction of the layer below, for statements of one's own.
    """

    def __init__(self, database: WriteTransaction) -> None:
        self.database = database

    create_session = _within(sessions.create_session)
    get_session = _seen_within(sessions.get_session)
    find_session = _seen_within(sessions.find_session)
    list_sessions = _seen_within(sessions.list_sessions)
    count_sessions = _seen_within(sessions.count_sessions)
    update_session = _within(sessions.update_session)
    delete_session = _within(sessions.delete_session)

    create_round = _within(rounds.create_round)
    record_round = _within(rounds.record_round)
    get_round = _seen_within(rounds.get_round)
    get_round_by_response = _seen_within(rounds.get_round_by_response)
    get_current_round = _seen_within(rounds.get_current_round)
    list_rounds = _seen_within(rounds.list_rounds)
    delete_round = _within(rounds.delete_round)

    get_request = _seen_within(requests.get_request)
    update_request = _within(requests.update_request)
    get_response = _seen_within(requests.get_response)

    create_turn = _within(turns.create_turn)
    get_turn = _seen_within(turns.get_turn)
    get_latest_turn = _seen_within(turns.get_latest_turn)
    list_turns = _seen_within(turns.list_turns)
    update_turn = _within(turn_updates.update_turn)
    delete_turn = _within(turns.delete_turn)
    get_streaming_status = _seen_within(turns.get_streaming_status)

    render_session_history = _seen_within(history.render_session_history)
    get_session_usage = _seen_within(usage.get_session_usage)

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the block did if it raises, and only that."""
        with self.database.savepoint():
            yield


class SessionManager:
    """The conversations in one database file.

    Making one opens nothing. ``init()`` and ``close()`` do, or a ``with`` block. It may be used
    from any number of threads.

    Args:
        path: of the database file; folders that are missing are made by ``init()``.
        pool: where the connection comes from; None for the process's ``default_pool()``.
        options: how the database is opened; None for the pool's.
        create: whether ``init()`` makes a file that is not there.
        logger: a structlog logger of the host's, told when the manager is opened, closed and
            deleted; None for silence.

    Attributes:
        create: as given; what the next ``init()`` does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pool: ConnectionPool | None = None,
        options: DatabaseOptions | None = None,
        create: bool = True,
        logger: structlog.stdlib.BoundLogger | None = None,
    ) -> None:
        arguments.path("path", path)
        arguments.optional_instance("pool", pool, ConnectionPool)
        arguments.optional_instance("options", options, DatabaseOptions)
        arguments.flag("create", create)
        self._path = path
        self._pool = pool
        self._options = options
        self.create = create
        self._logger = logger
        self._mutex = threading.Lock()
        self._handle: DatabaseHandle | None = None

    # -- life -------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The real path of the database file; while it is open, that of the open file."""
        handle = self._handle
        return real_path(self._path) if handle is None else handle.path

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._handle is not None

    @property
    def handle(self) -> DatabaseHandle:
        """The claim on the database, for statements of one's own.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
        """
        handle = self._handle
        if handle is None:
            raise NotInitializedError
        return handle

    def init(self) -> Self:
        """Open the database, making it and migrating its schema where needed.

        Does nothing when it is open. It works again after ``close()``.

        Raises:
            DatabaseFolderError: the folder cannot be made or written.
            DatabaseOpenError: the file cannot be opened; each reason has its own subclass.
            MigrationError: the schema cannot be brought to this version's.
            DatabaseBusyError: other processes held it until the deadline.
        """
        with self._mutex:
            if self._handle is None:
                pool = self._pool or default_pool()
                self._handle = pool.acquire(self._path, options=self._options, create=self.create)
                self._tell("sessions_opened")
        return self

    def close(self) -> None:
        """Give the database back; does nothing when it is closed."""
        with self._mutex:
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.release()
            self._tell("sessions_closed")

    def delete(self, *, timeout: float | None = None) -> None:
        """Close, then remove the database file with its ``-wal`` and ``-shm``.

        Args:
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.

        Raises:
            DatabaseBusyError: somebody else had it open until the deadline; nothing was removed.
        """
        if timeout is not None:
            arguments.seconds("timeout", timeout)
        # Asked before it is closed: a relative path could name another file by now.
        path = self.path
        self.close()
        (self._pool or default_pool()).remove(path, timeout=timeout)
        self._tell("sessions_deleted")

    def _tell(self, event: str) -> None:
        """Log what happened to the manager itself, where the host gave a logger for that."""
        if self._logger is not None:
            self._logger.info(event, path=str(self._path))

    def __enter__(self) -> Self:
        return self.init()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- records ----------------------------------------------------------------------------

    create_session = _writes(sessions.create_session)
    get_session = _fetches(sessions.get_session)
    find_session = _fetches(sessions.find_session)
    list_sessions = _queries(sessions.list_sessions)
    count_sessions = _queries(sessions.count_sessions)
    update_session = _writes(sessions.update_session)
    delete_session = _writes(sessions.delete_session)

    create_round = _writes(rounds.create_round)
    record_round = _writes(rounds.record_round)
    get_round = _fetches(rounds.get_round)
    get_round_by_response = _fetches(rounds.get_round_by_response)
    get_current_round = _fetches(rounds.get_current_round)
    list_rounds = _queries(rounds.list_rounds)
    delete_round = _writes(rounds.delete_round)

    get_request = _fetches(requests.get_request)
    update_request = _writes(requests.update_request)
    get_response = _fetches(requests.get_response)

    create_turn = _writes(turns.create_turn)
    get_turn = _fetches(turns.get_turn)
    get_latest_turn = _fetches(turns.get_latest_turn)
    list_turns = _queries(turns.list_turns)
    update_turn = _writes(turn_updates.update_turn)
    delete_turn = _writes(turns.delete_turn)
    get_streaming_status = _fetches(turns.get_streaming_status)

    render_session_history = _queries(history.render_session_history)
    get_session_usage = _queries(usage.get_session_usage)

    def iter_session_history(
        self, session_id: str, *, page_size: int = HISTORY_PAGE
    ) -> Iterator[Exchange]:
        """Yield the rounds of a session with their turns, in index order, page by page.

        No lease is held between two pages, so it promises no snapshot across them: rounds that
        are added meanwhile are seen.

        Args:
            session_id: the session.
            page_size: rounds read under one lease, 1 to 10,000.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
        """
        size = arguments.limit("page_size", page_size)
        after: int | None = None
        while True:
            page = self.handle.query(
                history.history_page(session_id, after, size), "iter_session_history"
            )
            yield from page
            if len(page) < size:
                return
            after = page[-1].index

    # -- working ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, timeout: float | None = None) -> Iterator[SessionTransaction]:
        """Commit several calls together: ``with sessions.transaction() as tx: tx.create_round(…)``.

        Inside the block use ``tx``; calling the manager itself, or beginning a second block in the
        same thread, raises ``ReentrantScopeError``. An exception undoes everything.

        Args:
            timeout: seconds for the queue, BEGIN and the block; None for the ``busy_timeout``.

        Raises:
            DatabaseBusyError: the budget was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        with self.handle.write(timeout) as database:
            yield SessionTransaction(database)

    def transact(
        self, work: Callable[[SessionTransaction], T], *, timeout: float | None = None
    ) -> T:
        """Call ``work`` with a transaction and return what it returns, once that is committed.

        Unlike a ``transaction()`` block it may share its COMMIT with calls of other threads, and
        is then called again should that transaction be lost. So it does database work only.

        Args:
            work: called in this thread.
            timeout: seconds for the queue, BEGIN and the work; None for the ``busy_timeout``.

        Raises:
            DatabaseBusyError: the budget was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        if not callable(work):
            raise InvalidArgumentError("work must be callable.")
        return self.handle.transact(
            lambda database: work(SessionTransaction(database)), "transact", timeout
        )

    def health(self) -> HealthReport:
        """Look at the database without changing it, in about a millisecond."""
        return self.handle.health()

    def stats(self) -> DatabaseStats:
        """Return the figures of the database since it was opened."""
        return self.handle.stats()

    def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> Path:
        """Copy the database to a new file while work goes on, and verify the copy.

        Args:
            target: the file to make; its folder must exist.
            overwrite: whether a file that is there is replaced.
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The path of the copy.

        Raises:
            BackupError: the target exists, or the copy did not pass its check; nothing is left.
        """
        return self.handle.backup(target, overwrite=overwrite, timeout=timeout)
