"""What a turn that is streamed stores beside its texts: figures and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mandrake_sessions.live.streaming.tool_calls import ToolCallList


class PendingFields:
    """The columns of a turn that its writer has set, and which of them are still to be stored.

    Whoever calls it sees to it that only one thread does at a time.

    Attributes:
        calls: the tool calls; ``note_calls`` says that they changed.
    """

    __slots__ = ("_figures", "_has_new_calls", "calls")

    def __init__(self) -> None:
        self.calls: ToolCallList = ToolCallList()
        self._figures: dict[str, Any] = {}
        self._has_new_calls = False

    @property
    def has_new(self) -> bool:
        """Whether something was set since it was last taken."""
        return bool(self._figures) or self._has_new_calls

    def set_figures(self, figures: Mapping[str, Any]) -> None:
        """Set columns, as they are stored."""
        self._figures |= figures

    def note_calls(self) -> None:
        """Note that the tool calls have changed."""
        self._has_new_calls = True

    def take(self) -> dict[str, Any]:
        """Return what is new, for a turn that goes on."""
        taken, self._figures = self._figures, {}
        if self._has_new_calls:
            self._has_new_calls = False
            taken["tool_calls"] = self.calls.text()
        return taken

    def take_last(self) -> dict[str, Any]:
        """Return what is new for a turn that ends, and all tool calls as they are at the end."""
        # Also when nothing is new: a call without a result is marked.
        self._has_new_calls = len(self.calls) > 0
        taken = self.take()
        if "tool_calls" in taken:
            taken["tool_calls"] = self.calls.final_text()
        return taken

    def take_unstored(self, *unsure: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is new for a turn that somebody else has ended.

        Args:
            unsure: taken before, and perhaps not stored.
        """
        unstored: dict[str, Any] = {}
        for taken in (*unsure, self.take()):
            unstored |= taken
        if "tool_calls" in unstored:
            unstored["tool_calls"] = self.calls.final_text()
        return unstored
