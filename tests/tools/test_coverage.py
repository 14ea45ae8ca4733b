"""The measurement of the lines that the tests reach."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.coverage import executable_lines
from tools.newest_python import newest

PROJECT = Path(__file__).parent.parent.parent
SOURCE = '''"""A module."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from pathlib import Path
class Reader:
    def read(self) -> int:
        """Return a byte."""
    def close(self):
        """Close it."""
        self.is_closed = True
'''
KILLED = """import os, signal
if os.fork() == 0:
    a = 1
    os._exit(0)
os.wait()
os.kill(os.getpid(), signal.SIGKILL)
b = 2
"""


def test_lines_for_type_checkers_are_not_counted() -> None:
    assert executable_lines(SOURCE) == {1, 2, 3, 5, 6, 8, 10}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of Python 3.12")
def test_lines_of_killed_and_forked_processes_count(tmp_path: Path) -> None:
    module = tmp_path / "package" / "module.py"
    module.parent.mkdir()
    module.write_text(KILLED)
    measured = tmp_path / "measured"
    measured.mkdir()
    recorder = PROJECT / "tools" / "coverage_recorder.py"
    script = f"exec(open({str(recorder)!r}).read(), {{}}); import package.module"
    variables = {"MANDRAKE_COVERAGE_OF": f"{module.parent}/", "MANDRAKE_COVERAGE_IN": str(measured)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, cwd=tmp_path, check=False
    )
    assert ended.returncode < 0
    (file,) = measured.iterdir()
    reached = {int(line.rpartition(":")[2]) for line in file.read_text().splitlines()}
    assert reached == {1, 2, 3, 4, 5, 6}


def test_the_newest_python_is_one_that_runs() -> None:
    path = newest(sys.version_info[:2])
    assert path is None or subprocess.run([path, "-c", ""], check=False).returncode == 0
    assert newest((99,)) is None
