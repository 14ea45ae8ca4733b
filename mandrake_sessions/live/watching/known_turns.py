"""The watched turns of one file: their newest states, which are posted to their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.live.watching.targets import Target
from mandrake_sessions.live.watching.turn_states import KnownTurn
from mandrake_sessions.records.feed import StoredTurn


class KnownTurns:
    """Every watched turn of a file, once, however many subscribers it has.

    Args:
        texts: the texts of this process's writers, by turn.
        note_growth: called in a writer's thread when the text of a turn has grown.

    Attributes:
        foreign: the streaming turns that no writer of this process has.
    """

    def __init__(
        self, texts: dict[str, GrowingText], note_growth: Callable[[KnownTurn], None]
    ) -> None:
        self._texts = texts
        self._note_growth = note_growth
        self._by_id: dict[str, KnownTurn] = {}
        self._targets: dict[str, tuple[Target, ...]] = {}
        self.foreign: dict[str, KnownTurn] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, id: str) -> KnownTurn | None:
        """Return a turn if it is known."""
        return self._by_id.get(id)

    def targets_of(self, known: KnownTurn) -> tuple[Target, ...]:
        """Return the targets that include this turn."""
        return self._targets.get(known.id, ())

    def of_round(self, round_id: str) -> list[KnownTurn]:
        """Return the known turns of a round."""
        return [known for known in self._by_id.values() if known.round_id == round_id]

    def is_of_writer_here(self, known: KnownTurn) -> bool:
        """Whether a writer of this process has the turn's text."""
        return known.id in self._texts

    def take_in(self, stored: StoredTurn, targets: tuple[Target, ...]) -> KnownTurn:
        """Take in a turn's row, and post its state if that is newer than the known one.

        The caller drops its text if no target needs it any more.
        """
        id = stored.turn.id
        known = self._by_id.get(id) or KnownTurn(stored, self._note_growth)
        is_newer = known.advance(stored, self._texts.get(id))
        self._by_id[id] = known
        for target in targets:
            target.turns[id] = known
        self.keep_for(known, targets)
        if is_newer:
            self._post_state(known)
        return known

    def keep_for(self, known: KnownTurn, targets: tuple[Target, ...]) -> None:
        """Set the targets of a turn; forget the turn if there are none."""
        if targets:
            self._targets[known.id] = targets
        else:
            known.stop_listening()
            self._by_id.pop(known.id, None)
            self._targets.pop(known.id, None)
        if targets and not known.is_local and not known.is_finished:
            self.foreign[known.id] = known
        else:
            self.foreign.pop(known.id, None)

    def drop_text(self, known: KnownTurn) -> None:
        """Drop the text of a turn that has ended, if only sessions include it."""
        if known.is_finished and not any(target.keeps_texts for target in self.targets_of(known)):
            known.drop_text()

    def delete(self, known: KnownTurn) -> tuple[Target, ...]:
        """Post that a turn is deleted and forget it; return its targets."""
        state = known.deleted()
        targets = self.targets_of(known)
        self.keep_for(known, ())
        for target in targets:
            target.post(state)
            target.turns.pop(known.id, None)
        return targets

    def post_all_growth(self, grown: Iterable[KnownTurn]) -> int:
        """Post the states of turns whose text has grown in this process.

        Returns:
            How many subscribers got a state.
        """
        posted = 0
        for known in grown:
            # Before the length is read: growth from now on is noted again.
            known.has_grown = False
            if self.post_growth(known):
                posted += sum(len(target.members) for target in self.targets_of(known))
        return posted

    def post_growth(self, known: KnownTurn) -> bool:
        """Post the state of a turn if its text has grown; return whether it has."""
        state = known.state
        if state is None or state.text is None or state.text.length <= known.posted_length:
            return False
        self._post_state(known)
        return True

    def _post_state(self, known: KnownTurn) -> None:
        if known.state is not None:
            known.posted_length = known.state.length()
            for target in self.targets_of(known):
                target.post(known.state)
