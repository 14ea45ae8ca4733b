"""Text that grows at its end while others read it: one appender, any number of readers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

# Joining costs each piece about 10 ns, and a reader then has few pieces to pass.
_LOOSE_PIECES: Final = 512
# A joined piece includes its neighbour while that delays the appender by microseconds only.
_JOINED_LENGTH: Final = 512 * 1024


class GrowingText:
    """Append-only text, shared without a lock.

    Only one thread at a time may append. Readers never wait and never see part of a piece: a piece
    is in place before ``length`` counts it.

    Args:
        start: the initial text, which is stored already.

    Attributes:
        length: characters so far.
        stored: how many of them are committed.
        on_growth: called after each piece in the appender's thread, so it must be quick, must not
            raise and must not wait; None while there is no watcher.
    """

    __slots__ = ("_compact_at", "_joined", "_parts", "length", "on_growth", "stored")

    def __init__(self, start: str = "") -> None:
        self.length: int = len(start)
        self.stored: int = len(start)
        self.on_growth: Callable[[], None] | None = None
        # The pieces, and the offset at which each ends. One attribute, so that a reader never
        # meets the pieces from before a compaction with the ends from after it.
        self._parts: tuple[list[str], list[int]] = ([start], [len(start)])
        self._joined = 1
        self._compact_at = 1 + _LOOSE_PIECES

    def append(self, text: str) -> None:
        """Add a piece at the end; Ctrl-C leaves the whole piece in the text or nothing of it."""
        pieces, ends = self._parts
        # Only a piece with an end counts: one whose append() was interrupted is removed.
        if len(pieces) > len(ends):
            pieces.pop()
        pieces.append(text)
        length = ends[-1] + len(text)
        ends.append(length)
        self.length = length
        if len(pieces) >= self._compact_at:
            self._compact()
        on_growth = self.on_growth
        if on_growth is not None:
            on_growth()

    def since(self, offset: int, end: int | None = None) -> str:
        """Return the text from an offset on.

        Args:
            offset: characters from the beginning.
            end: the offset to stop at; the present length when None or greater than it.

        Returns:
            The text between the two; empty if there is none.
        """
        # The length first: the parts that are fetched after it hold at least that much.
        length = self.length
        end = length if end is None or end > length else end
        if offset >= end:
            return ""
        pieces, ends = self._parts
        first = bisect_right(ends, offset)
        last = bisect_left(ends, end, first)
        begin = ends[first - 1] if first else 0
        if first == last:
            return pieces[first][offset - begin : end - begin]
        return "".join(pieces[first : last + 1])[offset - begin : end - begin]

    def mark_stored(self, length: int) -> None:
        """Note that the first ``length`` characters are committed."""
        self.stored = length

    def _compact(self) -> None:
        """Join the loose pieces; the old lists stay whole for threads that are reading them."""
        pieces, ends = self._parts
        joined = "".join(pieces[self._joined :])
        kept = self._joined
        # Pieces of like size are joined again, so their number stays small in a long text.
        while kept and len(pieces[kept - 1]) <= len(joined) <= _JOINED_LENGTH:
            kept -= 1
            joined = pieces[kept] + joined
        self._parts = ([*pieces[:kept], joined], [*ends[:kept], ends[-1]])
        self._joined = kept + 1
        self._compact_at = self._joined + _LOOSE_PIECES
