"""Refuses vague words in comments, docstrings, messages, names of tests and pages: ``make words``.

A sentence names its subject (a thread, a process, a caller, the writer) and uses the field's terms;
``CONTRIBUTING.md`` has the rules, ``docs/glossary.md`` the terms.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent

WORDS = {
    r"told|tells?": "notify, log, return, say; name the subject",
    r"nobody": "no thread, no process, no caller",
    r"somebody": "a thread, a process, a caller",
    r"whoever": "a caller that, a thread that",
    r"midst": "during, while",
    r"beside": "next to, with, compared with",
    r"for ever": "without end, as long as the process lives",
    r"of ours|of theirs": "name the owner",
    r"on and on": "again and again, without a pause",
    r"RULES \d+": "name the decision record, or the rule itself",
}
_WORD = {re.compile(rf"\b(?:{each})\b", re.IGNORECASE): use for each, use in WORDS.items()}
# At the beginning of a sentence or a clause, where a question would stand.
_CLAUSE = re.compile(
    r"(?:^|[.;:,(]\s|\bor |\band |\bthat |\bof |\bfor |\bto )(who(?: |'s)|what (?:is|was) )",
    re.IGNORECASE,
)
_USES_CLAUSE = "a caller that, a thread that; the part that"
# They name the words.
_NAMING = {Path(__file__).resolve(), PROJECT / "tests/tools/test_words.py"}
_SHORT = re.compile(r"`[^`]*`")
_FENCE = re.compile(r"^\s*(```|~~~)")


class Finding(NamedTuple):
    """A word to avoid.

    Attributes:
        path: of the file, from the project's folder.
        line: its number.
        word: as it stands there.
        use: what to write.
    """

    path: str
    line: int
    word: str
    use: str


def main() -> int:
    """Print every finding; return how the command exits."""
    findings = [found for path in _files() for found in words_in(path)]
    for each in findings:
        sys.stdout.write(f"{each.path}:{each.line}: {each.word!r}: {each.use}\n")
    return min(1, len(findings))


def words_in(path: Path) -> Iterator[Finding]:
    """Yield the words to avoid in one file."""
    name = str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)
    texts = _python(path) if path.suffix == ".py" else _markdown(path)
    for line, text in texts:
        yield from (Finding(name, line + at, word, use) for at, word, use in _judge(text))


def _judge(text: str) -> Iterator[tuple[int, str, str]]:
    plain = _SHORT.sub(lambda code: " " * len(code[0]), text)
    for pattern, use in _WORD.items():
        for found in pattern.finditer(plain):
            yield plain.count("\n", 0, found.start()), found[0], use
    for found in _CLAUSE.finditer(plain):
        if not _is_question(plain, found.end()):
            yield plain.count("\n", 0, found.start(1)), found[1].strip(), _USES_CLAUSE


def _is_question(text: str, start: int) -> bool:
    end = re.compile(r"[.?!;:]").search(text, start)
    return end is not None and end[0] == "?"


def _files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.md"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [PROJECT / each for each in listed.stdout.splitlines()]
    return [path for path in paths if path.exists() and path not in _NAMING]


def _python(path: Path) -> Iterator[tuple[int, str]]:
    """Yield comments, strings and the names of tests, each with its first line."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            yield node.lineno, node.name.replace("_", " ")
    block: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] == first + len(block):
            block.append(token.string.lstrip("# "))
            continue
        if block:
            yield first, "\n".join(block)
        first, block = token.start[0], [token.string.lstrip("# ")]
    if block:
        yield first, "\n".join(block)


def _markdown(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the text outside of code, a paragraph at a time."""
    is_code = False
    block: list[str] = []
    first = 1
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code and line.strip():
            first = first if block else number
            block.append(line)
            continue
        if block:
            yield first, "\n".join(block)
        block = []
    if block:
        yield first, "\n".join(block)


if __name__ == "__main__":
    raise SystemExit(main())
