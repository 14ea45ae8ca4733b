"""The items that can be watched: one turn, a response, a session; each with its subscribers."""

from __future__ import annotations

from collections.abc import Iterable

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.live.watching.mailbox import Mailbox, News, Waiter, wake_loops
from mandrake_sessions.live.watching.turn_states import KnownTurn
from mandrake_sessions.models import Round, Session


class Target:
    """One watched item.

    Attributes:
        id: the id of the turn, response or session.
        session_id: the session it is in; changes of other sessions are skipped.
        members: the subscribers, and whether each goes on past its end.
        turns: the known turns, by id.
        keeps_texts: whether it keeps a turn's text after the end, for later subscribers.
    """

    keeps_texts = True

    def __init__(self, id: str, session_id: str) -> None:
        self.id = id
        self.session_id = session_id
        self.members: dict[Mailbox, bool] = {}
        self.turns: dict[str, KnownTurn] = {}

    @property
    def is_over(self) -> bool:
        """Whether no further turn is expected."""
        return False

    def post(self, news: News) -> None:
        """Post to every subscriber."""
        waiters: list[Waiter] = []
        for mailbox in self.members:
            waiters += mailbox.put(news)
        wake_loops(waiters)

    def present(self) -> Iterable[News]:
        """Return the present states, for a new subscriber."""
        return ()


class TurnTarget(Target):
    """One turn, with its updates from now on."""

    def __init__(self, id: str, session_id: str, round_id: str) -> None:
        super().__init__(id, session_id)
        self.round_id = round_id


class ResponseTarget(Target):
    """A response: all its turns are known, in any order."""

    def __init__(self, id: str, session_id: str, round_id: str) -> None:
        super().__init__(id, session_id)
        self.round_id = round_id

    @property
    def is_over(self) -> bool:
        """Whether no turn is streaming, and the newest one ended in a way that ends a response.

        A turn that completed with tool calls does not: its answer is still to come, however long
        the tools run.
        """
        if not self.turns or not all(known.is_finished for known in self.turns.values()):
            return False
        return max(self.turns.values(), key=lambda known: known.outline.index).is_answer

    def present(self) -> Iterable[News]:
        """Return the states of its turns in index order."""
        known = sorted(self.turns.values(), key=lambda known: known.outline.index)
        return [turn.state for turn in known if turn.state is not None]


class SessionTarget(Target):
    """A session with its rounds and turns.

    Attributes:
        session: the newest state of its own row.
        first_index: the index of the first round that a subscriber got.
        rounds: for the rounds that subscribers got, a mark that changes with the round.
    """

    keeps_texts = False

    def __init__(self, session: Session) -> None:
        super().__init__(session.id, session.id)
        self.session = session
        self.first_index: int = session.next_round_index
        self.rounds: dict[str, tuple[int, int, int]] = {}

    def note(self, round_: Round) -> bool:
        """Note a round; return whether it is new or was changed."""
        self.first_index = min(self.first_index, round_.index)
        request = round_.request
        # The times do not suffice: a clock may stand still, or go back.
        mark = (round_.updated_us, request.updated_us, hash(request.content))
        if self.rounds.get(round_.id) == mark:
            return False
        self.rounds[round_.id] = mark
        return True


class Joining:
    """A subscription request for a turn, response or session.

    Args:
        mailbox: the subscriber's mailbox.
        kind: the kind of the item.
        id: the id of the item.
        follow: whether it goes on after the response is complete.
        last: of how many rounds of a session the present state is posted.

    Attributes:
        is_waited_for: whether ``wait`` raises the error that refuses the subscriber; otherwise it
            comes through the mailbox.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        kind: type[Target],
        id: str,
        *,
        follow: bool = False,
        last: int = 0,
    ) -> None:
        self.mailbox = mailbox
        self.kind = kind
        self.id = id
        self.follow = follow
        self.last = last
        self.is_waited_for = False
        self._done = Gate()
        self._error: BaseException | None = None

    def settle(self, error: BaseException | None = None) -> None:
        """Settle the request: the subscriber is in, or gets the error."""
        if error is not None and self.is_waited_for:
            self.mailbox.close()
        elif error is not None:
            self.mailbox.end(error)
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Wait until it is settled; raises the error that refused the subscriber."""
        self._done.wait()
        if self._error is not None:
            raise self._error
