"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(?P<title>.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    ``output`` is the text of an ``output`` block right behind it: what the code must print.
    """

    language: str
    words: tuple[str, ...]
    text: str
    line: int
    output: str | None

    @property
    def is_program(self) -> bool:
        """Whether it runs in a process of its own."""
        return "program" in self.words

    @property
    def exit_status(self) -> int:
        """What that process must end with; negative for a signal, as ``subprocess`` has it."""
        found = [word.removeprefix("exit=") for word in self.words if word.startswith("exit=")]
        return int(found[0]) if found else 0


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """The path as the project knows it."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The file without its code blocks."""
        return _FENCE.sub("", self.text)

    @cached_property
    def blocks(self) -> list[Block]:
        """The code blocks in their order."""
        found = list(_FENCE.finditer(self.text))
        blocks = []
        for match, following in zip_longest(found, found[1:]):
            language, *words = match["info"].split() or [""]
            output = None
            if following is not None and following["info"].strip() == "output":
                between = self.text[match.end() : following.start()]
                output = following["text"] if not between.strip() else None
            line = self.text.count("\n", 0, match.start()) + 2
            blocks.append(Block(language, tuple(words), match["text"], line, output))
        return blocks

    @cached_property
    def links(self) -> list[str]:
        """What the links of the prose point to."""
        return [match["target"] for match in _LINK.finditer(self.prose)]

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors of the headings, as the usual renderers make them."""
        return {_anchor(match["title"]) for match in _HEADING.finditer(self.prose)}


def _anchor(title: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", title.replace("`", "").lower())
    return plain.replace(" ", "-")


PAGES = [Page(path) for path in (*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")))]
