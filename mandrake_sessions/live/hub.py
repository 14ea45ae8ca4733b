"""The live part of one open file: its streams, its watchers, and the turns of dead processes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any, Self

from mandrake_sessions.concurrency.mutex import Mutex
from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.errors import DatabaseError, DatabaseMovedError, ReentrantScopeError
from mandrake_sessions.live.patrol import LivenessCheck, patrol
from mandrake_sessions.live.streaming import lost_turns
from mandrake_sessions.live.streaming.flusher import Flusher
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.live.watching.follower import Follower
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import Turn
from mandrake_sessions.records.recovery import interrupt_turns_of, streaming_owners

_RECOVERY_PATIENCE = 5.0
"""Seconds that an opening spends on ending the turns of processes that have died."""

_LAST_QUERY = 0.1
"""Seconds that closing spends on the query whether a turn of this process still streams."""


class Hub:
    """The streams and watchers of one open file, whichever manager they belong to.

    Attributes:
        file: the open file.
        liveness: finds turns whose process has died.
    """

    def __init__(self, file: Database) -> None:
        self.file = file
        # The texts of this process's streams: watchers read text in flight from here.
        self._texts: dict[str, GrowingText] = {}
        # The flusher and the follower. Most openings need neither.
        self._parts: dict[str, Any] = {}
        self._is_retired = False
        self._is_closed = False
        self._is_forked = False
        self.liveness: LivenessCheck = LivenessCheck(file, self.interrupt_gone, self.end_if_damaged)
        self._is_damage_noted = False
        self._is_claim_settled = False
        self._querying = Mutex()
        if not file.options.read_only:
            patrol.add(self)

    @classmethod
    def of(cls, file: Database) -> Self:
        """Return the hub of an open file; every caller gets the same one."""
        return file.attach(cls)

    # -- the parts --------------------------------------------------------------------------
    #
    # The first use makes a part, without a lock: of two threads the first one's stays. What ends
    # all parts notes that first and then reads them; what makes a part reads that note afterwards.

    @property
    def flusher(self) -> Flusher:
        """Stores the text that the TurnWriters hold."""
        flusher = self._flusher
        if flusher is None:
            flusher = self._parts.setdefault("flusher", Flusher(self.file, self._texts))
            if self._is_retired:
                flusher.retired()
            if self._is_closed:
                flusher.close(0.0)
            if self._is_forked:
                flusher.forget_after_fork()
        return flusher

    @property
    def follower(self) -> Follower:
        """Reads changes and posts them to the subscriptions."""
        follower = self._follower
        if follower is None:
            follower = self._parts.setdefault("follower", Follower(self.file, self._texts))
            if self._is_retired:
                follower.fail(DatabaseMovedError(path=self.file.path))
            if self._is_closed:
                follower.close()
            if self._is_forked:
                follower.forget_after_fork()
        return follower

    @property
    def _flusher(self) -> Flusher | None:
        """The flusher; None if no stream was begun."""
        return self._parts.get("flusher")

    @property
    def _follower(self) -> Follower | None:
        """The follower; None if there was no subscription."""
        return self._parts.get("follower")

    # -- streams and subscriptions ----------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many turns are being written."""
        flusher = self._flusher
        return 0 if flusher is None else flusher.writers

    def subscriptions_of(self, holder: object) -> int:
        """Return how many subscriptions belong to one manager."""
        follower = self._follower
        return 0 if follower is None else follower.subscriptions_of(holder)

    def leave(self, holder: object) -> None:
        """End the streams and subscriptions of a manager that closes; streams are stored first."""
        try:
            if (flusher := self._flusher) is not None:
                flusher.close_holder(holder)
        finally:
            if (follower := self._follower) is not None:
                follower.close_holder(holder)

    # -- the turns of dead processes --------------------------------------------------------

    def recover_at_opening(self) -> None:
        """End the turns of dead processes, as ``recover`` does, whenever a file is opened.

        A database that cannot be written now, because it is busy or its disk is full, opens all
        the same: the patrol tries again.
        """
        if self.file.options.read_only:
            return
        patrol.ensure_running()
        try:
            self.recover(min(self.file.options.busy_timeout, _RECOVERY_PATIENCE))
        except ReentrantScopeError:
            # The opening thread is inside a transaction of another manager of the file.
            return
        except DatabaseError as error:
            get_logger(__name__).warning(
                "recovery_postponed", path=str(self.file.path), error=type(error).__name__
            )

    def recover(self, timeout: float | None = None) -> list[Turn]:
        """End the turns that are streaming although their owner is gone, and return them.

        Args:
            timeout: seconds; None for the ``busy_timeout``.
        """
        self.file.require_writable()
        return self.interrupt_gone(self._owners(timeout), timeout)

    def _owners(self, timeout: float | None) -> list[str | None]:
        """Return the owners of streaming turns; threads that open at once query one by one.

        Without this, all but one would find the connection busy and open the auxiliary one.
        """
        with self._querying.held(self.file.budget(timeout).left()):
            return self.file.fetch(streaming_owners(), "recover_interrupted", timeout)

    def interrupt_gone(
        self, owners: Collection[str | None], timeout: float | None = None
    ) -> list[Turn]:
        """End the streaming turns of those owners that are gone, and return them.

        Turns of this process that could not be ended when their writer was lost are included.

        Args:
            owners: the owners to check; None is an owner without a name, which is always gone.
            timeout: seconds; None for the ``busy_timeout``.
        """
        file = self.file
        if file.options.read_only:
            return []
        gone = [name for name in owners if not self._is_alive(name)]
        lost = lost_turns.of(owners)
        if not gone and not lost:
            return []
        turns = file.transact(interrupt_turns_of(gone, lost), "recover_interrupted", timeout)
        lost_turns.discard(lost)
        file.others.forget_dead()
        if turns:
            # Empty if another process has ended them first.
            get_logger(__name__).warning(
                "turns_interrupted", path=str(file.path), turn_ids=[turn.id for turn in turns]
            )
        return turns

    def _is_alive(self, name: str | None) -> bool:
        if name is None:
            return False
        return name == self.file.owner or self.file.others.is_alive(name)

    def end_if_damaged(self) -> None:
        """End the subscriptions of a damaged file: no further write will reach them.

        Raises:
            DatabaseMovedError: the file was moved or replaced.
            PoolClosedError: the file closes.
        """
        follower = self._follower
        if self._is_damage_noted or follower is None or follower.is_quiet:
            return
        damage = self.file.find_damage()
        if damage is not None:
            self._is_damage_noted = True
            follower.end_present(damage)

    # -- called by the file -----------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether this process has no open stream and no subscription on the file."""
        follower = self._follower
        return not self.streams and (follower is None or follower.is_quiet)

    def can_rest(self) -> bool:
        """Return whether the file may be closed and opened again without any caller noticing.

        It may not while a turn streams under this process's claim, with a writer or without one:
        the host may continue it at any time, and meanwhile no process may take it for abandoned.
        """
        if not self.is_quiet:
            return False
        name = self.file.owner
        if name is None:
            return True
        if name in self.file.fetch(streaming_owners(), "park", even_refused=True):
            return False
        self.file.release_claim()
        self._is_claim_settled = True
        return True

    def committed(self) -> None:
        """Wake the follower: this process has committed."""
        if (follower := self._follower) is not None:
            follower.wake()

    def retired(self) -> None:
        """Fail the streams and the subscriptions: the file takes no more work."""
        self._is_retired = True
        if (flusher := self._flusher) is not None:
            flusher.retired()
        if (follower := self._follower) is not None:
            follower.fail(DatabaseMovedError(path=self.file.path))

    def close(self, deadline: float) -> None:
        """Store what the streams hold, end streams and subscriptions, and release the claim.

        Args:
            deadline: when it must be done (``time.monotonic``).
        """
        patrol.remove(self)
        self._is_closed = True
        try:
            if (flusher := self._flusher) is not None:
                flusher.close(deadline)
        finally:
            if (follower := self._follower) is not None:
                follower.close()
            if self.file.owner is not None and not self._is_claim_settled:
                self._release_claim(self.file.owner)

    def _release_claim(self, name: str) -> None:
        """Release the claim, unless a turn still streams that the host may continue."""
        with contextlib.suppress(DatabaseError):
            owners = self.file.transact(
                streaming_owners(), "close", _LAST_QUERY, delegable=False, even_refused=True
            )
            if name not in owners:
                self.file.release_claim()

    def forget_after_fork(self) -> None:
        """Drop the parent's threads, streams and watchers in a child."""
        self._is_forked = True
        if (flusher := self._flusher) is not None:
            flusher.forget_after_fork()
        if (follower := self._follower) is not None:
            follower.forget_after_fork()
