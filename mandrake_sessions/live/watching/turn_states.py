"""What the follower knows of a turn: its newest state, and how its text has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.models import Turn, TurnStatus
from mandrake_sessions.records.feed import StoredTurn

# Of texts that were replaced, not continued; a subscriber that is further behind begins at 0.
_KEPT_AGREEMENTS = 32


class TurnState:
    """A state of a turn, shared by all its subscribers.

    Attributes:
        known: the turn.
        turn: its fields; ``content`` is empty if the text grows.
        text: the growing text; None if ``turn.content`` is the text.
        version: counts the texts that did not begin with the one before.
        limit: where this state's text ends, once the follower has moved on to another one.
    """

    __slots__ = ("is_deleted", "known", "limit", "text", "turn", "version")

    def __init__(
        self, known: KnownTurn, turn: Turn, text: GrowingText | None, *, is_deleted: bool = False
    ) -> None:
        self.known: KnownTurn = known
        self.turn: Turn = turn
        self.text: GrowingText | None = text
        self.version: int = known.version
        self.limit: int | None = None
        self.is_deleted: bool = is_deleted

    def length(self) -> int:
        """Return the present length of the text."""
        if self.text is None:
            return len(self.turn.content)
        # In this order: the follower sets the limit to a length that it reads after this one.
        length = self.text.length
        return length if self.limit is None else min(length, self.limit)

    def since(self, offset: int, length: int) -> str:
        """Return the text between two offsets."""
        if self.text is None:
            return self.turn.content[offset:length]
        return self.text.since(offset, length)


class DeliveredState(NamedTuple):
    """The state of a turn that a subscriber got last."""

    known: KnownTurn
    revision: int
    version: int
    length: int


class KnownTurn:
    """A turn that is watched.

    Args:
        stored: its row.
        note_growth: called in the writer's thread when a text of this process has grown.

    Attributes:
        state: the newest one; None when the turn has ended and only sessions include it, which
            keep no text of ended turns.
        outline: the turn of the newest state without its long fields.
        has_tool_calls: whether it has tool calls.
        owner: the process that streams it.
        last_chunk: the last chunk in the text; None if no writer streams it.
        is_local: whether the text is that of a writer of this process.
        has_grown: whether growth is noted that was not posted yet.
        posted_length: the length of the text that was posted last.
        version: of the text.
    """

    __slots__ = (
        "_agreements",
        "_digest",
        "_note_growth",
        "has_grown",
        "has_tool_calls",
        "id",
        "is_local",
        "last_chunk",
        "outline",
        "owner",
        "posted_length",
        "round_id",
        "session_id",
        "state",
        "version",
    )

    def __init__(self, stored: StoredTurn, note_growth: Callable[[KnownTurn], None]) -> None:
        self.id: str = stored.turn.id
        self.session_id: str = stored.session_id
        self.round_id: str = stored.round_id
        self.state: TurnState | None = None
        self.outline: Turn = stored.turn
        self.has_tool_calls: bool = False
        self.owner: str | None = None
        self.last_chunk: int | None = None
        self.is_local: bool = False
        self.has_grown: bool = False
        self.posted_length: int = 0
        self.version: int = 0
        self._note_growth = note_growth
        self._digest: tuple[int, int] | None = None
        self._agreements: tuple[tuple[int, int], ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.outline.status.is_finished

    @property
    def is_answer(self) -> bool:
        """Whether no turn follows it: after a turn with tool calls there is one more."""
        status = self.outline.status
        if status is TurnStatus.COMPLETED:
            return not self.has_tool_calls
        return status.is_finished

    def advance(self, stored: StoredTurn, local: GrowingText | None) -> bool:
        """Take in a row; return whether it, or its text, is newer than the known state.

        Args:
            stored: the row.
            local: the text of its writer, if that is in this process.
        """
        turn = stored.turn
        is_first = self.state is None and self._digest is None
        if not is_first and turn.revision < self.outline.revision:
            return False
        is_newer = is_first or turn.revision > self.outline.revision
        if not is_newer and self.is_finished:
            if self.state is None:
                self._take(turn, None)
            return False
        self.owner = stored.owner
        text = self._text_of(stored, local)
        self._take(turn, text, is_local=text is not None and text is local)
        return is_newer or (text is not None and text.length > self.posted_length)

    def _text_of(self, stored: StoredTurn, local: GrowingText | None) -> GrowingText | None:
        """Return the growing text, or None if the row has the text."""
        content = stored.turn.content
        self.last_chunk = None if stored.turn.status.is_finished else stored.last_chunk
        if self.last_chunk is None:
            self._continue_with(content)
            return None
        present = None if self.state is None else self.state.text
        if local is not None:
            if present is not local:
                self._continue_with(local.since(0))
            return local
        if present is None or self.is_local:
            self._continue_with(content)
            return GrowingText(content)
        _append_stored(present, content[present.length :])
        return present

    def _take(self, turn: Turn, text: GrowingText | None, *, is_local: bool = False) -> None:
        """Make a row and its text the newest state."""
        before = None if self.state is None else self.state.text
        if before is not text:
            self.stop_listening()
            self.posted_length = 0
        self.is_local = is_local
        if text is not None and is_local:
            text.on_growth = self.note_growth
        self.outline = msgspec.structs.replace(turn, content="", raw_response="", tool_calls=())
        self.has_tool_calls = bool(turn.tool_calls)
        if text is not None:
            turn = msgspec.structs.replace(turn, content="")
        self.state = TurnState(self, turn, text)
        self._digest = None

    def append(self, content: str, seq: int) -> None:
        """Append a chunk that another process has stored."""
        self.last_chunk = seq
        if self.state is not None and self.state.text is not None:
            _append_stored(self.state.text, content)

    def note_growth(self) -> None:
        """Note, in the writer's thread, that the text has grown."""
        if not self.has_grown:
            self.has_grown = True
            self._note_growth(self)

    def offset_for(self, delivered: DeliveredState | None, state: TurnState) -> int:
        """Return how much of a state's text a subscriber already has."""
        if delivered is None or delivered.known is not self:
            return 0
        passed = [
            agreed
            for version, agreed in self._agreements
            if delivered.version < version <= state.version
        ]
        if len(passed) < state.version - delivered.version:
            return 0
        return min([delivered.length, *passed])

    def deleted(self) -> TurnState:
        """Return the state of the turn after its deletion."""
        self.stop_listening()
        return TurnState(self, self.outline, None, is_deleted=True)

    def drop_text(self) -> None:
        """Drop the text of a turn that has ended; its digest shows whether it changes."""
        if self.state is not None and self.is_finished:
            content = self.state.turn.content
            self._digest = (len(content), hash(content))
            self.state = None

    def stop_listening(self) -> None:
        """Detach from the writer's text."""
        if self.state is not None and self.state.text is not None:
            self.state.text.on_growth = None

    def _continue_with(self, content: str) -> None:
        """Record how far a new text agrees with the one before."""
        if self.state is not None:
            self.state.limit = length = self.state.length()
            before = self.state.since(0, length)
            if content.startswith(before):
                return
            agreed = agreement(before, content)
        elif self._digest is None or self._digest == (len(content), hash(content)):
            return
        else:
            agreed = 0
        self.version += 1
        self._agreements = (*self._agreements, (self.version, agreed))[-_KEPT_AGREEMENTS:]


def agreement(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _append_stored(text: GrowingText, piece: str) -> None:
    """Append text that is committed already."""
    if piece:
        text.append(piece)
        text.mark_stored(text.length)
