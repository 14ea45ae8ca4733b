"""AsyncSessionManager: the conversations of one database, for coroutines.

The methods of records are made from the same functions as those of ``SessionManager``: such a
function checks the arguments and prepares the unit, in the event loop, and a worker's thread runs
it. There is no ``transaction()`` block: with a lease held across an ``await``, every other caller
would wait for what that coroutine awaits. ``transact()`` takes a plain function instead.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from mandrake_sessions import arguments
from mandrake_sessions.aio.calls import Call, EscapedError
from mandrake_sessions.aio.cancellation import cancelled_call
from mandrake_sessions.aio.opening import AsyncOpening
from mandrake_sessions.aio.subscribing import AsyncTurnListener, followed, listen
from mandrake_sessions.aio.to_thread import in_thread
from mandrake_sessions.aio.writer import AsyncTurnWriter
from mandrake_sessions.database.connection.transaction import WriteTransaction
from mandrake_sessions.engine.health import HealthLevel, HealthReport
from mandrake_sessions.engine.protocols import Handle
from mandrake_sessions.engine.stats import DatabaseStats
from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.faces.awaited import AwaitedFace
from mandrake_sessions.live.streaming.writer import TurnWriter
from mandrake_sessions.live.watching.subscription import (
    Subscription,
    Watch,
    watch_response,
    watch_session,
)
from mandrake_sessions.live.watching.targets import Joining, ResponseTarget, TurnTarget
from mandrake_sessions.live.watching.updates import SessionEvent, TurnUpdate
from mandrake_sessions.manager import HISTORY_PAGE
from mandrake_sessions.models import Exchange, Turn, TurnStatus
from mandrake_sessions.records import history
from mandrake_sessions.session_transaction import SessionTransaction

T = TypeVar("T")


class AsyncSessionManager(AsyncOpening, AwaitedFace):
    """The conversations in one database file, for coroutines.

    Making one opens nothing; ``await init()``, or an ``async with`` block, opens the database. It
    may be used from any number of tasks, also of several event loops in several threads.

    If an await is cancelled before its call has begun, the call never runs; a call that runs is
    waited for, which takes milliseconds. ``cancelled_call(error)`` returns which of both it was.

    Args:
        path: the path of the database file; ``init()`` makes missing folders. A relative path is
            resolved when the manager is made.
        pool: where the connection comes from; None for the process's ``default_pool()``.
        options: how the database is opened; None for the pool's.
        create: whether ``init()`` makes a missing file.
        read_only: whether the file is only read, as ``DatabaseOptions.read_only`` says.
        logger: a structlog logger of the host.

    Attributes:
        sync: the SessionManager behind it, for threads.
    """

    # -- histories --------------------------------------------------------------------------

    def iter_session_history(
        self, session_id: str, *, page_size: int = HISTORY_PAGE
    ) -> AsyncGenerator[Exchange, None]:
        """Yield the rounds of a session with their turns, in index order, page by page.

        No lease is held between two pages, so the pages are no snapshot. The iteration may stop at
        any round: nothing is open between two pages.

        Args:
            session_id: the session.
            page_size: rounds read under one lease, 1 to 10,000.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
            SessionNotFoundError: there is no such session.
        """
        session_id = arguments.lookup_id("session_id", session_id)
        return self._history_pages(session_id, arguments.limit("page_size", page_size))

    async def _history_pages(self, session_id: str, size: int) -> AsyncGenerator[Exchange, None]:
        after: int | None = None
        while True:
            unit = history.history_page(session_id, after, size)
            page = await self._run_unit(self._open_handle(), unit, "iter_session_history", "query")
            for exchange in page:
                yield exchange
            if len(page) < size:
                return
            after = page[-1].index

    # -- live -------------------------------------------------------------------------------

    @property
    def subscriptions(self) -> int:
        """How many watches and listeners of this manager have not ended."""
        return self.sync.subscriptions

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
    ) -> AsyncTurnWriter:
        """Return the writer of a new turn: ``async with sessions.stream_turn(…) as turn:``.

        The block begins the turn, and then raises the errors of ``SessionManager.stream_turn``.
        Leaving the block completes the turn, leaving it by an exception stores ``error``, by a
        cancellation ``interrupted``.

        Args:
            response_id: the response it belongs to.
            index: the index of the turn; the next one when None. A later one leaves a gap.
            started_at: when streaming began, aware; now when None.
            expected_tokens: the host's estimate of the total.
            input_tokens: tokens that were read.
            model: the model that answers.
            id: the id of the turn, 1 to 255 characters; a new UUIDv7 when None.
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The writer of the turn, which is not stored yet.

        Raises:
            NotInitializedError: before ``init()`` and after ``close()``.
        """
        handle = self._open_handle()
        begin = functools.partial(
            self.sync.stream_turn,
            response_id,
            index=index,
            started_at=started_at,
            expected_tokens=expected_tokens,
            input_tokens=input_tokens,
            model=model,
            id=id,
        )
        return AsyncTurnWriter(handle, functools.partial(self._begin_turn, handle, begin, timeout))

    async def _begin_turn(
        self, handle: Handle, begin: Callable[..., TurnWriter], timeout: float | None
    ) -> TurnWriter:
        def start(_: None) -> TurnWriter:
            # The time in the worker's queue is part of the timeout.
            return begin(timeout=call.budget.left())

        call: Call[TurnWriter] = Call(start, "stream_turn", handle, timeout, is_whole=True)
        try:
            return await call.outcome(self._worker("write"), is_write=True)
        except asyncio.CancelledError as error:
            begun = cancelled_call(error)
            if begun is not None and begun.is_committed:
                # Stored in the background, and no coroutine has the writer.
                begun.result.begin_end(TurnStatus.INTERRUPTED)
            raise

    async def recover_interrupted(self, *, timeout: float | None = None) -> list[Turn]:
        """End the turns that are streaming although their process is gone.

        Args:
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The turns that are ``interrupted`` now, with their stored text.

        Raises:
            DatabaseBusyError: the budget was used up; call it again.
        """
        return await in_thread(
            "recover_interrupted", functools.partial(self.sync.recover_interrupted, timeout=timeout)
        )

    async def add_turn_update_listener(
        self, turn_id: str, listener: AsyncTurnListener
    ) -> Subscription:
        """Call ``listener`` with every new state of a turn, from now on.

        It is called in this event loop, and awaited if it is a coroutine function, one state after
        the other; a slow listener gets the newest state. Its exceptions are logged.

        Args:
            turn_id: the turn.
            listener: a function or a coroutine function, called with a ``TurnUpdate``.

        Returns:
            The subscription; it ends by ``close()``, with the manager or the event loop, or when
            the turn is deleted.

        Raises:
            InvalidArgumentError: an argument has the wrong type.
            TurnNotFoundError: there is no such turn.
        """
        turn_id = arguments.lookup_id("turn_id", turn_id)
        with followed(self._open_handle()) as follower:
            return await listen(
                follower,
                self.sync,
                listener,
                "add_turn_update_listener",
                lambda mailbox: Joining(mailbox, TurnTarget, turn_id),
            )

    async def track_streaming_turns(
        self, response_id: str, listener: AsyncTurnListener, *, follow: bool = False
    ) -> Subscription:
        """Call ``listener`` with the present state of each turn of a response, and every new one.

        Like ``watch_response``, with calls instead of an iteration.

        Args:
            response_id: the response.
            listener: a function or a coroutine function, called with a ``TurnUpdate``.
            follow: whether to go on after the response is complete.

        Returns:
            The subscription; it ends as ``watch_response`` does.

        Raises:
            InvalidArgumentError: an argument has the wrong type.
            ResponseNotFoundError: there is no such response.
        """
        response_id = arguments.lookup_id("response_id", response_id)
        arguments.flag("follow", follow)
        with followed(self._open_handle()) as follower:
            return await listen(
                follower,
                self.sync,
                listener,
                "track_streaming_turns",
                lambda mailbox: Joining(mailbox, ResponseTarget, response_id, follow=follow),
            )

    def watch_response(self, response_id: str, *, follow: bool = False) -> Watch[TurnUpdate]:
        """Follow a response: ``async for update in sessions.watch_response(response_id)``.

        It yields the updates of ``SessionManager.watch_response``. It is not awaited: if there is
        no such response, the first step of the iteration raises.

        Args:
            response_id: the response.
            follow: whether to go on after the response is complete, until ``close()``.

        Raises:
            InvalidArgumentError: an argument has the wrong type.
        """
        with followed(self._open_handle()) as follower:
            return watch_response(follower, self.sync, response_id, follow=follow, wait=False)

    def watch_session(self, session_id: str, *, last: int = 1) -> Watch[SessionEvent]:
        """Follow a session: its rounds, its turns, its own fields.

        It yields the events of ``SessionManager.watch_session``. It is not awaited: if there is no
        such session, the first step of the iteration raises.

        Args:
            session_id: the session.
            last: of how many rounds the present state comes first, 0 to 10,000.

        Raises:
            InvalidArgumentError: an argument has the wrong type or is out of range.
        """
        with followed(self._open_handle()) as follower:
            return watch_session(follower, self.sync, session_id, last=last, wait=False)

    # -- working ----------------------------------------------------------------------------

    async def transact(
        self, work: Callable[[SessionTransaction], T], *, timeout: float | None = None
    ) -> T:
        """Call ``work`` with a transaction and return its result, once that is committed.

        It runs in the thread that writes for this manager, with the caller's context variables,
        and may share its COMMIT with other calls; it is called again if that transaction is lost.
        So it does database work only, and must not wait for the event loop.

        Args:
            work: a plain function, not a coroutine function.
            timeout: seconds for the queue, BEGIN and the work; None for the ``busy_timeout``.

        Raises:
            DatabaseBusyError: the budget was used up; nothing was stored.
            CommitOutcomeUnknownError: the COMMIT failed and may have stored it.
        """
        arguments.function("work", work)
        if inspect.iscoroutinefunction(work):
            raise InvalidArgumentError("work must be a plain function, not a coroutine function.")
        handle = self._open_handle()
        call = Call(_unit_of(work, handle), "transact", handle, timeout, is_hosts=True)
        return await call.outcome(self._worker("write"), is_write=True)

    async def health(
        self, level: HealthLevel = HealthLevel.QUICK, timeout: float | None = None
    ) -> HealthReport:
        """Check the database without changing it; ``QUICK`` takes about a millisecond.

        Args:
            level: how thorough the check is.
            timeout: seconds that the checks of ``THOROUGH`` and ``FULL`` may take; None for ten
                minutes.
        """
        return await in_thread("health", functools.partial(self.sync.health, level, timeout))

    async def stats(self) -> DatabaseStats:
        """Return the figures of the database since it was opened."""
        return await in_thread("stats", self.sync.stats)

    async def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> Path:
        """Copy the database to a new file; raises the errors of ``SessionManager.backup``.

        If it is cancelled, it waits until the copy is complete or has failed.

        Args:
            target: the file to make; its folder must exist.
            overwrite: whether an existing file is replaced.
            timeout: seconds; None for the ``busy_timeout``.

        Returns:
            The path of the copy.
        """
        return await in_thread(
            "backup",
            functools.partial(self.sync.backup, target, overwrite=overwrite, timeout=timeout),
        )

    async def restore(
        self,
        backup: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> Path:
        """Replace the database by a backup; raises the errors of ``SessionManager.restore``.

        The manager must be closed. If it is cancelled, it waits until the database is replaced, or
        is as it was.

        Args:
            backup: the file to restore; it stays as it is.
            overwrite: whether an existing file is replaced; a damaged one is kept as
                ``<name>.damaged-…``.
            timeout: seconds to wait for other holders, of this process and of others; None for
                the ``busy_timeout``.

        Returns:
            The real path of the database.
        """
        return await in_thread(
            "restore",
            functools.partial(self.sync.restore, backup, overwrite=overwrite, timeout=timeout),
        )


def _unit_of(
    work: Callable[[SessionTransaction], T], handle: Handle
) -> Callable[[WriteTransaction], T]:
    """Return a host's function as a unit."""

    def unit(database: WriteTransaction) -> T:
        try:
            result = work(SessionTransaction(database, handle.claim))
        except Exception:
            raise
        except BaseException as error:
            # It must not undo units that share the transaction.
            raise EscapedError(error) from error
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise InvalidArgumentError("work must not return an awaitable.")
        return result

    return unit
