"""The table of the faces: one line for each method.

To add a method, write its unit in ``records/``, add a line here and run ``make faces``.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Kind = Literal["write", "fetch", "query"]
"""How a unit is run: it writes, is a short read, or is a read that may take long."""


class Unit(NamedTuple):
    """A unit, and the method that runs it.

    Attributes:
        function: prepares the unit, as ``module.name`` in ``records``.
        kind: how the unit is run.
        claims: whether the process must first claim the file as the owner of turns that stream.
        facet: the group of the method, such as ``events`` in ``sessions.events``; None for a
            method of the face itself.
        short_name: of the method in its facet; None for the name of the function.
    """

    function: str
    kind: Kind
    claims: bool = False
    facet: str | None = None
    short_name: str | None = None

    @property
    def name(self) -> str:
        """The name of the function, by which errors name the call."""
        return self.function.rpartition(".")[2]

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.short_name or self.name


UNITS: Final = (
    Unit("sessions.create_session", "write"),
    Unit("sessions.get_session", "fetch"),
    Unit("sessions.find_session", "fetch"),
    Unit("sessions.list_sessions", "query"),
    Unit("sessions.count_sessions", "query"),
    Unit("sessions.update_session", "write"),
    Unit("sessions.delete_session", "write"),
    Unit("rounds.create_round", "write"),
    Unit("rounds.record_round", "write"),
    Unit("rounds.get_round", "fetch"),
    Unit("rounds.get_round_by_response", "fetch"),
    Unit("rounds.get_current_round", "fetch"),
    Unit("rounds.list_rounds", "query"),
    Unit("rounds.delete_round", "write"),
    Unit("requests.get_request", "fetch"),
    Unit("requests.update_request", "write"),
    Unit("requests.get_response", "fetch"),
    Unit("turns.create_turn", "write", claims=True),
    Unit("turns.get_turn", "fetch"),
    Unit("turns.get_latest_turn", "fetch"),
    Unit("turns.list_turns", "query"),
    Unit("turn_updates.update_turn", "write"),
    Unit("turns.delete_turn", "write"),
    Unit("turns.get_streaming_status", "fetch"),
    Unit("history.render_session_history", "query"),
    Unit("usage.get_session_usage", "query"),
)

FACETS: Final[dict[str, str]] = {}
"""The facets that lines of ``UNITS`` name, each with the docstring of its attribute."""
