"""What is live in one open file: its streams, its watchers, and who has died while streaming."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection
from typing import Self

from mandrake_sessions.engine.protocols import Database
from mandrake_sessions.errors import DatabaseError, DatabaseMovedError, ReentrantScopeError
from mandrake_sessions.live.patrol import Lookout, patrol
from mandrake_sessions.live.streaming import given_up
from mandrake_sessions.live.streaming.flusher import Flusher
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.live.watching.follower import Follower
from mandrake_sessions.log import get_logger
from mandrake_sessions.models import Turn
from mandrake_sessions.records.recovery import interrupt_turns_of, streaming_owners

_RECOVERY_PATIENCE = 5.0
"""Seconds that an opening gives to the turns of hosts that have died."""

_LAST_LOOK = 0.1
"""Seconds to find out, at closing, whether a turn of ours still streams."""


class Hub:
    """The streams and watchers of one open file, whichever manager they belong to.

    Attributes:
        file: the open file.
        flusher: stores what the TurnWriters hold.
        follower: tells subscriptions what has changed.
        lookout: finds turns whose host has died.
    """

    def __init__(self, file: Database) -> None:
        self.file = file
        # The texts of this process's streams: what is in flight is read from here.
        texts: dict[str, GrowingText] = {}
        self.flusher: Flusher = Flusher(file, texts)
        self.follower: Follower = Follower(file, texts)
        self.lookout: Lookout = Lookout(file, self.interrupt_gone, self.tell_damage)
        self._is_damage_told = False
        self._is_claim_looked_after = False
        self._asking = threading.Lock()
        if not file.options.read_only:
            patrol.add(self)

    @classmethod
    def of(cls, file: Database) -> Self:
        """Return the hub of an open file, the same for everybody."""
        return file.attach(cls)

    def leave(self, holder: object) -> None:
        """End the streams and subscriptions of a manager that closes; streams are stored first."""
        try:
            self.flusher.close_holder(holder)
        finally:
            self.follower.close_holder(holder)

    def recover_at_opening(self) -> None:
        """Do what ``recover`` does: every opening finds the turns of dead hosts ended.

        A database that cannot be written now, because it is busy or its disk is full, can be
        opened all the same: the patrol tries again.
        """
        if self.file.options.read_only:
            return
        patrol.go_on()
        try:
            self.recover(min(self.file.options.busy_timeout, _RECOVERY_PATIENCE))
        except ReentrantScopeError:
            # Opened by a thread that is inside a transaction of another manager of the file.
            return
        except DatabaseError as error:
            get_logger(__name__).warning(
                "recovery_postponed", path=str(self.file.path), error=type(error).__name__
            )

    def recover(self, timeout: float | None = None) -> list[Turn]:
        """End the turns that stream though their owner is gone, and return them.

        Args:
            timeout: seconds; None for the ``busy_timeout``.
        """
        self.file.require_writable()
        return self.interrupt_gone(self._owners(timeout), timeout)

    def _owners(self, timeout: float | None) -> list[str | None]:
        """Return whose turns are streaming; of many who open at once, one asks after the other.

        At once, all but one would find the connection busy, and open the auxiliary one for it.
        """
        is_my_turn = self._asking.acquire(timeout=self.file.budget(timeout).left())
        try:
            return self.file.fetch(streaming_owners(), "recover_interrupted", timeout)
        finally:
            if is_my_turn:
                self._asking.release()

    def interrupt_gone(
        self, owners: Collection[str | None], timeout: float | None = None
    ) -> list[Turn]:
        """End the streaming turns of those owners that are gone, and return them.

        Turns of this process that could not be ended when their writer was lost are among them.

        Args:
            owners: who is asked after; None is nobody, and always gone.
            timeout: seconds; None for the ``busy_timeout``.
        """
        file = self.file
        if file.options.read_only:
            return []
        gone = [name for name in owners if not self._is_alive(name)]
        lost = given_up.of(owners)
        if not gone and not lost:
            return []
        turns = file.transact(interrupt_turns_of(gone, lost), "recover_interrupted", timeout)
        given_up.discard(lost)
        file.others.forget_dead()
        if turns:
            # None if another process was faster.
            get_logger(__name__).warning(
                "turns_interrupted", path=str(file.path), turn_ids=[turn.id for turn in turns]
            )
        return turns

    def _is_alive(self, name: str | None) -> bool:
        if name is None:
            return False
        return name == self.file.owner or self.file.others.is_alive(name)

    def tell_damage(self) -> None:
        """End the subscriptions of a damaged file: nothing more is written that could be told.

        Raises:
            DatabaseMovedError: it is not ours any more.
            PoolClosedError: it closes.
        """
        if self._is_damage_told or self.follower.is_quiet:
            return
        damage = self.file.find_damage()
        if damage is not None:
            self._is_damage_told = True
            self.follower.end_present(damage)

    # -- told by the file -------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether nobody streams and nobody watches, in this process."""
        return not self.flusher.writers and self.follower.is_quiet

    def can_rest(self) -> bool:
        """Return whether the file may be closed for a while and opened again, unseen by anybody.

        Not while a turn streams under our claim, with a writer or without one: its host goes on
        with it at any moment, and meanwhile nobody may take it for dead.
        """
        if not self.is_quiet:
            return False
        name = self.file.owner
        if name is None:
            return True
        if name in self.file.fetch(streaming_owners(), "park", even_refused=True):
            return False
        self.file.release_claim()
        self._is_claim_looked_after = True
        return True

    def committed(self) -> None:
        """Have the follower look: this process has committed something."""
        self.follower.wake()

    def retired(self) -> None:
        """Fail what is live: the file takes no more work."""
        self.flusher.retired()
        self.follower.fail(DatabaseMovedError(path=self.file.path))

    def close(self, deadline: float) -> None:
        """Store what the streams hold, end them and the subscriptions, and give the claim back.

        Args:
            deadline: when it must be done (``time.monotonic``).
        """
        patrol.remove(self)
        try:
            self.flusher.close(deadline)
        finally:
            self.follower.close()
            if self.file.owner is not None and not self._is_claim_looked_after:
                self._release_claim(self.file.owner)

    def _release_claim(self, name: str) -> None:
        """Give the claim back, unless a turn still streams that the host may go on with."""
        with contextlib.suppress(DatabaseError):
            owners = self.file.transact(
                streaming_owners(), "close", _LAST_LOOK, delegable=False, even_refused=True
            )
            if name not in owners:
                self.file.release_claim()

    def forget_after_fork(self) -> None:
        """Let go of the parent's threads, streams and watchers in a child."""
        self.flusher.forget_after_fork()
        self.follower.forget_after_fork()
