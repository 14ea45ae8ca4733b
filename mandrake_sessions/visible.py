"""Text as it may be printed: nothing in it can steer a terminal, or turn what stands around it."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

_FORMATS: Final = (
    "\u00ad\u061c\u070f\u08e2\u0890\u0891\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
"""What is not seen and changes what is: directions, separators, marks, tags. Without the joiners
(U+200C, U+200D), which make one sign of several in some scripts and in emoji."""

_SURROGATES: Final = "\ud800-\udfff"
_CONTROLS: Final = "\x00-\x1f\x7f-\x9f"
_CONTROLS_BUT_BREAKS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"


@cache
def _unseen(controls: str) -> re.Pattern[str]:
    """Return what finds such a character; made when something is printed, which takes 1 ms."""
    return re.compile(f"[{controls}{_SURROGATES}{_FORMATS}]")


def visible(text: str, *, lines: bool = False) -> str:
    """Return a text with U+FFFD for each character that is no sign of its own.

    Args:
        text: somebody's text.
        lines: whether line breaks and tabs are left in; otherwise they become spaces.
    """
    if lines:
        return _unseen(_CONTROLS_BUT_BREAKS).sub("\ufffd", text.replace("\r\n", "\n"))
    return _unseen(_CONTROLS).sub(_instead, text)


def escaped(document: str) -> str:
    """Return a JSON document that says the same without such a character: each as its escape."""
    return _unseen(_CONTROLS_BUT_BREAKS).sub(_escape, document)


def _instead(found: re.Match[str]) -> str:
    return " " if found.group() in "\n\r\t" else "\ufffd"


def _escape(found: re.Match[str]) -> str:
    units = found.group().encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
