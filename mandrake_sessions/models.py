"""The records that callers get: sessions, rounds, requests, responses, turns and workspaces.

They are frozen. Times are kept as stored, integer microseconds UTC, and become aware datetimes at
access: a history of 1,000 rounds has 8,000 of them, and most are never read. The garbage collector
does not track the records of a history (``gc=False``): they hold values only, and full collections
during the making of 4,000 records took longer than making them.

The fields of a record stand in the order in which ``statements`` selects its columns, so that a row
becomes a record by position: by keyword it takes three times as long.
becomes a record by position: by keyword it takes three times as long.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from mandrake_sessions.ids import to_datetime


class Unset(enum.Enum):
    """The type of ``UNSET``, the default of fields that an update does not change."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Do not change this field; ``None`` clears it."""


class TurnStatus(enum.StrEnum):
    """The status of a turn; only ``streaming`` can still change."""

    STREAMING = "streaming"
    COMPLETED = "completed"
    ERROR = "error"
    INTERRUPTED = "interrupted"

    @property
    def is_finished(self) -> bool:
        """Whether the turn has ended."""
        return self is not TurnStatus.STREAMING


class Entity(enum.StrEnum):
    """The kind of row that a recorded change is about."""

    SESSION = "session"
    ROUND = "round"
    REQUEST = "request"
    TURN = "turn"


class ChangeOp(enum.StrEnum):
    """What the change did to the row."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tool call and its result.

    Attributes:
        call: the call as the host described it.
        response: the result; None while there is none, and for a tool that returned None.
        raw: the stored text if it could not be parsed, otherwise None.
        is_interrupted: whether the turn ended before the result came.
    """

    call: Any = msgspec.field(default_factory=dict)
    response: Any = None
    raw: str | None = None
    is_interrupted: bool = False


class _Timed:
    """The times of a row; the two fields are the record's own, at its end."""

    __slots__ = ()
    created_us: int
    updated_us: int

    @property
    def created_at(self) -> datetime:
        """When it was made, UTC."""
        return to_datetime(self.created_us)

    @property
    def updated_at(self) -> datetime:
        """When it last changed, UTC."""
        return to_datetime(self.updated_us)


class Session(_Timed, msgspec.Struct, frozen=True):
    """One conversation thread.

    Attributes:
        id: the id of the session.
        title: its name in lists.
        description: what it is about.
        metadata: the host's own facts, as JSON values.
        next_round_index: the index the next round will get; it never goes back.
        revision: how often the session's own fields were changed.
        created_us: when it was made, in microseconds since the epoch, UTC.
        updated_us: when it last changed, in microseconds since the epoch, UTC.
    """

    id: str
    title: str | None
    description: str | None
    metadata: dict[str, Any]
    next_round_index: int
    revision: int
    created_us: int
    updated_us: int


class Request(_Timed, msgspec.Struct, frozen=True, gc=False):
    """The user's text that begins a round.

    Attributes:
        id: the id of the request.
        round_id: the round it belongs to.
        content: the text.
        created_us: when it was made, in microseconds since the epoch, UTC.
        updated_us: when it last changed, in microseconds since the epoch, UTC.
    """

    id: str
    round_id: str
    content: str
    created_us: int
    updated_us: int


class Response(_Timed, msgspec.Struct, frozen=True, gc=False):
    """The answer to a request: a sequence of turns.

    Attributes:
        id: the id of the response.
        round_id: the round it belongs to.
        created_us: when it was made, in microseconds since the epoch, UTC.
        updated_us: when it last changed, in microseconds since the epoch, UTC.
    """

    id: str
    round_id: str
    created_us: int
    updated_us: int


class Round(_Timed, msgspec.Struct, frozen=True, gc=False):
    """One request and the response to it; ``index`` counts from 0 inside its session.

    Attributes:
        id: the id of the round.
        session_id: the session it belongs to.
        index: counts from 0 inside its session, and is never given twice.
        request: the user's text.
        response: the answer to it, without its turns.
        created_us: when it was made, in microseconds since the epoch, UTC.
        updated_us: when it last changed, in microseconds since the epoch, UTC.
    """

    id: str
    session_id: str
    index: int
    request: Request
    response: Response
    created_us: int
    updated_us: int


class Turn(_Timed, msgspec.Struct, frozen=True, gc=False):
    """One part of a response: text, tool calls with their results, tokens, costs and a status.

    Attributes:
        id: the id of the turn.
        response_id: the response it belongs to.
        index: counts from 0 inside its response, and is never given twice.
        content: the stored text.
        raw_response: the model's output before the host parsed it.
        tool_calls: the tool calls in their order, each with its result.
        status: whether it streams, or how it ended.
        error_message: the reason, if ``status`` is ``error``.
        stream_started_us: when streaming began, in microseconds since the epoch, UTC.
        stream_ended_us: when streaming ended; None while it goes on.
        current_tokens: tokens received so far.
        expected_tokens: the host's estimate of all tokens.
        input_tokens: tokens that the model read.
        output_tokens: tokens that the model wrote.
        cache_read_tokens: input tokens from the provider's cache.
        cache_write_tokens: input tokens that were put into the provider's cache.
        input_cost: cost of the input, in the host's currency.
        output_cost: cost of the output, in the host's currency.
        model: the model that answered.
        revision: how often the turn's own fields were changed.
        created_us: when it was made, in microseconds since the epoch, UTC.
        updated_us: when it last changed, in microseconds since the epoch, UTC.
    """

    id: str
    response_id: str
    index: int
    content: str
    raw_response: str
    tool_calls: tuple[ToolCall, ...]
    status: TurnStatus
    error_message: str | None
    stream_started_us: int
    stream_ended_us: int | None
    current_tokens: int
    expected_tokens: int | None
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    input_cost: float
    output_cost: float
    model: str | None
    revision: int
    created_us: int
    updated_us: int

    @property
    def stream_started_at(self) -> datetime:
        """When streaming began, UTC."""
        return to_datetime(self.stream_started_us)

    @property
    def stream_ended_at(self) -> datetime | None:
        """When streaming ended, UTC; None while it goes on."""
        return None if self.stream_ended_us is None else to_datetime(self.stream_ended_us)


class NewTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A finished turn for ``record_round``; the fields are those of ``Turn``.

    Attributes:
        content: the text.
        raw_response: the model's output before the host parsed it.
        tool_calls: the tool calls in their order, each with its result.
        status: how it ended.
        error_message: the reason, if ``status`` is ``error``.
        started_at: when streaming began, aware; now when None.
        current_tokens: tokens received in all.
        expected_tokens: the host's estimate of all tokens.
        input_tokens: tokens that the model read.
        output_tokens: tokens that the model wrote.
        cache_read_tokens: input tokens from the provider's cache.
        cache_write_tokens: input tokens that were put into the provider's cache.
        input_cost: cost of the input, in the host's currency.
        output_cost: cost of the output, in the host's currency.
        model: the model that answered.
        id: the id of the turn; a new one when None.
    """

    content: str = ""
    raw_response: str = ""
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] = ()
    status: TurnStatus | str = TurnStatus.COMPLETED
    error_message: str | None = None
    started_at: datetime | None = None
    current_tokens: int = 0
    expected_tokens: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    input_cost: float = 0.0
    output_cost: float = 0.0
    model: str | None = None
    id: str | None = None


class Exchange(Round, frozen=True, gc=False):
    """A round with the turns of its response, in index order.

    Attributes:
        turns: the turns, in index order.
    """

    turns: tuple[Turn, ...]


class SessionHistory(msgspec.Struct, frozen=True, gc=False):
    """A session with all its rounds and turns, in index order.

    Attributes:
        session: the session.
        rounds: its rounds, in index order.
    """

    session: Session
    rounds: tuple[Exchange, ...]


class StreamingStatus(msgspec.Struct, frozen=True):
    """Whether a response is still being streamed.

    Attributes:
        response_id: the response.
        turns: how many turns the response has; a response without turns is not complete.
        streaming: how many of them are streaming.
    """

    response_id: str
    turns: int
    streaming: int

    @property
    def is_complete(self) -> bool:
        """Whether there are turns and none is streaming."""
        return self.turns > 0 and self.streaming == 0

    @property
    def is_empty(self) -> bool:
        """Whether the response has no turn yet."""
        return self.turns == 0


class SessionUsage(msgspec.Struct, frozen=True):
    """The usage of a session: tokens and costs over all its turns.

    Attributes:
        session_id: the session.
        rounds: how many rounds it has.
        turns: how many turns these have.
        input_tokens: tokens that models read.
        output_tokens: tokens that models wrote.
        cache_read_tokens: input tokens from the provider's cache.
        cache_write_tokens: input tokens that were put into the provider's cache.
        input_cost: cost of the input, in the host's currency.
        output_cost: cost of the output, in the host's currency.
    """

    session_id: str
    rounds: int
    turns: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    input_cost: float
    output_cost: float

    @property
    def total_cost(self) -> float:
        """Input and output cost together."""
        return self.input_cost + self.output_cost


class Workspace(msgspec.Struct, frozen=True):
    """A registered workspace: a directory with a ``.ws`` folder.

    Attributes:
        id: the id of the workspace.
        name: its name in the registry.
        path: its directory, as an absolute path.
        description: what it is for.
        created_us: when it was registered, in microseconds since the epoch, UTC.
        last_opened_us: None until its database was opened for the first time.
    """

    id: str
    name: str
    path: str
    description: str | None
    created_us: int
    last_opened_us: int | None

    @property
    def created_at(self) -> datetime:
        """When it was registered, UTC."""
        return to_datetime(self.created_us)

    @property
    def last_opened_at(self) -> datetime | None:
        """When a host last opened it, UTC."""
        return None if self.last_opened_us is None else to_datetime(self.last_opened_us)
