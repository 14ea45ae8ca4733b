"""What can be watched: one turn, a response, a session; and who watches it."""

from __future__ import annotations

from collections.abc import Iterable

from mandrake_sessions.concurrency.gate import Gate
from mandrake_sessions.live.watching.mailbox import Mailbox, News, Waiter, tell_loops
from mandrake_sessions.live.watching.turn_states import KnownTurn
from mandrake_sessions.models import Round, Session


class Target:
    """One thing that is watched.

    Attributes:
        id: of the turn, response or session.
        session_id: the session it is in; changes of others are not looked at.
        members: who watches it, and whether past its end.
        turns: what is known of its turns, by id.
        keeps_texts: whether a turn's text is kept after its end, for who joins later.
    """

    keeps_texts = True

    def __init__(self, id: str, session_id: str) -> None:
        self.id = id
        self.session_id = session_id
        self.members: dict[Mailbox, bool] = {}
        self.turns: dict[str, KnownTurn] = {}

    @property
    def is_over(self) -> bool:
        """Whether nothing more is expected."""
        return False

    def post(self, news: News) -> None:
        """Post to everybody who watches it."""
        waiters: list[Waiter] = []
        for mailbox in self.members:
            waiters += mailbox.put(news)
        tell_loops(waiters)

    def present(self) -> Iterable[News]:
        """Return the present states, for who joins."""
        return ()


class TurnTarget(Target):
    """One turn, told from now on."""

    def __init__(self, id: str, session_id: str, round_id: str) -> None:
        super().__init__(id, session_id)
        self.round_id = round_id


class ResponseTarget(Target):
    """A response: all its turns are known, in whatever order they came."""

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
        first_index: of the first round that somebody was told of.
        rounds: of those that were told, what tells whether they have changed.
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
        # The times alone would not do: a clock may stand still, or go back.
        mark = (round_.updated_us, request.updated_us, hash(request.content))
        if self.rounds.get(round_.id) == mark:
            return False
        self.rounds[round_.id] = mark
        return True


class Joining:
    """A subscriber that wants to be told of a turn, response or session.

    Args:
        mailbox: where it is told.
        kind: what ``id`` names.
        id: what it watches.
        follow: whether it goes on after the response is complete.
        last: the rounds of a session whose present state is told.

    Attributes:
        is_waited_for: whether what keeps the subscriber out is raised by ``wait``; otherwise it
            comes by the mailbox.
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
        """Tell the subscriber that it is in, or why not."""
        if error is not None and self.is_waited_for:
            self.mailbox.close()
        elif error is not None:
            self.mailbox.end(error)
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Wait until it is settled; raises what kept the subscriber out."""
        self._done.wait()
        if self._error is not None:
            raise self._error
