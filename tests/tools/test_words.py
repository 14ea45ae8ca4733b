"""The tool behind ``make words``: it finds each word to avoid, and lets questions and code pass."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tools import words

# A sentence for each word, and a part of the term that the tool offers for it.
SENTENCES = {
    "A watcher is told the new state.": ("told", "notify"),
    "Tell the writer to stop.": ("Tell", "notify"),
    "It tells the caller so.": ("tells", "notify"),
    "Nobody waits for it.": ("Nobody", "no thread"),
    "Somebody holds the lock.": ("Somebody", "a process"),
    "It serves whoever asks.": ("whoever", "a caller that"),
    "In the midst of a write it ends.": ("midst", "during"),
    "The file stands beside it.": ("beside", "next to"),
    "It waits for ever.": ("for ever", "without end"),
    "A row of ours is lost.": ("of ours", "owner"),
    "A lock of theirs stays.": ("of theirs", "owner"),
    "It goes on and on.": ("on and on", "again and again"),
    "This is RULES 17.": ("RULES 17", "decision record"),
    "Who comes later waits.": ("Who", "a thread that"),
    "The lock goes to who asks first.": ("who", "a thread that"),
    "What is stored stays.": ("What is", "the part that"),
    "It reads of what was written.": ("what was", "the part that"),
}
# Each of these is as it should be.
PASSING = [
    "Who waits for the lock?",
    "What is stored in a turn?",
    "`what is this` and `nobody` are code.",
    "The caller, which waits, retells no story.",
    "This toolkit is foretold by no one.",
]


def found_in(folder: Path, name: str, text: str) -> list[words.Finding]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return list(words.words_in(path))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_word_is_found_in_a_page_a_comment_a_docstring_and_a_message(
    tmp_path: Path, sentence: str
) -> None:
    word, use = SENTENCES[sentence]
    texts = {
        "page.md": (3, f"# A page\n\n{sentence}\n"),
        "comment.py": (2, f"x = 1\n# {sentence}\n"),
        "docstring.py": (2, f'def f():\n    """{sentence}"""\n'),
        "message.py": (1, f"raise ValueError({sentence!r})\n"),
    }
    for name, (line, text) in texts.items():
        findings = found_in(tmp_path, name, text)
        assert [(each.line, each.word) for each in findings] == [(line, word)], name
        assert use in findings[0].use


def test_a_sentence_is_tried_for_each_word_of_the_tool() -> None:
    tried = {
        pattern
        for pattern in words._WORD
        for word, _ in SENTENCES.values()
        if pattern.fullmatch(word)
    }
    assert tried == words._WORD.keys()


@pytest.mark.parametrize("sentence", PASSING)
def test_questions_code_and_other_words_pass(tmp_path: Path, sentence: str) -> None:
    assert found_in(tmp_path, "page.md", f"{sentence}\n") == []
    assert found_in(tmp_path, "comment.py", f"# {sentence}\n") == []


def test_blocks_of_code_in_a_page_pass(tmp_path: Path) -> None:
    page = """\
        A caller waits.

        ```python
        # Nobody is told.
        ```

        It is told.
        """
    findings = found_in(tmp_path, "page.md", textwrap.dedent(page))
    assert [(each.line, each.word) for each in findings] == [(7, "told")]


def test_a_name_passes_except_that_of_a_test(tmp_path: Path) -> None:
    code = "def told(): return nobody\n\ndef test_a_caller_is_told(): pass\n"
    findings = found_in(tmp_path, "code.py", code)
    assert [(each.line, each.word) for each in findings] == [(3, "told")]


def test_a_clause_is_found_where_a_comment_goes_on_in_the_next_line(tmp_path: Path) -> None:
    findings = found_in(tmp_path, "code.py", "# The lock goes\n# to who asks first.\n")
    assert [(each.line, each.word) for each in findings] == [(2, "who")]


def test_the_command_prints_each_finding_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Nobody waits.\n", encoding="utf-8")
    monkeypatch.setattr(words, "_files", lambda: [page])
    assert words.main() == 1
    assert capsys.readouterr().out.startswith(f"{page}:1: 'Nobody': no thread")

    page.write_text("No thread waits.\n", encoding="utf-8")
    assert words.main() == 0
    assert capsys.readouterr().out == ""
