"""Text made safe to print: no character can steer a terminal or reorder the text around it."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

_FORMATS: Final = (
    "\u00ad\u061c\u070f\u08e2\u0890\u0891\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
"""Characters that are invisible and change others: directions, separators, marks, tags. Without the
joiners (U+200C, U+200D), which make one sign of several in some scripts and in emoji."""

_SURROGATES: Final = "\ud800-\udfff"
_CONTROLS: Final = "\x00-\x1f\x7f-\x9f"
_CONTROLS_BUT_BREAKS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"


@cache
def _unseen(controls: str) -> re.Pattern[str]:
    """Return the pattern of these characters; compiled at first use, which takes 1 ms."""
    return re.compile(f"[{controls}{_SURROGATES}{_FORMATS}]")


def visible(text: str, *, lines: bool = False) -> str:
    """Return a text with U+FFFD for each invisible control or format character.

    Args:
        text: any text.
        lines: whether to keep line breaks and tabs; otherwise they become spaces.
    """
    if lines:
        return _unseen(_CONTROLS_BUT_BREAKS).sub("\ufffd", text.replace("\r\n", "\n"))
    return _unseen(_CONTROLS).sub(_instead, text)


def escaped(document: str) -> str:
    """Return an equal JSON document without such characters: each becomes its escape."""
    return _unseen(_CONTROLS_BUT_BREAKS).sub(_escape, document)


def _instead(found: re.Match[str]) -> str:
    return " " if found.group() in "\n\r\t" else "\ufffd"


def _escape(found: re.Match[str]) -> str:
    units = found.group().encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
