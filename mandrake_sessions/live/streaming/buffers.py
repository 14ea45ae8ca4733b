"""The two texts of a streaming turn, and the chunk of them that is being stored."""

from __future__ import annotations

from mandrake_sessions.errors import InvalidArgumentError
from mandrake_sessions.json_text.plain_forms import as_str, paired
from mandrake_sessions.json_text.writer import MAX_TEXT_BYTES
from mandrake_sessions.live.streaming.outcome import Outcome
from mandrake_sessions.live.text import GrowingText
from mandrake_sessions.records.streaming import Chunk, Remainder


class TextBuffer:
    """One of the two texts of a turn.

    Attributes:
        text: the text so far, which readers share.
        size: its bytes in UTF-8.
        held: half a surrogate pair whose other half may come with the next piece.
        frozen: characters that are in a chunk, stored or not.
        stored_size: bytes that are stored.
    """

    __slots__ = ("_kept", "frozen", "held", "name", "size", "stored_size", "text")

    def __init__(self, name: str, text: GrowingText) -> None:
        self.name: str = name
        self.text: GrowingText = text
        self.size: int = 0
        self.held: str = ""
        self.frozen: int = 0
        self.stored_size: int = 0
        self._kept = (0, 0)

    def require_room(self, size: int) -> None:
        """Refuse a piece that would make the text longer than ``MAX_TEXT_BYTES``."""
        if self.size + size > MAX_TEXT_BYTES:
            raise InvalidArgumentError(
                f"{self.name} must not be longer than {MAX_TEXT_BYTES} bytes."
            )

    def note_kept_so_far(self) -> None:
        """Note where the text ends whose rest is being stored after the turn's end."""
        self._kept = (self.text.length, self.size)

    def note_kept(self) -> None:
        """Note that the text up to the noted place is stored."""
        self.frozen, self.stored_size = self._kept
        self.text.mark_stored(self.frozen)

    def joined(self, piece: object) -> tuple[str, str]:
        """Return a piece with its surrogates paired, and the half to hold back after it."""
        given = as_str(piece)
        if given is None:
            raise InvalidArgumentError(f"{self.name} must be a string.")
        whole = self.held + given
        held = ""
        if "\ud800" <= whole[-1:] <= "\udbff":
            whole, held = whole[:-1], whole[-1]
        return paired(whole), held


class PendingChunk:
    """A chunk that is stored unchanged, in as many attempts as that takes."""

    __slots__ = ("chunk", "content_end", "content_size", "raw_end", "raw_size", "size", "waiters")

    def __init__(
        self,
        chunk: Chunk,
        ends: tuple[int, int],
        size: int,
        waiters: list[Outcome[None]],
    ) -> None:
        self.chunk: Chunk = chunk
        self.content_end: int = ends[0]
        self.raw_end: int = ends[1]
        self.content_size: int = size_of(chunk.content)
        self.raw_size: int = size_of(chunk.raw_response)
        self.size: int = size
        self.waiters: list[Outcome[None]] = waiters


def remainders_of(
    content: TextBuffer, raw: TextBuffer, frozen: PendingChunk | None
) -> list[Remainder]:
    """Return the unstored rests of two texts, one for each state that the row may be in."""
    sizes = content.stored_size, raw.stored_size
    texts = content.text.since(content.text.stored), raw.text.since(raw.text.stored)
    found = [Remainder(*sizes, *texts)]
    if frozen is not None:
        # An attempt with an unknown outcome may have stored it.
        found.append(
            Remainder(
                sizes[0] + frozen.content_size,
                sizes[1] + frozen.raw_size,
                content.text.since(frozen.content_end),
                raw.text.since(frozen.raw_end),
            )
        )
    # The last rest may be empty: nothing is missing if that attempt has stored the chunk.
    return found if any(texts) else []


def size_of(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
