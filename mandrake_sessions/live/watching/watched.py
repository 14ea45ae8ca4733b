"""All watched items of one file, and the effect of each change on them.

Only the follower's thread uses it. Each read is a short one of the committed state: the rows are at
least as new as the changes that refer to them, and anything newer comes again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from mandrake_sessions.engine.transaction import ReadUnit
from mandrake_sessions.errors import NotFoundError
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.live.watching.known_turns import KnownTurns
from mandrake_sessions.live.watching.mailbox import Mailbox
from mandrake_sessions.live.watching.targets import (
    Joining,
    ResponseTarget,
    SessionTarget,
    Target,
    TurnTarget,
)
from mandrake_sessions.live.watching.turn_states import KnownTurn
from mandrake_sessions.live.watching.updates import RoundUpdate, SessionUpdate
from mandrake_sessions.models import ChangeOp, Entity, Round
from mandrake_sessions.records import feed
from mandrake_sessions.records.feed import NO_CHANGE, Change, StoredTurn
from mandrake_sessions.records.sessions import find_session

T = TypeVar("T")

_CHANGES_AT_ONCE = 500
_ROUNDS_AT_ONCE = 50


class Read(Protocol):
    """Runs a short read of the file."""

    def __call__(self, work: ReadUnit[T], /) -> T:
        """Return what ``work`` returns."""


class Watched:
    """The targets of one file, and the turns in them.

    Args:
        read: runs a short read.
        texts: the texts of this process's writers, by turn.
        note_growth: called in a writer's thread when the text of a turn has grown.
        on_end: called with a mailbox that gets no more states.
    """

    def __init__(
        self,
        read: Read,
        texts: dict[str, GrowingText],
        note_growth: Callable[[KnownTurn], None],
        on_end: Callable[[Mailbox], None],
    ) -> None:
        self._read = read
        self._on_end = on_end
        self._last: Change = NO_CHANGE
        self._targets: dict[tuple[type[Target], str], Target] = {}
        self._of: dict[Mailbox, Target] = {}
        self.turns: KnownTurns = KnownTurns(texts, note_growth)

    # -- subscribers ------------------------------------------------------------------------

    def join(self, joining: Joining) -> None:
        """Add a subscriber and post the present states to it; a failure leaves nothing of it.

        Raises:
            NotFoundError: there is no item of that id.
        """
        try:
            self._join(joining)
        except BaseException:
            self.leave(joining.mailbox)
            for target in [each for each in self._targets.values() if not each.members]:
                self._forget(target)
            raise

    def _join(self, joining: Joining) -> None:
        if not self._targets:
            # Before anything is read: a change from now on is a change.
            self._last = self._read(feed.last_change())
        mailbox = joining.mailbox
        target = self._targets.get((joining.kind, joining.id))
        if isinstance(target, SessionTarget) or joining.kind is SessionTarget:
            target = self._join_session(mailbox, joining.id, joining.last)
        else:
            target = target or self._new_target(joining.kind, joining.id)
            for news in target.present():
                mailbox.post(news)
        self._of[mailbox] = target
        target.members[mailbox] = joining.follow
        self._end_if_over(target)

    def leave(self, mailbox: Mailbox) -> None:
        """Remove a subscriber, and the items that only it has watched."""
        target = self._of.pop(mailbox, None)
        if target is None:
            return
        target.members.pop(mailbox, None)
        if not target.members:
            self._forget(target)

    def _forget(self, target: Target) -> None:
        """Forget a target without subscribers."""
        del self._targets[type(target), target.id]
        for known in target.turns.values():
            others = tuple(other for other in self.turns.targets_of(known) if other is not target)
            self.turns.keep_for(known, others)
            self.turns.drop_text(known)

    def end_all(self, error: Exception) -> None:
        """End every subscription with an error; each gets its own copy."""
        for mailbox in tuple(self._of):
            self._end(mailbox, copy.copy(error))

    def end_of(self, holder: object) -> None:
        """End the subscriptions of one manager."""
        for mailbox in tuple(self._of):
            if mailbox.is_of(holder):
                self._end(mailbox)

    def _new_target(self, kind: type[Target], id: str) -> Target:
        target: Target
        if kind is ResponseTarget:
            found = self._read(feed.response_with_turns(id))
            target = ResponseTarget(id, found.session_id, found.round_id)
            stored = found.turns
        else:
            stored = [self._read(feed.turn_of(id))]
            target = TurnTarget(id, stored[0].session_id, stored[0].round_id)
        self._targets[kind, id] = target
        for turn in stored:
            self._take_in(turn)
        return target

    def _join_session(self, mailbox: Mailbox, id: str, last: int) -> Target:
        # Read each time: a session keeps no states of ended turns for later subscribers.
        session, rounds = self._read(feed.session_with_rounds(id, last))
        turns = self._read(feed.turns_of_rounds(round_.id for round_ in rounds))
        target = self._targets.setdefault((SessionTarget, id), SessionTarget(session))
        assert isinstance(target, SessionTarget)
        mailbox.post(SessionUpdate(id, session))
        of_round: dict[str, list[StoredTurn]] = {}
        for turn in turns:
            of_round.setdefault(turn.round_id, []).append(turn)
        for round_ in rounds:
            target.note(round_)
            mailbox.post(RoundUpdate(round_.id, round_))
            for turn in of_round.get(round_.id, ()):
                known = self._take_in(turn)
                if known is not None and known.state is not None:
                    mailbox.post(known.state)
                    self.turns.drop_text(known)
        return target

    def _end(self, mailbox: Mailbox, error: BaseException | None = None) -> None:
        mailbox.end(error)
        self.leave(mailbox)
        self._on_end(mailbox)

    def _end_target(self, target: Target) -> None:
        for mailbox in tuple(target.members):
            self._end(mailbox)

    def _end_if_over(self, target: Target) -> None:
        """End the subscribers that wait for a target's end, if no turn is expected."""
        ending = [mailbox for mailbox, follow in target.members.items() if not follow]
        if ending and target.is_over and self._is_still_over(target):
            for mailbox in ending:
                self._end(mailbox)

    def _is_still_over(self, target: Target) -> bool:
        """Read all its turns in one snapshot: the next one may have begun in the same COMMIT."""
        try:
            stored = self._read(feed.response_with_turns(target.id)).turns
        except NotFoundError:
            # Its change row is read next, and posts it as deleted.
            return False
        for turn in stored:
            self._take_in(turn)
        return target.is_over

    # -- changes ----------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read the changes and post them; return whether there were any."""
        if not self._targets:
            return False
        found = False
        while True:
            changes = self._read(feed.changes_from(self._last.seq, _CHANGES_AT_ONCE))
            fresh = self._after_last(changes)
            if fresh is None or any(change.is_damaged for change in fresh):
                self._read_anew()
                return True
            if fresh:
                self._apply(fresh)
                self._last = fresh[-1]
                found = True
            if len(changes) < _CHANGES_AT_ONCE:
                break
        return self._follow_chunks() or found

    def _after_last(self, changes: list[Change]) -> list[Change] | None:
        """Return the new changes; None if some are missing or the numbers went back."""
        if self._last.seq == 0:
            return changes if not changes or changes[0].seq == 1 else None
        if not changes or changes[0] != self._last:
            return None
        return changes[1:]

    def _apply(self, changes: Iterable[Change]) -> None:
        sessions = {target.session_id for target in self._targets.values()}
        named: dict[str, dict[str, None]] = {entity: {} for entity in Entity}
        for change in changes:
            if change.session_id not in sessions:
                continue
            if change.op == ChangeOp.DELETE:
                named[change.entity].pop(change.id, None)
                self._delete(change)
            else:
                named[change.entity][change.id] = None
        for id in named[Entity.SESSION]:
            self._post_session(id)
        self._post_named_rounds(named[Entity.ROUND], named[Entity.REQUEST])
        if named[Entity.TURN]:
            self._take_in_all(self._read(feed.find_turns(named[Entity.TURN])))

    def _post_session(self, id: str) -> None:
        target = self._targets.get((SessionTarget, id))
        session = None if target is None else self._read(find_session(id))
        if isinstance(target, SessionTarget) and session is not None:
            target.session = session
            target.post(SessionUpdate(id, session))

    def _post_named_rounds(self, ids: Iterable[str], request_ids: Iterable[str]) -> None:
        """Post rounds; the change rows of a finished exchange name its round, not its turns."""
        if not any(kind is SessionTarget for kind, _ in self._targets):
            return
        rounds = self._read(feed.find_rounds(ids)) if ids else []
        self._post_rounds(rounds)
        if request_ids:
            self._post_rounds(self._read(feed.rounds_of_requests(request_ids)))
        if rounds:
            self._take_in_all(self._read(feed.turns_of_rounds(round_.id for round_ in rounds)))

    def _post_rounds(self, rounds: Iterable[Round]) -> None:
        for round_ in rounds:
            target = self._targets.get((SessionTarget, round_.session_id))
            if isinstance(target, SessionTarget) and target.note(round_):
                target.post(RoundUpdate(round_.id, round_))

    def _take_in_all(self, stored: Iterable[StoredTurn]) -> None:
        touched: dict[Target, None] = {}
        for turn in stored:
            known = self._take_in(turn)
            if known is not None:
                self.turns.drop_text(known)
                touched.update(dict.fromkeys(self.turns.targets_of(known)))
        for target in touched:
            self._end_if_over(target)

    def _take_in(self, stored: StoredTurn) -> KnownTurn | None:
        """Take in a turn's row, if a target includes it."""
        turn = stored.turn
        wanted = (
            (TurnTarget, turn.id),
            (ResponseTarget, turn.response_id),
            (SessionTarget, stored.session_id),
        )
        targets = tuple(self._targets[key] for key in wanted if key in self._targets)
        if not targets:
            return None
        return self.turns.take_in(stored, targets)

    # -- deletions --------------------------------------------------------------------------

    def _delete(self, change: Change) -> None:
        if change.entity == Entity.TURN:
            known = self.turns.find(change.id)
            if known is not None:
                self._delete_turn(known)
        elif change.entity == Entity.ROUND:
            self._delete_round(change.session_id, change.id)
        elif change.entity == Entity.SESSION:
            self._delete_session(change.id)

    def _delete_turn(self, known: KnownTurn) -> None:
        for target in self.turns.delete(known):
            if isinstance(target, TurnTarget):
                self._end_target(target)
            else:
                self._end_if_over(target)

    def _delete_round(self, session_id: str, id: str) -> None:
        for target in tuple(self._targets.values()):
            # First, so that the loss of its turns does not end it as if it were complete.
            if isinstance(target, ResponseTarget | TurnTarget) and target.round_id == id:
                self._delete_target(target)
        for known in self.turns.of_round(id):
            self._delete_turn(known)
        target_of_session = self._targets.get((SessionTarget, session_id))
        if isinstance(target_of_session, SessionTarget):
            target_of_session.rounds.pop(id, None)
            target_of_session.post(RoundUpdate(id, None))

    def _delete_session(self, id: str) -> None:
        for target in tuple(self._targets.values()):
            if target.session_id == id:
                self._delete_target(target)

    def _delete_target(self, target: Target) -> None:
        """Post that the turns of a target are deleted, and end it."""
        for known in target.turns.values():
            target.post(known.deleted())
        if isinstance(target, SessionTarget):
            target.post(SessionUpdate(target.id, None))
        self._end_target(target)

    def _follow_chunks(self) -> bool:
        """Read the chunks that other processes have stored for watched texts."""
        found = False
        for known in tuple(self.turns.foreign.values()):
            if self.turns.is_of_writer_here(known):
                self._take_in_all(self._read(feed.find_turns([known.id])))
                found = True
            elif known.last_chunk is not None:
                for chunk in self._read(feed.chunks_after(known.id, known.last_chunk)):
                    known.append(chunk.content, chunk.seq)
                found = self.turns.post_growth(known) or found
        return found

    # -- after a gap ------------------------------------------------------------------------

    def _read_anew(self) -> None:
        """Read every target again: changes that were not read here yet were trimmed."""
        last = self._read(feed.last_change())
        for target in tuple(self._targets.values()):
            try:
                if isinstance(target, SessionTarget):
                    self._read_session_anew(target)
                elif isinstance(target, ResponseTarget):
                    stored = self._read(feed.response_with_turns(target.id)).turns
                    self._take_in_anew(target, stored)
                else:
                    self._take_in_all([self._read(feed.turn_of(target.id))])
            except NotFoundError:
                self._delete_target(target)
        self._last = last

    def _take_in_anew(self, target: Target, stored: list[StoredTurn]) -> None:
        there = {turn.turn.id for turn in stored}
        for known in [known for known in target.turns.values() if known.id not in there]:
            self._delete_turn(known)
        self._take_in_all(stored)

    def _read_session_anew(self, target: SessionTarget) -> None:
        session, _ = self._read(feed.session_with_rounds(target.id, 0))
        if session.revision != target.session.revision:
            target.session = session
            target.post(SessionUpdate(target.id, session))
        rounds: set[str] = set()
        turns: set[str] = set()
        index = target.first_index
        while page := self._read(feed.rounds_from(target.id, index, _ROUNDS_AT_ONCE)):
            rounds.update(round_.id for round_ in page)
            self._post_rounds(page)
            stored = self._read(feed.turns_of_rounds(round_.id for round_ in page))
            turns.update(turn.turn.id for turn in stored)
            self._take_in_all(stored)
            index = page[-1].index + 1
        for known in [known for known in target.turns.values() if known.id not in turns]:
            # A turn of a round before the first posted one is known because it has changed.
            if not self._read(feed.find_turns([known.id])):
                self._delete_turn(known)
        for id in [id for id in target.rounds if id not in rounds]:
            if not self._read(feed.find_rounds([id])):
                del target.rounds[id]
                target.post(RoundUpdate(id, None))
