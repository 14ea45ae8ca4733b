"""The fields of a streaming turn other than its texts: figures and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mandrake_sessions.live.streaming.tool_calls import ToolCallList


class PendingFields:
    """The columns of a turn that its writer has set, and which of them are not stored yet.

    The caller ensures that only one thread uses it at a time.

    Attributes:
        calls: the tool calls; ``note_calls`` marks them as changed.
    """

    __slots__ = ("_figures", "_has_new_calls", "calls")

    def __init__(self) -> None:
        self.calls: ToolCallList = ToolCallList()
        self._figures: dict[str, Any] = {}
        self._has_new_calls = False

    @property
    def has_new(self) -> bool:
        """Whether a field was set since the last ``take``."""
        return bool(self._figures) or self._has_new_calls

    def set_figures(self, figures: Mapping[str, Any]) -> None:
        """Set columns to values in their stored form."""
        self._figures |= figures

    def note_calls(self) -> None:
        """Note that the tool calls have changed."""
        self._has_new_calls = True

    def take(self) -> dict[str, Any]:
        """Return the new fields of a turn that continues."""
        taken, self._figures = self._figures, {}
        if self._has_new_calls:
            self._has_new_calls = False
            taken["tool_calls"] = self.calls.text()
        return taken

    def take_last(self) -> dict[str, Any]:
        """Return the new fields of a turn that ends, with all tool calls in their final form."""
        # Also if no field is new: a call without a result is marked.
        self._has_new_calls = len(self.calls) > 0
        taken = self.take()
        if "tool_calls" in taken:
            taken["tool_calls"] = self.calls.final_text()
        return taken

    def take_unstored(self, *unsure: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that a turn lacks after another caller has ended it.

        Args:
            unsure: fields that were taken before and may not be stored.
        """
        unstored: dict[str, Any] = {}
        for taken in (*unsure, self.take()):
            unstored |= taken
        if "tool_calls" in unstored:
            unstored["tool_calls"] = self.calls.final_text()
        return unstored
