"""Reads the values of the origin's columns, of any type, and counts the needed repairs."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from mandrake_sessions import arguments
from mandrake_sessions.database.connection.foreign import Cell
from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.ids import to_microseconds
from mandrake_sessions.models import ToolCall, TurnStatus

RAW_METADATA: Final = "origin_metadata"
"""The key under which metadata that is not a JSON object is kept as text."""

_NAMESPACE: Final = uuid.UUID("6d616e64-7261-4b65-8f69-6d706f727401")
_SHOWN_STATUS: Final = 100
_STATUSES: Final = {status.value: status for status in TurnStatus}

# The window is narrow enough that a number is a time in only one of the three units.
_EARLIEST: Final = to_microseconds(datetime(2000, 1, 1, tzinfo=UTC))
_LATEST: Final = to_microseconds(datetime(2100, 1, 1, tzinfo=UTC))
_SCALES: Final = (1_000_000, 1_000, 1)

# The origin's texts for "no tool calls", in addition to {"call":null,"response":null}.
_NO_CALLS: Final = frozenset({"", "{}", "[]", "null"})
_NO_METADATA: Final = frozenset({"", "{}", "null"})


def derived_id(kind: str, *names: object) -> str:
    """Return an id that is always the same for the same names."""
    return str(uuid.uuid5(_NAMESPACE, repr((kind, *names))))


class Values:
    """Reads the columns of one record and its parts.

    Args:
        codec: the encoding of the source's text.

    Attributes:
        repairs: how many repairs of each kind, by the names of ``ImportReport``'s counts.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self.repairs: Counter[str] = Counter()

    # -- texts and ids ----------------------------------------------------------------------

    def text(self, cell: Cell) -> str:
        """Return a text; NULL is an empty one."""
        found = self.optional_text(cell)
        if found is None:
            self.repairs["texts_repaired"] += 1
            return ""
        return found

    def optional_text(self, cell: Cell) -> str | None:
        """Return a text or None; bytes that are not valid become U+FFFD."""
        if cell is None:
            return None
        if isinstance(cell, bytes):
            try:
                return cell.decode(self._codec)
            except UnicodeDecodeError:
                pass
        self.repairs["texts_repaired"] += 1
        if isinstance(cell, bytes):
            return cell.decode(self._codec, errors="replace")
        if isinstance(cell, str):  # a blob, in hex digits
            return bytes.fromhex(cell).decode(errors="replace")
        return str(cell)

    def id(self, kind: str, cell: Cell, rowid: Cell) -> str:
        """Return an id unchanged, or one derived from it if this library cannot store it."""
        if isinstance(cell, bytes):
            try:
                return arguments.fresh_id("id", cell.decode(self._codec))
            except (UnicodeDecodeError, InvalidArgumentError):
                pass
        self.repairs["ids_replaced"] += 1
        return derived_id(kind, rowid if cell is None else cell)

    # -- numbers ----------------------------------------------------------------------------

    def count(self, cell: Cell) -> int:
        """Return a whole number of at least 0; any other value becomes 0."""
        found = self._whole(cell)
        if found is None:
            self.repairs["numbers_repaired"] += 1
        return found or 0

    def optional_count(self, cell: Cell) -> int | None:
        """Return a whole number of at least 0, or None; any other value becomes None."""
        if cell is None:
            return None
        found = self._whole(cell)
        if found is None:
            self.repairs["numbers_repaired"] += 1
        return found

    def _whole(self, cell: Cell) -> int | None:
        number = cell if isinstance(cell, int) else self._number(cell)
        if number is None or not 0 <= number <= arguments.MAX_COUNT:
            return None
        if type(number) is int and type(cell) is int:
            return number
        if number != int(number):
            return None
        self.repairs["numbers_repaired"] += 1
        return int(number)

    def cost(self, cell: Cell) -> float:
        """Return an amount of money; any other value becomes 0."""
        number = self._number(cell)
        if number is None or not 0 <= number < math.inf:
            self.repairs["numbers_repaired"] += 1
            return 0.0
        if isinstance(cell, bytes):
            self.repairs["numbers_repaired"] += 1
        return float(number)

    def _number(self, cell: Cell) -> int | float | None:
        """Return the number of a cell, also from a text."""
        if isinstance(cell, int | float):
            return cell
        if isinstance(cell, bytes):
            written = cell.decode(self._codec, errors="replace")
            for read in (int, float):
                try:
                    return read(written)
                except ValueError:
                    pass
        return None

    # -- times ------------------------------------------------------------------------------

    def time(self, cell: Cell) -> int | None:
        """Return a time in microseconds, or None if it is not usable."""
        number = self._number(cell)
        if number is None:
            moment = self._written_time(cell)
            if moment is None or not _EARLIEST <= moment < _LATEST:
                return None
            self.repairs["times_converted"] += 1
            return moment
        for scale in _SCALES:
            if _EARLIEST <= number * scale < _LATEST:
                self.repairs["times_converted"] += scale != 1
                return round(number * scale)
        return None

    def _written_time(self, cell: Cell) -> int | None:
        if not isinstance(cell, bytes):
            return None
        try:
            moment = datetime.fromisoformat(cell.decode(self._codec).strip())
        except ValueError:
            return None
        # SQLite's CURRENT_TIMESTAMP is UTC and has no offset.
        return to_microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))

    def times(self, created: Cell, updated: Cell, parent: int) -> tuple[int, int]:
        """Return when a row was made and last changed, in that order even if it says otherwise.

        Args:
            created: its column.
            updated: its column.
            parent: when the row it belongs to was made.
        """
        made, changed = self.time(created), self.time(updated)
        if made is None:
            self.repairs["times_repaired"] += 1
            made = parent if changed is None else min(parent, changed)
        return made, self._not_before(made, changed)

    def stream_times(
        self, started: Cell, ended: Cell, *, made: int, changed: int, was_streaming: bool
    ) -> tuple[int, int]:
        """Return when a turn began and ended.

        Args:
            started: its column.
            ended: its column.
            made: when the turn's row was made.
            changed: when it was last changed.
            was_streaming: whether it never ended; its last change is then its end.
        """
        begun, over = self.time(started), self.time(ended)
        if begun is None:
            self.repairs["times_repaired"] += 1
            begun = made
        if was_streaming:
            return begun, max(begun, changed, over or 0)
        if over is None:
            self.repairs["times_repaired"] += 1
            return begun, max(begun, changed)
        return begun, self._not_before(begun, over)

    def _not_before(self, first: int, second: int | None) -> int:
        if second is None or second < first:
            self.repairs["times_repaired"] += 1
            return first
        return second

    # -- the rest ---------------------------------------------------------------------------

    def status(self, cell: Cell) -> tuple[TurnStatus, str | None]:
        """Return a turn's status, and an error message for one that the origin does not know."""
        written = self.optional_text(cell)
        found = _STATUSES.get(written or "")
        if found is not None:
            return found, None
        self.repairs["statuses_replaced"] += 1
        shown = (written or "")[:_SHOWN_STATUS]
        return TurnStatus.ERROR, f"The origin's status {shown!r} is unknown."

    def metadata(self, cell: Cell) -> dict[str, Any]:
        """Return a session's metadata; any other value than a JSON object is kept as text."""
        written = self.optional_text(cell) or ""
        if written.strip() in _NO_METADATA:
            return {}
        try:
            return arguments.json_object("metadata", msgspec.json.decode(written))[0]
        except (msgspec.MsgspecError, RecursionError, InvalidArgumentError):
            self.repairs["json_kept_raw"] += 1
            return {RAW_METADATA: written}

    def tool_calls(self, cell: Cell) -> tuple[ToolCall, ...]:
        """Return a turn's tool calls; any other value is kept as the text of an empty call."""
        written = self.optional_text(cell) or ""
        if written.strip() in _NO_CALLS:
            return ()
        try:
            found = msgspec.json.decode(written)
            calls = [found] if isinstance(found, dict) else found
            return tuple(
                call
                for call in arguments.tool_calls("toolCalls", calls)[0]
                if call != ToolCall(None)
            )
        except (msgspec.MsgspecError, RecursionError, InvalidArgumentError):
            self.repairs["json_kept_raw"] += 1
            return (ToolCall(raw=written),)
