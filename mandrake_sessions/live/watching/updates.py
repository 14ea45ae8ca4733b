"""The updates that watchers get: the newest state of a turn, a round or a session."""

from __future__ import annotations

from functools import cached_property

import msgspec

from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.models import Round, Session, Turn, TurnStatus


class TurnUpdate:
    """The newest state of a turn, and the part of its text that is new to this subscriber.

    A subscriber that shows the text as it grows keeps
    ``shown = shown[:update.offset] + update.text``.

    Attributes:
        text: the part of the turn's content that this subscriber has not received yet.
        offset: the character at which ``text`` begins; less than the length received so far if text
            was taken back, as when a process dies before it has stored the text in flight.
        is_in_flight: whether a part of the text is not stored yet. Only watchers in the writer's
            own process get such text.
        is_deleted: whether the turn is deleted; its texts and tool calls are empty then.
    """

    __slots__ = (
        "__dict__",
        "_length",
        "_source",
        "_turn",
        "is_deleted",
        "is_in_flight",
        "offset",
        "text",
    )

    def __init__(
        self,
        turn: Turn,
        source: GrowingText | None,
        *,
        offset: int,
        length: int,
        text: str,
        is_in_flight: bool,
        is_deleted: bool,
    ) -> None:
        self._turn = turn
        self._source = source
        self._length = length
        self.text: str = text
        self.offset: int = offset
        self.is_in_flight: bool = is_in_flight
        self.is_deleted: bool = is_deleted

    @property
    def id(self) -> str:
        """The id of the turn."""
        return self._turn.id

    @property
    def index(self) -> int:
        """The index of the turn in its response."""
        return self._turn.index

    @property
    def status(self) -> TurnStatus:
        """The status of the turn."""
        return self._turn.status

    @cached_property
    def turn(self) -> Turn:
        """The turn, with text in flight in its ``content``; built at the first access.

        While a writer streams the turn, ``raw_response`` and the counters are those of the last
        stored change.
        """
        if self._source is None:
            return self._turn
        return msgspec.structs.replace(self._turn, content=self._source.since(0, self._length))

    def __repr__(self) -> str:
        # Without its text, which is private.
        fields = f"id={self.id!r}, index={self.index}, status={self.status.value!r}"
        return f"TurnUpdate({fields}, offset={self.offset}, characters={len(self.text)})"


class RoundUpdate(msgspec.Struct, frozen=True):
    """A round that is new, or whose request was changed.

    Attributes:
        id: the id of the round.
        round: the round as it is now; None if it was deleted.
    """

    id: str
    round: Round | None


class SessionUpdate(msgspec.Struct, frozen=True):
    """The session's own row.

    Attributes:
        id: the id of the session.
        session: the session as it is now; None if it was deleted.
    """

    id: str
    session: Session | None


SessionEvent = TurnUpdate | RoundUpdate | SessionUpdate
"""An item of ``watch_session``: ``TurnUpdate``, ``RoundUpdate`` or ``SessionUpdate``."""
