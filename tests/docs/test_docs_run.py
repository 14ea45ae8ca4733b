"""Every Python block of the documentation runs, and prints what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT, Block, Page

from mandrake_sessions import default_pool

NOT_RUN = {"output", "console", "text", "mermaid", "sql", "{eval-rst}"}
"""Languages of blocks that show something and are not Python."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory that is home, root and working directory; the pool is closed after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MANDRAKE_DIR", str(tmp_path / "mandrake"))
    # A shell that started the tests in the background has SIGINT ignored, and programs inherit it.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield tmp_path
    signal.signal(signal.SIGINT, former)
    default_pool().close()


def _blocks_of(page: Page) -> list[Block]:
    return [block for block in page.blocks if block.language == "python"]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks_of(page)], ids=lambda page: page.name
)
def test_the_python_blocks_of_a_page_run_in_their_order(page: Page, home: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for block in _blocks_of(page):
        if block.is_program:
            printed = _run_program(block, page, home)
        else:
            printed = _run_here(block, page, namespace)
        if block.output is not None:
            assert printed == block.output, f"{page.name}:{block.line}"
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def _run_here(block: Block, page: Page, namespace: dict[str, object]) -> str:
    # Empty lines in front, so that a traceback names the line of the page.
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, str(page.path), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    return printed.getvalue()


def _run_program(block: Block, page: Page, home: Path) -> str:
    program = home / "program.py"
    program.write_text(block.text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == block.exit_status, f"{page.name}:{block.line}\n{done.stderr}"
    return done.stdout


def test_only_blocks_that_are_no_python_are_not_run() -> None:
    unknown = [
        f"{page.name}:{block.line} {block.language!r}"
        for page in PAGES
        for block in page.blocks
        if block.language not in {*NOT_RUN, "python"}
    ]
    assert unknown == []


def test_an_output_block_stands_behind_the_code_that_prints_it() -> None:
    shown = sum(block.language == "output" for page in PAGES for block in page.blocks)
    checked = sum(block.output is not None for page in PAGES for block in _blocks_of(page))
    assert shown == checked
