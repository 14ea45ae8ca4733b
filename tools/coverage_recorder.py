"""Records which lines of a package a process runs; ``tools/coverage.py`` starts it.

Each line goes into an append-only file when it first runs: the lines of a process that is killed
count, and a forked child goes on with the file of its parent. Nothing is imported here that a
process would not have anyway, because tests look at what is loaded.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

# Types of Python 3.11, which the project is checked with, know no sys.monitoring.
monitoring = getattr(sys, "monitoring")  # noqa: B009
events = monitoring.events
_TOOL = monitoring.COVERAGE_ID


def record(package: str, folder: str) -> None:
    """Record from now on.

    Args:
        package: the beginning of the names of its source files.
        folder: where the files are written, one for each process.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    descriptor = os.open(os.path.join(folder, str(os.getpid())), flags, 0o600)

    def on_start(code: CodeType, _offset: int) -> object:
        if code.co_filename.startswith(package):
            monitoring.set_local_events(_TOOL, code, events.LINE)
        return monitoring.DISABLE

    def on_line(code: CodeType, line: int) -> object:
        try:  # noqa: SIM105  # contextlib would be loaded
            os.write(descriptor, f"{code.co_filename}:{line}\n".encode())
        except OSError:
            # A test lets no file grow: another process runs this line too, or it is missed.
            pass
        return monitoring.DISABLE

    monitoring.use_tool_id(_TOOL, "coverage")
    monitoring.register_callback(_TOOL, events.PY_START, on_start)
    monitoring.register_callback(_TOOL, events.LINE, on_line)
    monitoring.set_events(_TOOL, events.PY_START)


# A process may read its .pth files twice.
if monitoring.get_tool(_TOOL) is None:
    record(os.environ["MANDRAKE_COVERAGE_OF"], os.environ["MANDRAKE_COVERAGE_IN"])
