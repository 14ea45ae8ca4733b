"""Which lines of the library a command reaches, in every process of it: ``make coverage``.

``python -m tools.coverage COMMAND…`` runs a command, prints the figure of each module and of all,
and fails below ``FLOOR``. It needs Python 3.12, which has ``sys.monitoring``. ``coverage.py`` is
not used, because it imports ``sqlite3``, a second SQLite library in the process.
"""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import CodeType

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "mandrake_sessions"
FLOOR = 97.0
"""Percent of lines: what the tests reach, less what differs from run to run."""

_RECORDER = Path(__file__).with_name("coverage_recorder.py")


def main(command: list[str]) -> int:
    """Run a command, and print what it reached."""
    with tempfile.TemporaryDirectory() as folder, _started_in_each_process():
        variables = {"MANDRAKE_COVERAGE_OF": f"{PACKAGE}{os.sep}", "MANDRAKE_COVERAGE_IN": folder}
        status = subprocess.run(command, env=os.environ | variables, check=False).returncode
        files = list(Path(folder).iterdir())
        reached = {line for file in files for line in file.read_text("utf-8").splitlines()}
    share = _print(reached, len(files))
    if status == 0 and share < FLOOR:
        print(f"coverage: {share:.1f} % of the lines, less than {FLOOR} %", file=sys.stderr)
        return 1
    return status


@contextlib.contextmanager
def _started_in_each_process() -> Generator[None, None, None]:
    """Have this environment's interpreters start the recorder, where the variables are set."""
    hook = Path(sysconfig.get_path("purelib")) / "mandrake_coverage.pth"
    start = f"exec(compile(open({str(_RECORDER)!r}).read(), 'coverage', 'exec'), {{}})"
    hook.write_text(f"import os; 'MANDRAKE_COVERAGE_IN' in os.environ and {start}\n", "utf-8")
    try:
        yield
    finally:
        hook.unlink()


def _print(reached: set[str], processes: int) -> float:
    every = ran = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = executable_lines(path.read_text("utf-8"))
        missed = sorted(line for line in lines if f"{path}:{line}" not in reached)
        every += len(lines)
        ran += len(lines) - len(missed)
        if missed:
            name = path.relative_to(PROJECT)
            print(f"{1 - len(missed) / len(lines):7.1%}  {name}: {_ranges(missed)}")
    print(f"{ran / every:7.2%}  {ran} of {every} lines, in {processes} processes")
    return 100 * ran / every


def executable_lines(source: str) -> set[int]:
    """Return the numbers of the lines that can run.

    Without what only type checkers read: ``if TYPE_CHECKING:``, and bodies that are a docstring.
    """
    tree = ast.parse(source)
    return _lines_of(compile(tree, "", "exec")) - {
        line
        for node in ast.walk(tree)
        for statement in _never_run(node)
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    }


def _lines_of(code: CodeType) -> set[int]:
    lines = {line for _, _, line in code.co_lines() if line}
    return lines.union(*(_lines_of(each) for each in code.co_consts if isinstance(each, CodeType)))


def _never_run(node: ast.AST) -> list[ast.stmt]:
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return node.body
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        is_empty = all(
            isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
            for each in node.body
        )
        return node.body if is_empty else []
    return []


def _ranges(lines: list[int]) -> str:
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][-1] + 1:
            parts[-1].append(line)
        else:
            parts.append([line])
    return ", ".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
